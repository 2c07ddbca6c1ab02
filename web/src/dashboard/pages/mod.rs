//! One module per page.

pub(crate) mod access;
pub(crate) mod activity;
pub(crate) mod cluster;
pub(crate) mod deploy;
pub(crate) mod images;
pub(crate) mod machine;
pub(crate) mod service;
pub(crate) mod services;
pub(crate) mod sign_in;
pub(crate) mod values;
pub(crate) mod volume;
pub(crate) mod volumes;
