//! When a majority is well, every service runs as it shall, and nothing else does.

use flotilla_core::reconcile::Status;

use crate::world::World;

pub(crate) fn check(world: &World) {
    let state = world.log.newest();
    for service in state.services.values() {
        let placed: Vec<_> = service.placements.iter().collect();
        assert_eq!(
            placed.len(),
            service.replicas as usize,
            "`{}` is not placed as it shall: {placed:#?}\n{}",
            service.name,
            world.told()
        );
        for placement in placed {
            let number = world.nodes.iter().position(|node| node.id == placement.machine).unwrap();
            let runs = world.engine(number).containers.values().any(|real| {
                let container = &real.container;
                container.epoch == placement.epoch
                    && container.revision == service.current
                    && container.restarts == service.restarts
                    && matches!(container.status, Status::Running { .. })
                    && !real.frozen
            });
            assert!(runs, "`{}` does not run as placed: {placement:?}\n{}", service.name, world.told());
        }
    }
    assert!(state.leftovers.is_empty(), "leftovers: {:?}\n{}", state.leftovers, world.told());
    for (number, node) in world.nodes.iter().enumerate() {
        for real in world.engine(number).containers.values() {
            let placed = state.placement(real.container.epoch).is_some_and(|(_, it)| it.machine == node.id);
            assert!(placed, "{} still has {:?}\n{}", node.id, real.container, world.told());
        }
    }
}
