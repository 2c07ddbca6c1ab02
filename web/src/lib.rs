//! The web app: the dashboard, and the connector that carries services' pages over a data channel.

#[cfg(feature = "connector")]
pub mod connector;
#[cfg(feature = "dashboard")]
pub mod dashboard;
pub mod identity;
