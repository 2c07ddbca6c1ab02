//! The web app, embedded in the binary, and how it is served: the right encoding, caching and policy for each file.
//!
//! Two sites: [`app`] answers for `app.<cluster>` (dashboard and connector), [`service`] for every `<service>.<cluster>`,
//! where it answers each navigation with the bootstrap page and never learns what a person opens there.

mod embedded;
mod serve;

pub use embedded::{Asset, Caching};
pub use serve::{app, service};
