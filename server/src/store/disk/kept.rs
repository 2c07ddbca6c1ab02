//! The table `raft`: what this node must not forget beside the log.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sqlx::SqliteConnection;

use super::{record::At, row::Chain};
use crate::identity::hexadecimal;

/// Whose file this is.
pub(crate) const NODE: &str = "node";
pub(crate) const VOTE: &str = "vote";
/// How far the log is known to be agreed on.
pub(crate) const COMMITTED: &str = "committed";
/// How far it was applied, and the membership of that time.
pub(crate) const APPLIED: &str = "applied";
/// What the log begins after.
pub(crate) const PURGED: &str = "purged";
/// Present where this node joined a cluster: an empty log means then that it was not told the state yet.
pub(crate) const JOINING: &str = "joining";
/// Counts transactions, to learn after a failure whether the last one was kept.
pub(crate) const BATCH: &str = "batch";

/// The last entry that was deleted, and the chain up to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Purged {
    pub(crate) at: At,
    /// Hexadecimal.
    chain: String,
}

impl Purged {
    pub(crate) fn new(at: At, chain: &Chain) -> Self {
        Self { at, chain: hexadecimal(chain) }
    }

    /// `None` where the text is no chain.
    pub(crate) fn chain(&self) -> Option<Chain> {
        parse_chain(&self.chain)
    }
}

pub(crate) fn parse_chain(text: &str) -> Option<Chain> {
    let mut chain = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (byte, digits) in chain.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(chain)
}

pub(crate) async fn put(
    connection: &mut SqliteConnection,
    name: &str,
    value: &impl Serialize,
) -> Result<(), sqlx::Error> {
    let text = serde_json::to_string(value).map_err(|error| sqlx::Error::Encode(Box::new(error)))?;
    // Unchanged rows are not written: see `check_format`.
    sqlx::query(
        "INSERT INTO raft (name, value) VALUES (?1, ?2)
         ON CONFLICT (name) DO UPDATE SET value = excluded.value WHERE value <> excluded.value",
    )
    .bind(name)
    .bind(text)
    .execute(connection)
    .await
    .map(drop)
}

/// A row that is there and can't be read is an error, never absent.
pub(crate) async fn get<T: DeserializeOwned>(
    connection: &mut SqliteConnection,
    name: &str,
) -> Result<Option<T>, sqlx::Error> {
    let text: Option<String> =
        sqlx::query_scalar("SELECT value FROM raft WHERE name = ?1").bind(name).fetch_optional(connection).await?;
    text.map(|text| serde_json::from_str(&text)).transpose().map_err(|error| sqlx::Error::Decode(Box::new(error)))
}
