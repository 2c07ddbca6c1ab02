//! Machines in the state: admit, remove, rename, label, drain, lose and get back.

use std::collections::BTreeMap;

use flotilla_api::{ErrorCode, MachineName, NodeId, Scope, TokenId, UnixMillis, limit::CopyLimit};
use serde::{Deserialize, Serialize};

use super::{Applied, Event, MACHINES_MAX, REMOVED_MACHINES_MAX, Rejected, State};
use crate::{command::MachineRecord, limit};

/// Losses of a machine that are remembered: enough to tell that it flaps.
const LOSSES_KEPT: usize = 16;
/// Labels of one machine, and characters of a label's key or value.
const LABELS_MAX: usize = 64;
const LABEL_LEN_MAX: usize = 63;
/// Addresses of one machine: a few interfaces, and what a router maps.
const ADDRESSES_MAX: usize = 16;
const ADDRESS_LEN_MAX: usize = 255;

/// A member of the cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    #[serde(flatten)]
    pub record: MachineRecord,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joined_at: Option<UnixMillis>,
    /// What it said of itself last.
    #[serde(default, skip_serializing_if = "is_default")]
    pub facts: MachineFacts,
    #[serde(default, skip_serializing_if = "is_default")]
    pub availability: Availability,
    /// What it may send of copies.
    #[serde(default, skip_serializing_if = "is_default")]
    pub copy_limit: CopyLimit,
    /// Since when it is lost: its lease ended, and was not renewed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_at: Option<UnixMillis>,
    /// Since when it can be counted on: it joined, came back or was undrained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub here_since: Option<UnixMillis>,
    /// When it was lost, the last times.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub losses: Vec<UnixMillis>,
    /// Index of the entry that took something from it by force. It gets no lease before it has applied this.
    #[serde(default, skip_serializing_if = "super::is_zero")]
    pub taken: u64,
    /// It keeps copies that it can't read, and does nothing else. As it was invited, and never otherwise: what it has once been told can't be
    /// taken back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stores_only: bool,
}

/// What a node says of its machine, for others to reach and to plan with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MachineFacts {
    /// `host:port` of its listener, as others may try it.
    pub addresses: Vec<String>,
    /// UDP port of its TURN server, if it runs one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relay_port: Option<u16>,
    /// Thousandths of a core.
    pub cpu_millis: u64,
    pub memory_bytes: u64,
    pub power: Power,
    /// Of the program.
    pub version: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Power {
    #[default]
    Mains,
    /// It runs down, and its lid may be shut.
    Battery,
}

/// Whether the scheduler may place instances on a machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Availability {
    #[default]
    Active,
    /// Everything that runs there moves away, and nothing comes.
    Drained { since: UnixMillis },
}

/// A machine that was a member once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedMachine {
    pub name: MachineName,
    pub at: UnixMillis,
}

impl Machine {
    pub(super) fn new(record: MachineRecord) -> Self {
        Self {
            record,
            joined_at: None,
            facts: MachineFacts::default(),
            availability: Availability::default(),
            copy_limit: CopyLimit::default(),
            lost_at: None,
            here_since: None,
            losses: Vec::new(),
            taken: 0,
            stores_only: false,
        }
    }

    pub fn name(&self) -> &MachineName {
        &self.record.name
    }
}

impl State {
    /// Does a machine keep copies that it can't read, and nothing else? One that is not known is any other.
    pub fn stores_only(&self, id: &NodeId) -> bool {
        self.machines.get(id).is_some_and(|machine| machine.stores_only)
    }

    /// Is this a member that does more than store? One that is not known may be of either kind, so that this is what to ask before a machine is
    /// believed, or told what not all may know.
    pub fn is_full_member(&self, id: &NodeId) -> bool {
        self.machines.get(id).is_some_and(|machine| !machine.stores_only)
    }

    /// The machine of this name.
    pub fn machine_named(&self, name: &MachineName) -> Option<(&NodeId, &Machine)> {
        self.machines.iter().find(|(_, machine)| machine.record.name == *name)
    }

    pub(super) fn admit_machine(
        &mut self,
        at: UnixMillis,
        invitation: &TokenId,
        record: &MachineRecord,
        facts: &MachineFacts,
    ) -> Result<Applied, Rejected> {
        self.check_join(at, invitation, record)?;
        check_facts(facts)?;
        check_labels(&record.labels)?;
        let mut stores_only = false;
        if let Some(invitation) = self.invitations.get_mut(invitation) {
            invitation.used_at = Some(at);
            stores_only = invitation.stores_only;
        }
        let machine = Machine {
            joined_at: Some(at),
            here_since: Some(at),
            facts: facts.clone(),
            stores_only,
            ..Machine::new(record.clone())
        };
        self.machines.insert(record.id.clone(), machine);
        let message = match stores_only {
            true => format!("The machine `{}` joined. It only stores.", record.name),
            false => format!("The machine `{}` joined.", record.name),
        };
        Ok(Applied::done(Event::new("machine-joined", None, message).on(&record.name)))
    }

    /// Whether the bearer of an invitation may become this machine.
    ///
    /// # Errors
    /// One sentence for the person at that machine.
    pub fn check_join(&self, at: UnixMillis, invitation: &TokenId, record: &MachineRecord) -> Result<(), Rejected> {
        let refuse = |code, message: String| Err(Rejected::new(code, message));
        let Some(invitation) = self.invitations.get(invitation).filter(|known| known.grant.scope == Scope::Machine)
        else {
            return refuse(
                ErrorCode::InvitationInvalid,
                "the join token is not known to this cluster; make one with `flotilla token create --scope machine`"
                    .into(),
            );
        };
        if self.machines.contains_key(&record.id) {
            return refuse(
                ErrorCode::Conflict,
                format!(
                    "a machine with this key is a member already, as `{}`; a copied disk needs a key of its own: delete its data \
                     directory and join again",
                    self.machines[&record.id].record.name
                ),
            );
        }
        if let Some(removed) = self.removed_machines.get(&record.id) {
            return refuse(
                ErrorCode::Conflict,
                format!(
                    "this machine was removed from the cluster as `{}`, and its key is not taken again; delete its data directory \
                     and join with a new token",
                    removed.name
                ),
            );
        }
        if invitation.used_at.is_some() {
            return refuse(
                ErrorCode::InvitationUsed,
                "the join token was used already, and works only once; make another with `flotilla token create --scope machine`"
                    .into(),
            );
        }
        if invitation.expires_at <= at {
            return refuse(
                ErrorCode::InvitationExpired,
                "the join token has expired; make another with `flotilla token create --scope machine`".into(),
            );
        }
        if self.machines.len() >= MACHINES_MAX {
            return refuse(
                ErrorCode::Conflict,
                format!("a cluster has at most {MACHINES_MAX} machines; remove one with `flotilla machine rm` first"),
            );
        }
        self.check_free_name(&record.name, None)
    }

    pub(super) fn remove_machine(&mut self, at: UnixMillis, id: &NodeId) -> Result<Applied, Rejected> {
        let name = self.machine(id)?.record.name.clone();
        if self.machines.len() == 1 {
            return Err(Rejected::new(
                ErrorCode::Conflict,
                format!("`{name}` is the last machine; a cluster ends with its data directory, not by removing it"),
            ));
        }
        if self.machines.iter().all(|(other, machine)| other == id || machine.stores_only) {
            return Err(Rejected::new(
                ErrorCode::Conflict,
                format!("`{name}` is the last machine that does more than to store; let another one join first"),
            ));
        }
        self.machines.remove(id);
        for mut service in std::mem::take(&mut self.services).into_values() {
            let (gone, kept): (Vec<_>, Vec<_>) =
                std::mem::take(&mut service.placements).into_iter().partition(|placement| placement.machine == *id);
            self.leave_over(&service.name, &gone);
            service.placements = kept;
            service.standby.retain(|machine| machine != id);
            service.hosts.remove(id);
            service.home = service.home.filter(|home| home != id);
            service.data.forget_machine(id);
            self.services.insert(service.name.clone(), service);
        }
        // Nobody will ever delete what lies there, or find it again.
        for machines in self.condemned_on.values_mut().chain(self.kept_on.values_mut()) {
            machines.remove(id);
        }
        self.forget_purged();
        self.kept_homes.retain(|_, home| home != id);
        self.kept_on.retain(|_, machines| !machines.is_empty());
        self.kept_data.values_mut().for_each(|data| data.forget_machine(id));
        self.kept_data.retain(|name, _| self.kept_on.contains_key(name));
        let (services, kept_on) = (&self.services, &self.kept_on);
        self.kept_volumes.retain(|name, _| services.contains_key(name) || kept_on.contains_key(name));
        while self.removed_machines.len() >= REMOVED_MACHINES_MAX {
            let oldest = self.removed_machines.iter().min_by_key(|(_, removed)| removed.at).map(|(id, _)| id.clone());
            let Some(oldest) = oldest else { break };
            self.removed_machines.remove(&oldest);
        }
        self.removed_machines.insert(id.clone(), RemovedMachine { name: name.clone(), at });
        let message = format!("The machine `{name}` was removed.");
        Ok(Applied::done(Event::new("machine-removed", None, message).on(&name)))
    }

    pub(super) fn rename_machine(&mut self, id: &NodeId, name: &MachineName) -> Result<Applied, Rejected> {
        self.check_free_name(name, Some(id))?;
        let machine = self.machine_mut(id)?;
        let before = std::mem::replace(&mut machine.record.name, name.clone());
        let message = format!("The machine `{before}` is now called `{name}`.");
        Ok(Applied::done(Event::new("machine-renamed", None, message).on(name)))
    }

    pub(super) fn label_machine(
        &mut self,
        id: &NodeId,
        changes: &BTreeMap<String, Option<String>>,
    ) -> Result<Applied, Rejected> {
        let machine = self.machine(id)?;
        let mut labels = machine.record.labels.clone();
        for (key, value) in changes {
            match value {
                Some(value) => drop(labels.insert(key.clone(), value.clone())),
                None => drop(labels.remove(key)),
            }
        }
        check_labels(&labels)?;
        let machine = self.machine_mut(id)?;
        machine.record.labels = labels;
        let name = machine.record.name.clone();
        let told: Vec<String> = changes
            .iter()
            .map(|(key, value)| match value {
                Some(value) => format!("`{}={}`", key.escape_debug(), value.escape_debug()),
                None => format!("no `{}`", key.escape_debug()),
            })
            .collect();
        let message = format!("The machine `{name}` was labelled {}.", told.join(", "));
        Ok(Applied::done(Event::new("machine-labelled", None, message).on(&name)))
    }

    pub(super) fn limit_copies(&mut self, id: &NodeId, limit: &CopyLimit) -> Result<Applied, Rejected> {
        limit::check(limit).map_err(|why| Rejected::new(ErrorCode::InvalidRequest, why))?;
        let machine = self.machine_mut(id)?;
        machine.copy_limit = limit.clone();
        let name = machine.record.name.clone();
        let message = if limit.is_off() {
            format!("The machine `{name}` sends copies as fast as its line takes them.")
        } else {
            format!("What the machine `{name}` sends of copies was limited: {limit}.")
        };
        Ok(Applied::done(Event::new("machine-limited", None, message).on(&name)))
    }

    pub(super) fn note_scrub(&self, id: &NodeId) -> Result<Applied, Rejected> {
        let name = &self.machine(id)?.record.name;
        let message = format!("All that the machine `{name}` keeps of volumes and images is read.");
        Ok(Applied::done(Event::new("machine-scrubbed", None, message).on(name)))
    }

    pub(super) fn announce_machine(&mut self, id: &NodeId, facts: &MachineFacts) -> Result<Applied, Rejected> {
        check_facts(facts)?;
        let machine = self.machine_mut(id)?;
        let moved = machine.facts.addresses != facts.addresses;
        machine.facts = facts.clone();
        let name = machine.record.name.clone();
        let message = match facts.addresses.first().filter(|_| moved) {
            Some(address) => format!("The machine `{name}` is found at {}.", address.escape_debug()),
            None => format!("The machine `{name}` told what it has."),
        };
        Ok(Applied::done(Event::new("machine-announced", None, message).on(&name)))
    }

    pub(super) fn set_availability(
        &mut self,
        at: UnixMillis,
        id: &NodeId,
        availability: Availability,
    ) -> Result<Applied, Rejected> {
        let machine = self.machine_mut(id)?;
        let name = machine.record.name.clone();
        if machine.stores_only && matches!(availability, Availability::Drained { .. }) {
            let message = format!("`{name}` only stores, so that nothing runs there that could move away");
            return Err(Rejected::new(ErrorCode::Conflict, message));
        }
        let (now, kind, message) = match availability {
            Availability::Active => {
                (Availability::Active, "machine-undrained", format!("The machine `{name}` takes instances again."))
            }
            Availability::Drained { .. } => (
                Availability::Drained { since: at },
                "machine-drained",
                format!("The machine `{name}` is being drained: what runs there moves away."),
            ),
        };
        if std::mem::discriminant(&machine.availability) == std::mem::discriminant(&now) {
            return Err(Rejected::new(
                ErrorCode::Conflict,
                match now {
                    Availability::Active => format!("`{name}` is not drained; there is nothing to undo"),
                    Availability::Drained { .. } => format!("`{name}` is drained already"),
                },
            ));
        }
        machine.availability = now;
        if now == Availability::Active {
            machine.here_since = Some(at);
        }
        Ok(Applied::done(Event::new(kind, None, message).on(&name)))
    }

    pub(super) fn machine_lost(&mut self, at: UnixMillis, term: u64, id: &NodeId) -> Result<Applied, Rejected> {
        self.check_term(term)?;
        let index = self.applied + 1;
        let machine = self.machine_mut(id)?;
        if machine.lost_at.is_some() {
            return Err(Rejected::new(ErrorCode::Conflict, format!("`{}` is lost already", machine.record.name)));
        }
        machine.lost_at = Some(at);
        machine.taken = index;
        machine.losses.push(at);
        if machine.losses.len() > LOSSES_KEPT {
            machine.losses.remove(0);
        }
        let name = machine.record.name.clone();
        let message = format!("The machine `{name}` was lost: it did not renew its lease.");
        Ok(Applied::done(Event::new("machine-lost", None, message).on(&name)))
    }

    pub(super) fn machine_back(&mut self, at: UnixMillis, term: u64, id: &NodeId) -> Result<Applied, Rejected> {
        self.check_term(term)?;
        let machine = self.machine_mut(id)?;
        let Some(lost_at) = machine.lost_at.take() else {
            return Err(Rejected::new(ErrorCode::Conflict, format!("`{}` is not lost", machine.record.name)));
        };
        machine.here_since = Some(at);
        let name = machine.record.name.clone();
        let seconds = at.since(lost_at).div_ceil(1000);
        let message = format!("The machine `{name}` is back after {seconds} s.");
        Ok(Applied::done(Event::new("machine-back", None, message).on(&name)))
    }

    pub(super) fn machine(&self, id: &NodeId) -> Result<&Machine, Rejected> {
        self.machines.get(id).ok_or_else(|| unknown_machine(id))
    }

    fn machine_mut(&mut self, id: &NodeId) -> Result<&mut Machine, Rejected> {
        self.machines.get_mut(id).ok_or_else(|| unknown_machine(id))
    }

    fn check_free_name(&self, name: &MachineName, except: Option<&NodeId>) -> Result<(), Rejected> {
        match self.machine_named(name) {
            Some((id, _)) if Some(id) != except => Err(Rejected::new(
                ErrorCode::Conflict,
                format!("there is a machine `{name}` already; choose another name"),
            )),
            _ => Ok(()),
        }
    }
}

fn unknown_machine(id: &NodeId) -> Rejected {
    Rejected::new(
        ErrorCode::MachineNotFound,
        format!("there is no machine `{}`; `flotilla machine ls` lists those that there are", id.0.escape_debug()),
    )
}

fn check_facts(facts: &MachineFacts) -> Result<(), Rejected> {
    let too_long = facts.addresses.iter().any(|address| address.len() > ADDRESS_LEN_MAX);
    if facts.addresses.len() > ADDRESSES_MAX || too_long || facts.version.len() > ADDRESS_LEN_MAX {
        return Err(Rejected::new(
            ErrorCode::InvalidRequest,
            format!("a machine has at most {ADDRESSES_MAX} addresses of {ADDRESS_LEN_MAX} characters"),
        ));
    }
    Ok(())
}

fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), Rejected> {
    let allowed = |text: &str| {
        text.len() <= LABEL_LEN_MAX
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/'))
    };
    if labels.len() > LABELS_MAX || !labels.iter().all(|(key, value)| !key.is_empty() && allowed(key) && allowed(value))
    {
        return Err(Rejected::new(
            ErrorCode::InvalidRequest,
            format!(
                "a machine has at most {LABELS_MAX} labels; keys and values have up to {LABEL_LEN_MAX} letters, digits, `-`, `_`, \
                 `.` and `/`"
            ),
        ));
    }
    Ok(())
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
