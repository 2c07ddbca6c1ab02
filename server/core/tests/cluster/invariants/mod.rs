//! What must be true after every step, whatever fails. One file each.

pub(crate) mod acknowledged;
pub(crate) mod converges;
pub(crate) mod data;
pub(crate) mod epochs;
pub(crate) mod leases;
pub(crate) mod one_writer;
pub(crate) mod prefixes;

use crate::world::World;

pub(crate) fn check(world: &World) {
    one_writer::check(world);
    leases::check(world);
    prefixes::check(world);
    epochs::check(world);
    acknowledged::check(world);
    data::check(world);
}
