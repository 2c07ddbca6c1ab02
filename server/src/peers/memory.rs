//! A network in this process, for tests and simulations: links can be cut in one direction, and delayed.
//!
//! What is cut is lost in silence, as on a real network before anybody has noticed: a caller waits for its timeout. A node that has left
//! is gone at once, and everybody sees that.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use flotilla_api::{NodeId, rest::LinkView};
use futures::future::{BoxFuture, pending};
use tokio::sync::watch;

use super::{BODY_MAX, CallError, Handler, Method, Network, Peers, Stream};

/// Bytes that a stream holds between its ends.
const STREAM_BUFFER: usize = 64 * 1024;

/// All the wires. Clones are the same ones.
#[derive(Clone, Default)]
pub struct Wires {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    nodes: BTreeMap<NodeId, Node>,
    cut: BTreeSet<(NodeId, NodeId)>,
    delays: BTreeMap<(NodeId, NodeId), Duration>,
}

struct Node {
    handler: Option<Arc<dyn Handler>>,
    connected: watch::Sender<BTreeSet<NodeId>>,
}

/// One node's end of the wires.
#[derive(Clone)]
struct Port {
    node: NodeId,
    wires: Wires,
    connected: watch::Receiver<BTreeSet<NodeId>>,
}

impl fmt::Debug for Wires {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.inner();
        f.debug_struct("Wires").field("nodes", &inner.nodes.keys()).field("cut", &inner.cut).finish_non_exhaustive()
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Port").field(&self.node).finish()
    }
}

impl Wires {
    /// A node's way to the others. It hears nothing before [`serve`](Self::serve).
    pub fn join(&self, node: &NodeId) -> Network {
        let mut inner = self.inner();
        let known = inner.nodes.entry(node.clone());
        let known = known.or_insert_with(|| Node { handler: None, connected: watch::channel(BTreeSet::new()).0 });
        let port = Port { node: node.clone(), wires: self.clone(), connected: known.connected.subscribe() };
        inner.tell();
        Arc::new(port)
    }

    /// From now on this answers what the others say to the node.
    pub fn serve(&self, node: &NodeId, handler: Arc<dyn Handler>) {
        let mut inner = self.inner();
        if let Some(known) = inner.nodes.get_mut(node) {
            known.handler = Some(handler);
        }
        inner.tell();
    }

    /// The node is gone, as after a crash: nobody answers for it any more.
    pub fn leave(&self, node: &NodeId) {
        // Dropped outside of the lock: it may hold anything.
        let handler = {
            let mut inner = self.inner();
            let handler = inner.nodes.get_mut(node).and_then(|known| known.handler.take());
            inner.tell();
            handler
        };
        drop(handler);
    }

    /// Loses what `from` says to `to`.
    pub fn cut(&self, from: &NodeId, to: &NodeId) {
        self.inner().cut.insert((from.clone(), to.clone()));
    }

    pub fn heal(&self, from: &NodeId, to: &NodeId) {
        self.inner().cut.remove(&(from.clone(), to.clone()));
    }

    /// Loses what the node says, and what is said to it.
    pub fn isolate(&self, node: &NodeId) {
        let mut inner = self.inner();
        let others: Vec<NodeId> = inner.nodes.keys().filter(|other| *other != node).cloned().collect();
        for other in others {
            inner.cut.insert((node.clone(), other.clone()));
            inner.cut.insert((other, node.clone()));
        }
    }

    pub fn heal_all(&self) {
        self.inner().cut.clear();
    }

    /// Messages from one node to another take this long from now on.
    pub fn delay(&self, from: &NodeId, to: &NodeId, delay: Duration) {
        self.inner().delays.insert((from.clone(), to.clone()), delay);
    }

    /// How long a message takes; `None` where it is lost.
    fn passage(&self, from: &NodeId, to: &NodeId) -> Option<Duration> {
        let inner = self.inner();
        let wire = (from.clone(), to.clone());
        (!inner.cut.contains(&wire)).then(|| inner.delays.get(&wire).copied().unwrap_or_default())
    }

    /// Resolves when a message has arrived: never, where it is lost.
    async fn travel(&self, from: &NodeId, to: &NodeId) {
        match self.passage(from, to) {
            Some(Duration::ZERO) => {}
            Some(delay) => {
                tokio::time::sleep(delay).await;
                if self.passage(from, to).is_none() {
                    pending::<()>().await;
                }
            }
            None => pending().await,
        }
    }

    fn handler(&self, node: &NodeId) -> Option<Arc<dyn Handler>> {
        self.inner().nodes.get(node)?.handler.clone()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Tells every node who can be called.
    fn tell(&self) {
        let present: BTreeSet<NodeId> =
            self.nodes.iter().filter(|(_, node)| node.handler.is_some()).map(|(id, _)| id.clone()).collect();
        for (id, node) in &self.nodes {
            let others = present.iter().filter(|other| *other != id).cloned().collect();
            node.connected.send_if_modified(|known| {
                let changed = *known != others;
                *known = others;
                changed
            });
        }
    }
}

impl Peers for Port {
    fn call(
        &self,
        to: &NodeId,
        method: Method,
        body: Bytes,
        within: Duration,
    ) -> BoxFuture<'static, Result<Bytes, CallError>> {
        let (port, to) = (self.clone(), to.clone());
        Box::pin(async move {
            if body.len() > BODY_MAX {
                return Err(CallError::TooLarge { size: body.len() });
            }
            if port.wires.handler(&to).is_none() {
                return Err(CallError::Unreachable);
            }
            let asked = async {
                port.wires.travel(&port.node, &to).await;
                let Some(handler) = port.wires.handler(&to) else { return pending().await };
                // A task of its own: a caller that goes away does not stop what was begun.
                let answer = tokio::spawn(handler.call(port.node.clone(), method, body)).await;
                let Ok(answer) = answer else { return pending().await };
                port.wires.travel(&to, &port.node).await;
                answer.map_err(CallError::Refused)
            };
            tokio::time::timeout(within, asked).await.unwrap_or(Err(CallError::Timeout { within }))
        })
    }

    fn stream(&self, to: &NodeId, label: &str) -> BoxFuture<'static, Result<Stream, CallError>> {
        let (port, to, label) = (self.clone(), to.clone(), label.to_owned());
        Box::pin(async move {
            if port.wires.passage(&port.node, &to).is_none() {
                return Err(CallError::Unreachable);
            }
            let handler = port.wires.handler(&to).ok_or(CallError::Unreachable)?;
            let (here, there) = tokio::io::duplex(STREAM_BUFFER);
            tokio::spawn(handler.stream(port.node.clone(), label, Box::new(there)));
            Ok(Box::new(here) as Stream)
        })
    }

    fn connected(&self) -> watch::Receiver<BTreeSet<NodeId>> {
        self.connected.clone()
    }

    /// Wires in memory have no figures.
    fn links(&self) -> Vec<LinkView> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use flotilla_api::ApiError;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Answers with what it was asked, and who asked.
    struct Echo;

    impl Handler for Echo {
        fn call(&self, from: NodeId, _: Method, body: Bytes) -> BoxFuture<'static, Result<Bytes, ApiError>> {
            Box::pin(async move { Ok([from.0.as_bytes(), b":", &body].concat().into()) })
        }

        fn stream(&self, _: NodeId, label: String, mut stream: Stream) -> BoxFuture<'static, ()> {
            Box::pin(async move { stream.write_all(label.as_bytes()).await.unwrap() })
        }
    }

    const SOON: Duration = Duration::from_secs(1);

    async fn ask(network: &Network, to: &NodeId) -> Result<Bytes, CallError> {
        network.call(to, Method::Ping, Bytes::from_static(b"hello"), SOON).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_wire_can_be_cut_one_way_and_delayed() {
        let wires = Wires::default();
        let (a, b) = (NodeId::from(1), NodeId::from(2));
        let (from_a, from_b) = (wires.join(&a), wires.join(&b));
        assert_eq!(ask(&from_a, &b).await, Err(CallError::Unreachable));
        wires.serve(&a, Arc::new(Echo));
        wires.serve(&b, Arc::new(Echo));
        assert_eq!(*from_a.connected().borrow(), [b.clone()].into());
        assert_eq!(ask(&from_a, &b).await.unwrap(), "1:hello");

        // The question arrives, the answer does not.
        wires.cut(&b, &a);
        assert_eq!(ask(&from_a, &b).await, Err(CallError::Timeout { within: SOON }));
        assert_eq!(ask(&from_b, &a).await, Err(CallError::Timeout { within: SOON }));
        wires.heal(&b, &a);
        assert_eq!(ask(&from_a, &b).await.unwrap(), "1:hello");

        wires.delay(&a, &b, Duration::from_millis(300));
        let began = tokio::time::Instant::now();
        ask(&from_a, &b).await.unwrap();
        assert_eq!(began.elapsed(), Duration::from_millis(300));

        wires.isolate(&b);
        assert!(matches!(from_a.stream(&b, "x").await, Err(CallError::Unreachable)));
        wires.heal_all();
        let mut said = String::new();
        from_a.stream(&b, "label").await.unwrap().read_to_string(&mut said).await.unwrap();
        assert_eq!(said, "label");
        wires.leave(&b);
        assert_eq!(ask(&from_a, &b).await, Err(CallError::Unreachable));
        assert!(from_a.connected().borrow().is_empty());
    }
}
