//! At no time do two instances run that write one volume.

use std::collections::BTreeMap;

use crate::world::World;

pub(crate) fn check(world: &World) {
    let mut writers: BTreeMap<&str, (usize, &str)> = BTreeMap::new();
    for (number, node) in world.nodes.iter().enumerate().filter(|(_, node)| node.powered && !node.suspended) {
        for real in world.engine(number).containers.values().filter(|real| real.is_writing()) {
            let service = real.container.service.as_str();
            if let Some((other, container)) = writers.insert(service, (number, real.container.id.as_str())) {
                panic!(
                    "at {}: `{service}` writes on {} and on node-{other} ({container})\n{:#?}\n{}",
                    world.now,
                    node.id,
                    real.container,
                    world.told()
                );
            }
        }
    }
}
