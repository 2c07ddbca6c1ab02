//! What this machine tells the others of itself: where it is found, and what it has.

use std::{fs, net::SocketAddr, net::ToSocketAddrs as _, path::Path};

use flotilla_core::state::{MachineFacts, Power};
use sysinfo::System;

use crate::mesh::Addresses;

/// Where Linux lists batteries (Documentation/ABI/testing/sysfs-class-power).
const SUPPLIES: &str = "/sys/class/power_supply";

/// As it is now. `listening` is where the listener is, `relay_port` that of the TURN server, if there is one.
pub fn facts(listening: SocketAddr, relay_port: Option<u16>) -> MachineFacts {
    let (cpu_millis, memory_bytes) = match System::new() {
        Ok(mut system) => {
            system.refresh_memory();
            system.refresh_cpu_usage();
            (system.cpus().len() as u64 * 1000, system.total_memory())
        }
        Err(error) => {
            tracing::warn!(%error, "what this machine has can't be read");
            (0, 0)
        }
    };
    MachineFacts {
        addresses: reachable(listening),
        relay_port,
        cpu_millis,
        memory_bytes,
        power: power(Path::new(SUPPLIES)),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// `host:port` of a listener, as others may try it.
pub fn reachable(listening: SocketAddr) -> Vec<String> {
    // Nobody can be told to try a port that is not known yet.
    if listening.port() == 0 {
        return Vec::new();
    }
    if !listening.ip().is_unspecified() {
        return vec![listening.to_string()];
    }
    let found = Addresses::Interfaces { loopback: false }.to_socket_addrs();
    let mut addresses: Vec<SocketAddr> = found.into_iter().flatten().collect();
    // A socket on 0.0.0.0 takes no IPv6; one on :: takes both.
    addresses.retain(|address| address.is_ipv4() || listening.is_ipv6());
    addresses.iter().map(|address| SocketAddr::new(address.ip(), listening.port()).to_string()).collect()
}

/// Only the machine itself finds a listener there.
pub fn is_local(address: &str) -> bool {
    address.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_loopback())
}

/// A machine with a battery of its own is one that is carried away; a mouse's battery, or a UPS, makes none of it.
fn power(supplies: &Path) -> Power {
    let read = |supply: &Path, what: &str| fs::read_to_string(supply.join(what)).unwrap_or_default();
    let mut supplies = fs::read_dir(supplies).into_iter().flatten().flatten().map(|entry| entry.path());
    let battery =
        supplies.any(|supply| read(&supply, "type").trim() == "Battery" && read(&supply, "scope").trim() != "Device");
    if battery { Power::Battery } else { Power::Mains }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_with_a_battery_of_its_own_is_on_battery() {
        let directory = tempfile::tempdir().unwrap();
        let add = |name: &str, kind: &str, scope: Option<&str>| {
            let supply = directory.path().join(name);
            fs::create_dir(&supply).unwrap();
            fs::write(supply.join("type"), format!("{kind}\n")).unwrap();
            if let Some(scope) = scope {
                fs::write(supply.join("scope"), format!("{scope}\n")).unwrap();
            }
        };
        assert_eq!(power(&directory.path().join("none")), Power::Mains);
        add("AC", "Mains", None);
        add("mouse", "Battery", Some("Device"));
        add("ups", "UPS", None);
        assert_eq!(power(directory.path()), Power::Mains);
        add("BAT0", "Battery", Some("System"));
        assert_eq!(power(directory.path()), Power::Battery);
    }

    #[test]
    fn an_address_that_is_told_has_a_port_and_a_host_to_try() {
        assert_eq!(reachable("192.0.2.1:7070".parse().unwrap()), ["192.0.2.1:7070"]);
        assert_eq!(reachable("[2001:db8::1]:7070".parse().unwrap()), ["[2001:db8::1]:7070"]);
        assert!(reachable("192.0.2.1:0".parse().unwrap()).is_empty());
        let found = reachable("0.0.0.0:7070".parse().unwrap());
        assert!(
            !found.is_empty() && found.iter().all(|address| address.ends_with(":7070") && !address.starts_with("0.0"))
        );
        assert!(
            is_local("127.0.0.1:7070")
                && is_local("[::1]:7070")
                && !is_local("192.0.2.1:7070")
                && !is_local("atlas:7070")
        );
    }
}
