//! The node's API under `/api/v1`, typed. Each request carries this browser's token and a proof that it holds the token's key.

mod failure;
mod ndjson;
mod transport;

use std::time::Duration;

use base64::Engine as _;
use flotilla_api::{
    MachineName, Revision, TokenId, UnixMillis, ValueName,
    rest::{
        BindToken, ChangeMachine, ClusterView, CreateInvitation, CreateToken, CreatedInvitation, CreatedToken,
        DemoAnswer, DeployRequest, DeployResponse, Deployed, EventView, ExplainView, HeldImageView, IssuedToken,
        LogLine, LogQuery, MachineDetail, MachineView, PlacedView, Plain, RedeemInvitation, Removed, RestoreRequest,
        Restored, RevisionView, RollbackRequest, ScaleRequest, ScrubView, ServiceDetail, ServiceView, TokenView,
        ValueSet, ValueView, VolumeDetail, VolumeDiff, VolumeView,
    },
    spec::{ServiceSpec, ValueKind},
};
use leptos::prelude::*;
use serde::{Serialize, de::DeserializeOwned};

pub(crate) use failure::Failure;
use transport::{Answer, Call};
pub(crate) use transport::{Body, Lines};

use super::browser;
use crate::identity::Identity;

/// For a question. A node answers in milliseconds; one that takes this long has trouble that a person should hear of.
const QUESTION: Duration = Duration::from_secs(10);

/// For a change, which the node first writes to disk.
const CHANGE: Duration = Duration::from_secs(30);

/// For what goes through a whole volume's names, on each machine that may have them.
const COMPARISON: Duration = Duration::from_secs(60);

/// For what waits for an instance to end, which has two minutes for it, and for its last writes to be elsewhere.
const REMOVAL: Duration = Duration::from_secs(150);

/// For a demo's machine: its outage is watched for a minute, and measured.
const OUTAGE: Duration = Duration::from_secs(180);

/// Below this, the two clocks are taken to agree: a `Date` header has whole seconds. Milliseconds.
const SKEW_MIN: f64 = 3000.0;

/// Asks the node. Cheap to copy; all copies share one sign-in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Client {
    identity: StoredValue<Option<Identity>, LocalStorage>,
    /// The node's clock minus this browser's. Milliseconds.
    skew: RwSignal<f64>,
    /// Why the session ended, if the node ended it.
    ended: RwSignal<Option<Failure>>,
}

impl Client {
    pub(crate) fn new() -> Self {
        Self { identity: StoredValue::new_local(None), skew: RwSignal::new(0.0), ended: RwSignal::new(None) }
    }

    pub(crate) fn use_identity(&self, identity: Option<Identity>) {
        self.ended.set(None);
        self.identity.set_value(identity);
    }

    pub(crate) fn ended(&self) -> Option<Failure> {
        self.ended.get()
    }

    /// What the node's clock says when this browser's says `local`.
    pub(crate) fn node_time(&self, local: f64) -> UnixMillis {
        UnixMillis((local + self.skew.get()).max(0.0) as u64)
    }

    pub(crate) async fn cluster(&self) -> Result<ClusterView, Failure> {
        self.get("/cluster").await
    }

    pub(crate) async fn machines(&self) -> Result<Vec<MachineView>, Failure> {
        self.get("/machines").await
    }

    pub(crate) async fn machine(&self, name: &str) -> Result<MachineDetail, Failure> {
        /// As in [`service`](Self::service).
        #[derive(serde::Deserialize)]
        struct Beside {
            placements: Vec<PlacedView>,
            losses: Vec<UnixMillis>,
        }
        let answer = self.send("GET", &format!("/machines/{}", segment(name)), None, QUESTION).await?;
        let Beside { placements, losses } = read(&answer.text)?;
        Ok(MachineDetail { view: read(&answer.text)?, placements, losses })
    }

    pub(crate) async fn change_machine(&self, name: &str, change: &ChangeMachine) -> Result<(), Failure> {
        let body = json(change)?;
        self.done("PATCH", &format!("/machines/{}", segment(name)), Some(body)).await
    }

    pub(crate) async fn remove_machine(&self, name: &str, force: bool) -> Result<(), Failure> {
        self.done("DELETE", &format!("/machines/{}?force={force}", segment(name)), None).await
    }

    pub(crate) async fn drain(&self, name: &str, force: bool) -> Result<(), Failure> {
        self.done("POST", &format!("/machines/{}/drain?force={force}", segment(name)), None).await
    }

    pub(crate) async fn undrain(&self, name: &str) -> Result<(), Failure> {
        self.done("POST", &format!("/machines/{}/undrain", segment(name)), None).await
    }

    /// Has all that a machine keeps read.
    pub(crate) async fn scrub(&self, name: &str) -> Result<ScrubView, Failure> {
        self.ask("POST", &format!("/machines/{}/scrub", segment(name)), None, CHANGE).await
    }

    /// In a demo alone.
    pub(crate) async fn pull_plug(&self, name: &str) -> Result<DemoAnswer, Failure> {
        self.ask("POST", &format!("/demo/machines/{}/kill", segment(name)), None, OUTAGE).await
    }

    /// In a demo alone.
    pub(crate) async fn put_plug(&self, name: &str) -> Result<DemoAnswer, Failure> {
        self.ask("POST", &format!("/demo/machines/{}/start", segment(name)), None, OUTAGE).await
    }

    pub(crate) async fn held_images(&self) -> Result<Vec<HeldImageView>, Failure> {
        self.get("/images/held").await
    }

    pub(crate) async fn volumes(&self) -> Result<Vec<VolumeView>, Failure> {
        self.get("/volumes").await
    }

    pub(crate) async fn volume(&self, service: &str, volume: &str) -> Result<VolumeDetail, Failure> {
        self.get(&format!("/volumes/{}/{}", segment(service), segment(volume))).await
    }

    /// All secrets, or all configs.
    pub(crate) async fn values(&self, kind: ValueKind) -> Result<Vec<ValueView>, Failure> {
        self.get(&format!("/{kind}s")).await
    }

    pub(crate) async fn set_value(
        &self,
        kind: ValueKind,
        name: &ValueName,
        request: &flotilla_api::rest::SetValue,
    ) -> Result<ValueSet, Failure> {
        self.ask("PUT", &format!("/{kind}s/{}", segment(name.as_str())), Some(json(request)?), CHANGE).await
    }

    pub(crate) async fn remove_value(&self, kind: ValueKind, name: &ValueName) -> Result<(), Failure> {
        self.done("DELETE", &format!("/{kind}s/{}", segment(name.as_str())), None).await
    }

    /// What a config is, as text.
    pub(crate) async fn config(&self, name: &ValueName) -> Result<String, Failure> {
        let path = format!("/configs/{}/value", segment(name.as_str()));
        self.send("GET", &path, None, QUESTION).await.map(|answer| answer.text)
    }

    /// What changes from one generation to another; without `from`, from what is committed now.
    pub(crate) async fn volume_diff(
        &self,
        service: &str,
        volume: &str,
        from: Option<&str>,
        to: &str,
    ) -> Result<VolumeDiff, Failure> {
        let from = from.map_or_else(String::new, |from| format!("from={}&", segment(from)));
        let path = format!("/volumes/{}/{}/diff?{from}to={}", segment(service), segment(volume), segment(to));
        self.ask("GET", &path, None, COMPARISON).await
    }

    pub(crate) async fn restore(&self, service: &str, generation: &str) -> Result<Restored, Failure> {
        let request = RestoreRequest { generation: generation.to_owned(), of: None };
        self.post(&format!("/services/{}/restore", segment(service)), &request).await
    }

    /// A generation as a tar archive, as it comes.
    pub(crate) async fn export_volume(&self, service: &str, volume: &str, generation: &str) -> Result<Body, Failure> {
        let (service, volume) = (segment(service), segment(volume));
        let path = format!("/volumes/{service}/{volume}/export?generation={}", segment(generation));
        transport::body(self.call("GET", &path, None, CHANGE).await?).await.map_err(|failure| self.heard(failure))
    }

    pub(crate) async fn services(&self) -> Result<Vec<ServiceView>, Failure> {
        self.get("/services").await
    }

    pub(crate) async fn service(&self, name: &str) -> Result<ServiceDetail, Failure> {
        /// All of [`ServiceDetail`] that is not its flattened view. Reading the two apart spares the program a second copy of
        /// every reader, which `serde(flatten)` costs.
        #[derive(serde::Deserialize)]
        struct Beside {
            spec: ServiceSpec,
            placements: Vec<PlacedView>,
            standby: Vec<MachineName>,
            standby_ready: Vec<MachineName>,
            revisions: Vec<RevisionView>,
        }
        let answer = self.send("GET", &format!("/services/{}", segment(name)), None, QUESTION).await?;
        let Beside { spec, placements, standby, standby_ready, revisions } = read(&answer.text)?;
        Ok(ServiceDetail { view: read(&answer.text)?, spec, placements, standby, standby_ready, revisions })
    }

    pub(crate) async fn explain(&self, name: &str) -> Result<ExplainView, Failure> {
        self.get(&format!("/services/{}/explain", segment(name))).await
    }

    pub(crate) async fn audit(&self) -> Result<Vec<EventView>, Failure> {
        self.get("/audit").await
    }

    pub(crate) async fn tokens(&self) -> Result<Vec<TokenView>, Failure> {
        self.get("/tokens").await
    }

    pub(crate) async fn deploy(&self, request: &DeployRequest) -> Result<DeployResponse, Failure> {
        self.post("/deployments", request).await
    }

    pub(crate) async fn restart(&self, service: &str) -> Result<(), Failure> {
        self.done("POST", &format!("/services/{}/restart", segment(service)), None).await
    }

    pub(crate) async fn roll_back(&self, service: &str, to: Revision) -> Result<Deployed, Failure> {
        let request = RollbackRequest { revision: Some(to) };
        self.post(&format!("/services/{}/rollback", segment(service)), &request).await
    }

    pub(crate) async fn scale(&self, service: &str, replicas: u32) -> Result<(), Failure> {
        let body = json(&ScaleRequest { replicas })?;
        self.done("POST", &format!("/services/{}/scale", segment(service)), Some(body)).await
    }

    /// Where its volumes stay, that takes as long as its instance takes to end.
    pub(crate) async fn remove(&self, service: &str, volumes: bool) -> Result<Removed, Failure> {
        self.ask("DELETE", &format!("/services/{}?volumes={volumes}", segment(service)), None, REMOVAL).await
    }

    pub(crate) async fn create_token(&self, request: &CreateToken) -> Result<CreatedToken, Failure> {
        self.post("/tokens", request).await
    }

    pub(crate) async fn revoke_token(&self, id: &TokenId) -> Result<(), Failure> {
        self.done("DELETE", &format!("/tokens/{}", segment(&id.0)), None).await
    }

    pub(crate) async fn create_invitation(&self, request: &CreateInvitation) -> Result<CreatedInvitation, Failure> {
        self.post("/invitations", request).await
    }

    pub(crate) async fn renew_token(&self) -> Result<IssuedToken, Failure> {
        self.ask("POST", "/tokens/renew", None, CHANGE).await
    }

    /// Exchanges a plain token for one that only this browser can use.
    pub(crate) async fn bind_token(&self, token: &str, request: &BindToken) -> Result<IssuedToken, Failure> {
        let headers = vec![("authorization", format!("Bearer {token}"))];
        self.without_session("/tokens/bind", headers, json(request)?).await
    }

    pub(crate) async fn redeem_invitation(&self, request: &RedeemInvitation) -> Result<IssuedToken, Failure> {
        self.without_session("/invitations/redeem", Vec::new(), json(request)?).await
    }

    /// Whatever happens in the cluster, as it happens, without end.
    pub(crate) async fn events(&self) -> Result<Lines<EventView>, Failure> {
        transport::lines(self.call("GET", "/events", None, QUESTION).await?)
            .await
            .map_err(|failure| self.heard(failure))
    }

    pub(crate) async fn logs(&self, service: &str, query: LogQuery) -> Result<Lines<LogLine>, Failure> {
        let mut path = format!("/services/{}/logs?follow={}", segment(service), query.follow);
        if let Some(tail) = query.tail {
            path += &format!("&tail={tail}");
        }
        if let Some(since) = query.since {
            path += &format!("&since={}", since.0);
        }
        transport::lines(self.call("GET", &path, None, QUESTION).await?).await.map_err(|failure| self.heard(failure))
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.ask("GET", path, None, QUESTION).await
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Failure> {
        self.ask("POST", path, Some(json(body)?), CHANGE).await
    }

    async fn done(&self, method: &'static str, path: &str, body: Option<String>) -> Result<(), Failure> {
        self.send(method, path, body, CHANGE).await.map(|_| ())
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: &'static str,
        path: &str,
        body: Option<String>,
        limit: Duration,
    ) -> Result<T, Failure> {
        let answer = self.send(method, path, body, limit).await?;
        read(&answer.text)
    }

    async fn send(
        &self,
        method: &'static str,
        path: &str,
        body: Option<String>,
        limit: Duration,
    ) -> Result<Answer, Failure> {
        let call = self.call(method, path, body, limit).await?;
        let answer = transport::whole(call).await.map_err(|failure| self.heard(failure))?;
        self.compare_clocks(&answer);
        Ok(answer)
    }

    async fn without_session<T: DeserializeOwned>(
        &self,
        path: &str,
        headers: Vec<(&'static str, String)>,
        body: String,
    ) -> Result<T, Failure> {
        let call = Call { method: "POST", url: url(path), headers, body: Some(body), limit: CHANGE };
        let answer = transport::whole(call).await?;
        self.compare_clocks(&answer);
        read(&answer.text)
    }

    async fn call(
        &self,
        method: &'static str,
        path: &str,
        body: Option<String>,
        limit: Duration,
    ) -> Result<Call, Failure> {
        let url = url(path);
        let mut headers = Vec::new();
        if let Some(identity) = self.identity.get_value() {
            headers.push(("dpop", identity.proof(method, &url).await?));
            headers.push(("authorization", format!("DPoP {}", identity.token)));
        }
        Ok(Call { method, url, headers, body, limit })
    }

    fn heard(&self, failure: Failure) -> Failure {
        if failure.ends_session() && self.identity.with_value(Option::is_some) {
            self.ended.set(Some(failure.clone()));
        }
        failure
    }

    fn compare_clocks(&self, answer: &Answer) {
        let Some(date) = answer.date else { return };
        let skew = date - browser::now();
        let skew = if skew.abs() < SKEW_MIN { 0.0 } else { skew };
        if (self.skew.get_untracked() - skew).abs() >= SKEW_MIN {
            self.skew.set(skew);
        }
    }
}

/// A text as the bytes of a secret or config.
pub(crate) fn plain(text: &str) -> Plain {
    Plain(base64::prelude::BASE64_STANDARD.encode(text))
}

fn read<T: DeserializeOwned>(text: &str) -> Result<T, Failure> {
    serde_json::from_str(text).map_err(Failure::unreadable)
}

fn url(path: &str) -> String {
    format!("{}/api/v1{path}", browser::origin())
}

fn segment(text: &str) -> String {
    js_sys::encode_uri_component(text).into()
}

fn json(body: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string(body).map_err(Failure::unreadable)
}
