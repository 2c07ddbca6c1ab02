//! What one node does as a member of its cluster: hold its lease ([`Member`]), and while it leads, grant leases to all,
//! notice losses and decide placements ([`Leader`]). No IO: the shell brings time, state, observations and messages, and does
//! what comes back.

mod leader;
mod member;
mod voters;

pub use leader::{Leader, Outcome, Step};
pub use member::{Member, Orders, Sight};
pub use voters::{Members, wanted_members};
