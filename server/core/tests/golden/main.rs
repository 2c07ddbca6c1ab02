//! The state log outlives the program: entries and snapshots that were written once stay readable, and mean the same.
//!
//! The files beside this one are never changed. A command with a new meaning is a new variant, and gets a file of its own;
//! `FLOTILLA_BLESS=1` writes those that are missing, and only those.
#![expect(clippy::disallowed_methods, reason = "a test compares files of the repository")]

mod commands;

use std::collections::BTreeSet;

use flotilla_api::{NodeId, TokenId};
use flotilla_core::{Actor, Change, Command, CommandV1, Entry, State};

use commands::*;

fn entries() -> Vec<(&'static str, Entry)> {
    let actor =
        Actor { name: "Ada".to_owned(), token: Some(TokenId("admin".to_owned())), from: text("192.0.2.1:4711") };
    commands()
        .into_iter()
        .enumerate()
        .map(|(index, (name, command))| {
            let at = NOW.plus(index as u64);
            (name, Entry { at, actor: actor.clone(), command: Command::V1(command) })
        })
        .collect()
}

/// The state after so many of the entries.
fn snapshot(entries_of: usize) -> State {
    let mut state = State::default();
    for (name, entry) in entries().into_iter().take(entries_of) {
        state.apply(&entry).unwrap_or_else(|rejected| panic!("{name}: {rejected}"));
    }
    state
}

fn golden(name: &str, written: &str) -> String {
    let path = format!("{}/tests/golden/{name}.json", env!("CARGO_MANIFEST_DIR"));
    match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(_) if std::env::var_os("FLOTILLA_BLESS").is_some() => {
            std::fs::write(&path, written).unwrap();
            written.to_owned()
        }
        Err(error) => panic!("{path}: {error}; `FLOTILLA_BLESS=1` writes it"),
    }
}

#[test]
fn entries_keep_their_bytes() {
    for (name, entry) in entries() {
        let written = serde_json::to_string_pretty(&entry).unwrap() + "\n";
        let kept = golden(name, &written);
        let read: Entry = serde_json::from_str(&kept).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(read, entry, "{name} is read as something else");
        assert_eq!(written, kept, "{name} is written otherwise");
    }
}

#[test]
fn every_command_has_a_golden_file() {
    // A new variant makes this match incomplete: give it an entry above, and an arm here.
    let name = |command: &CommandV1| match command {
        CommandV1::Init { .. } => "init",
        CommandV1::Deploy { .. } => "deploy",
        CommandV1::RollBack { .. } => "roll-back",
        CommandV1::Scale { .. } => "scale",
        CommandV1::Restart { .. } => "restart",
        CommandV1::Remove { .. } => "remove",
        CommandV1::ConfirmRevision { .. } => "confirm-revision",
        CommandV1::VolumesPurged { .. } => "volumes-purged",
        CommandV1::IssueToken { .. } => "issue-token",
        CommandV1::RenewToken { .. } => "renew-token",
        CommandV1::RevokeToken { .. } => "revoke-token",
        CommandV1::CreateInvitation { .. } => "create-invitation",
        CommandV1::RedeemInvitation { .. } => "redeem-invitation",
        CommandV1::AdmitMachine { .. } => "admit-machine",
        CommandV1::RemoveMachine { .. } => "remove-machine",
        CommandV1::RenameMachine { .. } => "rename-machine",
        CommandV1::LabelMachine { .. } => "label-machine",
        CommandV1::AnnounceMachine { .. } => "announce-machine",
        CommandV1::SetAvailability { .. } => "set-availability",
        CommandV1::Lead { .. } => "lead",
        CommandV1::Place { .. } => "place",
        CommandV1::MachineLost { .. } => "machine-lost",
        CommandV1::MachineBack { .. } => "machine-back",
        CommandV1::SetLease { .. } => "set-lease",
        CommandV1::CommitGenerations { .. } => "commit-generations",
        CommandV1::HoldGeneration { .. } => "hold-generation",
        CommandV1::DropCopy { .. } => "drop-copy",
        CommandV1::Restore { .. } => "restore",
        CommandV1::NoteImages { .. } => "note-images",
        CommandV1::InviteStorage { .. } => "invite-storage",
        CommandV1::SetValue { .. } => "set-secret",
        CommandV1::RemoveValue { .. } => "remove-value",
        CommandV1::UseValueKey { .. } => "use-value-key",
        CommandV1::ResealValue { .. } => "reseal-value",
        CommandV1::LimitCopies { .. } => "limit-copies",
        CommandV1::NoteScrub { .. } => "note-scrub",
    };
    let covered: BTreeSet<&str> = commands().iter().map(|(_, command)| name(command)).collect();
    assert_eq!(covered.len(), 36);
}

#[test]
fn every_change_has_a_golden_file() {
    let name = |change: &Change| match change {
        Change::Assign { .. } => "assign",
        Change::Update { .. } => "update",
        Change::Leave { .. } => "leave",
        Change::Stay { .. } => "stay",
        Change::Vacate { .. } => "vacate",
        Change::End { .. } => "end",
        Change::StandBy { .. } => "stand-by",
        Change::Replicate { .. } => "replicate",
    };
    let commands = commands();
    let changes = commands.iter().flat_map(|(_, command)| match command {
        CommandV1::Place { changes, .. } => changes.as_slice(),
        _ => &[],
    });
    assert_eq!(changes.map(name).collect::<BTreeSet<&str>>().len(), 8);
}

/// States that are kept: before and after there were several machines, with all that a state could hold then, and so on.
const STATES: [(&str, u64); 9] = [
    ("state", AFTER_ONE),
    ("state-of-several", 33),
    ("state-at-last", AFTER_SEVERAL),
    ("state-with-data", AFTER_DATA),
    ("state-with-history", AFTER_HISTORY),
    ("state-with-values", AFTER_VALUES),
    ("state-with-storage", AFTER_STORAGE),
    ("state-with-limits", AFTER_LIMITS),
    ("state-with-former-copies", AFTER_FORMER_COPIES),
];

#[test]
fn a_snapshot_keeps_its_bytes() {
    for (name, entries_of) in STATES {
        let state = snapshot(entries_of as usize);
        let written = serde_json::to_string_pretty(&state).unwrap() + "\n";
        let kept = golden(name, &written);
        assert_eq!(serde_json::from_str::<State>(&kept).unwrap(), state, "{name}");
        assert_eq!(written, kept, "{name}");
    }
}

/// A node of an older version ran its services without placements.
#[test]
fn an_old_snapshot_goes_on_with_placements() {
    let state = snapshot(AFTER_ONE as usize).upgrade();
    let db = &state.services[&service("db")];
    let placed: Vec<(&NodeId, u64)> = db.placements.iter().map(|it| (&it.machine, it.epoch)).collect();
    assert_eq!(placed, [(&node(), 2)], "its container is of this epoch");
    assert_eq!(state.kept_on[&service("web")], BTreeSet::from([node()]), "what was left behind is found again");
    assert_eq!(state.kept_homes[&service("web")], node());
    assert_eq!(state.clone().upgrade(), state);

    let lead = entries().into_iter().find(|(name, _)| *name == "lead").unwrap().1;
    let mut upgraded = state;
    upgraded.apply(&lead).unwrap();
    assert_eq!(upgraded, snapshot(AFTER_ONE as usize + 1), "the log alone leads to the same");
}

/// A log is replayed by a newer program: what it amounts to may not change.
#[test]
fn the_kept_entries_still_amount_to_the_kept_snapshot() {
    let mut state = State::default();
    for (name, entry) in entries() {
        let kept = golden(name, &(serde_json::to_string_pretty(&entry).unwrap() + "\n"));
        state.apply(&serde_json::from_str(&kept).unwrap()).unwrap();
        for (name, _) in STATES.iter().filter(|(_, entries)| *entries == state.applied) {
            let kept = golden(name, "");
            assert_eq!(serde_json::from_str::<State>(&kept).unwrap(), state, "{name}");
        }
    }
}
