//! Every decision Flotilla makes, without IO, clock or randomness.
//!
//! Time and random ids come in as values; what shall happen goes out as values. `clippy.toml` of this crate bans the rest.

mod access;
pub mod command;
pub mod compose;
mod dependency;
pub mod history;
pub mod images;
pub mod lease;
pub mod limit;
pub mod node;
pub mod reconcile;
pub mod replication;
pub mod report;
pub mod schedule;
pub mod state;

pub use command::{Actor, Change, Command, CommandV1, Entry};
pub use dependency::listed;
pub use state::{Applied, Event, Outcome, Rejected, State};
