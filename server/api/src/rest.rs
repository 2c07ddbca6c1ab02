//! Bodies of the REST API under `/api/v1`. Every answer that reports a condition says when it was seen.
//!
//! ```text
//! GET    /cluster  /machines  /images  /audit          ClusterView, [MachineView], [ImageView], [EventView]
//! GET    /machines/{machine}                           MachineDetail
//! PATCH  /machines/{machine}     ChangeMachine         204
//! DELETE /machines/{machine}     ?RemoveMachineQuery   204
//! POST   /machines/{machine}/drain   ?DrainQuery        204
//! POST   /machines/{machine}/undrain                   204
//! POST   /demo/machines/{machine}/kill  /start         DemoAnswer; in a demo alone
//! GET    /events                                       EventView, newline-delimited, endless
//! POST   /deployments            DeployRequest         DeployResponse
//! GET    /services                                     [ServiceView]
//! GET    /services/{service}                           ServiceDetail
//! DELETE /services/{service}     ?RemoveQuery          Removed
//! GET    /services/{service}/explain                   ExplainView
//! POST   /services/{service}/restart                   204
//! POST   /services/{service}/rollback  RollbackRequest Deployed
//! POST   /services/{service}/scale     ScaleRequest    204
//! GET    /services/{service}/logs      ?LogQuery       LogLine, newline-delimited
//! GET    /services/{service}/exec      WebSocket       ExecRequest, ExecControl
//! GET    /volumes  /volumes/{service}/{volume}         [VolumeView], VolumeDetail
//! GET    /volumes/{service}/{volume}/export  ?ExportQuery  a tar archive
//! POST   /services/{service}/restore   RestoreRequest  204
//! GET    /secrets  /configs                            [ValueView]
//! GET    /secrets/{name}  /configs/{name}              ValueView
//! PUT    /secrets/{name}  /configs/{name}  SetValue    ValueSet
//! DELETE /secrets/{name}  /configs/{name}              204
//! GET    /configs/{name}/value   ?ValueQuery           the bytes
//! POST   /cluster/rekey                                Rekeyed
//! POST   /builds                 ?BuildQuery, a tar    BuildLine, newline-delimited
//! GET    /images/held                                  [HeldImageView]
//! POST   /images                 PushImage             PushedImage
//! DELETE /images                 ?RemoveImageQuery     [CollectedView]
//! POST   /images/lacking         AskLayers             LackingLayers
//! POST   /images/layers/{digest}                       204
//! POST   /images/renew           RenewImage            204
//! POST   /images/gc              ?CollectQuery         [CollectedView]
//! POST   /images/uploads         BeginUpload           UploadView
//! HEAD   /images/uploads/{digest}                      Upload-Offset
//! PATCH  /images/uploads/{digest}  Upload-Offset, body 204 and Upload-Offset
//! POST   /images/uploads/{digest}/finish               LoadedImages
//! GET    /tokens  POST /tokens   CreateToken           [TokenView], CreatedToken
//! DELETE /tokens/{id}                                  204
//! POST   /tokens/bind  BindToken  /tokens/renew        IssuedToken
//! POST   /invitations            CreateInvitation      CreatedInvitation
//! POST   /invitations/redeem     RedeemInvitation      IssuedToken
//! ```

mod demo;
mod image;
mod machine;
mod value;
mod volume;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Grant, InstanceId, MachineName, Revision, ServiceName, StackName, TokenId, UnixMillis, spec::ServiceSpec};

pub use crate::explain::{ExplainView, MachineVerdict, ScorePart, Verdict};
pub use demo::*;
pub use image::*;
pub use machine::*;
pub use value::*;
pub use volume::*;

/// The largest compose file that is read. Bytes.
pub const COMPOSE_MAX: usize = 256 * 1024;

/// Who a token speaks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Principal {
    pub token: TokenId,
    pub name: String,
    pub grant: Grant,
    pub expires_at: UnixMillis,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceState {
    /// Its instance is being created, has not passed its health check yet, or does not listen on its port yet.
    Starting,
    Running,
    /// Runs, but its health check fails, or nobody has listened on its port for a minute.
    Unhealthy,
    /// Ended; a restart waits for its back-off.
    Restarting,
    /// Ended, and by its restart policy stays so; or can't be started.
    Failed,
    /// Ended with exit code 0, and by its restart policy stays so.
    Completed,
    /// Scaled to zero.
    Stopped,
    /// The engine does not answer, so nobody knows; `observed_at` says how old the last knowledge is.
    Unknown,
}

impl ServiceState {
    pub const ALL: &'static [Self] = &[
        Self::Starting,
        Self::Running,
        Self::Unhealthy,
        Self::Restarting,
        Self::Failed,
        Self::Completed,
        Self::Stopped,
        Self::Unknown,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Unhealthy => "unhealthy",
            Self::Restarting => "restarting",
            Self::Failed => "failed",
            Self::Completed => "completed",
            Self::Stopped => "stopped",
            Self::Unknown => "unknown",
        }
    }
}

/// `GET /api/v1/services`, an array of it; also a row of `flotilla ps --json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceView {
    pub service: ServiceName,
    pub stack: StackName,
    /// Where its (first) instance is; absent while it has none.
    pub machine: Option<MachineName>,
    pub state: ServiceState,
    /// One sentence for a person where the state alone does not tell: why it failed, when it is tried again.
    pub message: Option<String>,
    pub revision: Revision,
    /// Where a browser opens it; absent for a service without a port.
    pub url: Option<String>,
    pub image: String,
    pub replicas: u32,
    /// The newest epoch that an instance of it was placed under; absent while none is placed.
    #[serde(default)]
    pub epoch: Option<u64>,
    /// When the state last changed.
    pub since: UnixMillis,
    /// When the state was last confirmed by the engine.
    pub observed_at: UnixMillis,
    pub instances: Vec<InstanceView>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InstanceView {
    pub id: InstanceId,
    pub machine: MachineName,
    /// From 1; which of the service's instances it is.
    #[serde(default)]
    pub replica: u32,
    /// Under which it may write the service's volumes.
    #[serde(default)]
    pub epoch: u64,
    pub revision: Revision,
    pub state: ServiceState,
    pub message: Option<String>,
    pub container: Option<String>,
    /// When the state was reached.
    #[serde(default)]
    pub since: UnixMillis,
    pub started_at: Option<UnixMillis>,
    pub restarts: u32,
    pub exit_code: Option<i64>,
    /// Live figures; absent while it does not run.
    pub cpu_cores_used: Option<f64>,
    pub memory_used_bytes: Option<u64>,
}

/// `GET /api/v1/services/{service}`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceDetail {
    #[serde(flatten)]
    pub view: ServiceView,
    pub spec: ServiceSpec,
    /// Where its replicas shall run, by replica and then epoch.
    #[serde(default)]
    pub placements: Vec<PlacedView>,
    /// Machines that shall keep its image, to take over without fetching it first.
    #[serde(default)]
    pub standby: Vec<MachineName>,
    /// Those of them that have it, as they told.
    #[serde(default)]
    pub standby_ready: Vec<MachineName>,
    /// Newest first.
    pub revisions: Vec<RevisionView>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RevisionView {
    pub revision: Revision,
    pub image: String,
    pub created_at: UnixMillis,
    /// Name of the token that made it.
    pub created_by: String,
    pub current: bool,
    /// Why it exists, where that is not a plain deployment: a roll back, by whom or for what reason.
    pub note: Option<String>,
}

/// `POST /api/v1/deployments`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeployRequest {
    /// The text of the compose file, at most [`COMPOSE_MAX`] bytes.
    pub compose: String,
    /// The stack's name where the file has no `name:`; usually the directory the file lies in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stack: Option<String>,
    /// For `${NAME}` in the file.
    #[serde(default)]
    pub variables: BTreeMap<String, String>,
    /// Check everything, change nothing.
    #[serde(default)]
    pub dry_run: bool,
    /// For entries under `secrets` and `configs` that name a file or a variable, which the node does not see. Those that differ from
    /// what the cluster has become its newest version.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<DeployedValue>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeployResponse {
    pub stack: StackName,
    pub services: Vec<Deployed>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Deployed {
    pub service: ServiceName,
    pub revision: Revision,
    pub url: Option<String>,
    /// False where the running revision already is what the file says.
    pub changed: bool,
}

/// `POST /api/v1/services/{service}/rollback`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollbackRequest {
    /// Absent: the one before the current.
    #[serde(default)]
    pub revision: Option<Revision>,
}

/// `POST /api/v1/services/{service}/scale`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScaleRequest {
    pub replicas: u32,
}

/// Query of `DELETE /api/v1/services/{service}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveQuery {
    /// Its volumes too: their data is deleted for good.
    #[serde(default)]
    pub volumes: bool,
}

/// Answer of `DELETE /api/v1/services/{service}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// The only machine that has what was written last to the volumes that are kept, as other machines could not get it in time. The service goes
    /// on with it there if it is deployed again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_writes_on: Option<MachineName>,
}

/// `POST /api/v1/tokens`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateToken {
    pub name: String,
    pub grant: Grant,
    /// Seconds from now; the node caps it.
    pub ttl_seconds: u64,
    /// Of the scope `machine`: the machine keeps encrypted copies that it can't read, and nothing else.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub storage_only: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreatedToken {
    pub id: TokenId,
    /// The JWT, or, of the scope `machine`, a join token ([`crate::JoinToken`]). It is shown once and kept nowhere.
    pub token: String,
    pub expires_at: UnixMillis,
    /// Of a join token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join: Option<JoinHint>,
}

/// What a person needs to use a join token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinHint {
    /// To type on the new machine.
    pub command: String,
    /// Where the new machine will look for the cluster: `host:port`.
    pub addresses: Vec<String>,
    /// One sentence, where no other machine could reach any of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
}

/// `GET /api/v1/tokens`, an array of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenView {
    pub id: TokenId,
    pub name: String,
    pub grant: Grant,
    pub created_at: UnixMillis,
    pub expires_at: UnixMillis,
    pub revoked_at: Option<UnixMillis>,
    /// Thumbprint (RFC 7638) of the browser key that it is bound to.
    pub bound_to: Option<String>,
    /// It is an invitation, or a machine's token to join with, that nobody has used yet; it works once.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unused: bool,
}

/// `POST /api/v1/invitations`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateInvitation {
    pub name: String,
    pub grant: Grant,
    /// Seconds from now until the link no longer works.
    pub ttl_seconds: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreatedInvitation {
    pub id: TokenId,
    /// The secret is in the fragment, which a browser never sends to a server.
    pub url: String,
    pub expires_at: UnixMillis,
}

/// `POST /api/v1/invitations/redeem`, without a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RedeemInvitation {
    /// What stood in the link's fragment.
    pub invitation: String,
    /// The browser's public key; its private half can't be exported.
    pub key: PublicKey,
    /// For `token list`: which browser this is.
    pub device: String,
}

/// `POST /api/v1/tokens/bind`: exchanges a plain token (as `Authorization: Bearer`) for one bound to the browser's key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindToken {
    pub key: PublicKey,
    pub device: String,
}

/// A P-256 public key as a JSON Web Key (RFC 7517, RFC 7518 6.2), coordinates in base64url without padding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicKey {
    pub kty: String,
    pub crv: String,
    pub x: String,
    pub y: String,
}

/// Answer of redeem, bind and renew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuedToken {
    pub token: String,
    pub principal: Principal,
}

/// `POST /api/v1/images/uploads`: begins or resumes the upload of an image archive (`docker save` format).
///
/// `PATCH /api/v1/images/uploads/{digest}` with the header `Upload-Offset` appends; `HEAD` tells the offset.
/// `POST /api/v1/images/uploads/{digest}/finish` checks the digest and hands the archive to the engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BeginUpload {
    /// SHA-256 of the whole archive, 64 hexadecimal digits.
    pub digest: String,
    pub size: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadView {
    pub digest: String,
    pub size: u64,
    /// Bytes that are already here.
    pub offset: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadedImages {
    /// References that the engine now knows.
    pub images: Vec<String>,
}

/// Query of `POST /api/v1/builds`, whose body is the build context as a tar archive, streamed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildQuery {
    /// The reference to give the image.
    pub image: String,
    /// Path in the context; `Dockerfile` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dockerfile: Option<String>,
    /// The stage to stop at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// A JSON object of build arguments, as the engine's own API has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args: Option<String>,
}

/// A line of the answer of `POST /api/v1/builds` (newline-delimited JSON).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum BuildLine {
    Output {
        text: String,
    },
    /// Last: the engine's id of the image.
    Done {
        image: String,
    },
    /// Last.
    Error {
        error: crate::ApiError,
    },
}

/// `GET /api/v1/images`, an array of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageView {
    pub id: String,
    pub references: Vec<String>,
    pub size_bytes: u64,
    pub created_at: UnixMillis,
    pub used_by: Vec<ServiceName>,
}

/// Query of `GET /api/v1/services/{service}/logs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogQuery {
    /// Go on with new lines as they come, also of instances that are started later.
    #[serde(default)]
    pub follow: bool,
    /// Begin with at most so many lines of the past; absent: all that the engine kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tail: Option<u32>,
    /// Nothing older than this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<UnixMillis>,
}

/// A line of `GET /api/v1/services/{service}/logs` (newline-delimited JSON).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    pub at: UnixMillis,
    pub instance: InstanceId,
    pub stream: LogStream,
    pub text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogStream {
    Out,
    Err,
}

/// A line of `GET /api/v1/events` (newline-delimited JSON, endless), and of `GET /api/v1/audit` (an array).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventView {
    /// Index in the state log; absent for what was only observed.
    pub index: Option<u64>,
    pub at: UnixMillis,
    pub kind: String,
    pub actor: String,
    /// Network address that the change came from, where it came over the network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    pub service: Option<ServiceName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<MachineName>,
    /// One sentence.
    pub message: String,
}

/// First message, as text, on `GET /api/v1/services/{service}/exec` (a WebSocket); then binary messages, whose first byte
/// is the stream (0 input, 1 output, 2 error output), and text messages of [`ExecControl`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    pub command: Vec<String>,
    #[serde(default)]
    pub tty: bool,
    #[serde(default)]
    pub rows: u16,
    #[serde(default)]
    pub columns: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum ExecControl {
    /// Client to node.
    Resize { rows: u16, columns: u16 },
    /// Client to node: no more input.
    Eof,
    /// Node to client, last.
    Exit { code: i64 },
    /// Node to client, last.
    Error { error: crate::ApiError },
}
