//! No other nodes: the network of a cluster of one machine.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use flotilla_api::{NodeId, rest::LinkView};
use futures::future::{BoxFuture, ready};
use tokio::sync::watch;

use super::{CallError, Method, Peers, Stream};

/// Reaches nobody.
#[derive(Debug)]
pub struct Nobody {
    connected: watch::Sender<BTreeSet<NodeId>>,
}

impl Default for Nobody {
    fn default() -> Self {
        Self { connected: watch::channel(BTreeSet::new()).0 }
    }
}

impl Peers for Nobody {
    fn call(&self, _: &NodeId, _: Method, _: Bytes, _: Duration) -> BoxFuture<'static, Result<Bytes, CallError>> {
        Box::pin(ready(Err(CallError::Unreachable)))
    }

    fn stream(&self, _: &NodeId, _: &str) -> BoxFuture<'static, Result<Stream, CallError>> {
        Box::pin(ready(Err(CallError::Unreachable)))
    }

    fn connected(&self) -> watch::Receiver<BTreeSet<NodeId>> {
        self.connected.subscribe()
    }

    fn links(&self) -> Vec<LinkView> {
        Vec::new()
    }
}
