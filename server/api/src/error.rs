//! The one shape of an error on the API: a stable code for programs, one sentence for people.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiError {
    pub code: ErrorCode,
    /// One sentence that says what is wrong and what to do.
    pub message: String,
    /// Line in the submitted compose file, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// Column in that line, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<u32>,
}

impl ApiError {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), line: None, column: None }
    }

    #[must_use]
    pub fn at(mut self, line: u32, column: u32) -> Self {
        self.line = Some(line);
        self.column = Some(column);
        self
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ApiError {}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $status:literal;)*) => {
        /// Stable codes: a program may match on them; they are never renamed, only added to.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum ErrorCode {
            $($(#[$doc])* #[serde(rename = $text)] $name,)*
            /// A code that this build does not know: the other side is newer.
            #[serde(other, rename = "unknown")]
            Unknown,
        }

        impl ErrorCode {
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* Self::Unknown => "unknown" }
            }

            /// The HTTP status (RFC 9110, 15) that carries it.
            pub fn status(self) -> u16 {
                match self { $(Self::$name => $status,)* Self::Unknown => 500 }
            }
        }
    };
}

codes! {
    InvalidRequest = "invalid-request", 400;
    RequestTooLarge = "request-too-large", 413;
    RateLimited = "rate-limited", 429;
    Timeout = "timeout", 504;
    Internal = "internal", 500;
    NotFound = "not-found", 404;
    Conflict = "conflict", 409;
    DiskFull = "disk-full", 507;
    /// Most of the voting machines can't be reached: nothing can be agreed on.
    NoLeader = "no-leader", 503;
    /// No machine has what is needed.
    NoRoom = "no-room", 409;

    /// No token was sent.
    TokenMissing = "token-missing", 401;
    /// Forged, damaged, of another cluster, or not a token.
    TokenInvalid = "token-invalid", 401;
    TokenExpired = "token-expired", 401;
    TokenRevoked = "token-revoked", 401;
    /// The proof that the sender holds the token's key is missing, stale or wrong (RFC 9449).
    ProofInvalid = "proof-invalid", 401;
    ScopeInsufficient = "scope-insufficient", 403;
    InvitationInvalid = "invitation-invalid", 401;
    InvitationExpired = "invitation-expired", 401;
    InvitationUsed = "invitation-used", 401;

    InvalidName = "invalid-name", 422;
    ComposeInvalid = "compose-invalid", 422;
    ComposeTooLarge = "compose-too-large", 413;
    /// A key of the Compose specification, or an unknown one, that Flotilla does not act upon.
    ComposeUnsupported = "compose-unsupported", 422;

    ServiceNotFound = "service-not-found", 404;
    VolumeNotFound = "volume-not-found", 404;
    RevisionNotFound = "revision-not-found", 404;
    InstanceNotFound = "instance-not-found", 404;
    TokenNotFound = "token-not-found", 404;
    MachineNotFound = "machine-not-found", 404;
    /// There is no such secret or config, or not this version of it.
    ValueNotFound = "value-not-found", 404;
    ValueInUse = "value-in-use", 409;
    /// This machine does not have the key that a secret or config was sealed with, or it is another one.
    ValueKeyMissing = "value-key-missing", 503;
    VolumeInUse = "volume-in-use", 409;
    /// The machine that was asked only stores (RFC 9110, 15.5.20: ask another).
    StorageOnly = "storage-only", 421;
    ImageInUse = "image-in-use", 409;

    ImageNotFound = "image-not-found", 422;
    ImagePullFailed = "image-pull-failed", 502;
    ImageInvalid = "image-invalid", 422;
    BuildFailed = "build-failed", 422;
    UploadNotFound = "upload-not-found", 404;
    UploadOffset = "upload-offset", 409;
    UploadDigest = "upload-digest", 422;

    EngineUnavailable = "engine-unavailable", 503;
    EngineFailed = "engine-failed", 502;

    /// The service has no port to open, or nothing listens on it.
    PortClosed = "port-closed", 502;
    /// Scaled to zero.
    ServiceStopped = "service-stopped", 503;
    /// Not (yet) running.
    ServiceUnavailable = "service-unavailable", 503;

    SignalInvalid = "signal-invalid", 400;
    SignalVersion = "signal-version", 400;
    FrameInvalid = "frame-invalid", 400;
    ConnectionFailed = "connection-failed", 502;
}
