//! What modules need of each other, where neither shall know the other.

use std::{net::SocketAddr, time::Duration};

use flotilla_api::{ApiError, ServiceName, rest::Principal};
use flotilla_core::{Actor, Command, CommandV1, Entry};
use futures::future::BoxFuture;

use crate::{
    auth::Authority,
    clock,
    engine::{Engine, Proposer},
    mesh::Admission,
    store::Store,
    tunnel::Backends,
};

/// How long a timer is trusted: a machine that slept wakes up later than its timers think.
const EXPIRY_CHECK: Duration = Duration::from_secs(30);

/// The reconciler changes the state in the node's own name.
#[derive(Debug)]
pub(super) struct Proposals(pub(super) Store);

impl Proposer for Proposals {
    fn propose(&self, command: CommandV1) -> BoxFuture<'_, Result<(), ApiError>> {
        Box::pin(async move {
            let actor = Actor { name: "node".to_owned(), token: None, from: None };
            let entry = Entry { at: clock::now(), actor, command: Command::V1(command) };
            self.0.propose(entry).await.map(drop).map_err(ApiError::from)
        })
    }
}

/// The tunnel asks the engine where a service is.
#[derive(Debug)]
pub(super) struct Addresses(pub(super) Engine);

impl Backends for Addresses {
    fn address(&self, service: &ServiceName) -> Result<SocketAddr, ApiError> {
        self.0.address_of(service).map_err(ApiError::from)
    }
}

/// The mesh asks who may have a session, and until when.
#[derive(Debug)]
pub(super) struct Tokens {
    pub(super) authority: Authority,
    pub(super) store: Store,
}

impl Admission for Tokens {
    fn verify(&self, token: &str, proof: Option<&str>, url: &str) -> Result<Principal, ApiError> {
        self.authority.verify_signal(token, proof, url).map_err(ApiError::from)
    }

    fn ended(&self, principal: &Principal) -> BoxFuture<'static, ApiError> {
        let (authority, mut states, principal) = (self.authority.clone(), self.store.watch(), principal.clone());
        Box::pin(async move {
            loop {
                // The principal's own end counts: a session of a token that was renewed elsewhere ends when its own token does.
                if let Err(error) = authority.standing_as(&principal) {
                    return error.into();
                }
                let left = Duration::from_millis(principal.expires_at.since(clock::now()));
                tokio::select! {
                    changed = states.changed() => if changed.is_err() {
                        return ApiError::new(flotilla_api::ErrorCode::ServiceUnavailable, "the node is stopping; try again in a moment");
                    },
                    () = tokio::time::sleep(left.min(EXPIRY_CHECK)) => {}
                }
            }
        })
    }
}
