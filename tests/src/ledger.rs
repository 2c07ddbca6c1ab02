//! What `flotilla-ledger` answers: a service with a database, of which a test knows what it has acknowledged.

use serde::{Deserialize, Serialize};

pub const PORT: u16 = 8080;
/// The database's volume.
pub const DATA: &str = "/data";
/// The other one: a file that is appended to after each transaction.
pub const JOURNAL: &str = "/journal";

/// Rows are numbered from 1, and so are the lines of the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// Name of the container as it sees itself.
    pub host: String,
    /// Nanoseconds of `CLOCK_BOOTTIME`, which all simulated machines share.
    pub started: u64,
    /// The newest row that was there when it started.
    pub found: u64,
    /// The last line of the journal that was there then.
    pub found_in_journal: u64,
    /// What SQLite said of the database then: `ok`.
    pub integrity: String,
    /// The newest row that was committed, so that SQLite had synced it.
    pub acknowledged: u64,
    /// When. Milliseconds since 1970.
    pub at: u64,
}
