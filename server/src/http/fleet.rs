//! How the cluster and its machines do: the state log, what each machine told, and who decides.

use std::collections::BTreeSet;

use flotilla_api::{
    MachineName, NodeId, UnixMillis,
    rest::{self, MachineCondition, MachineDetail, MachineResources, MachineState, MachineView, PlacedView, Role},
};
use flotilla_core::{
    State,
    state::{Availability, Machine, Power},
};

use super::{App, members::Quorum, sight::Moment};
use crate::metrics::MachineReading;

/// A machine sends a report every few seconds, so that one this old means that several were lost. Milliseconds.
const SUSPECT_AFTER_MS: u64 = 10_000;

/// Machines that a cluster needs to outlive the loss of one.
const FAULT_TOLERANT_FROM: usize = 3;

/// All that a machine's condition is made of, read at one moment.
struct Look {
    moment: Moment,
    quorum: Quorum,
    connected: BTreeSet<NodeId>,
}

pub(super) async fn views(app: &App) -> Vec<MachineView> {
    let look = Look::at(app);
    let mut views = Vec::with_capacity(look.moment.state.machines.len());
    for (id, machine) in &look.moment.state.machines {
        views.push(look.view(app, id, machine).await);
    }
    views.sort_by(|a, b| a.name.cmp(&b.name));
    views
}

/// `None` if it was removed a moment ago.
pub(super) async fn detail(app: &App, id: &NodeId) -> Option<MachineDetail> {
    let look = Look::at(app);
    let machine = look.moment.state.machines.get(id)?;
    let view = look.view(app, id, machine).await;
    let placed = look.moment.state.services.values();
    let placements: Vec<PlacedView> = placed
        .flat_map(|service| service.placed_on(id).filter_map(|placement| look.moment.placement(service, placement)))
        .collect();
    Some(MachineDetail { view, placements, losses: machine.losses.clone() })
}

/// What this machine has, and when that was read.
pub(super) async fn own(app: &App) -> (UnixMillis, MachineResources) {
    let (at, resources) = app.machine.resources().await;
    let (storage, scrub) = (*app.volumes.watch_storage().borrow(), *app.volumes.watch_scrub().borrow());
    (at, MachineResources { storage, scrub: Some(scrub), ..resources })
}

/// For figures.
pub(super) fn reading(app: &App) -> Vec<MachineReading> {
    let look = Look::at(app);
    let links = app.members.links();
    let machines = look.moment.state.machines.iter().map(|(id, machine)| MachineReading {
        name: machine.name().to_string(),
        state: look.condition(app, id, machine).state,
        instances: u32::try_from(placed_on(&look.moment.state, id)).unwrap_or(u32::MAX),
        report_age_seconds: look.moment.report(id).map(|(at, _)| look.moment.now.since(at) as f64 / 1000.0),
        link: links.iter().find(|link| link.peer == *id).cloned(),
    });
    machines.collect()
}

impl Look {
    fn at(app: &App) -> Self {
        Self { moment: Moment::of(app), quorum: app.members.quorum(), connected: app.members.connected() }
    }

    async fn view(&self, app: &App, id: &NodeId, machine: &Machine) -> MachineView {
        let facts = &machine.facts;
        let here = *id == app.node;
        let told = self.moment.report(id);
        let (observed_at, resources) = match told {
            _ if here => {
                let (at, resources) = own(app).await;
                (Some(at), Some(resources))
            }
            Some((received, report)) => (Some(received), Some(report.resources.clone())),
            None => (None, None),
        };
        let report = told.map(|(_, report)| report);
        let version = if here { Some(env!("CARGO_PKG_VERSION")) } else { report.map(|report| report.version.as_str()) };
        MachineView {
            id: id.clone(),
            name: machine.name().clone(),
            version: version.unwrap_or(&facts.version).to_owned(),
            labels: machine.record.labels.clone(),
            copy_limit: machine.copy_limit.clone(),
            copy_limit_now: if here {
                Some(*app.volumes.watch_limit().borrow())
            } else {
                report.and_then(|report| report.copy_limit)
            },
            here,
            role: if self.quorum.voters.contains(id) { Role::Voter } else { Role::Learner },
            leads: self.quorum.leader.as_ref() == Some(id),
            condition: self.condition(app, id, machine),
            storage_only: machine.stores_only,
            drained: matches!(machine.availability, Availability::Drained { .. }),
            joined_at: machine.joined_at,
            addresses: facts.addresses.clone(),
            relay_port: facts.relay_port,
            power: match facts.power {
                Power::Mains => rest::Power::Mains,
                Power::Battery => rest::Power::Battery,
            },
            cpu_millis: facts.cpu_millis,
            memory_bytes: facts.memory_bytes,
            lease_left_ms: app.members.lease_left(id).map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
            instances: u32::try_from(placed_on(&self.moment.state, id)).unwrap_or(u32::MAX),
            started_at: if here { Some(app.started_at) } else { report.map(|report| report.started_at) },
            observed_at,
            resources,
            engine: if here { Some(app.engine.status()) } else { report.map(|report| report.engine.clone()) },
            links: if here { app.members.links() } else { report.map_or_else(Vec::new, |report| report.links.clone()) },
        }
    }

    fn condition(&self, app: &App, id: &NodeId, machine: &Machine) -> MachineCondition {
        let now = self.moment.now;
        let told = self.moment.report(id);
        let here = *id == app.node;
        let since = |state, since, reason: Option<String>| MachineCondition { state, since, reason };
        if let Some(lost_at) = machine.lost_at {
            let reason = "it did not renew its lease, so what ran there was given away";
            return since(MachineState::Lost, lost_at, Some(reason.to_owned()));
        }
        let heard = told.map_or(machine.joined_at.unwrap_or_default(), |(received, _)| received);
        if !(here || self.connected.contains(id) && told.is_some() && now.since(heard) <= SUSPECT_AFTER_MS) {
            let reason = match told {
                None => "it has told nothing of itself yet".to_owned(),
                Some(_) if !self.connected.contains(id) => "no connection leads to it".to_owned(),
                Some(_) => format!("nothing was heard from it for {} s", now.since(heard) / 1000),
            };
            return since(MachineState::Suspect, heard, Some(reason));
        }
        if let Availability::Drained { since: at } = machine.availability {
            return match placed_on(&self.moment.state, id) {
                0 => since(MachineState::Drained, at, None),
                1 => since(MachineState::Draining, at, Some("one instance is still there".to_owned())),
                many => since(MachineState::Draining, at, Some(format!("{many} instances are still there"))),
            };
        }
        let started = if here { app.started_at } else { told.map_or(UnixMillis(0), |(_, report)| report.started_at) };
        since(MachineState::Ready, started.max(machine.joined_at.unwrap_or_default()), None)
    }
}

pub(super) fn placed_on(state: &State, id: &NodeId) -> usize {
    state.services.values().map(|service| service.placed_on(id).count()).sum()
}

/// Why the loss of one machine would be one too many, as a sentence; `None` where the cluster outlives that of any.
pub(super) fn weakness(state: &State, quorum: &Quorum) -> Option<String> {
    // What only stores takes over nothing.
    let machines = state.machines.values().filter(|machine| !machine.stores_only).count();
    match machines {
        0 | 1 => return Some("This is the only machine, so its services stop when it does; with three machines the others take over.".to_owned()),
        2 => return Some("With two machines neither can tell whether the other failed or the line between them, so none takes over; add a third.".to_owned()),
        _ => {}
    }
    if quorum.leader.is_none() {
        return Some(
            "No machine leads: fewer than half of those that decide are connected, so nothing can be changed."
                .to_owned(),
        );
    }
    let lost: Vec<&MachineName> = quorum
        .voters
        .iter()
        .filter_map(|id| state.machines.get(id).filter(|machine| machine.lost_at.is_some()))
        .map(Machine::name)
        .collect();
    let alive = quorum.voters.len() - lost.len();
    if quorum.voters.len() < FAULT_TOLERANT_FROM {
        return Some("A machine that joined is still catching up; until then a loss can stop the cluster.".to_owned());
    }
    // A majority has to be left when one more is gone.
    if alive.saturating_sub(1) * 2 > quorum.voters.len() {
        return None;
    }
    let names: Vec<String> = lost.iter().map(|name| format!("`{name}`")).collect();
    let (are, they) = if names.len() == 1 { ("is", "it is") } else { ("are", "they are") };
    Some(format!("{} {are} lost; until {they} back, the loss of one more would stop the cluster.", names.join(" and ")))
}

#[cfg(test)]
mod tests {
    use flotilla_core::{
        Actor, Command, CommandV1, Entry,
        command::{ClusterRecord, InvitationRecord, MachineRecord},
    };

    use super::*;

    fn apply(state: &mut State, command: CommandV1) {
        let actor = Actor { name: "test".to_owned(), token: None, from: None };
        state.apply(&Entry { at: UnixMillis(1), actor, command: Command::V1(command) }).unwrap();
    }

    /// Of machines `m0`, `m1`, …, led by the first.
    fn cluster(machines: usize) -> (State, Quorum) {
        let record = |index: usize| MachineRecord {
            id: NodeId(format!("n{index}")),
            name: format!("m{index}").parse().unwrap(),
            public_key: String::new(),
            labels: [].into(),
        };
        let mut state = State::default();
        let cluster = ClusterRecord { id: "c".to_owned(), name: "home".parse().unwrap(), token_key: String::new() };
        apply(&mut state, CommandV1::Init { cluster, machine: record(0) });
        for index in 1..machines {
            let id = flotilla_api::TokenId(format!("i{index}"));
            let invitation = InvitationRecord {
                id: id.clone(),
                name: "machine".to_owned(),
                grant: flotilla_api::Grant { scope: flotilla_api::Scope::Machine, services: [].into() },
                secret_hash: String::new(),
                created_at: UnixMillis(1),
                expires_at: UnixMillis(10),
                used_at: None,
                stores_only: false,
            };
            apply(&mut state, CommandV1::CreateInvitation { invitation });
            let facts = flotilla_core::state::MachineFacts::default();
            apply(&mut state, CommandV1::AdmitMachine { invitation: id, machine: record(index), facts });
        }
        apply(&mut state, CommandV1::Lead { node: NodeId("n0".to_owned()), term: 1 });
        let voters = (0..machines.min(5)).map(|index| NodeId(format!("n{index}"))).collect();
        let quorum = Quorum { term: 1, leader: Some(NodeId("n0".to_owned())), voters };
        (state, quorum)
    }

    #[test]
    fn a_cluster_says_why_it_is_not_fault_tolerant() {
        for (machines, said) in [(1, "only machine"), (2, "add a third")] {
            let (state, quorum) = cluster(machines);
            assert!(weakness(&state, &quorum).unwrap().contains(said));
        }
        let (mut state, quorum) = cluster(3);
        assert_eq!(weakness(&state, &quorum), None);
        assert!(weakness(&state, &Quorum { leader: None, ..quorum.clone() }).unwrap().contains("No machine leads"));
        let learning = Quorum { voters: [NodeId("n0".to_owned())].into(), ..quorum.clone() };
        assert!(weakness(&state, &learning).unwrap().contains("catching up"));
        apply(&mut state, CommandV1::MachineLost { term: 1, machine: NodeId("n2".to_owned()) });
        assert_eq!(
            weakness(&state, &quorum).unwrap(),
            "`m2` is lost; until it is back, the loss of one more would stop the cluster."
        );
    }

    #[test]
    fn five_voters_bear_the_loss_of_one_and_are_still_fault_tolerant() {
        let (mut state, quorum) = cluster(5);
        apply(&mut state, CommandV1::MachineLost { term: 1, machine: NodeId("n4".to_owned()) });
        assert_eq!(weakness(&state, &quorum), None);
        apply(&mut state, CommandV1::MachineLost { term: 1, machine: NodeId("n3".to_owned()) });
        assert!(weakness(&state, &quorum).unwrap().starts_with("`m3` and `m4` are lost; until they are back"));
    }
}
