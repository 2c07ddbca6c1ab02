//! What can go wrong, and be over again.

use crate::world::World;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    PowerLoss(usize),
    DaemonKilled(usize),
    DaemonStopped(usize),
    Suspended(usize),
    /// Nothing reaches it, and nothing of it reaches others.
    CutOff(usize),
    /// Its messages reach nobody, but it hears all.
    Mute(usize),
    /// It hears nobody, but is heard.
    Deaf(usize),
    /// Two that do not hear each other, though both hear the others.
    Apart(usize, usize),
    Lossy(u64),
    Slow(u64),
    /// Its disk takes nothing: no entry of the log, no container.
    DiskFull(usize),
    /// Its time of day is wrong by so many milliseconds from one moment to the next.
    ClockSet(usize, i64),
}

impl Fault {
    pub(crate) fn random(world: &mut World) -> Self {
        let count = world.nodes.len() as u64;
        let machine = world.chance.between(0, count - 1) as usize;
        let other = (machine + 1 + world.chance.between(0, count - 2) as usize) % count as usize;
        match world.chance.between(0, 12) {
            0 | 1 => Self::PowerLoss(machine),
            2 => Self::DaemonKilled(machine),
            3 => Self::DaemonStopped(machine),
            4 => Self::Suspended(machine),
            5 => Self::CutOff(machine),
            6 => Self::Mute(machine),
            7 => Self::Deaf(machine),
            8 => Self::Apart(machine, other),
            9 => Self::DiskFull(machine),
            10 => {
                const HOUR_MS: u64 = 3_600_000;
                Self::ClockSet(machine, world.chance.between(0, 2 * HOUR_MS) as i64 - HOUR_MS as i64)
            }
            _ if world.chance.percent(50) => Self::Lossy(world.chance.between(5, 60)),
            _ => Self::Slow(world.chance.between(20, 400)),
        }
    }

    pub(crate) fn begin(self, world: &mut World) {
        world.note(|| format!("fault: {self:?}"));
        let others: Vec<usize> = (0..world.nodes.len()).collect();
        match self {
            Self::PowerLoss(machine) => world.power_off(machine),
            Self::DaemonKilled(machine) => world.nodes[machine].daemon = None,
            Self::DaemonStopped(machine) => world.nodes[machine].stopped = true,
            Self::Suspended(machine) => world.nodes[machine].suspended = true,
            Self::CutOff(machine) => {
                for other in others.into_iter().filter(|other| *other != machine) {
                    world.cut.insert((machine, other));
                    world.cut.insert((other, machine));
                }
            }
            Self::Mute(machine) => {
                world.cut.extend(others.into_iter().filter(|other| *other != machine).map(|other| (machine, other)));
            }
            Self::Deaf(machine) => {
                world.cut.extend(others.into_iter().filter(|other| *other != machine).map(|other| (other, machine)));
            }
            Self::Apart(one, other) => {
                world.cut.insert((one, other));
                world.cut.insert((other, one));
            }
            Self::Lossy(percent) => world.loss = percent,
            Self::Slow(millis) => world.latency = millis,
            Self::DiskFull(machine) => world.nodes[machine].disk_fails = true,
            Self::ClockSet(machine, millis) => world.nodes[machine].wall_off = millis,
        }
    }

    pub(crate) fn end(self, world: &mut World) {
        world.note(|| format!("over: {self:?}"));
        match self {
            Self::PowerLoss(machine) => {
                if !world.nodes[machine].powered {
                    world.boot(machine);
                }
            }
            Self::DaemonKilled(machine) => {
                if world.nodes[machine].powered && world.nodes[machine].daemon.is_none() {
                    world.nodes[machine].start_daemon();
                }
            }
            Self::DaemonStopped(machine) => world.nodes[machine].stopped = false,
            Self::Suspended(machine) => world.wake(machine),
            Self::CutOff(machine) | Self::Mute(machine) | Self::Deaf(machine) => {
                world.cut.retain(|(from, to)| *from != machine && *to != machine);
            }
            Self::Apart(one, other) => {
                world.cut.remove(&(one, other));
                world.cut.remove(&(other, one));
            }
            Self::Lossy(_) => world.loss = 0,
            Self::Slow(_) => world.latency = 5,
            Self::DiskFull(machine) => world.nodes[machine].disk_fails = false,
            Self::ClockSet(machine, _) => world.nodes[machine].wall_off = 0,
        }
    }
}
