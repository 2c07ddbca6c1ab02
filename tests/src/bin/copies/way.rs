//! What lies between the machines.

use flotilla_tests::{
    bed::{BedSpec, Line},
    series::Report,
};

/// Which way of sending TCP takes, where nobody asks for another.
const CONGESTION_CONTROL: &str = "/proc/sys/net/ipv4/tcp_congestion_control";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// A switch.
    Lan,
    /// What lies between homes: [`Line::HOME`].
    Slow,
}

impl Way {
    pub(crate) fn between(self, machines: BedSpec) -> BedSpec {
        match self {
            Self::Lan => machines,
            Self::Slow => machines.shaped(Line::HOME),
        }
    }

    /// The name of what is measured.
    pub(crate) fn of(self, what: impl Into<String>) -> String {
        match self {
            Self::Lan => what.into(),
            Self::Slow => what.into() + ", slow network",
        }
    }

    /// What a reader of the figures has to know.
    pub(crate) fn explain(self, report: &mut Report) {
        if self == Self::Slow {
            // TCP's figures depend on how it takes a loss; what Flotilla's links do is its own.
            let control = std::fs::read_to_string(CONGESTION_CONTROL).unwrap_or_else(|error| error.to_string());
            let Line { delay, megabits, lost, .. } = Line::HOME;
            // Two cables, and back.
            report.note(format!(
                "slow network: {} ms there and back, {megabits} Mbit/s, {:.1} % lost each way; TCP's congestion control is {}",
                delay.as_millis() * 4,
                f64::from(lost) * 2.0 / 10_000.0,
                control.trim()
            ));
        }
    }
}
