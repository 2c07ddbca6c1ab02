//! Entries of the log as rows, and the chain over them.

use std::sync::Arc;

use flotilla_core::Entry;
use openraft::EntryPayload;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use sqlx::{Row as _, sqlite::SqliteRow};

use super::record::Members;
use crate::consensus::{LogEntry, LogId, Membership, Payload, Proposal, log_id};

/// SHA-256 over all entries so far: equal chains mean equal histories.
pub(crate) type Chain = [u8; 32];

/// What a row of the log holds. The text is part of the file format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Blank,
    Normal,
    Membership,
}

/// An entry as it is written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    pub(crate) id: LogId,
    pub(crate) kind: Kind,
    pub(crate) text: String,
}

/// Why a row that is whole (its chain was right) could not be read.
pub(crate) enum Unreadable {
    /// It comes from a newer version.
    Newer(String),
    Damaged(String),
}

impl Kind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Blank => "blank",
            Self::Normal => "normal",
            Self::Membership => "membership",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Blank, Self::Normal, Self::Membership].into_iter().find(|kind| kind.as_str() == text)
    }
}

impl Row {
    pub(crate) fn of(entry: &LogEntry) -> Result<Self, serde_json::Error> {
        let (kind, text) = match &entry.payload {
            EntryPayload::Blank => (Kind::Blank, String::new()),
            EntryPayload::Normal(Proposal(entry)) => (Kind::Normal, serde_json::to_string(&**entry)?),
            EntryPayload::Membership(membership) => {
                (Kind::Membership, serde_json::to_string(&Members::of(membership))?)
            }
        };
        Ok(Self { id: entry.log_id, kind, text })
    }

    /// Reads `position`, `term`, `kind` and `entry`.
    pub(crate) fn read(row: &SqliteRow) -> Result<Self, sqlx::Error> {
        let kind: &str = row.try_get("kind")?;
        let kind =
            Kind::parse(kind).ok_or_else(|| sqlx::Error::Decode(format!("`{kind}` is no kind of entry").into()))?;
        let (term, position): (i64, i64) = (row.try_get("term")?, row.try_get("position")?);
        Ok(Self { id: log_id(term.cast_unsigned(), position.cast_unsigned()), kind, text: row.try_get("entry")? })
    }

    pub(crate) fn entry(&self) -> Result<LogEntry, Unreadable> {
        let payload =
            match self.kind {
                Kind::Blank => Payload::Blank,
                Kind::Normal => Payload::Normal(Proposal(Arc::new(read_entry(self.id.index, &self.text)?))),
                Kind::Membership => Payload::Membership(self.membership().map_err(|error| {
                    Unreadable::Damaged(format!("entry {} is no membership: {error}", self.id.index))
                })?),
            };
        Ok(LogEntry { log_id: self.id, payload })
    }

    fn membership(&self) -> Result<Membership, String> {
        serde_json::from_str::<Members>(&self.text).map_err(|error| error.to_string())?.membership()
    }

    /// The chain after this row.
    pub(crate) fn link(&self, previous: &Chain) -> Chain {
        Sha256::new()
            .chain_update(previous)
            .chain_update(self.id.index.to_be_bytes())
            .chain_update(self.id.leader_id.term.to_be_bytes())
            .chain_update(self.kind.as_str())
            .chain_update(self.text.as_bytes())
            .finalize()
            .into()
    }
}

/// Text that is whole but is not understood comes from a newer version.
pub(crate) fn read_entry(position: u64, text: &str) -> Result<Entry, Unreadable> {
    #[derive(Deserialize)]
    struct Probe {
        command: Version,
    }
    #[derive(Deserialize)]
    struct Version {
        version: String,
    }
    serde_json::from_str(text).map_err(|error| {
        let version = serde_json::from_str::<Probe>(text).map(|probe| probe.command.version);
        let what = version.map_or_else(|_| error.to_string(), |version| format!("command version {version}: {error}"));
        Unreadable::Newer(format!("entry {position}, {what}"))
    })
}

/// Reads the column `chain`.
pub(crate) fn chain_of(row: &SqliteRow) -> Result<Chain, sqlx::Error> {
    let bytes: &[u8] = row.try_get("chain")?;
    bytes.try_into().map_err(|error| sqlx::Error::Decode(Box::new(error)))
}
