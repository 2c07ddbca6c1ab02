//! What is committed is never lost, and never mixed: each machine that is said to hold a generation does, and whatever runs has
//! all of the newest in it. What was written and not committed is still on the machine that wrote it.

use crate::world::World;

pub(crate) fn check(world: &World) {
    let state = world.log.newest();
    for service in state.services.values() {
        let Some(committed) = &service.data.committed else { continue };
        let key = (service.name.clone(), committed.name);
        let holders = committed.holders();
        let mut copies = Vec::new();
        for node in world.nodes.iter().filter(|node| holders.contains(&node.id)) {
            let copy = node.disk.generations.get(&key);
            assert!(copy.is_some(), "{} has no {} of `{}`\n{}", node.id, committed.name, service.name, world.told());
            copies.extend(copy);
        }
        assert!(copies.windows(2).all(|pair| pair[0] == pair[1]), "two generations have one name\n{}", world.told());
        let Some(newest) = copies.first() else { continue };
        for node in world.nodes.iter().filter(|node| node.powered && !node.suspended) {
            let writes = |real: &&crate::engine::Real| real.is_writing() && real.container.service == service.name;
            let Some(real) = node.engine.containers.values().find(writes) else { continue };
            let directory = node.disk.directories.get(&service.name).map(|it| it.writes.as_slice()).unwrap_or_default();
            assert!(
                directory.starts_with(newest),
                "at {}: what {} writes of `{}` under {} lacks what generation {} has: {directory:?} {newest:?}\n{}",
                world.now,
                node.id,
                service.name,
                real.container.epoch,
                committed.name,
                world.told()
            );
        }
    }
}

/// At the end of a run, as it takes its time.
pub(crate) fn nothing_was_dropped(world: &World) {
    for (number, service, write) in &world.written {
        let node = &world.nodes[*number];
        assert!(node.disk.has(service, *write), "{} has lost a write of `{service}`\n{}", node.id, world.told());
    }
}
