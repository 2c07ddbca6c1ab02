//! What instances use right now: cores and memory, read when somebody asks.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use bollard::{models::ContainerStatsResponse, query_parameters::StatsOptions};
use flotilla_api::InstanceId;
use flotilla_core::{
    reconcile::{Observed, Status},
    report::Usage,
};
use futures::{StreamExt, stream};
use tokio::{sync::Mutex, time::Instant};

use super::connection::Client;

/// Figures are good for so long; a dashboard in every browser costs no more than one.
const FRESH_FOR: Duration = Duration::from_secs(2);

/// Two readings further apart than this say nothing of now.
const SPAN_MAX: Duration = Duration::from_secs(30);

/// What the first figure is measured over.
const SPAN_FIRST: Duration = Duration::from_millis(250);

/// Figures are worth no longer wait.
const READ_LIMIT: Duration = Duration::from_secs(3);
const READ_AT_ONCE: usize = 4;

#[derive(Debug, Default)]
pub(super) struct Stats(Mutex<Readings>);

#[derive(Debug, Default)]
struct Readings {
    usage: Arc<BTreeMap<InstanceId, Usage>>,
    read_at: Option<Instant>,
    /// Processor time by container.
    processor: HashMap<String, (Instant, u64)>,
}

#[derive(Clone, Copy, Debug)]
struct Reading {
    at: Instant,
    processor_nanos: Option<u64>,
    memory_bytes: Option<u64>,
}

impl Stats {
    /// Of all instances that run. Those who ask at once wait for one reading.
    pub(super) async fn usage(&self, client: &Client, observed: &Observed) -> Arc<BTreeMap<InstanceId, Usage>> {
        let mut readings = self.0.lock().await;
        if readings.read_at.is_some_and(|at| at.elapsed() < FRESH_FOR) {
            return Arc::clone(&readings.usage);
        }
        let running: Vec<(&str, &InstanceId)> = observed
            .containers
            .iter()
            .filter(|container| matches!(container.status, Status::Running { .. }))
            .map(|container| (container.id.as_str(), &container.instance))
            .collect();
        readings
            .processor
            .retain(|id, (at, _)| at.elapsed() < SPAN_MAX && running.iter().any(|(known, _)| known == id));
        let new: Vec<String> = running
            .iter()
            .filter(|(id, _)| !readings.processor.contains_key(*id))
            .map(|(id, _)| (*id).to_owned())
            .collect();
        if !new.is_empty() {
            for (id, reading) in read(client, new).await {
                if let Some(nanos) = reading.processor_nanos {
                    readings.processor.insert(id, (reading.at, nanos));
                }
            }
            tokio::time::sleep(SPAN_FIRST).await;
        }
        let mut usage = BTreeMap::new();
        let now: HashMap<String, Reading> =
            read(client, running.iter().map(|(id, _)| (*id).to_owned()).collect()).await.into_iter().collect();
        for (id, instance) in running {
            let Some(reading) = now.get(id) else { continue };
            let before = readings.processor.get(id).copied();
            let cpu_cores = before.zip(reading.processor_nanos).map(|((at, before), now)| {
                let span = reading.at.duration_since(at).as_secs_f64().max(0.001);
                now.saturating_sub(before) as f64 / 1e9 / span
            });
            usage.insert(instance.clone(), Usage { cpu_cores, memory_bytes: reading.memory_bytes });
            if let Some(nanos) = reading.processor_nanos {
                readings.processor.insert(id.to_owned(), (reading.at, nanos));
            }
        }
        readings.usage = Arc::new(usage);
        readings.read_at = Some(Instant::now());
        Arc::clone(&readings.usage)
    }
}

/// Ids of their own: with borrowed ones the compiler can't see that the future is `Send`.
async fn read(client: &Client, containers: Vec<String>) -> Vec<(String, Reading)> {
    stream::iter(containers)
        .map(|id| async move {
            // One reading; without `one_shot` the engine takes two, a second apart.
            let options = StatsOptions { stream: false, one_shot: true };
            let mut answers = Box::pin(client.docker().stats(&id, Some(options)));
            let answer = async { answers.next().await.transpose() };
            match client.call("tell what a container uses", READ_LIMIT, answer).await {
                Ok(answer) => answer.map(|answer| (id, Reading::of(&answer))),
                Err(error) => {
                    tracing::debug!(container = %id, %error, "no figures");
                    None
                }
            }
        })
        .buffer_unordered(READ_AT_ONCE)
        .filter_map(std::future::ready)
        .collect()
        .await
}

impl Reading {
    fn of(answer: &ContainerStatsResponse) -> Self {
        let memory = answer.memory_stats.as_ref();
        let cached = memory.and_then(|memory| memory.stats.as_ref()).and_then(|stats| {
            // Control groups version 2, then 1.
            stats.get("inactive_file").or_else(|| stats.get("total_inactive_file")).copied()
        });
        Self {
            at: Instant::now(),
            processor_nanos: answer.cpu_stats.as_ref().and_then(|cpu| cpu.cpu_usage.as_ref()?.total_usage),
            memory_bytes: memory
                .and_then(|memory| memory.usage)
                .map(|used| used.saturating_sub(cached.unwrap_or_default())),
        }
    }
}
