//! The snapshot: the state after an entry, with the membership of that time.

use sha2::{Digest, Sha256};
use sqlx::{Row as _, SqliteConnection, sqlite::SqliteRow};

use super::{
    record::{At, Standing},
    row::{Chain, chain_of},
};

/// What the table `snapshot` holds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    pub(crate) at: At,
    pub(crate) membership: Standing,
    /// JSON.
    pub(crate) state: String,
    /// Over the entries up to it.
    pub(crate) chain: Chain,
}

/// A snapshot as it was read, and whether it is what was written.
pub(crate) enum Found {
    Whole(Row),
    Damaged { position: u64, what: String },
}

fn digest(at: At, membership: &str, state: &str, chain: &Chain) -> [u8; 32] {
    Sha256::new()
        .chain_update(at.index.to_be_bytes())
        .chain_update(at.term.to_be_bytes())
        .chain_update(chain)
        .chain_update(u64::try_from(membership.len()).unwrap_or(u64::MAX).to_be_bytes())
        .chain_update(membership)
        .chain_update(state)
        .finalize()
        .into()
}

/// Replaces the one that is there.
pub(crate) async fn write(connection: &mut SqliteConnection, row: &Row) -> Result<(), sqlx::Error> {
    let membership = serde_json::to_string(&row.membership).map_err(|error| sqlx::Error::Encode(Box::new(error)))?;
    sqlx::query(
        "INSERT OR REPLACE INTO snapshot (id, position, term, membership, state, digest, chain)
         VALUES (1, ?1, ?2, ?3, ?4, ?5, ?6)",
    )
    .bind(row.at.index.cast_signed())
    .bind(row.at.term.cast_signed())
    .bind(&membership)
    .bind(&row.state)
    .bind(digest(row.at, &membership, &row.state, &row.chain).as_slice())
    .bind(row.chain.as_slice())
    .execute(connection)
    .await
    .map(drop)
}

pub(crate) async fn read(connection: &mut SqliteConnection) -> Result<Option<Found>, sqlx::Error> {
    let row = sqlx::query("SELECT position, term, membership, state, digest, chain FROM snapshot")
        .fetch_optional(connection)
        .await?;
    row.map(|row| found(&row)).transpose()
}

fn found(row: &SqliteRow) -> Result<Found, sqlx::Error> {
    let (position, term): (i64, i64) = (row.try_get("position")?, row.try_get("term")?);
    let at = At { term: term.cast_unsigned(), index: position.cast_unsigned() };
    let (membership, state): (String, String) = (row.try_get("membership")?, row.try_get("state")?);
    let chain = chain_of(row)?;
    let written: &[u8] = row.try_get("digest")?;
    if digest(at, &membership, &state, &chain) != written {
        return Ok(Found::Damaged { position: at.index, what: "is not what was written".to_owned() });
    }
    Ok(match serde_json::from_str(&membership) {
        Ok(membership) => Found::Whole(Row { at, membership, state, chain }),
        Err(error) => {
            Found::Damaged { position: at.index, what: format!("has no membership that can be read: {error}") }
        }
    })
}
