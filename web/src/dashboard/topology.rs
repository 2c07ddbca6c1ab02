//! Machines and the links between them, as they are drawn: where each stands, and one edge for what both ends tell.

use flotilla_api::{
    NodeId,
    rest::{LinkPath, LinkState, LinkView, MachineState, MachineView},
};

/// How a link between two machines does. The two are positions in the list of machines.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Edge {
    pub(crate) ends: (usize, usize),
    pub(crate) state: LinkState,
    pub(crate) path: Option<LinkPath>,
    pub(crate) rtt_ms: Option<f64>,
    pub(crate) jitter_ms: Option<f64>,
    pub(crate) loss: Option<f64>,
    /// Both directions together.
    pub(crate) per_second: u64,
    /// When the state was reached.
    pub(crate) since: flotilla_api::UnixMillis,
}

/// One for each two machines of which at least one tells of the other.
pub(crate) fn edges(machines: &[MachineView]) -> Vec<Edge> {
    let mut edges = Vec::new();
    for (first, one) in machines.iter().enumerate() {
        for (second, other) in machines.iter().enumerate().skip(first + 1) {
            let told = [told(one, &other.id), told(other, &one.id)];
            if let Some(edge) = edge((first, second), told) {
                edges.push(edge);
            }
        }
    }
    edges
}

/// A machine that is gone told of its links before that.
fn told<'a>(machine: &'a MachineView, peer: &NodeId) -> Option<&'a LinkView> {
    let speaks = !matches!(machine.condition.state, MachineState::Lost | MachineState::Suspect);
    machine.links.iter().find(|link| link.peer == *peer).filter(|_| speaks)
}

fn edge(ends: (usize, usize), told: [Option<&LinkView>; 2]) -> Option<Edge> {
    let told: Vec<&LinkView> = told.into_iter().flatten().collect();
    // Up for both who tell of it; what one of them has lost is lost.
    let worst = told.iter().max_by_key(|link| rank(link.state))?;
    let largest = |figure: fn(&LinkView) -> Option<f64>| told.iter().filter_map(|link| figure(link)).reduce(f64::max);
    let relayed = told.iter().any(|link| link.path == Some(LinkPath::Relayed));
    let direct = told.iter().any(|link| link.path == Some(LinkPath::Direct));
    let path = if relayed { Some(LinkPath::Relayed) } else { direct.then_some(LinkPath::Direct) };
    let up = worst.state == LinkState::Up;
    Some(Edge {
        ends,
        state: worst.state,
        path: path.filter(|_| up),
        rtt_ms: largest(|link| link.rtt_ms).filter(|_| up),
        jitter_ms: largest(|link| link.jitter_ms).filter(|_| up),
        loss: largest(|link| link.loss).filter(|_| up),
        // What one sends the other receives.
        per_second: told.iter().map(|link| link.sent_per_second + link.received_per_second).max().unwrap_or_default(),
        since: worst.since,
    })
}

fn rank(state: LinkState) -> u8 {
    match state {
        LinkState::Up => 0,
        LinkState::Connecting => 1,
        LinkState::Down => 2,
    }
}

/// Where `count` machines stand, in shares of the width and the height: on an ellipse, the first at the top, so that no line
/// between two of them goes through a third.
pub(crate) fn places(count: usize) -> Vec<(f64, f64)> {
    const ACROSS: f64 = 0.36;
    const UP: f64 = 0.34;
    match count {
        1 => vec![(0.5, 0.5)],
        2 => vec![(0.25, 0.5), (0.75, 0.5)],
        _ => (0..count)
            .map(|index| {
                let turn = index as f64 / count as f64 * std::f64::consts::TAU - std::f64::consts::FRAC_PI_2;
                // A triangle hangs low on its circle: it is moved to the middle.
                let lower = if count == 3 { 0.08 } else { 0.0 };
                (0.5 + ACROSS * turn.cos(), 0.5 + lower + UP * turn.sin())
            })
            .collect(),
    }
}

/// "0.8 ms", "12 ms"
pub(crate) fn millis(value: f64) -> String {
    if value < 9.95 { format!("{value:.1} ms") } else { format!("{value:.0} ms") }
}

/// "Direct", "Relayed", "Connecting", "Down": and the tone that goes with it.
pub(crate) fn appearance(edge: &Edge) -> (&'static str, &'static str) {
    match (edge.state, edge.path) {
        (LinkState::Up, Some(LinkPath::Relayed)) => ("Relayed", "warn"),
        (LinkState::Up, _) => ("Direct", "good"),
        (LinkState::Connecting, _) => ("Connecting", "busy"),
        (LinkState::Down, _) => ("Down", "bad"),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use flotilla_api::{
        UnixMillis,
        rest::{MachineCondition, Power, Role},
    };

    use super::*;

    pub(crate) fn machine(name: &str, state: MachineState, links: Vec<LinkView>) -> MachineView {
        MachineView {
            id: NodeId(name.to_owned()),
            name: name.parse().unwrap(),
            version: "0.1.0".to_owned(),
            labels: [].into(),
            copy_limit: Default::default(),
            copy_limit_now: None,
            here: false,
            role: Role::Voter,
            leads: false,
            condition: MachineCondition { state, since: UnixMillis(0), reason: None },
            storage_only: false,
            drained: false,
            joined_at: None,
            addresses: Vec::new(),
            relay_port: None,
            power: Power::Mains,
            cpu_millis: 0,
            memory_bytes: 0,
            lease_left_ms: None,
            instances: 0,
            started_at: None,
            observed_at: None,
            resources: None,
            engine: None,
            links,
        }
    }

    fn link(peer: &str, state: LinkState, path: Option<LinkPath>, rtt_ms: f64) -> LinkView {
        LinkView {
            peer: NodeId(peer.to_owned()),
            state,
            path,
            bulk: None,
            remote: None,
            rtt_ms: Some(rtt_ms),
            jitter_ms: None,
            loss: None,
            sent_per_second: 3,
            received_per_second: 4,
            since: UnixMillis(5),
            observed_at: UnixMillis(0),
            problem: None,
        }
    }

    #[test]
    fn an_edge_is_what_the_worse_end_tells_of_it() {
        use LinkState::{Connecting, Up};
        let direct = Some(LinkPath::Direct);
        let well = [
            machine("a", MachineState::Ready, vec![link("b", Up, direct, 1.0), link("c", Up, direct, 2.0)]),
            machine("b", MachineState::Ready, vec![link("a", Up, Some(LinkPath::Relayed), 9.0)]),
            machine("c", MachineState::Ready, vec![link("a", Connecting, None, 7.0)]),
        ];
        let drawn = edges(&well);
        assert_eq!(drawn.iter().map(|edge| edge.ends).collect::<Vec<_>>(), [(0, 1), (0, 2)], "nobody tells of b and c");
        assert_eq!((drawn[0].path, drawn[0].rtt_ms), (Some(LinkPath::Relayed), Some(9.0)));
        assert_eq!(drawn[0].per_second, 7);
        assert_eq!((drawn[1].state, drawn[1].rtt_ms), (Connecting, None));
        assert_eq!(appearance(&drawn[0]), ("Relayed", "warn"));
    }

    #[test]
    fn what_a_lost_machine_said_before_does_not_count() {
        let machines = [
            machine("a", MachineState::Ready, vec![link("b", LinkState::Down, None, 1.0)]),
            machine("b", MachineState::Lost, vec![link("a", LinkState::Up, Some(LinkPath::Direct), 1.0)]),
        ];
        assert_eq!(edges(&machines)[0].state, LinkState::Down);
        assert!(edges(&machines[1..]).is_empty());
    }

    #[test]
    fn machines_stand_apart_and_inside() {
        for count in 1..=10 {
            let places = places(count);
            assert_eq!(places.len(), count);
            assert!(places.iter().all(|(x, y)| (0.1..=0.9).contains(x) && (0.1..=0.9).contains(y)), "{places:?}");
            for (index, one) in places.iter().enumerate() {
                for other in &places[..index] {
                    // On a drawing of 2 to 1.
                    let apart = ((one.0 - other.0) * 2.0).hypot(one.1 - other.1);
                    assert!(apart > 0.2, "{count}: {one:?} and {other:?}");
                }
            }
        }
    }

    #[test]
    fn round_trips_have_two_digits() {
        assert_eq!(millis(0.84), "0.8 ms");
        assert_eq!(millis(12.4), "12 ms");
    }
}
