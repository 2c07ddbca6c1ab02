//! What instances need, and what a machine has been asked for.

use flotilla_api::spec::ServiceSpec;

use crate::state::MachineFacts;

/// Set aside for an instance that reserves no processor time. Thousandths of a core.
pub const CPU_EXPECTED_MILLIS: u64 = 100;
/// Set aside for an instance that reserves no memory. Bytes.
pub const MEMORY_EXPECTED_BYTES: u64 = 64 << 20;
/// Taken for a machine that has not said what it has, where machines are compared.
const FACTS_ASSUMED: Amount = Amount { cpu_millis: 2_000, memory_bytes: 2 << 30 };

/// Processor time and memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Amount {
    /// Thousandths of a core.
    pub(super) cpu_millis: u64,
    pub(super) memory_bytes: u64,
}

/// What an instance asks of its machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Needs {
    /// What its specification reserves: a machine that has less left does not get it.
    pub(super) reserved: Amount,
    /// What it will probably use. Machines are compared by it, but nothing is refused for it: nobody asked for so much.
    pub(super) expected: Amount,
}

impl Amount {
    fn plus(self, other: Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.saturating_add(other.cpu_millis),
            memory_bytes: self.memory_bytes.saturating_add(other.memory_bytes),
        }
    }

    fn minus(self, other: Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.saturating_sub(other.cpu_millis),
            memory_bytes: self.memory_bytes.saturating_sub(other.memory_bytes),
        }
    }

    /// What is left of it, with `used` taken out. Where it is not known, there is no end to it.
    pub(super) fn left(self, used: Self) -> Self {
        let left = |all: u64, used: u64| if all == 0 { u64::MAX } else { all.saturating_sub(used) };
        Self {
            cpu_millis: left(self.cpu_millis, used.cpu_millis),
            memory_bytes: left(self.memory_bytes, used.memory_bytes),
        }
    }

    /// The larger of the two shares of `all` that it takes. Thousandths.
    pub(super) fn share_of(self, all: Self) -> u64 {
        let share = |part: u64, all: u64, assumed: u64| {
            let all = if all == 0 { assumed } else { all };
            u64::try_from(u128::from(part) * 1_000 / u128::from(all)).unwrap_or(u64::MAX)
        };
        share(self.cpu_millis, all.cpu_millis, FACTS_ASSUMED.cpu_millis).max(share(
            self.memory_bytes,
            all.memory_bytes,
            FACTS_ASSUMED.memory_bytes,
        ))
    }

    /// What a machine has for instances: all of its processor, and nine tenths of its memory, for the rest runs the machine.
    pub(super) fn of_machine(facts: &MachineFacts) -> Self {
        Self { cpu_millis: facts.cpu_millis, memory_bytes: facts.memory_bytes / 10 * 9 }
    }
}

impl Needs {
    pub(super) fn of(spec: &ServiceSpec) -> Self {
        let expected = |reserved: Option<u64>, limit: Option<u64>, usual: u64| {
            reserved.unwrap_or_else(|| limit.map_or(usual, |limit| limit.min(usual)))
        };
        let (reserved, limits) = (&spec.reservations, &spec.resources);
        Self {
            reserved: Amount {
                cpu_millis: reserved.cpu_millis.unwrap_or(0),
                memory_bytes: reserved.memory_bytes.unwrap_or(0),
            },
            expected: Amount {
                cpu_millis: expected(reserved.cpu_millis, limits.cpu_millis, CPU_EXPECTED_MILLIS),
                memory_bytes: expected(reserved.memory_bytes, limits.memory_bytes, MEMORY_EXPECTED_BYTES),
            },
        }
    }

    pub(super) fn plus(self, other: Self) -> Self {
        Self { reserved: self.reserved.plus(other.reserved), expected: self.expected.plus(other.expected) }
    }

    pub(super) fn minus(self, other: Self) -> Self {
        Self { reserved: self.reserved.minus(other.reserved), expected: self.expected.minus(other.expected) }
    }
}

/// For a sentence: `1.5 GiB`, `512 MiB`.
pub(super) fn shown_bytes(bytes: u64) -> String {
    const GIB: u64 = 1 << 30;
    if bytes >= GIB {
        let tenths = bytes / (GIB / 10);
        match tenths % 10 {
            0 => format!("{} GiB", tenths / 10),
            part => format!("{}.{part} GiB", tenths / 10),
        }
    } else {
        format!("{} MiB", bytes >> 20)
    }
}

/// For a sentence: `0.25 cores`.
pub(super) fn shown_cpu(millis: u64) -> String {
    let text = format!("{}.{:03}", millis / 1_000, millis % 1_000);
    let text = text.trim_end_matches('0').trim_end_matches('.');
    format!("{text} {}", if millis == 1_000 { "core" } else { "cores" })
}
