//! What the directories of volumes have in them, around the instances that write them.

use std::{any::Any, fmt};

use flotilla_api::{ApiError, ServiceName};
use futures::future::BoxFuture;

/// Who sees to it that an instance finds its data.
pub trait Data: Send + Sync + fmt::Debug + 'static {
    /// An instance of this epoch is to run: what it shall begin with is in the directories when this returns.
    fn ready<'a>(&'a self, service: &'a ServiceName, epoch: u64) -> BoxFuture<'a, Result<(), ApiError>>;

    /// It is started as soon as this has returned, and may write from then on.
    fn begins<'a>(&'a self, service: &'a ServiceName, epoch: u64) -> BoxFuture<'a, Result<Begun, ApiError>>;

    /// Directories are about to be made that nobody has written yet; nobody else touches them before that is done.
    fn prepares<'a>(&'a self, service: &'a ServiceName) -> BoxFuture<'a, Result<Begun, ApiError>>;

    /// Forgets all that is kept of its volumes. Their directories are deleted while what this returns is held.
    fn deletes<'a>(&'a self, service: &'a ServiceName) -> BoxFuture<'a, Result<Begun, ApiError>>;
}

/// To be held until it is done: until the instance has started or has not, or the directories are made or deleted.
#[must_use = "it is held until it is done"]
pub struct Begun(#[expect(dead_code, reason = "held, and dropped")] Box<dyn Any + Send>);

impl Begun {
    pub fn new(held: impl Any + Send) -> Self {
        Self(Box::new(held))
    }
}

impl fmt::Debug for Begun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Begun")
    }
}

/// The directories are all that there is.
#[derive(Debug)]
pub struct NoData;

impl Data for NoData {
    fn ready<'a>(&'a self, _: &'a ServiceName, _: u64) -> BoxFuture<'a, Result<(), ApiError>> {
        Box::pin(async { Ok(()) })
    }

    fn begins<'a>(&'a self, _: &'a ServiceName, _: u64) -> BoxFuture<'a, Result<Begun, ApiError>> {
        Box::pin(async { Ok(Begun::new(())) })
    }

    fn prepares<'a>(&'a self, _: &'a ServiceName) -> BoxFuture<'a, Result<Begun, ApiError>> {
        Box::pin(async { Ok(Begun::new(())) })
    }

    fn deletes<'a>(&'a self, _: &'a ServiceName) -> BoxFuture<'a, Result<Begun, ApiError>> {
        Box::pin(async { Ok(Begun::new(())) })
    }
}
