//! Which of this machine's addresses the other side may try.

use std::{
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
};

use rtc::shared::ifaces::{Interface, ifaces};

/// Addresses that a connection is bound to. Each one is a socket and a candidate.
const ADDRESSES_MAX: usize = 8;

/// Interfaces of containers, virtual machines and bridges lead nowhere for a browser; a candidate on each costs a socket and checks.
const IGNORED_PREFIXES: &[&str] = &["docker", "br-", "veth", "virbr", "cni", "flannel", "podman", "lxc", "lxd"];

/// Where connections take their host candidates from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addresses {
    /// Every interface that leads out of this machine, and loopback where a browser on this machine is expected.
    Interfaces { loopback: bool },
    /// These and no others.
    Only(Vec<IpAddr>),
}

impl Addresses {
    /// The addresses to bind now, each with a port of the kernel's choice.
    fn resolve(&self) -> Vec<SocketAddr> {
        self.now().into_iter().map(|address| SocketAddr::new(address, 0)).collect()
    }

    /// The addresses of this moment.
    pub(super) fn now(&self) -> Vec<IpAddr> {
        let mut addresses = match self {
            Self::Only(addresses) => addresses.clone(),
            Self::Interfaces { loopback } => match ifaces() {
                Ok(interfaces) => select(&interfaces, *loopback),
                Err(error) => {
                    tracing::warn!(%error, "this machine's network interfaces can't be listed; using loopback alone");
                    vec![IpAddr::from([127, 0, 0, 1])]
                }
            },
        };
        addresses.truncate(ADDRESSES_MAX);
        addresses
    }
}

/// Resolved at each bind, so that an ICE restart finds the addresses of that moment.
impl ToSocketAddrs for Addresses {
    type Iter = std::vec::IntoIter<SocketAddr>;

    fn to_socket_addrs(&self) -> io::Result<Self::Iter> {
        Ok(self.resolve().into_iter())
    }
}

fn select(interfaces: &[Interface], loopback: bool) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for interface in interfaces {
        let Some(address) = interface.addr.map(|address| address.ip()) else { continue };
        let wanted = if address.is_loopback() {
            // One family is enough to reach a browser on this machine.
            loopback && address.is_ipv4()
        } else {
            !IGNORED_PREFIXES.iter().any(|prefix| interface.name.starts_with(prefix)) && leads_out(&address)
        };
        if wanted && !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    // A machine without a network still serves its own browser.
    if addresses.is_empty() {
        addresses.push(IpAddr::from([127, 0, 0, 1]));
    }
    addresses
}

/// Link-local addresses need a scope that a candidate can't carry.
fn leads_out(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_link_local() && !v4.is_unspecified() && !v4.is_multicast(),
        IpAddr::V6(v6) => (v6.segments()[0] & 0xffc0) != 0xfe80 && !v6.is_unspecified() && !v6.is_multicast(),
    }
}

#[cfg(test)]
mod tests {
    use rtc::shared::ifaces::{Kind, NextHop};

    use super::*;

    fn interface(name: &str, address: &str) -> Interface {
        let addr = Some(SocketAddr::new(address.parse().unwrap(), 0));
        Interface { name: name.to_owned(), kind: Kind::Ipv4, addr, mask: None, hop: None::<NextHop> }
    }

    #[test]
    fn networks_of_containers_are_no_candidates() {
        let interfaces = [
            interface("lo", "127.0.0.1"),
            interface("lo", "::1"),
            interface("eth0", "192.0.2.2"),
            interface("eth0", "fe80::1"),
            interface("eth0", "2001:db8::1"),
            interface("docker0", "172.17.0.1"),
            interface("br-0a1b2c", "172.18.0.1"),
            interface("veth12", "169.254.3.4"),
        ];
        let shown = |loopback| select(&interfaces, loopback).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(shown(true), ["127.0.0.1", "192.0.2.2", "2001:db8::1"]);
        assert_eq!(shown(false), ["192.0.2.2", "2001:db8::1"]);
    }

    #[test]
    fn a_machine_without_a_network_still_has_loopback() {
        assert_eq!(select(&[interface("docker0", "172.17.0.1")], false), [IpAddr::from([127, 0, 0, 1])]);
    }
}
