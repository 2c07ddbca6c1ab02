//! What this machine has and how busy it is, read at most every few seconds however many dashboards ask.

use std::{path::PathBuf, sync::Arc, time::Duration};

use flotilla_api::{UnixMillis, rest::MachineResources};
use sysinfo::System;
use tokio::{sync::Mutex, time::Instant};

use crate::clock;

/// A load that is younger is told again.
const FRESH: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(crate) struct Machine {
    data_dir: PathBuf,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    /// Keeps the counters of the last reading: load is what happened since.
    system: Arc<std::sync::Mutex<Option<System>>>,
    last: Option<(Instant, UnixMillis, MachineResources)>,
}

impl Machine {
    pub(crate) fn new(data_dir: PathBuf) -> Self {
        Self { data_dir, seen: Mutex::new(Seen { system: Arc::default(), last: None }) }
    }

    /// The figures, and when they were read.
    pub(crate) async fn resources(&self) -> (UnixMillis, MachineResources) {
        let mut seen = self.seen.lock().await;
        if let Some((read, at, resources)) = &seen.last
            && read.elapsed() < FRESH
        {
            return (*at, resources.clone());
        }
        let (system, data_dir) = (seen.system.clone(), self.data_dir.clone());
        let read = tokio::task::spawn_blocking(move || {
            let mut system = system.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            read(&mut system, &data_dir)
        });
        let resources = read.await.unwrap_or_default();
        let at = clock::now();
        seen.last = Some((Instant::now(), at, resources.clone()));
        (at, resources)
    }
}

fn read(system: &mut Option<System>, data_dir: &std::path::Path) -> MachineResources {
    if system.is_none() {
        match System::new() {
            Ok(new) => *system = Some(new),
            Err(error) => tracing::warn!(%error, "the load of this machine can't be read"),
        }
    }
    let (disk_total_bytes, disk_free_bytes) = match rustix::fs::statvfs(data_dir) {
        Ok(stat) => (stat.f_blocks.saturating_mul(stat.f_frsize), stat.f_bavail.saturating_mul(stat.f_frsize)),
        Err(error) => {
            tracing::warn!(%error, "the file system of the data directory can't be read");
            (0, 0)
        }
    };
    let disk = MachineResources { disk_total_bytes, disk_free_bytes, ..MachineResources::default() };
    let Some(system) = system else { return disk };
    system.refresh_memory();
    system.refresh_cpu_usage();
    MachineResources {
        cpu_cores: u32::try_from(system.cpus().len()).unwrap_or(u32::MAX),
        cpu_used: f64::from(system.global_cpu_usage() / 100.0).clamp(0.0, 1.0),
        memory_total_bytes: system.total_memory(),
        memory_used_bytes: system.used_memory(),
        ..disk
    }
}
