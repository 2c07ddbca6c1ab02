//! The other machines, as far as this node knows them and can reach them.

use std::{collections::BTreeMap, fmt, sync::Arc};

use flotilla_api::{NodeId, UnixMillis};
use flotilla_core::report::Report;
use tokio::sync::watch;

use crate::peers::Network;

/// A report of another machine, and when it came in by this machine's clock.
pub type Told = (UnixMillis, Arc<Report>);

/// Where images come from, and where services run.
pub trait Others: Send + Sync + fmt::Debug + 'static {
    /// The newest report of each.
    fn reports(&self) -> BTreeMap<NodeId, Told>;

    /// Changes whenever a report came in.
    fn watch_reports(&self) -> watch::Receiver<u64>;

    /// The way to them; absent where there are none.
    fn network(&self) -> Option<Network>;
}

/// There are none.
#[derive(Debug)]
pub struct NoOthers(watch::Sender<u64>);

impl Default for NoOthers {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

impl Others for NoOthers {
    fn reports(&self) -> BTreeMap<NodeId, Told> {
        BTreeMap::new()
    }

    fn watch_reports(&self) -> watch::Receiver<u64> {
        self.0.subscribe()
    }

    fn network(&self) -> Option<Network> {
        None
    }
}
