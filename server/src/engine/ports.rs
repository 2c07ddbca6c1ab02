//! Whether anybody listens on the port that a service's page comes from: an application runs a moment before it does, and one
//! that was given another port never does.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use flotilla_api::UnixMillis;
use flotilla_core::{
    State,
    reconcile::{Container, Observed, Status},
};
use futures::future::join_all;
use tokio::{net::TcpStream, time::Instant};

use crate::clock;

/// A container on this machine takes a connection at once or not at all.
const CONNECTING: Duration = Duration::from_millis(100);

/// Between two looks; doubled each time.
const STEP_MIN: Duration = Duration::from_millis(25);
const STEP_MAX: Duration = Duration::from_secs(2);

/// The ports of containers that run. Once somebody has listened on one it counts as open until its container is started again:
/// connections are not made for nothing.
#[derive(Debug, Default)]
pub(super) struct Ports {
    known: HashMap<String, Port>,
}

#[derive(Clone, Copy, Debug)]
struct Port {
    /// When its container was started.
    since: UnixMillis,
    /// How long to wait, and until when, before the next look; `None`: it is open.
    closed: Option<(Duration, Instant)>,
}

impl Ports {
    /// Looks at those that nobody has listened on yet, where it is time, and notes them in what was observed. When to look
    /// again.
    pub(super) async fn look(&mut self, observed: &mut Observed, state: &State) -> Option<UnixMillis> {
        let shown: Vec<(&mut Container, UnixMillis, SocketAddr)> =
            observed.containers.iter_mut().filter_map(|container| running(container, state)).collect();
        let looks = shown.iter().map(|(container, since, address)| {
            let before = self.known.get(&container.id).filter(|port| port.since == *since).copied();
            look(before, *since, *address)
        });
        let ports = join_all(looks).await;
        let again = ports.iter().filter_map(|port| port.closed).map(|(_, at)| at).min();
        self.known.clear();
        for ((container, _, address), port) in shown.into_iter().zip(ports) {
            container.closed_port = port.closed.map(|_| address.port());
            self.known.insert(container.id.clone(), port);
        }
        again.map(|at| clock::now().plus(millis(at.saturating_duration_since(Instant::now()))))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).saturating_add(1)
}

/// A container that runs, since when, and where it shall be listened.
fn running<'c>(container: &'c mut Container, state: &State) -> Option<(&'c mut Container, UnixMillis, SocketAddr)> {
    let Status::Running { since, .. } = container.status else { return None };
    let address: IpAddr = container.address?;
    let port = state.services.get(&container.service)?.revisions.get(&container.revision)?.spec.port?;
    Some((container, since, SocketAddr::new(address, port)))
}

async fn look(before: Option<Port>, since: UnixMillis, address: SocketAddr) -> Port {
    let step = match before {
        Some(Port { closed: None, .. }) => return Port { since, closed: None },
        Some(port @ Port { closed: Some((_, at)), .. }) if Instant::now() < at => return port,
        Some(Port { closed: Some((step, _)), .. }) => (step * 2).min(STEP_MAX),
        None => STEP_MIN,
    };
    match tokio::time::timeout(CONNECTING, TcpStream::connect(address)).await {
        Ok(Ok(_)) => Port { since, closed: None },
        _ => Port { since, closed: Some((step, Instant::now() + step)) },
    }
}
