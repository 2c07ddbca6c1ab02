//! openraft's messages on the way to other nodes, over [`peers`](crate::peers).

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use flotilla_api::NodeId;
use openraft::{
    EmptyNode, OptionalSend, RPCTypes, RaftNetworkFactory, RaftNetworkV2,
    errors::{RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable},
    network::RPCOption,
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
        VoteRequest, VoteResponse,
    },
};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    status::{Acks, Moment},
    timing,
    types::{SnapshotOf, Types, Vote},
    wire::{SnapshotMessage, decode, encode},
};
use crate::{
    peers::{CallError, Method, Network},
    store::{Disk, Image},
};

type Error = RPCError<Types>;

/// Makes a [`Client`] for each other member.
#[derive(Clone, Debug)]
pub(crate) struct Clients {
    pub(crate) node: NodeId,
    pub(crate) network: Network,
    pub(crate) acks: Arc<Acks>,
    pub(crate) disk: Disk,
}

/// The way to one member.
#[derive(Debug)]
pub(crate) struct Client {
    clients: Clients,
    target: NodeId,
}

impl RaftNetworkFactory<Types> for Clients {
    type Network = Client;

    async fn new_client(&mut self, target: NodeId, _: &EmptyNode) -> Client {
        Client { clients: self.clone(), target }
    }
}

impl Client {
    async fn ask<T: DeserializeOwned>(&self, method: Method, body: Bytes, within: Duration) -> Result<T, Error> {
        let answer = self.clients.network.call(&self.target, method, body, within).await;
        let answer = answer.map_err(|error| match error {
            CallError::Timeout { within } => Error::Timeout(Timeout {
                action: action(method),
                id: self.clients.node.clone(),
                target: self.target.clone(),
                timeout: within,
            }),
            // To be tried again after a while: it is away, it starts again, or it does not understand.
            other => unreachable(&other),
        })?;
        decode(&answer).map_err(|error| unreachable(&error))
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        message: &impl Serialize,
        option: &RPCOption,
    ) -> Result<T, Error> {
        let body = encode(message).map_err(|error| unreachable(&error))?;
        self.ask(method, body, option.soft_ttl()).await
    }

    async fn send_snapshot(
        &self,
        vote: Vote,
        mut snapshot: SnapshotOf<Image>,
    ) -> Result<SnapshotResponse<Types>, Error> {
        let disk = &self.clients.disk;
        if let Some(last) = snapshot.meta.last_log_id {
            // The other node has none of the entries that its audit trail would come from.
            snapshot.snapshot.audit = disk
                .audit(last.index.saturating_add(1), None, disk.limits().audit_rows)
                .await
                .map_err(|error| unreachable(&error))?;
        }
        let message = SnapshotMessage::new(vote, snapshot.meta, snapshot.snapshot);
        let body = encode(&message).map_err(|error| unreachable(&error))?;
        let within = timing::snapshot_within(body.len());
        self.ask(Method::Snapshot, body, within).await
    }
}

fn unreachable(error: &(impl std::error::Error + 'static)) -> Error {
    Error::Unreachable(Unreachable::from_string(error))
}

fn action(method: Method) -> RPCTypes {
    match method {
        Method::Snapshot => RPCTypes::InstallSnapshot,
        Method::TransferLeader => RPCTypes::TransferLeader,
        Method::Vote | Method::PreVote => RPCTypes::Vote,
        _ => RPCTypes::AppendEntries,
    }
}

impl RaftNetworkV2<Types> for Client {
    type SnapshotData = Image;

    async fn append_entries(
        &mut self,
        message: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, Error> {
        let term = message.vote.leader_id.term;
        let body = encode(&message).map_err(|error| unreachable(&error))?;
        // openraft gives each message as long as a heartbeat; one with entries is written first.
        let within = if message.entries.is_empty() { option.hard_ttl() } else { timing::append_within(body.len()) };
        let sent = Moment::now();
        let answer = self.ask(Method::Append, body, within).await?;
        // A conflict is about the log; its sender follows this leader all the same.
        if !matches!(answer, AppendEntriesResponse::HigherVote(_)) {
            self.clients.acks.answered(term, &self.target, sent);
        }
        Ok(answer)
    }

    async fn vote(&mut self, message: VoteRequest<Types>, option: RPCOption) -> Result<VoteResponse<Types>, Error> {
        self.send(Method::Vote, &message, &option).await
    }

    async fn pre_vote(&mut self, message: VoteRequest<Types>, option: RPCOption) -> Result<VoteResponse<Types>, Error> {
        self.send(Method::PreVote, &message, &option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<Image>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            answer = self.send_snapshot(vote, snapshot) => answer.map_err(StreamingError::from),
        }
    }

    async fn transfer_leader(
        &mut self,
        message: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, Error> {
        self.send(Method::TransferLeader, &message, &option).await
    }
}
