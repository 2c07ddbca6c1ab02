pub mod connector;
pub mod dashboard;
