//! Who answers what other nodes say.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use flotilla_api::{ApiError, NodeId};
use futures::future::BoxFuture;
use tokio::{
    sync::{SetOnce, watch},
    time::timeout,
};

use crate::{
    auth::Authority,
    cluster::{Cluster, join},
    consensus::Consensus,
    engine::Engine,
    http::{self, App},
    images::Images,
    peers::{Handler, Method, Stream, starting},
    route::{self, Router},
    store::Store,
    vault::Vault,
    volumes::{self, Served, Volumes},
};

use super::storage;

/// How long a stream waits for the rest of this node: other nodes link with it before that is put together.
const STARTING: Duration = Duration::from_secs(5);

/// The consensus answers from the start, the rest as soon as this node knows its cluster.
#[derive(Debug)]
pub(super) struct Peering {
    pub(super) consensus: Consensus,
    /// The members, as far as they are known: a machine that only stores is one from the first moment on.
    members: watch::Receiver<Arc<flotilla_core::State>>,
    rest: SetOnce<Rest>,
}

pub(super) struct Rest {
    pub(super) cluster: Cluster,
    pub(super) engine: Engine,
    pub(super) volumes: Volumes,
    pub(super) images: Images,
    pub(super) router: Router,
    pub(super) store: Store,
    pub(super) authority: Authority,
    /// Absent on a machine that only stores.
    pub(super) cluster_key: Option<SigningKey>,
    pub(super) vault: Vault,
    /// What answers calls of the API that another node passes on.
    pub(super) app: SetOnce<Weak<App>>,
}

impl std::fmt::Debug for Rest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rest").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

impl Peering {
    pub(super) fn new(consensus: Consensus, members: watch::Receiver<Arc<flotilla_core::State>>) -> Arc<Self> {
        Arc::new(Self { consensus, members, rest: SetOnce::new() })
    }

    fn stores_only(&self, machine: &NodeId) -> bool {
        self.members.borrow().stores_only(machine)
    }

    /// From now on everything is answered. Once.
    pub(super) fn complete(&self, rest: Rest) {
        if self.rest.set(rest).is_err() {
            tracing::error!("the node was put together twice");
        }
    }
}

impl Peering {
    /// From now on calls that another node passes on are answered, too.
    pub(super) fn serve(&self, app: &Arc<App>) {
        if let Some(rest) = self.rest.get()
            && rest.app.set(Arc::downgrade(app)).is_err()
        {
            tracing::error!("the node was put together twice");
        }
    }
}

/// [`Handler`] of the node; a handle, as answers outlive the call.
#[derive(Clone, Debug)]
pub(super) struct Answering(pub(super) Arc<Peering>);

impl Handler for Answering {
    fn call(&self, from: NodeId, method: Method, body: Bytes) -> BoxFuture<'static, Result<Bytes, ApiError>> {
        if self.0.stores_only(&from)
            && let Err(refused) = storage::may_call(&from, method, &body)
        {
            tracing::warn!(%from, ?method, "a machine that only stores asked for what is none of its business");
            return Box::pin(std::future::ready(Err(refused)));
        }
        if Consensus::answers(method) {
            return self.0.consensus.call(from, method, body);
        }
        let this = self.0.clone();
        Box::pin(async move {
            let rest = this.rest.get().ok_or_else(starting)?;
            match method {
                Method::Keys => rest.vault.answer(&from, &body).await,
                Method::Offer | Method::Holds | Method::Recall | Method::Past => {
                    rest.volumes.answer(&from, method, &body).await
                }
                Method::Image | Method::Layers => rest.images.answer(&rest.engine, method, &body).await,
                _ => rest.cluster.answer(&from, method, &body),
            }
        })
    }

    fn takes_strangers(&self) -> bool {
        self.0.rest.get().is_some_and(|rest| rest.cluster_key.is_some())
    }

    fn stranger(&self, public_key: String, body: Bytes) -> BoxFuture<'static, Result<Bytes, ApiError>> {
        let this = self.0.clone();
        Box::pin(async move {
            let rest = this.rest.get().ok_or_else(starting)?;
            let member = join::Member {
                store: &rest.store,
                authority: &rest.authority,
                cluster_key: rest.cluster_key.as_ref().ok_or_else(storage::takes_nobody)?,
                vault: &rest.vault,
            };
            join::answer_join(member, &public_key, &body).await
        })
    }

    fn stream(&self, from: NodeId, label: String, stream: Stream) -> BoxFuture<'static, ()> {
        let this = self.0.clone();
        Box::pin(async move {
            let Ok(rest) = timeout(STARTING, this.rest.wait()).await else { return };
            if this.stores_only(&from) {
                // It gets what it may keep, and reaches nothing else: no instance, and no call in somebody's name.
                if label == volumes::LABEL {
                    rest.volumes.serve(&from, stream, Served::Sealed).await;
                } else {
                    tracing::warn!(%from, label, "a machine that only stores asked for a stream that is none of its business");
                }
                return;
            }
            if let Some(instance) = label.strip_prefix(route::LABEL) {
                rest.router.serve(instance, stream).await;
            } else if label == volumes::LABEL {
                rest.volumes.serve(&from, stream, Served::All).await;
            } else if label == http::PEER_LABEL
                && let Ok(app) = timeout(STARTING, rest.app.wait()).await
                && let Some(app) = app.upgrade()
            {
                http::serve_member(app, from, stream).await;
            } else {
                tracing::debug!(%from, label, "a stream for nothing that is here");
            }
        })
    }
}

/// The members that the mesh links with: what a machine that joins was told, until its own state knows better.
pub(super) fn members(store: &Store, told: Option<flotilla_core::State>) -> watch::Receiver<Arc<flotilla_core::State>> {
    let mut states = store.watch();
    let Some(told) = told else { return states };
    let (sender, receiver) = watch::channel(Arc::new(told));
    tokio::spawn(async move {
        loop {
            let state = states.borrow_and_update().clone();
            if state.cluster.is_some() && state.machines.len() > 1 && sender.send(state).is_err() {
                return;
            }
            if states.changed().await.is_err() {
                return;
            }
        }
    });
    receiver
}
