//! Looking into a machine from outside, without its engine or its daemon: what the kernel shows, what the engine has on disk, and
//! what a container itself answers.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::{
    thread::{LinkNameSpaceType, move_into_link_name_space},
    time::{ClockId, clock_gettime},
};

use super::{cgroup::Containers, shell};

/// An answer of a probe is a line or two.
const ANSWER_MAX: u64 = 64 * 1024;

/// Nanoseconds of the clock that all simulated machines share and no test can set: `CLOCK_BOOTTIME`.
pub fn clock() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// Sockets that the calling thread makes from now on belong to a network namespace. So do those of threads and programs that
/// it starts.
pub fn enter_network(namespace: &str) -> Result<()> {
    let file = File::open(shell::path(namespace)).with_context(|| format!("open the namespace {namespace}"))?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).context("enter a network namespace")
}

/// A `GET` of HTTP/1.0, from wherever the calling thread is, that ends within twice `limit`. Returns the body.
pub fn get(from: SocketAddr, path: &str, limit: Duration) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&from, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {from}\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(ANSWER_MAX).read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer without an end of its head")?;
    let status = head.split_whitespace().nth(1).unwrap_or_default();
    if status != "200" {
        bail!("{from}{path} answers {status}");
    }
    Ok(body.to_owned())
}

/// One machine, for as long as the bed is up: it may be powered off and on meanwhile.
#[derive(Clone, Debug)]
pub struct Probe {
    pub(super) machine: String,
    pub(super) namespace: String,
    pub(super) containers: Containers,
    /// The engine's own directory, as this machine sees it.
    pub(super) engine: PathBuf,
    /// The machine's /srv.
    pub(super) srv: PathBuf,
}

/// A container, as its engine has written it down.
#[derive(Clone, Debug)]
pub struct Known {
    pub service: String,
    pub epoch: u64,
    pub revision: u64,
    pub address: Option<Ipv4Addr>,
    /// Directories of the machine that the container may write to.
    pub volumes: Vec<PathBuf>,
}

impl Probe {
    pub fn machine(&self) -> &str {
        &self.machine
    }

    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Ids of containers that have a process which is not frozen, as the kernel says.
    pub fn running(&self) -> Result<Vec<String>> {
        self.containers.running()
    }

    /// `None` while the engine has not written all of it, and for what is no instance of a service.
    pub fn known(&self, container: &str) -> Option<Known> {
        let file = self.engine.join("containers").join(container).join("config.v2.json");
        let config: serde_json::Value = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
        let label = |name: &str| config["Config"]["Labels"][name].as_str();
        let networks = config["NetworkSettings"]["Networks"].as_object();
        let address = networks
            .into_iter()
            .flat_map(|networks| networks.values())
            .find_map(|network| network["IPAddress"].as_str()?.parse().ok());
        let mounts = config["MountPoints"].as_object();
        let volumes = mounts
            .into_iter()
            .flat_map(|mounts| mounts.values())
            .filter(|mount| mount["RW"].as_bool() == Some(true))
            .filter_map(|mount| mount["Source"].as_str().map(PathBuf::from))
            .collect();
        // A container that was made before it was needed has its epoch in its name.
        let in_name = || config["Name"].as_str()?.rsplit_once('.').map(|(_, epoch)| epoch);
        let epoch = label("flotilla.epoch").or_else(|| label("flotilla.spare").and_then(|_| in_name()));
        Some(Known {
            service: label("flotilla.service").or_else(|| label("com.docker.swarm.service.name"))?.to_owned(),
            epoch: epoch.and_then(|text| text.parse().ok()).unwrap_or_default(),
            revision: label("flotilla.revision").and_then(|text| text.parse().ok()).unwrap_or_default(),
            address,
            volumes,
        })
    }

    /// A file below the machine's /srv, while the machine is on.
    pub fn read(&self, path: &Path) -> Result<Vec<u8>> {
        let below = path.strip_prefix("/srv").with_context(|| format!("{} is not below /srv", path.display()))?;
        ensure!(self.srv.exists(), "{} is off", self.machine);
        Ok(fs::read(self.srv.join(below))?)
    }
}
