//! A typed client of a node's REST API. The command line, the demo and the tests all speak through it.

mod context;
mod copy;
mod dockerignore;
mod error;
mod exec;
mod layers;
mod lines;
mod socket;
pub mod tunnel;
mod upload;

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use flotilla_api::{
    ApiError, InstanceId, MachineName, Revision, ServiceName, TokenId, ValueName, VolumeName,
    rest::{
        ChangeMachine, ClusterView, CollectQuery, CollectedView, CreateInvitation, CreateToken, CreatedInvitation,
        CreatedToken, DeployRequest, DeployResponse, Deployed, DiffQuery, DrainQuery, EventView, ExplainView,
        HeldImageView, ImageView, IssuedToken, LogLine, LogQuery, MachineDetail, MachineView, Rekeyed,
        RemoveImageQuery, RemoveMachineQuery, RemoveQuery, Removed, RenewImage, RestoreRequest, Restored,
        RollbackRequest, ScaleRequest, ScrubView, ServiceDetail, ServiceView, SetValue, TokenView, ValueSet, ValueView,
        VolumeDetail, VolumeDiff, VolumeView,
    },
    spec::ValueKind,
};
use reqwest::{Method, RequestBuilder, Response, StatusCode, header};
use serde::{Serialize, de::DeserializeOwned};
use url::Url;

pub use context::BuildContext;
pub use error::Error;
pub use exec::{Exec, ExecEvent, ExecInput, ExecOutput};
pub use layers::{Layers, Pushed};
pub use lines::Lines;
pub use upload::{Archive, PIECE_LEN};

/// How long a node may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an answer that needs no work of the engine may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// How long an answer may take for which the engine first pulls or loads an image.
const ENGINE_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// After so long without a byte the operating system asks whether the node's machine is still there; this is what ends
/// an endless answer (logs, events) whose machine has lost its power.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// The largest answer that is read as a whole: a few thousand services. Bytes.
const ANSWER_MAX: usize = 32 * 1024 * 1024;

/// Speaks with one node. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    /// Ends in a slash.
    base: Url,
    token: Option<Arc<str>>,
}

impl std::fmt::Debug for Client {
    /// Without the token: it would be a password in a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("base", &self.base.as_str()).finish_non_exhaustive()
    }
}

impl Client {
    /// `api` is the node's address, for example `http://127.0.0.1:7070`.
    ///
    /// # Errors
    /// [`Error::Address`] if that is no http or https URL.
    pub fn new(api: &str, token: Option<String>) -> Result<Self, Error> {
        let refuse = |why: String| Error::Address { url: api.to_owned(), why };
        let mut base = Url::parse(api).map_err(|error| refuse(error.to_string()))?;
        if !matches!(base.scheme(), "http" | "https") {
            return Err(refuse("it does not begin with http:// or https://".into()));
        }
        let host = base.host_str().filter(|host| !host.is_empty()).ok_or_else(|| refuse("it has no host".into()))?;
        let host = host.to_owned();
        if !base.path().ends_with('/') {
            let path = format!("{}/", base.path());
            base.set_path(&path);
        }
        base.set_query(None);
        base.set_fragment(None);

        let mut http = reqwest::Client::builder()
            .user_agent(concat!("flotilla/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_keepalive(KEEPALIVE)
            // A node never redirects a call; whoever does is not a node, and must not see the token.
            .redirect(reqwest::redirect::Policy::none());
        let local = host == "localhost" || host.ends_with(".localhost");
        if local {
            // RFC 6761, 6.3: such names are this machine, whatever the resolver thinks of them.
            let port = base.port_or_known_default().unwrap_or(80);
            http = http.resolve(&host, (Ipv4Addr::LOCALHOST, port).into());
        }
        if local || host.starts_with("127.") || host == "[::1]" {
            http = http.no_proxy();
        }
        let http = http.build().map_err(|error| refuse(error::root_cause(&error)))?;
        Ok(Self { http, base, token: token.map(Arc::from) })
    }

    /// The node's address without a slash at its end, as a person would write it.
    pub fn api(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    /// The same node, another bearer.
    #[must_use]
    pub fn with_token(&self, token: impl Into<String>) -> Self {
        Self { token: Some(Arc::from(token.into())), ..self.clone() }
    }

    /// Does the node say that it is ready to serve?
    pub async fn ready(&self) -> Result<bool, Error> {
        let request = self.http.get(self.url_at("readyz")).timeout(REQUEST_TIMEOUT);
        let response = request.send().await.map_err(|error| self.sending(error))?;
        Ok(response.status().is_success())
    }

    pub async fn cluster(&self) -> Result<ClusterView, Error> {
        self.get("cluster").await
    }

    pub async fn machines(&self) -> Result<Vec<MachineView>, Error> {
        self.get("machines").await
    }

    pub async fn machine(&self, machine: &MachineName) -> Result<MachineDetail, Error> {
        self.get(&format!("machines/{machine}")).await
    }

    pub async fn change_machine(&self, machine: &MachineName, change: &ChangeMachine) -> Result<(), Error> {
        self.done(self.request(Method::PATCH, &format!("machines/{machine}")).json(change)).await
    }

    pub async fn remove_machine(&self, machine: &MachineName, query: RemoveMachineQuery) -> Result<(), Error> {
        let path = format!("machines/{machine}?force={}", query.force);
        self.done(self.request(Method::DELETE, &path)).await
    }

    pub async fn drain(&self, machine: &MachineName, query: DrainQuery) -> Result<(), Error> {
        let path = format!("machines/{machine}/drain?force={}", query.force);
        self.done(self.request(Method::POST, &path)).await
    }

    pub async fn undrain(&self, machine: &MachineName) -> Result<(), Error> {
        self.done(self.request(Method::POST, &format!("machines/{machine}/undrain"))).await
    }

    pub async fn services(&self) -> Result<Vec<ServiceView>, Error> {
        self.get("services").await
    }

    pub async fn service(&self, service: &ServiceName) -> Result<ServiceDetail, Error> {
        self.get(&format!("services/{service}")).await
    }

    pub async fn scrub(&self, machine: &MachineName) -> Result<ScrubView, Error> {
        self.json(self.request(Method::POST, &format!("machines/{machine}/scrub"))).await
    }

    pub async fn volumes(&self) -> Result<Vec<VolumeView>, Error> {
        self.get("volumes").await
    }

    pub async fn volume(&self, service: &ServiceName, volume: &VolumeName) -> Result<VolumeDetail, Error> {
        self.get(&format!("volumes/{service}/{volume}")).await
    }

    /// The service begins anew, with its volumes as they were, or as another one's were.
    pub async fn restore(&self, service: &ServiceName, request: &RestoreRequest) -> Result<Restored, Error> {
        let path = format!("services/{service}/restore");
        self.json(self.request(Method::POST, &path).json(request).timeout(ENGINE_TIMEOUT)).await
    }

    /// What changes between two generations of a volume.
    pub async fn diff(
        &self,
        service: &ServiceName,
        volume: &VolumeName,
        query: &DiffQuery,
    ) -> Result<VolumeDiff, Error> {
        let named = [("from", &query.from), ("to", &query.to)];
        let named = named.iter().filter_map(|(key, name)| Some(format!("{key}={}", name.as_ref()?)));
        let query = named.collect::<Vec<_>>().join("&");
        self.get(&format!("volumes/{service}/{volume}/diff?{query}")).await
    }

    /// All secrets, or all configs.
    pub async fn values(&self, kind: ValueKind) -> Result<Vec<ValueView>, Error> {
        self.get(&format!("{kind}s")).await
    }

    pub async fn value(&self, kind: ValueKind, name: &ValueName) -> Result<ValueView, Error> {
        self.get(&format!("{kind}s/{name}")).await
    }

    pub async fn set_value(&self, kind: ValueKind, name: &ValueName, value: &SetValue) -> Result<ValueSet, Error> {
        self.json(self.request(Method::PUT, &format!("{kind}s/{name}")).json(value)).await
    }

    pub async fn remove_value(&self, kind: ValueKind, name: &ValueName) -> Result<(), Error> {
        self.done(self.request(Method::DELETE, &format!("{kind}s/{name}"))).await
    }

    /// What a config is: the newest version, if none is named.
    pub async fn config(&self, name: &ValueName, version: Option<u64>) -> Result<Vec<u8>, Error> {
        let query = version.map(|version| format!("?version={version}")).unwrap_or_default();
        let response = self.send(self.request(Method::GET, &format!("configs/{name}/value{query}"))).await?;
        self.whole(response).await
    }

    /// Gives the cluster a new key, and seals all secrets and configs with it.
    pub async fn rekey(&self) -> Result<Rekeyed, Error> {
        self.json(self.request(Method::POST, "cluster/rekey").timeout(ENGINE_TIMEOUT)).await
    }

    pub async fn explain(&self, service: &ServiceName) -> Result<ExplainView, Error> {
        self.get(&format!("services/{service}/explain")).await
    }

    pub async fn deploy(&self, request: &DeployRequest) -> Result<DeployResponse, Error> {
        self.json(self.request(Method::POST, "deployments").json(request).timeout(ENGINE_TIMEOUT)).await
    }

    /// Where its volumes stay, that takes as long as its instance takes to end, and its last writes to others.
    pub async fn remove(&self, service: &ServiceName, query: RemoveQuery) -> Result<Removed, Error> {
        let path = format!("services/{service}?volumes={}", query.volumes);
        self.json(self.request(Method::DELETE, &path).timeout(ENGINE_TIMEOUT)).await
    }

    pub async fn restart(&self, service: &ServiceName) -> Result<(), Error> {
        self.done(self.request(Method::POST, &format!("services/{service}/restart"))).await
    }

    /// To `revision`, or to the one before the current.
    pub async fn roll_back(&self, service: &ServiceName, revision: Option<Revision>) -> Result<Deployed, Error> {
        self.post(&format!("services/{service}/rollback"), &RollbackRequest { revision }).await
    }

    pub async fn scale(&self, service: &ServiceName, replicas: u32) -> Result<(), Error> {
        let path = format!("services/{service}/scale");
        self.done(self.request(Method::POST, &path).json(&ScaleRequest { replicas })).await
    }

    /// Lines of the service's instances, in the order of their time.
    pub async fn logs(&self, service: &ServiceName, query: LogQuery) -> Result<Lines<LogLine>, Error> {
        let mut url = self.url(&format!("services/{service}/logs"));
        {
            let mut pairs = url.query_pairs_mut();
            pairs.append_pair("follow", &query.follow.to_string());
            if let Some(tail) = query.tail {
                pairs.append_pair("tail", &tail.to_string());
            }
            if let Some(since) = query.since {
                pairs.append_pair("since", &since.0.to_string());
            }
        }
        let request = self.authorised(self.http.get(url));
        Ok(Lines::new(self.endless(request).await?, "reading logs"))
    }

    /// What happens in the cluster from now on, without an end.
    pub async fn events(&self) -> Result<Lines<EventView>, Error> {
        let response = self.endless(self.request(Method::GET, "events")).await?;
        Ok(Lines::new(response, "waiting for events"))
    }

    /// What was changed so far, oldest first.
    pub async fn audit(&self) -> Result<Vec<EventView>, Error> {
        self.get("audit").await
    }

    pub async fn images(&self) -> Result<Vec<ImageView>, Error> {
        self.get("images").await
    }

    /// Who holds which image.
    pub async fn held_images(&self) -> Result<Vec<HeldImageView>, Error> {
        self.get("images/held").await
    }

    /// From all machines; refused where a service needs it.
    pub async fn remove_image(&self, query: &RemoveImageQuery) -> Result<Vec<CollectedView>, Error> {
        let mut url = self.url("images");
        url.query_pairs_mut().append_pair("name", &query.name);
        self.json(self.authorised(self.http.delete(url)).timeout(ENGINE_TIMEOUT)).await
    }

    /// An image that the node has counts as pushed now.
    pub async fn renew_image(&self, id: &str) -> Result<(), Error> {
        self.done(self.request(Method::POST, "images/renew").json(&RenewImage { id: id.to_owned() })).await
    }

    /// What nothing needs is removed from all machines, or only listed.
    pub async fn collect_images(&self, query: CollectQuery) -> Result<Vec<CollectedView>, Error> {
        let path = format!("images/gc?dry_run={}", query.dry_run);
        self.json(self.request(Method::POST, &path).timeout(ENGINE_TIMEOUT)).await
    }

    /// Those of another machine's engine.
    pub async fn images_of(&self, machine: &MachineName) -> Result<Vec<ImageView>, Error> {
        self.get(&format!("images?machine={machine}")).await
    }

    pub async fn tokens(&self) -> Result<Vec<TokenView>, Error> {
        self.get("tokens").await
    }

    pub async fn create_token(&self, token: &CreateToken) -> Result<CreatedToken, Error> {
        self.post("tokens", token).await
    }

    pub async fn revoke_token(&self, token: &TokenId) -> Result<(), Error> {
        let mut url = self.url("tokens/");
        if let Ok(mut segments) = url.path_segments_mut() {
            // As one segment, so that an id with a slash in it can't name another resource.
            segments.pop_if_empty().push(&token.0);
        }
        self.done(self.authorised(self.http.delete(url))).await
    }

    /// A new token for the same grant, with a later end.
    pub async fn renew_token(&self) -> Result<IssuedToken, Error> {
        self.json(self.request(Method::POST, "tokens/renew")).await
    }

    pub async fn create_invitation(&self, invitation: &CreateInvitation) -> Result<CreatedInvitation, Error> {
        self.post("invitations", invitation).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        self.json(self.request(Method::GET, path)).await
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Error> {
        self.json(self.request(Method::POST, path).json(body)).await
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.authorised(self.http.request(method, self.url(path)))
    }

    fn authorised(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// Of a path under `/api/v1`. What varies in it are names and digests, whose types admit no character of URL syntax.
    fn url(&self, path: &str) -> Url {
        self.url_at(&format!("api/v1/{path}"))
    }

    fn url_at(&self, path: &str) -> Url {
        self.base.join(path).unwrap_or_else(|_| self.base.clone())
    }

    /// Sends a request whose answer ends, and has it answered with JSON.
    async fn json<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, Error> {
        let response = self.send(request).await?;
        let body = self.whole(response).await?;
        serde_json::from_slice(&body).map_err(|error| Error::Answer { why: error.to_string() })
    }

    /// Sends a request whose success is all that there is to know.
    async fn done(&self, request: RequestBuilder) -> Result<(), Error> {
        self.send(request).await.map(drop)
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, Error> {
        let (http, request) = request.build_split();
        let mut request = request.map_err(|error| self.sending(error))?;
        let after = *request.timeout_mut().get_or_insert(REQUEST_TIMEOUT);
        match http.execute(request).await {
            Ok(response) => self.accepted(response).await,
            Err(error) if error.is_timeout() && !error.is_connect() => {
                Err(Error::TimedOut { api: self.api().to_owned(), after })
            }
            Err(error) => Err(self.sending(error)),
        }
    }

    /// Sends a request whose answer may go on for ever; only its beginning has a deadline.
    async fn endless(&self, request: RequestBuilder) -> Result<Response, Error> {
        let response = tokio::time::timeout(REQUEST_TIMEOUT, request.send())
            .await
            .map_err(|_| Error::TimedOut { api: self.api().to_owned(), after: REQUEST_TIMEOUT })?
            .map_err(|error| self.sending(error))?;
        self.accepted(response).await
    }

    async fn accepted(&self, response: Response) -> Result<Response, Error> {
        let status = response.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let not_a_node = Error::NotANode { api: self.api().to_owned(), status: status.as_u16() };
        let body = self.whole(response).await?;
        Err(serde_json::from_slice::<ApiError>(&body).map_or(not_a_node, Error::Api))
    }

    async fn whole(&self, mut response: Response) -> Result<Vec<u8>, Error> {
        let mut body = Vec::new();
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|error| Error::Broken { doing: "reading its answer", why: error::root_cause(&error) })?
        {
            if body.len() + chunk.len() > ANSWER_MAX {
                return Err(Error::Answer { why: format!("it has more than {ANSWER_MAX} bytes") });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    fn sending(&self, error: reqwest::Error) -> Error {
        let why = error::root_cause(&error);
        if error.is_connect() {
            Error::Unreachable { api: self.api().to_owned(), why, source: error }
        } else {
            Error::Broken { doing: "sending a request", why }
        }
    }
}

/// The service that an instance belongs to, from its id (`<service>-<revision>-<replica>-<random>`).
pub fn service_of(instance: &InstanceId) -> Option<ServiceName> {
    instance.0.rsplitn(4, '-').nth(3)?.parse().ok()
}

/// Of the headers that the client sets itself.
const UPLOAD_OFFSET: header::HeaderName = header::HeaderName::from_static("upload-offset");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_taken_with_and_without_a_slash_at_its_end() {
        for api in ["http://127.0.0.1:7070", "http://127.0.0.1:7070/"] {
            let client = Client::new(api, None).unwrap();
            assert_eq!(client.api(), "http://127.0.0.1:7070");
            assert_eq!(client.url("services").as_str(), "http://127.0.0.1:7070/api/v1/services");
        }
        let behind_a_proxy = Client::new("https://example.org/flotilla", None).unwrap();
        assert_eq!(behind_a_proxy.url("services").as_str(), "https://example.org/flotilla/api/v1/services");
    }

    #[test]
    fn what_is_no_address_is_refused_with_an_example() {
        for api in ["", "7070", "127.0.0.1:7070", "ftp://x", "http://"] {
            let error = Client::new(api, None).unwrap_err().to_string();
            assert!(error.contains("http://127.0.0.1:7070"), "{error}");
        }
    }

    #[test]
    fn a_token_is_not_in_the_debug_text() {
        let client = Client::new("http://127.0.0.1:1", Some("s3cret".into())).unwrap();
        assert!(!format!("{client:?}").contains("s3cret"));
    }

    #[test]
    fn a_service_is_known_from_the_id_of_its_instance() {
        assert_eq!(service_of(&InstanceId("my-notes-3-0-a1b2".into())).unwrap().as_str(), "my-notes");
        assert_eq!(service_of(&InstanceId("x".into())), None);
    }

    #[tokio::test]
    async fn a_port_that_nobody_listens_on_is_told_in_one_sentence() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let client = Client::new(&format!("http://{free}"), None).unwrap();
        let error = client.services().await.unwrap_err();
        assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
        assert!(error.to_string().contains("connection refused"), "{error}");
    }
}
