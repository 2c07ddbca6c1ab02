//! A machine that is said to be lost runs nothing that writes: its lease was over before anything was given away.

use crate::world::World;

pub(crate) fn check(world: &World) {
    let state = world.log.newest();
    for (number, node) in world.nodes.iter().enumerate().filter(|(_, node)| node.powered && !node.suspended) {
        if state.machines.get(&node.id).is_none_or(|machine| machine.lost_at.is_none()) {
            continue;
        }
        let writing = world.engine(number).containers.values().find(|real| real.is_writing());
        if let Some(real) = writing {
            panic!("at {}: {} is lost, and writes: {:?}\n{}", world.now, node.id, real.container, world.told());
        }
    }
}
