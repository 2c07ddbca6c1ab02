//! Which peers a relay may reach. Without this a relay is a way into its own machine and network.

use std::{
    collections::HashSet,
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    str::FromStr,
    sync::{Mutex, PoisonError},
};

/// A network, as `10.1.0.0/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no network; write an address and the length of its prefix, as in 10.1.0.0/16")]
pub struct InvalidNetwork(String);

impl Network {
    fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                same(u128::from(own.to_bits()), u128::from(other.to_bits()), 32 - self.prefix)
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => same(own.to_bits(), other.to_bits(), 128 - self.prefix),
            _ => false,
        }
    }
}

fn same(a: u128, b: u128, host_bits: u32) -> bool {
    a.checked_shr(host_bits) == b.checked_shr(host_bits)
}

impl FromStr for Network {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Self, InvalidNetwork> {
        let invalid = || InvalidNetwork(text.escape_debug().to_string());
        let (address, prefix) = text.split_once('/').unzip();
        let address: IpAddr = address.unwrap_or(text).parse().map_err(|_| invalid())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Ok(longest), str::parse).map_err(|_| invalid())?;
        if prefix > longest {
            return Err(invalid());
        }
        Ok(Self { address, prefix })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// The rule: public addresses, allowed networks, and the relayed addresses of other clients; nothing else.
#[derive(Debug)]
pub(crate) struct Acl {
    own: [IpAddr; 2],
    allowed: Vec<Network>,
    /// Ports of relayed addresses: two clients of this relay reach each other through two of them.
    relayed: Mutex<HashSet<u16>>,
}

impl Acl {
    pub(crate) fn new(listen: SocketAddr, public_ip: IpAddr, allowed: Vec<Network>) -> Self {
        Self { own: [canonical(listen.ip()), canonical(public_ip)], allowed, relayed: Mutex::default() }
    }

    pub(crate) fn may_reach(&self, peer: SocketAddr) -> bool {
        let address = canonical(peer.ip());
        if self.own.contains(&address) {
            // This machine's other ports, the relay's included, are nobody's peers.
            return self.lock().contains(&peer.port());
        }
        self.allowed.iter().any(|network| network.contains(address)) || is_public(address)
    }

    pub(crate) fn add_relayed(&self, port: u16) {
        self.lock().insert(port);
    }

    pub(crate) fn remove_relayed(&self, port: u16) {
        self.lock().remove(&port);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashSet<u16>> {
        self.relayed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `::ffff:127.0.0.1` is 127.0.0.1, and so are the forms that translators carry (RFC 6052, RFC 3056).
fn canonical(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let segments = v6.segments();
    let v4 = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        IpAddr::from([a, b, c, d])
    };
    match segments {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => {
            v4(high, low)
        }
        _ => IpAddr::V6(v6),
    }
}

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            let shared = a == 100 && (64..128).contains(&b);
            let protocol = a == 192 && b == 0 && c == 0;
            let benchmarking = a == 198 && (b == 18 || b == 19);
            !(a == 0
                || a >= 224
                || v4.is_loopback()
                || v4.is_private()
                || v4.is_link_local()
                || v4.is_documentation()
                || shared
                || protocol
                || benchmarking)
        }
        // Only 2000::/3 is global unicast; documentation lies in it.
        IpAddr::V6(v6) => (v6.segments()[0] & 0xe000) == 0x2000 && !is_documentation(v6),
    }
}

fn is_documentation(v6: Ipv6Addr) -> bool {
    v6.segments()[0] == 0x2001 && v6.segments()[1] == 0xdb8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(allowed: &[&str]) -> Acl {
        let allowed = allowed.iter().map(|network| network.parse().unwrap()).collect();
        Acl::new("10.0.0.5:3478".parse().unwrap(), "9.9.9.9".parse().unwrap(), allowed)
    }

    fn reaches(acl: &Acl, peer: &str) -> bool {
        acl.may_reach(SocketAddr::new(peer.parse().unwrap(), 5000))
    }

    #[test]
    fn the_public_internet_may_be_reached() {
        for peer in ["8.8.8.8", "100.128.0.1", "172.32.0.1", "2a00:1450::1", "::ffff:8.8.8.8"] {
            assert!(reaches(&acl(&[]), peer), "{peer}");
        }
    }

    #[test]
    fn machines_and_networks_of_the_relay_may_not() {
        for peer in [
            "127.0.0.1",
            "127.1.2.3",
            "0.0.0.0",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "9.9.9.9",
            "10.0.0.5",
        ] {
            assert!(!reaches(&acl(&[]), peer), "{peer}");
        }
    }

    #[test]
    fn a_network_can_be_allowed() {
        let acl = acl(&["192.168.7.0/24", "fd00:1::/32", "127.0.0.1"]);
        assert!(reaches(&acl, "192.168.7.9") && reaches(&acl, "fd00:1::9") && reaches(&acl, "127.0.0.1"));
        assert!(!reaches(&acl, "192.168.8.9") && !reaches(&acl, "fd00:2::9") && !reaches(&acl, "127.0.0.2"));
    }

    #[test]
    fn of_the_relay_itself_only_relayed_addresses_are_peers() {
        let acl = acl(&["0.0.0.0/0"]);
        assert!(!reaches(&acl, "9.9.9.9"), "an allowed network does not open the relay's own ports");
        acl.add_relayed(5000);
        assert!(reaches(&acl, "9.9.9.9"));
        acl.remove_relayed(5000);
        assert!(!reaches(&acl, "9.9.9.9"));
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for bad in ["", "10.0.0.0/33", "::/129", "10.0.0/8", "x", "10.0.0.0/-1", "10.0.0.0/"] {
            assert!(bad.parse::<Network>().is_err(), "{bad:?}");
        }
        assert!("0.0.0.0/0".parse::<Network>().unwrap().contains("8.8.8.8".parse().unwrap()));
        assert!("::/0".parse::<Network>().unwrap().contains("fd00::1".parse().unwrap()));
    }
}
