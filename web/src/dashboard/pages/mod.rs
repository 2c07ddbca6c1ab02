//! One module per page.

pub(crate) mod access;
pub(crate) mod activity;
pub(crate) mod deploy;
pub(crate) mod machines;
pub(crate) mod service;
pub(crate) mod services;
pub(crate) mod sign_in;
