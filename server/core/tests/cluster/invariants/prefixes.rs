//! What a node has applied is what the log says up to there, and no more than is on its disk.

use std::sync::Arc;

use crate::world::World;

pub(crate) fn check(world: &World) {
    for node in &world.nodes {
        assert!(node.applied <= node.stored && node.stored <= world.log.len(), "{} is ahead of the log", node.id);
        assert!(Arc::ptr_eq(&node.state, &world.log.state_at(node.applied)), "{} acts on another state", node.id);
    }
}
