//! What modules need of each other, where neither shall know the other.

use std::{net::IpAddr, sync::Arc};

use flotilla_api::{ApiError, rest::Principal};
use flotilla_core::{Actor, Command, CommandV1, Entry};
use futures::future::BoxFuture;

use crate::{auth::Authority, clock, engine::Proposer, http::Attempts, mesh::Admission, store::Store};

/// The reconciler changes the state in the node's own name.
#[derive(Debug)]
pub(super) struct Proposals(pub(super) Store);

impl Proposer for Proposals {
    fn propose(&self, command: CommandV1) -> BoxFuture<'_, Result<(), ApiError>> {
        Box::pin(async move {
            let actor = Actor::node();
            let entry = Entry { at: clock::now(), actor, command: Command::V1(command) };
            self.0.propose(entry).await.map(drop).map_err(ApiError::from)
        })
    }
}

/// The mesh asks who may have a session, and until when.
#[derive(Debug)]
pub(super) struct Tokens {
    pub(super) authority: Authority,
    pub(super) attempts: Arc<Attempts>,
}

impl Admission for Tokens {
    fn verify(&self, token: &str, proof: Option<&str>, url: &str) -> Result<Principal, ApiError> {
        self.authority.verify_signal(token, proof, url).map_err(ApiError::from)
    }

    fn learns<'a>(&'a self, token: &'a str) -> BoxFuture<'a, bool> {
        Box::pin(self.authority.learns(token))
    }

    fn refused(&self, address: IpAddr) -> Result<(), ApiError> {
        self.attempts.failed(address)
    }

    fn ended(&self, principal: &Principal) -> BoxFuture<'static, ApiError> {
        let (authority, principal) = (self.authority.clone(), principal.clone());
        Box::pin(async move { authority.ended(&principal).await.into() })
    }
}
