//! The Flotilla node: the shell around `flotilla-core` that reads clocks, sockets, disks and the container engine.

pub mod assets;
pub mod auth;
mod bridge;
pub mod cli;
pub mod client;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod consensus;
pub mod demo;
pub mod engine;
pub mod fence;
pub mod http;
pub mod identity;
pub mod images;
pub mod mesh;
pub mod metrics;
pub mod node;
pub mod peers;
pub mod route;
pub mod store;
pub mod tunnel;
pub mod vault;
pub mod volumes;
