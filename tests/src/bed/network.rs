//! The network that the machines share: one switch, in a namespace of its own, with a port for each machine or router.
//! No link leads out of it, so no packet can leave.
//!
//! ```text
//!   m1 eth0 ──────────────────── p1 ┐
//!   m2 eth0 ── router ── wan ─── p2 ├ switch ── p0 ── the client's namespace: the test itself
//!   m3 eth0 ──┘                     ┘
//! ```
//!
//! Whatever is cut is cut in the switch, so that nobody sees its own link go down. What leads to the switch can be a slow line.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    net::Ipv4Addr,
    path::Path,
};

use anyhow::{Result, ensure};

use super::{
    cable::{Cable, End},
    line::Line,
    shell::{path, rules_in, run, run_in},
};

/// The port of the client.
pub(super) const CLIENT: usize = 0;

/// The name of the port's and the machine's devices.
const UPLINK: &str = "eth0";

/// How a router treats what comes from outside, as RFC 4787 names it. All map endpoint-independently but the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nat {
    /// Whoever writes to a mapped port gets in.
    FullCone,
    /// Only from an address that was written to, and from the port that was written to.
    PortRestricted,
    /// A mapping of its own for each destination: no hole can be punched between two of these.
    Symmetric,
}

#[derive(Debug)]
pub(super) struct Network {
    bed: String,
    /// First three numbers of the switch's /24.
    prefix: [u8; 3],
    /// Pairs of ports between which nothing passes, the lower number first.
    cut: BTreeSet<(usize, usize)>,
    namespaces: Vec<String>,
    /// What leads to the switch, for all but the client.
    line: Option<Line>,
    /// Slow cables, by the namespace that they lead from.
    cables: BTreeMap<String, Cable>,
}

/// Where a machine is wired to.
#[derive(Clone, Debug)]
pub(super) struct Socket {
    /// The namespace of the switch or router.
    namespace: String,
    bridge: &'static str,
    /// The device there.
    device: String,
    pub(super) port: usize,
    pub(super) address: Ipv4Addr,
    gateway: Option<Ipv4Addr>,
    pub(super) behind_nat: bool,
}

impl Socket {
    /// The cable is pulled out, or put in again. Nothing that a machine without a cable does is seen by anybody.
    pub(super) fn set_link(&self, up: bool) -> Result<()> {
        let state = if up { "up" } else { "down" };
        run_in(&self.namespace, &format!("ip link set {} {state}", self.device)).map(drop)
    }
}

impl Network {
    /// Makes the switch and the client's namespace.
    pub(super) fn make(bed: &str, internet: bool, line: Option<Line>) -> Result<Self> {
        // A home's own range; or, where there are routers, the one that is kept for such tests (RFC 2544).
        let prefix = if internet { [198, 18, 0] } else { [192, 168, 77] };
        let (cut, cables) = (BTreeSet::new(), BTreeMap::new());
        let mut network = Self { bed: bed.to_owned(), prefix, cut, namespaces: Vec::new(), line, cables };
        let (switch, client) = (network.switch(), network.client());
        network.add(&switch)?;
        network.add(&client)?;
        run_in(&switch, "ip link add switch type bridge forward_delay 0; ip link set switch up")?;
        network.plug(&client, &network.socket(CLIENT))?;
        Ok(network)
    }

    fn switch(&self) -> String {
        format!("{}-switch", self.bed)
    }

    /// The namespace of whoever uses the machines from outside.
    pub(super) fn client(&self) -> String {
        format!("{}-client", self.bed)
    }

    /// A port of the switch itself.
    pub(super) fn socket(&self, port: usize) -> Socket {
        let [a, b, c] = self.prefix;
        Socket {
            namespace: self.switch(),
            bridge: "switch",
            device: format!("p{port}"),
            port,
            address: Ipv4Addr::new(a, b, c, 10 + u8::try_from(port).expect("a bed has few ports")),
            gateway: None,
            behind_nat: false,
        }
    }

    /// A router with one port of the switch, and the sockets behind it.
    pub(super) fn router(&mut self, port: usize, nat: Nat, sockets: usize) -> Result<Vec<Socket>> {
        let router = format!("{}-r{port}", self.bed);
        self.add(&router)?;
        self.wire(&router, "wan", &self.socket(port))?;
        let lan = [192, 168, 100 + u8::try_from(port)?];
        let address = |host: u8| Ipv4Addr::new(lan[0], lan[1], lan[2], host);
        run_in(
            &router,
            &format!(
                "ip link add lan type bridge forward_delay 0; ip link set lan up; ip addr add {}/24 dev lan
                 echo 1 >/proc/sys/net/ipv4/ip_forward",
                address(1)
            ),
        )?;
        rules_in(&router, &translation(nat))?;
        (1..=sockets)
            .map(|host| {
                Ok(Socket {
                    namespace: router.clone(),
                    bridge: "lan",
                    device: format!("l{host}"),
                    port,
                    address: address(10 + u8::try_from(host)?),
                    gateway: Some(address(1)),
                    behind_nat: true,
                })
            })
            .collect()
    }

    /// A namespace whose `eth0` leads to a socket.
    pub(super) fn plug(&mut self, namespace: &str, socket: &Socket) -> Result<()> {
        self.wire(namespace, UPLINK, socket)
    }

    fn wire(&mut self, namespace: &str, device: &str, socket: &Socket) -> Result<()> {
        let Socket { namespace: other, bridge, device: port, address, gateway, .. } = socket;
        // A home's own cables are short, and the client is at the switch.
        if let Some(line) = self.line.filter(|_| !socket.behind_nat && socket.port != CLIENT) {
            let end =
                |namespace: &str, device: &str| End { namespace: namespace.to_owned(), device: device.to_owned() };
            let cable = Cable::lay(line, socket.port, [end(namespace, device), end(other, port)])?;
            self.cables.insert(namespace.to_owned(), cable);
        } else {
            run(&format!("ip link add {port} netns {other} type veth peer name {device} netns {namespace}"))?;
        }
        run_in(other, &format!("ip link set {port} master {bridge} up"))?;
        // A machine has the same card when it comes back: others still know it.
        let [a, b, c, d] = address.octets();
        let card = format!("02:00:{a:02x}:{b:02x}:{c:02x}:{d:02x}");
        run_in(
            namespace,
            &format!(
                "ip link set {device} address {card}; ip addr add {address}/24 dev {device}; ip link set {device} up"
            ),
        )?;
        if let Some(gateway) = gateway {
            run_in(namespace, &format!("ip route add default via {gateway}"))?;
        }
        Ok(())
    }

    /// A new namespace. IPv6 is off, so that a run does not depend on which family won a race.
    pub(super) fn add(&mut self, namespace: &str) -> Result<()> {
        run(&format!("ip netns add {namespace}"))?;
        self.namespaces.push(namespace.to_owned());
        run_in(
            namespace,
            "ip link set lo up; for f in all default; do echo 1 >/proc/sys/net/ipv6/conf/$f/disable_ipv6 || true; done",
        )?;
        Ok(())
    }

    /// Takes a machine's namespace away. Its link first, as the kernel takes a namespace down at its leisure.
    pub(super) fn remove(&mut self, namespace: &str, socket: &Socket) -> Result<()> {
        self.namespaces.retain(|known| known != namespace);
        // A slow cable's devices are gone with it.
        if self.cables.remove(namespace).is_none() {
            run_in(&socket.namespace, &format!("ip link del {}", socket.device))?;
        }
        run(&format!("ip netns del {namespace}")).map(drop)
    }

    /// Cuts or joins all pairs of ports of the two sides.
    pub(super) fn between(&mut self, left: &[usize], right: &[usize], cut: bool) -> Result<()> {
        for &a in left {
            for &b in right {
                ensure!(a != b, "machines behind one router can't be parted");
                let pair = (a.min(b), a.max(b));
                if cut {
                    self.cut.insert(pair)
                } else {
                    self.cut.remove(&pair)
                };
            }
        }
        self.apply()
    }

    pub(super) fn heal(&mut self) -> Result<()> {
        self.cut.clear();
        self.apply()
    }

    fn apply(&self) -> Result<()> {
        let mut rules = String::from("table bridge faults\ndelete table bridge faults\ntable bridge faults {\n");
        rules.push_str("chain cut { type filter hook forward priority 0;\n");
        for (a, b) in &self.cut {
            writeln!(rules, "iifname \"p{a}\" oifname \"p{b}\" drop; iifname \"p{b}\" oifname \"p{a}\" drop;")?;
        }
        rules.push_str("}\n}\n");
        rules_in(&self.switch(), &rules)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.cables.clear();
        for namespace in &self.namespaces {
            if Path::new(&path(namespace)).exists() {
                let _ = run(&format!("ip netns del {namespace}"));
            }
        }
    }
}

/// Masquerading keeps the port, which is a mapping that depends on the inner socket alone. The full cone learns its mappings after
/// translation, so that the map holds the outer port. What comes unasked is dropped in `input`, before conntrack confirms it: else
/// an early packet of hole punching would take the place of the mapping.
fn translation(nat: Nat) -> String {
    let (learn, inbound) = match nat {
        Nat::FullCone => (
            "oifname \"wan\" meta l4proto udp update @mapped { udp sport timeout 180s : ct original ip saddr }",
            "iifname \"wan\" meta l4proto udp dnat to udp dport map @mapped",
        ),
        Nat::PortRestricted | Nat::Symmetric => ("", ""),
    };
    let random = if nat == Nat::Symmetric { "fully-random" } else { "" };
    format!(
        r#"table ip router {{
  map mapped {{ type inet_service : ipv4_addr; flags dynamic,timeout; size 65535; }}
  chain pre {{ type nat hook prerouting priority dstnat;
    {inbound}
  }}
  chain post {{ type nat hook postrouting priority srcnat;
    oifname "wan" masquerade {random}
  }}
  chain learn {{ type filter hook postrouting priority 200;
    {learn}
  }}
  chain input {{ type filter hook input priority filter;
    iifname "wan" ct state established,related accept
    iifname "wan" icmp type echo-request accept
    iifname "wan" drop
  }}
  chain forward {{ type filter hook forward priority filter;
    iifname "wan" ct state established,related accept
    iifname "wan" ct status dnat accept
    iifname "wan" drop
  }}
}}
"#
    )
}
