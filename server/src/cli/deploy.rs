//! `flotilla deploy`: reads the compose file and its variables, builds what is to be built, deploys, and waits.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use comfy_table::Cell;
use flotilla_api::{
    ApiError, ErrorCode, StackName,
    rest::{BuildLine, BuildQuery, COMPOSE_MAX, DEPLOYED_VALUES_MAX, DeployRequest, DeployResponse, DeployedValue},
};
use flotilla_core::compose::{self, Build, DeclaredValue, ValueSource};
use futures::StreamExt;
use zeroize::Zeroizing;

use super::{Failure, Session, args::Deploy, dotenv, values, wait};
use crate::client::{BuildContext, Error};

/// As Docker Compose looks for them.
const USUAL_NAMES: [&str; 4] = ["compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml"];

/// Lines of a failed build's output that are shown.
const BUILD_LINES: usize = 30;

/// A compose file as it was found.
struct Source {
    /// For messages.
    name: String,
    text: String,
    /// What paths in it are relative to, and where its `.env` is.
    directory: PathBuf,
}

pub(super) async fn run(args: Deploy, session: &Session) -> Result<(), Failure> {
    let source = Source::read(args.file.as_deref())?;
    let stack = args.stack.as_ref().map_or_else(|| stack_of(&source.directory), ToString::to_string);
    let variables = dotenv::variables(&source.text, &source.directory, |name| std::env::var(name).ok())?;
    let refuse = |error: ApiError| Failure::Compose { error, file: source.name.clone(), text: source.text.clone() };

    // Read here too: a mistake is told before anything is built, and without a node.
    let composition = compose::read(&source.text, Some(&stack), &variables).map_err(refuse)?;
    if !args.dry_run {
        for build in &composition.builds {
            run_build(session, &source.directory, build).await?;
        }
    }

    let values = brought(&composition.values, &source.directory)?;
    let (compose, stack) = (source.text.clone(), Some(stack));
    let request = DeployRequest { compose, stack, variables, dry_run: args.dry_run, values };
    let response = session.client.deploy(&request).await.map_err(|error| match error {
        Error::Api(error) if error.line.is_some() => refuse(error),
        other => other.into(),
    })?;
    if args.wait {
        let awaited = wait::Awaited::all(&response.services, &composition.services);
        wait::until_healthy(session, &awaited, args.timeout).await?;
    }
    report(&response, args.dry_run, session)?;
    if args.dry_run {
        for build in &composition.builds {
            session.output.note(&format!("{} would be built from {}", build.image, build.context));
        }
    }
    Ok(())
}

/// The secrets and configs that the file names a file or a variable for.
fn brought(declared: &[DeclaredValue], directory: &Path) -> Result<Vec<DeployedValue>, Failure> {
    let mut brought = Vec::new();
    let mut size = 0;
    for DeclaredValue { kind, key, source, .. } in declared {
        let bytes = match source {
            ValueSource::File(path) => values::read_file(&directory.join(path))?,
            ValueSource::Environment(name) => {
                let value = dotenv::variable(name, directory, |name| std::env::var(name).ok())?;
                let missing =
                    || Failure::Usage(format!("the {kind} `{key}` is the variable `{name}`, which is not set"));
                Zeroizing::new(value.ok_or_else(missing)?.into_bytes())
            }
            ValueSource::Content(_) => continue,
        };
        size += bytes.len();
        brought.push(DeployedValue { kind: *kind, key: key.clone(), value: values::encode(&bytes) });
    }
    if size > DEPLOYED_VALUES_MAX {
        let max = DEPLOYED_VALUES_MAX / 1024;
        let why =
            format!("the files of secrets and configs have more than {max} KiB; bake what is large into the image");
        return Err(Failure::Usage(why));
    }
    Ok(brought)
}

fn report(response: &DeployResponse, dry_run: bool, session: &Session) -> Result<(), Failure> {
    let output = session.output;
    if output.json {
        return output.value(response);
    }
    let rows = response
        .services
        .iter()
        .map(|one| {
            let change = match (one.changed, dry_run) {
                (true, false) => "deployed",
                (true, true) => "would be deployed",
                (false, _) => "unchanged",
            };
            vec![
                Cell::new(&one.service),
                Cell::new(one.revision),
                Cell::new(change),
                Cell::new(one.url.as_deref().unwrap_or_default()),
            ]
        })
        .collect();
    output.table(&["SERVICE", "REVISION", "CHANGE", "URL"], rows, "The file has no services.")
}

async fn run_build(session: &Session, directory: &Path, build: &Build) -> Result<(), Failure> {
    let context = BuildContext::open(&directory.join(&build.context), build.dockerfile.as_deref())?;
    let args = match build.args.is_empty() {
        true => None,
        false => Some(serde_json::to_string(&build.args).map_err(|error| Failure::Other(error.to_string()))?),
    };
    let query = BuildQuery {
        image: build.image.clone(),
        dockerfile: build.dockerfile.clone(),
        target: build.target.clone(),
        args,
    };
    // Who watches sees all of it; a script that succeeds need not, and one that fails gets the end of it.
    let watched = session.output.draws_progress();
    if watched {
        session.output.note(&format!("Building {} from {}", build.image, build.context));
    }
    let mut lines = session.client.build(&query, context).await?;
    let mut last = VecDeque::with_capacity(BUILD_LINES);
    while let Some(line) = lines.next().await {
        match line? {
            BuildLine::Output { text } if watched => session.output.note(text.trim_end()),
            BuildLine::Output { text } => {
                if last.len() == BUILD_LINES {
                    last.pop_front();
                }
                last.push_back(text.trim_end().to_owned());
            }
            BuildLine::Done { .. } => return Ok(()),
            BuildLine::Error { error } => return Err(Failure::Build { error, output: last.into() }),
        }
    }
    let message = "the node ended the build without a result; look at its log";
    Err(Failure::Build { error: ApiError::new(ErrorCode::BuildFailed, message), output: last.into() })
}

impl Source {
    fn read(file: Option<&Path>) -> Result<Self, Failure> {
        let path = match file {
            Some(path) if path == Path::new("-") => {
                let text = read_limited(io::stdin()).map_err(|error| match error.kind() {
                    io::ErrorKind::FileTooLarge => too_large(),
                    _ => Failure::Usage(format!("the standard input can't be read: {error}")),
                })?;
                return Ok(Self { name: "standard input".into(), text, directory: PathBuf::from(".") });
            }
            Some(path) => path.to_owned(),
            None => USUAL_NAMES.iter().map(PathBuf::from).find(|path| path.is_file()).ok_or_else(|| {
                Failure::Usage("there is no compose.yaml in this directory; name a file with -f".into())
            })?,
        };
        let text = File::open(&path).and_then(read_limited).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Failure::Usage(format!("there is no file `{}`", path.display())),
            io::ErrorKind::FileTooLarge => too_large(),
            _ => Failure::Usage(format!("`{}` can't be read: {error}", path.display())),
        })?;
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        Ok(Self { name: path.display().to_string(), text, directory })
    }
}

fn read_limited(file: impl Read) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.take(COMPOSE_MAX as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > COMPOSE_MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    String::from_utf8(bytes).map_err(|_| io::Error::other("it is not UTF-8 text"))
}

fn too_large() -> Failure {
    let message = format!("a compose file has at most {} KiB; this one is larger", COMPOSE_MAX / 1024);
    Error::Api(ApiError::new(ErrorCode::ComposeTooLarge, message)).into()
}

/// The name of the directory as far as it is one for a stack, as Docker Compose makes project names.
fn stack_of(directory: &Path) -> String {
    let absolute = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
    let name = absolute.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    let label: String = name
        .chars()
        .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' })
        .take(flotilla_api::id::NAME_MAX)
        .collect();
    let label = label.trim_matches('-');
    if label.parse::<StackName>().is_ok() { label.to_owned() } else { "default".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_is_named_for_its_directory() {
        for (directory, name) in [("My App_2", "my-app-2"), ("--", "default"), ("é", "default"), ("notes", "notes")] {
            let base = tempfile::tempdir().unwrap();
            let path = base.path().join(directory);
            std::fs::create_dir(&path).unwrap();
            assert_eq!(stack_of(&path), name);
        }
    }

    #[test]
    fn a_file_that_is_too_large_or_no_text_is_refused() {
        assert_eq!(read_limited(io::repeat(b'a')).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert!(too_large().text(true).contains("compose-too-large"));
        assert!(read_limited(&b"\xff\xfe"[..]).unwrap_err().to_string().contains("UTF-8"));
        let missing = Source::read(Some(Path::new("/nowhere/compose.yaml"))).err().unwrap();
        assert_eq!(missing.to_string(), "there is no file `/nowhere/compose.yaml`");
        assert_eq!(missing.exit_code(), 2);
    }
}
