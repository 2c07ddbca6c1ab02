//! The engine's room against a real Docker Engine. Each test has a cluster of its own, and takes away what it made even if
//! it fails.

mod commands;
mod containers;
mod fencing;
mod images;
mod nodes;
mod outage;
mod playground;
mod spares;
mod stored;
mod uploads;
mod values;
