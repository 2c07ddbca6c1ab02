//! What was acknowledged is in the log for good.

use crate::world::World;

pub(crate) fn check(world: &World) {
    if let Some(last) = world.acknowledged.last() {
        assert!(*last <= world.log.len(), "entry {last} was acknowledged and is gone");
    }
}
