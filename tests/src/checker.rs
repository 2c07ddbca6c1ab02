//! Watches from outside that no two instances of an exclusive service ever run at one time.
//!
//! It asks neither our API nor the engines: twenty times a second it looks for each machine at what the kernel says (which
//! containers have processes that are not frozen) and at what the container itself answers over HTTP. Afterwards it reads what
//! the instances have written into their volumes. Two at once are told only where it is certain, whenever the looks happened
//! within their time; see [`Span::meets`].

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    beat::{self, BEATS_FILE, Beat},
    bed::{
        Bed,
        probe::{Known, Probe, clock, enter_network, get},
    },
};

/// How often each machine is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// An instance that serves answers a probe in a millisecond or two; a busy machine takes longer.
const ANSWER_LIMIT: Duration = Duration::from_millis(500);
/// Between two looks that are further apart nobody knows what happened: a longer sighting is two.
const LOOKS_APART_MAX: u64 = 1_000_000_000;
/// Between two beats that are further apart it may have been frozen: a service beats every 50 ms.
const BEATS_APART_MAX: u64 = 400_000_000;
/// How long a checker's thread may take to end: two probes.
const END_LIMIT: Duration = Duration::from_secs(5);

/// Threads that look at all machines of a bed until they are asked what they saw.
#[derive(Debug)]
pub struct Checker {
    probes: Vec<Probe>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Seen>>,
    live: Arc<Mutex<BTreeMap<String, BTreeMap<String, Known>>>>,
}

impl Checker {
    /// Watches the services of these names on all machines of the bed, whether they are on or off.
    pub fn watch(bed: &Bed, services: &[&str]) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let live = Arc::new(Mutex::default());
        let probes = bed.machines().iter().map(crate::bed::Machine::probe).collect::<Result<Vec<_>>>()?;
        let services: Vec<String> = services.iter().map(|&service| service.to_owned()).collect();
        let threads = probes
            .iter()
            .map(|probe| {
                let mut looker = Looker {
                    probe: probe.clone(),
                    services: services.clone(),
                    known: BTreeMap::new(),
                    live: Arc::clone(&live),
                    seen: Seen::default(),
                };
                let stop = Arc::clone(&stop);
                std::thread::Builder::new().name(format!("checker-{}", probe.machine())).spawn(move || {
                    looker.until(&stop);
                    looker.seen
                })
            })
            .collect::<std::io::Result<Vec<_>>>()?;
        Ok(Self { probes, stop, threads, live })
    }

    /// Where instances of a service run right now, and under which epochs, as the kernel says: `(machine, epoch)`.
    pub fn running(&self, service: &str) -> Vec<(String, u64)> {
        let live = self.live.lock().expect("no looker panics");
        live.iter()
            .flat_map(|(machine, known)| known.values().map(move |known| (machine.clone(), known)))
            .filter(|(_, known)| known.service == service)
            .map(|(machine, known)| (machine, known.epoch))
            .collect()
    }

    /// Ends the watch.
    ///
    /// # Errors
    /// Where two instances of one service ran at one time, and where nothing was seen of a service that was to be watched: such
    /// a watch proves nothing. Machines should be on, as what they hold of the volumes is read now.
    pub fn finish(self) -> Result<Report> {
        self.finish_but(None)
    }

    /// [`Self::finish`], where a machine was paused meanwhile: what runs in it goes on together with what freezes it, so
    /// that both may run for so long (see ADR 11).
    pub fn finish_after_pause(self, tolerated: Duration) -> Result<Report> {
        self.finish_but(Some(tolerated))
    }

    fn finish_but(mut self, tolerated: Option<Duration>) -> Result<Report> {
        self.stop.store(true, Ordering::Relaxed);
        let mut spans = Vec::new();
        let mut known = BTreeMap::new();
        let mut slowest = 0;
        for thread in self.threads.drain(..) {
            let seen = thread.join().map_err(|_| anyhow::anyhow!("a checker's thread panicked"))?;
            spans.extend(seen.spans);
            known.extend(seen.known);
            slowest = slowest.max(seen.slowest);
        }
        spans.extend(self.written(&known)?);
        let report = Report { spans, slowest: Duration::from_nanos(slowest) };
        match tolerated {
            None => report.check()?,
            Some(tolerated) => report.check_but(tolerated)?,
        }
        Ok(report)
    }

    /// From the first to the last beat that each container has written without a pause: one that was frozen wrote nothing.
    fn written(&self, known: &BTreeMap<String, (String, Known)>) -> Result<Vec<Span>> {
        let mut spans: Vec<Span> = Vec::new();
        let mut open: BTreeMap<String, Span> = BTreeMap::new();
        for (machine, volume) in volumes(known) {
            let probe = self.probes.iter().find(|probe| probe.machine() == machine).context("a machine of the bed")?;
            // A machine that is off, or was wiped, tells nothing.
            let Ok(file) = probe.read(&volume.join(BEATS_FILE)) else { continue };
            for line in beat::lines(&String::from_utf8_lossy(&file)) {
                let Some((id, (_, known))) = known.iter().find(|(id, _)| id.starts_with(&line.host)) else { continue };
                let new = || Span {
                    machine: machine.clone(),
                    service: known.service.clone(),
                    container: id.clone(),
                    epoch: known.epoch,
                    evidence: Evidence::Wrote,
                    first_by: line.at,
                    last_from: line.at,
                };
                let span = open.entry(id.clone()).or_insert_with(new);
                if line.at.saturating_sub(span.last_from) > BEATS_APART_MAX {
                    spans.push(std::mem::replace(span, new()));
                }
                span.last_from = span.last_from.max(line.at);
            }
        }
        spans.extend(open.into_values());
        Ok(spans)
    }
}

impl Drop for Checker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let end = clock() + u64::try_from(END_LIMIT.as_nanos()).unwrap_or(u64::MAX);
        for thread in self.threads.drain(..) {
            while !thread.is_finished() && clock() < end {
                std::thread::sleep(LOOK_EVERY);
            }
        }
    }
}

fn volumes(known: &BTreeMap<String, (String, Known)>) -> std::collections::BTreeSet<(String, PathBuf)> {
    known
        .values()
        .flat_map(|(machine, known)| known.volumes.iter().map(move |volume| (machine.clone(), volume.clone())))
        .collect()
}

/// What showed that an instance ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// The kernel: it had processes, and they were not frozen.
    Ran,
    /// Itself: it answered over HTTP.
    Served,
    /// Its volume: it wrote.
    Wrote,
}

/// A time in which one instance ran for certain. Nanoseconds of the clock that all machines share.
#[derive(Clone, Debug)]
pub struct Span {
    pub machine: String,
    pub service: String,
    pub container: String,
    pub epoch: u64,
    pub evidence: Evidence,
    /// The end of the first look: at some time before it ran.
    pub first_by: u64,
    /// The beginning of the last look: at some time after it ran.
    pub last_from: u64,
}

impl Span {
    /// For how long both ran at one time at the least, whenever within the looks they were seen; `None` if perhaps never.
    fn meets(&self, other: &Self) -> Option<Duration> {
        let from = self.first_by.max(other.first_by);
        let to = self.last_from.min(other.last_from);
        (from <= to).then(|| Duration::from_nanos(to - from))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { machine, service, container, epoch, evidence, first_by, last_from } = self;
        let (from, to) = (*first_by as f64 / 1e9, *last_from as f64 / 1e9);
        let container = container.get(..12).unwrap_or(container);
        write!(f, "{service} epoch {epoch} on {machine} ({container}) {evidence:?} from {from:.3} to {to:.3}")
    }
}

/// All that was seen.
#[derive(Debug)]
pub struct Report {
    pub spans: Vec<Span>,
    /// The longest time between two looks at a machine.
    pub slowest: Duration,
}

impl Report {
    fn check(&self) -> Result<()> {
        self.check_but(Duration::ZERO)
    }

    /// All that is shorter than `tolerated` is let pass.
    fn check_but(&self, tolerated: Duration) -> Result<()> {
        ensure!(!self.spans.is_empty(), "nothing was seen of the watched services: this proves nothing");
        for (index, one) in self.spans.iter().enumerate() {
            for other in &self.spans[index + 1..] {
                if one.service != other.service || one.container == other.container {
                    continue;
                }
                if let Some(together) = one.meets(other)
                    && together >= tolerated
                {
                    bail!("two instances ran at one time, for {together:?} at least:\n  {one}\n  {other}\n{self}");
                }
            }
        }
        Ok(())
    }

    /// Epochs in which a service was seen, oldest first.
    pub fn epochs(&self, service: &str) -> Vec<u64> {
        let mut epochs: Vec<u64> =
            self.spans.iter().filter(|span| span.service == service).map(|span| span.epoch).collect();
        epochs.sort_unstable();
        epochs.dedup();
        epochs
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut spans: Vec<&Span> = self.spans.iter().collect();
        spans.sort_by_key(|span| span.first_by);
        writeln!(f, "{} sightings, looks at most {:?} apart:", spans.len(), self.slowest)?;
        spans.into_iter().try_for_each(|span| writeln!(f, "  {span}"))
    }
}

/// What one thread has seen of its machine.
#[derive(Debug, Default)]
struct Seen {
    spans: Vec<Span>,
    /// By id: the machine, and what the engine wrote down.
    known: BTreeMap<String, (String, Known)>,
    slowest: u64,
}

#[derive(Debug)]
struct Looker {
    probe: Probe,
    services: Vec<String>,
    known: BTreeMap<String, Known>,
    live: Arc<Mutex<BTreeMap<String, BTreeMap<String, Known>>>>,
    seen: Seen,
}

impl Looker {
    fn until(&mut self, stop: &AtomicBool) {
        let mut open: BTreeMap<(String, bool), Span> = BTreeMap::new();
        let mut last = clock();
        while !stop.load(Ordering::Relaxed) {
            let begin = clock();
            self.seen.slowest = self.seen.slowest.max(begin - last);
            let gap = begin - last > LOOKS_APART_MAX;
            last = begin;
            let sightings = self.look();
            // What is not seen any more has ended, as has all of which too long nothing was known.
            let ended: Vec<_> = open
                .keys()
                .filter(|key| gap || !sightings.iter().any(|sighting| sighting.key() == **key))
                .cloned()
                .collect();
            self.seen.spans.extend(ended.into_iter().filter_map(|key| open.remove(&key)));
            for sighting in sightings {
                let (from, by) = (sighting.from, sighting.by);
                let span = open.entry(sighting.key()).or_insert_with(|| sighting.into_span(self.probe.machine()));
                span.last_from = from;
                span.first_by = span.first_by.min(by);
            }
            let took = Duration::from_nanos(clock() - begin);
            std::thread::sleep(LOOK_EVERY.saturating_sub(took));
        }
        self.seen.spans.extend(open.into_values());
    }

    /// One look at all containers of the machine.
    fn look(&mut self) -> Vec<Sighting> {
        let from = clock();
        let running = self.probe.running().unwrap_or_default();
        let by = clock();
        let mut sightings = Vec::new();
        let mut live = BTreeMap::new();
        for id in running {
            let Some(known) = self.known(&id) else { continue };
            live.insert(id.clone(), known.clone());
            let sighting =
                |evidence, from, by| Sighting { container: id.clone(), known: known.clone(), evidence, from, by };
            sightings.push(sighting(Evidence::Ran, from, by));
            if let Some(at) = self.answers(&known) {
                sightings.push(sighting(Evidence::Served, at, at));
            }
        }
        self.live.lock().expect("no looker panics").insert(self.probe.machine().to_owned(), live);
        sightings
    }

    /// What the engine knows of a container, which it writes down little by little as the container starts.
    fn known(&mut self, id: &str) -> Option<Known> {
        if let Some(known) = self.known.get(id) {
            return Some(known.clone());
        }
        let known = self.probe.known(id)?;
        if !self.services.contains(&known.service) {
            return None;
        }
        self.seen.known.insert(id.to_owned(), (self.probe.machine().to_owned(), known.clone()));
        if known.address.is_some() {
            self.known.insert(id.to_owned(), known.clone());
        }
        Some(known)
    }

    /// When it answered, by its own word.
    fn answers(&self, known: &Known) -> Option<u64> {
        // The machine may have been off and on since the last look: its namespace is another.
        enter_network(self.probe.namespace()).ok()?;
        let answer = get(SocketAddr::from((known.address?, beat::PORT)), "/", ANSWER_LIMIT).ok()?;
        Some(serde_json::from_str::<Beat>(&answer).ok()?.now)
    }
}

#[derive(Debug)]
struct Sighting {
    container: String,
    known: Known,
    evidence: Evidence,
    from: u64,
    by: u64,
}

impl Sighting {
    /// Spans of the kernel's word and of the container's own are apart.
    fn key(&self) -> (String, bool) {
        (self.container.clone(), self.evidence == Evidence::Served)
    }

    fn into_span(self, machine: &str) -> Span {
        Span {
            machine: machine.to_owned(),
            service: self.known.service,
            container: self.container,
            epoch: self.known.epoch,
            evidence: self.evidence,
            first_by: self.by,
            last_from: self.from,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(container: &str, first_by: u64, last_from: u64) -> Span {
        Span {
            machine: "m1".to_owned(),
            service: "notes".to_owned(),
            container: container.to_owned(),
            epoch: 1,
            evidence: Evidence::Ran,
            first_by,
            last_from,
        }
    }

    fn check(spans: &[Span]) -> Result<()> {
        Report { spans: spans.to_vec(), slowest: Duration::ZERO }.check()
    }

    #[test]
    fn two_that_ran_at_one_time_are_told() {
        let error = check(&[span("a", 10, 20), span("b", 15, 30)]).unwrap_err();
        assert!(error.to_string().contains("two instances"), "{error}");
        // One that was seen once, while the other was seen before and after.
        check(&[span("a", 10, 20), span("b", 15, 15)]).unwrap_err();
    }

    #[test]
    fn one_after_the_other_is_well() {
        check(&[span("a", 10, 20), span("b", 21, 30), span("a", 31, 40)]).unwrap();
    }

    #[test]
    fn what_is_not_certain_is_not_told() {
        // Each seen in one look, and the looks overlapped: either may have been first.
        check(&[span("a", 12, 10), span("b", 13, 11)]).unwrap();
    }

    #[test]
    fn a_watch_that_saw_nothing_proves_nothing() {
        check(&[]).unwrap_err();
    }

    #[test]
    fn other_services_do_not_count() {
        let mut other = span("b", 15, 30);
        other.service = "db".to_owned();
        check(&[span("a", 10, 20), other]).unwrap();
    }
}
