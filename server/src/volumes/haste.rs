//! Whether something waits for what is fetched.

use std::sync::Arc;

use tokio::sync::watch;

/// Of one fetch; clones are the same one. What is fetched in advance may come to be waited for while it is on its way, and not the
/// other way round.
#[derive(Clone, Debug)]
pub(crate) struct Haste(Arc<watch::Sender<bool>>);

impl Haste {
    /// An instance, or a person, waits for it.
    pub(crate) fn awaited() -> Self {
        Self(Arc::new(watch::Sender::new(true)))
    }

    /// It can wait for the limits of the machines that send it.
    pub(crate) fn in_advance() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }

    pub(crate) fn new(awaited: bool) -> Self {
        if awaited { Self::awaited() } else { Self::in_advance() }
    }

    /// From now on something waits for it.
    pub(crate) fn hurry(&self) {
        self.0.send_if_modified(|awaited| !std::mem::replace(awaited, true));
    }

    pub(crate) fn is_awaited(&self) -> bool {
        *self.0.borrow()
    }

    /// Resolves once something waits for it.
    pub(crate) async fn is_called_for(&self) {
        // The sender is held here.
        let _ = self.0.subscribe().wait_for(|awaited| *awaited).await;
    }
}
