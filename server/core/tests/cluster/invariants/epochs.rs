//! Nothing runs under an epoch that was never given out, and no epoch was given out twice.

use std::collections::BTreeSet;

use crate::world::World;

pub(crate) fn check(world: &World) {
    let state = world.log.newest();
    let mut seen = BTreeSet::new();
    for placement in state.services.values().flat_map(|service| &service.placements) {
        assert!(seen.insert(placement.epoch), "epoch {} was given out twice\n{}", placement.epoch, world.told());
        assert!(placement.epoch <= state.epoch);
    }
    for (number, _) in world.nodes.iter().enumerate() {
        for real in world.engine(number).containers.values() {
            assert!(real.container.epoch <= state.epoch, "{:?} was never placed", real.container);
        }
    }
}
