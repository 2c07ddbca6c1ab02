//! Reads a compose file into specifications, or says at which line and why not.

use std::collections::BTreeMap;

use flotilla_api::{ApiError, StackName, spec::ServiceSpec};

/// What a compose file asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Composition {
    pub stack: StackName,
    pub services: Vec<ServiceSpec>,
    /// Services whose image is built: the spec's image is the tag to give it.
    pub builds: Vec<Build>,
}

/// `build:` of a service; paths as written, relative to the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Build {
    pub image: String,
    pub context: String,
    pub dockerfile: Option<String>,
    pub args: BTreeMap<String, String>,
    pub target: Option<String>,
}

/// `stack` is used where the file has no `name:`; `variables` stand for `${NAME}`.
///
/// # Errors
/// Names the key and its line.
pub fn read(_text: &str, _stack: Option<&str>, _variables: &BTreeMap<String, String>) -> Result<Composition, ApiError> {
    Err(ApiError::new(flotilla_api::ErrorCode::Internal, "not written yet"))
}
