//! Volumes as generations on disk.
//!
//! A *generation* is one immutable state of a volume: a tree of directories ([`tree`]) whose files are streams of content-defined chunks
//! ([`stream`]). Every chunk, every directory and every generation is an *object*, named by its BLAKE3 hash and kept once
//! ([`store`]). [`capture`] makes a generation of a directory, for which [`watch`] tells it where to look, [`restore`] a directory of a generation, [`verify`] finds what a disk forgot of one, and [`diff`] says what
//! two of them do not share; [`fetch`] gets a generation from another store: equal parts have equal names, and are not even looked at.
//!
//! What is *sealed* ([`seal`]) can be fetched, checked, kept and freed by a machine that can't read it.
//!
//! All of it is blocking code on files: no network, no container engine, no clock but the file system's.

pub mod capture;
pub mod diff;
pub mod fetch;
pub mod hash;
mod object;
mod place;
pub mod restore;
pub mod seal;
pub mod store;
pub mod stream;
pub mod tree;
pub mod verify;
pub mod watch;

pub use hash::Hash;
pub use store::{Session, Store};
