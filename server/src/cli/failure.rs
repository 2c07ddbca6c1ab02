//! Why a verb failed: one sentence for a person, an exit code for a program.

use std::{fmt::Write as _, io, path::PathBuf};

use flotilla_api::{ApiError, ErrorCode};
use serde_json::json;

use crate::{client, demo};

/// How the process ends. They are part of the command line's contract (`flotilla --help`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    General = 1,
    Usage = 2,
    Auth = 3,
    Unreachable = 4,
    NotFound = 5,
    NotHealthy = 6,
}

#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Client(#[from] client::Error),

    /// What was typed, or a file that was named, is not right.
    #[error("{0}")]
    Usage(String),

    #[error("{0}")]
    NotFound(String),

    #[error("{0}")]
    Other(String),

    /// A compose file that is not right, with the text it is about.
    #[error("{error}")]
    Compose { error: ApiError, file: String, text: String },

    /// The engine could not build an image. `output` is the end of what the build said, unless that was shown already.
    #[error("{error}")]
    Build { error: ApiError, output: Vec<String> },

    /// Deployed, but at least one service did not get healthy. `logs` are its last lines.
    #[error("{sentence}")]
    NotHealthy { sentence: String, logs: Vec<String> },

    #[error("could not {action} `{}`: {source}", .path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },

    #[error(transparent)]
    Sample(#[from] demo::sample::Error),

    /// Nobody reads the output any more (`| head`): nothing to tell, and nobody to tell it to.
    #[error("nobody reads the output")]
    OutputClosed,

    #[error("could not write the output: {0}")]
    Output(#[source] io::Error),

    /// The command that `exec` ran has ended with this code; it has spoken for itself.
    #[error("the command ended with exit code {0}")]
    CommandEnded(u8),
}

impl From<io::Error> for Failure {
    /// Of writing to the terminal; what concerns a file says which.
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe { Self::OutputClosed } else { Self::Output(error) }
    }
}

impl Failure {
    pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    pub fn exit_code(&self) -> u8 {
        let code = match self {
            Self::Client(client::Error::Api(error)) | Self::Build { error, .. } => of_api(error.code),
            Self::Client(client::Error::Unreachable { .. } | client::Error::TimedOut { .. }) => ExitCode::Unreachable,
            Self::Client(
                client::Error::Address { .. } | client::Error::File { .. } | client::Error::Context { .. },
            )
            | Self::Usage(_)
            | Self::Compose { .. } => ExitCode::Usage,
            Self::Client(_) | Self::Sample(_) | Self::Other(_) | Self::Io { .. } | Self::Output(_) => ExitCode::General,
            Self::NotFound(_) => ExitCode::NotFound,
            Self::NotHealthy { .. } => ExitCode::NotHealthy,
            Self::OutputClosed => return 0,
            Self::CommandEnded(code) => return *code,
        };
        code as u8
    }

    /// A stable word for programs: the node's own code where it gave one.
    fn code(&self) -> &'static str {
        match self {
            Self::Client(client::Error::Api(error)) | Self::Compose { error, .. } | Self::Build { error, .. } => {
                error.code.as_str()
            }
            Self::Client(client::Error::Unreachable { .. }) => "unreachable",
            Self::Client(client::Error::TimedOut { .. }) => "timeout",
            Self::Client(_) => "client",
            Self::Usage(_) => "usage",
            Self::NotFound(_) => "not-found",
            Self::NotHealthy { .. } => "not-healthy",
            _ => "failed",
        }
    }

    /// What goes to the error output; empty where there is nothing to say.
    pub fn text(&self, json: bool) -> String {
        if matches!(self, Self::OutputClosed | Self::CommandEnded(_)) {
            return String::new();
        }
        if json {
            let mut value = json!({ "code": self.code(), "message": self.to_string() });
            match self {
                Self::Compose { error, .. } | Self::Client(client::Error::Api(error)) => {
                    value["line"] = json!(error.line);
                    value["column"] = json!(error.column);
                }
                Self::NotHealthy { logs, .. } => value["logs"] = json!(logs),
                Self::Build { output, .. } => value["output"] = json!(output),
                _ => {}
            }
            return format!("{value}\n");
        }
        let mut text = format!("error: {self}\n");
        match self {
            Self::Compose { error, file, text: compose } => text.push_str(&excerpt(error, file, compose)),
            Self::NotHealthy { logs: lines, .. } | Self::Build { output: lines, .. } => lines.iter().for_each(|line| {
                let _ = writeln!(text, "  {line}");
            }),
            Self::Client(client::Error::Api(error)) if error.code == ErrorCode::TokenMissing => {
                text.push_str("  Give one with --token or FLOTILLA_TOKEN, or save it with `flotilla context save`.\n");
            }
            _ => {}
        }
        text
    }
}

fn of_api(code: ErrorCode) -> ExitCode {
    match code {
        ErrorCode::TokenMissing
        | ErrorCode::TokenInvalid
        | ErrorCode::TokenExpired
        | ErrorCode::TokenRevoked
        | ErrorCode::ProofInvalid
        | ErrorCode::ScopeInsufficient
        | ErrorCode::InvitationInvalid
        | ErrorCode::InvitationExpired
        | ErrorCode::InvitationUsed => ExitCode::Auth,
        ErrorCode::NotFound
        | ErrorCode::ServiceNotFound
        | ErrorCode::RevisionNotFound
        | ErrorCode::InstanceNotFound
        | ErrorCode::TokenNotFound
        | ErrorCode::MachineNotFound
        | ErrorCode::ValueNotFound
        | ErrorCode::ImageNotFound => ExitCode::NotFound,
        ErrorCode::Timeout => ExitCode::Unreachable,
        ErrorCode::ComposeInvalid
        | ErrorCode::ComposeTooLarge
        | ErrorCode::ComposeUnsupported
        | ErrorCode::InvalidName
        | ErrorCode::InvalidRequest
        | ErrorCode::ImageInvalid => ExitCode::Usage,
        _ => ExitCode::General,
    }
}

/// The offending line with a caret under its column, as compilers show it.
fn excerpt(error: &ApiError, file: &str, text: &str) -> String {
    let Some(line) = error.line else { return String::new() };
    let Some(source) = text.lines().nth(line.saturating_sub(1) as usize) else { return String::new() };
    let column = error.column.unwrap_or(1).max(1) as usize;
    let number = line.to_string();
    let gutter = " ".repeat(number.len());
    // Tabs are kept, so that the caret stands under its character whatever a terminal makes of them.
    let indent: String = source.chars().take(column - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
    format!("{gutter}--> {file}:{line}:{column}\n{gutter} |\n{number} | {source}\n{gutter} | {indent}^\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compose_error_shows_its_line_with_a_caret() {
        let error =
            ApiError::new(ErrorCode::ComposeUnsupported, "`privileged` is not supported; leave it out").at(4, 5);
        let text = "services:\n  notes:\n    image: x\n    privileged: true\n".to_owned();
        let failure = Failure::Compose { error, file: "compose.yaml".into(), text };
        assert_eq!(
            failure.text(false),
            "error: `privileged` is not supported; leave it out\n --> compose.yaml:4:5\n  |\n4 |     privileged: true\n  |     ^\n"
        );
        assert_eq!(failure.exit_code(), 2);
    }

    #[test]
    fn a_line_that_the_file_does_not_have_is_not_shown() {
        let error = ApiError::new(ErrorCode::ComposeInvalid, "x").at(99, 1);
        assert_eq!(excerpt(&error, "f", "a\nb"), "");
    }

    #[test]
    fn errors_as_json_have_the_nodes_code() {
        let failure = Failure::Client(client::Error::Api(ApiError::new(ErrorCode::TokenExpired, "It expired.")));
        let value: serde_json::Value = serde_json::from_str(&failure.text(true)).unwrap();
        assert_eq!(value["code"], "token-expired");
        assert_eq!(failure.exit_code(), 3);
    }
}
