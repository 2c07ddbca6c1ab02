//! Containers that stand still for a moment, so that what they write can be seen as it is at one instant. That is not fencing: they count
//! as running, and go on only as far as their lease allows.

use std::collections::BTreeSet;

use super::{Error, Fence};

/// Containers that stand still for a moment.
#[derive(Debug)]
#[must_use = "what is held has to be released"]
pub struct Held(Vec<String>);

impl Fence {
    /// Holds everything that could write under an epoch still. Ends with [`Self::release`]; a container whose lease ends meanwhile
    /// stays frozen.
    ///
    /// # Errors
    /// One of them does not stand still; then none is held.
    pub async fn hold(&self, epoch: u64) -> Result<Held, Error> {
        let mut containers = self.containers(epoch);
        // What somebody else has stopped stays so.
        containers.retain(|container| !self.stands_still(container));
        let containers: Vec<String> = containers.into_iter().collect();
        self.shared.lock(&self.shared.held).extend(containers.iter().cloned());
        let stopped = self.stop(&containers).await;
        let held = Held(containers);
        match stopped.into_iter().find_map(|(_, result)| result.err()) {
            Some(error) => {
                self.release(held).await;
                Err(error)
            }
            None => Ok(held),
        }
    }

    /// The processes of everything that could write under an epoch.
    pub fn processes(&self, epoch: u64) -> Vec<i32> {
        self.containers(epoch).iter().flat_map(|container| self.shared.freezer.processes(container)).collect()
    }

    fn containers(&self, epoch: u64) -> BTreeSet<String> {
        let plan = self.shared.plan.borrow();
        let guarded = plan.targets.iter().filter(|target| target.epoch == epoch).map(|it| it.container.clone());
        let announced = plan.announced.iter().filter(|(_, (of, _))| *of == epoch).map(|(it, _)| it.clone());
        guarded.chain(announced).collect()
    }

    /// Lets what was held go on, as far as it may.
    pub async fn release(&self, Held(containers): Held) {
        let frozen = self.frozen();
        let free: Vec<String> = containers.iter().filter(|container| !frozen.contains(*container)).cloned().collect();
        let released = self.let_go(&free).await;
        // Only now: whoever looks meanwhile must not take what is about to go on for frozen.
        self.shared.lock(&self.shared.held).retain(|container| !containers.contains(container));
        for (container, result) in released {
            if let Err(error) = result {
                tracing::warn!(container, %error, "what was held for a copy does not go on yet");
            }
        }
    }

    /// Does it count as frozen, and not only as held for a moment?
    pub(super) fn counts(&self, container: &str) -> bool {
        !self.shared.lock(&self.shared.held).contains(container) || self.shared.frozen.borrow().contains(container)
    }
}
