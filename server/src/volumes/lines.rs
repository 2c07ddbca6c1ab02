//! The connections over which the objects of a generation come: to several machines, and several to each.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use flotilla_api::NodeId;
use flotilla_data::{
    Hash,
    fetch::{Fetch, Figures},
    store, tree,
};
use futures::future::join_all;
use tokio::{
    io::{ReadHalf, WriteHalf},
    runtime::Handle,
    sync::mpsc,
};

use super::{
    Error,
    haste::Haste,
    limit::Held,
    width::{ASKED_LEAST, ASKED_MAX, Judge, Window},
    wire::{self, NAMES_MAX},
};
use crate::peers::{LANES_MAX, Network, Stream};

/// Machines that one generation is fetched from at once.
const SOURCES_MAX: usize = 3;

/// More than so much is fetched over several connections. Bytes.
const STRIPED_FROM: u64 = 1024 * 1024;

/// A volume of which nothing is here is fetched over several from the beginning where it has so much. Bytes.
const STRIPED_AT_ONCE_FROM: u64 = 8 * STRIPED_FROM;

/// Connections for one generation, to all machines that have it.
const LINES_FIRST: usize = LANES_MAX / 2;

/// The same where more of them carry more.
const LINES_MAX: usize = LANES_MAX;

/// What came so far is kept whenever so much of it is new: nobody is asked for more while the disk is waited for. Bytes.
const SAVED_EVERY: u64 = 512 * 1024 * 1024;

/// And after so long, where it comes slowly.
const SAVED_AFTER: Duration = Duration::from_secs(60);

/// What one machine answered.
enum Came {
    /// An object as it is laid down; `None` where it is not there.
    Object {
        line: usize,
        name: Hash,
        coded: Option<Vec<u8>>,
    },
    Lost {
        line: usize,
        why: String,
        held: Option<Held>,
    },
    /// One more connection.
    Line {
        number: usize,
        line: Line,
    },
}

/// The connections to the machines that are asked.
pub(crate) struct Lines {
    /// By number; without those where nobody answers any more.
    lines: BTreeMap<usize, Line>,
    answers: mpsc::Receiver<Came>,
    more: More,
    /// Numbers that are given out.
    numbers: usize,
    why: String,
    /// A machine that could send the rest does not do so now.
    held: Option<Held>,
}

struct Line {
    machine: NodeId,
    names: mpsc::Sender<Vec<Hash>>,
    /// And when.
    asked: HashMap<Hash, Instant>,
    window: Window,
}

impl Line {
    /// Asks over a stream, for the line with this number.
    fn over(line: usize, machine: NodeId, stream: Stream, answers: mpsc::Sender<Came>, haste: Haste) -> Self {
        let (names, asked) = mpsc::channel(ASKED_MAX / ASKED_LEAST + 1);
        tokio::spawn(carry(line, stream, asked, answers, haste));
        Self { machine, names, asked: HashMap::new(), window: Window::default() }
    }

    /// How many objects it may be asked for now.
    fn room(&self) -> usize {
        if self.names.capacity() == 0 { 0 } else { self.window.room(self.asked.len()) }
    }
}

/// Further connections to machines that were reached.
#[derive(Clone)]
struct More {
    network: Network,
    machines: Vec<NodeId>,
    /// Without holding the answers open: when nobody answers any more, that is their end.
    answers: mpsc::WeakSender<Came>,
    haste: Haste,
}

impl More {
    /// All at the same time: over a slow line that takes as long as fetching some megabytes does.
    async fn make(self, numbers: Range<usize>) {
        join_all(numbers.map(|number| self.make_one(number))).await;
    }

    async fn make_one(&self, number: usize) {
        let Some(answers) = self.answers.upgrade() else { return };
        let (machine, lane) = (&self.machines[number % self.machines.len()], number / self.machines.len());
        match self.network.stream_beside(machine, wire::LABEL, lane).await {
            Ok(stream) => {
                let line = Line::over(number, machine.clone(), stream, answers.clone(), self.haste.clone());
                // Nobody may be fetching any more.
                let _ = answers.send(Came::Line { number, line }).await;
            }
            // The connections that there are do as well.
            Err(error) => tracing::debug!(%machine, %error, "no further connection"),
        }
    }
}

impl Lines {
    /// # Errors
    /// None of them can be asked.
    pub(crate) async fn open(
        network: &Network,
        machines: impl Iterator<Item = &NodeId>,
        haste: &Haste,
    ) -> Result<Self, Error> {
        let (sender, answers) = mpsc::channel(2 * NAMES_MAX);
        let (mut lines, mut reached, mut why) = (BTreeMap::new(), Vec::new(), String::new());
        for machine in machines.take(SOURCES_MAX) {
            match network.stream(machine, wire::LABEL).await {
                Ok(stream) => {
                    let number = reached.len();
                    let line = Line::over(number, machine.clone(), stream, sender.clone(), haste.clone());
                    lines.insert(number, line);
                    reached.push(machine.clone());
                }
                Err(error) => why = error.to_string(),
            }
        }
        if lines.is_empty() {
            return Err(Error::NoSource { why });
        }
        let numbers = reached.len();
        let more =
            More { network: Arc::clone(network), machines: reached, answers: sender.downgrade(), haste: haste.clone() };
        Ok(Self { lines, answers, more, numbers, why, held: None })
    }

    /// Makes connections until so many were made.
    fn widen(&mut self, to: usize, runtime: &Handle) {
        runtime.spawn(self.more.clone().make(self.numbers..to));
        self.numbers = self.numbers.max(to);
    }

    /// Until all of it is here. Blocking; `told` how much has come.
    ///
    /// # Errors
    /// Nobody who is asked has the rest of it, or it can't be kept.
    pub(crate) fn drive(
        &mut self,
        mut fetch: Fetch,
        runtime: &Handle,
        mut told: impl FnMut(Figures),
    ) -> Result<Fetch, Error> {
        let (mut saved, mut saved_at) = (0, Instant::now());
        let mut judge = Judge::default();
        loop {
            let figures = fetch.figures();
            let much = fetch.is_first() && figures.of >= STRIPED_AT_ONCE_FROM;
            if figures.bytes >= STRIPED_FROM || much {
                if self.numbers < LINES_FIRST {
                    self.widen(LINES_FIRST, runtime);
                }
                // How much there is of what is sealed nobody knows here.
                let left = if figures.of == 0 { u64::MAX } else { figures.of.saturating_sub(figures.there) };
                if (LINES_FIRST..LINES_MAX).contains(&self.lines.len())
                    && left > STRIPED_FROM
                    && judge.wants_more(Instant::now(), self.lines.len(), figures.bytes)
                {
                    tracing::debug!("more connections carry more");
                    self.widen(LINES_MAX, runtime);
                }
            }
            self.ask(&mut fetch)?;
            if fetch.is_complete() {
                return Ok(fetch);
            }
            if self.lines.values().all(|line| line.asked.is_empty()) {
                let damaged = Error::Tree(tree::Error::Damaged);
                return Err(if self.lines.is_empty() { self.gone(&mut fetch) } else { damaged });
            }
            match self.answers.blocking_recv() {
                Some(Came::Object { line, name, coded }) => {
                    if let Some(line) = self.lines.get_mut(&line)
                        && let Some(asked) = line.asked.remove(&name)
                    {
                        line.window.answered(asked.elapsed());
                    }
                    match coded.map(|coded| fetch.take(&name, &coded)) {
                        Some(Ok(())) => {}
                        Some(Err(error)) if !is_damage(&error) => return Err(error.into()),
                        // Another may have it, and whole.
                        missing => {
                            let why = missing.and_then(Result::err).map(|error| error.to_string());
                            fetch.again(&name);
                            self.lose(line, why.unwrap_or_else(|| format!("it lacks the object {name}")), &mut fetch);
                        }
                    }
                }
                Some(Came::Lost { line, why, held }) => {
                    self.held = held.or(self.held);
                    self.lose(line, why, &mut fetch);
                }
                Some(Came::Line { number, line }) => drop(self.lines.insert(number, line)),
                None => return Err(self.gone(&mut fetch)),
            }
            told(fetch.figures());
            let new = fetch.figures().bytes - saved;
            if new >= SAVED_EVERY || (new > 0 && saved_at.elapsed() >= SAVED_AFTER) {
                (saved, saved_at) = (fetch.figures().bytes, Instant::now());
                fetch.save()?;
            }
        }
    }

    /// Everybody who has room is asked for some of it, in turn.
    fn ask(&mut self, fetch: &mut Fetch) -> Result<(), Error> {
        loop {
            let mut asked = false;
            for line in self.lines.values_mut() {
                let room = line.room();
                if room == 0 {
                    continue;
                }
                let names = fetch.wants(room)?;
                if names.is_empty() {
                    return Ok(());
                }
                let now = Instant::now();
                line.asked.extend(names.iter().map(|name| (*name, now)));
                // One that has ended says so itself.
                let _ = line.names.try_send(names);
                asked = true;
            }
            if !asked {
                return Ok(());
            }
        }
    }

    /// Why nobody is left to ask. What came is kept for the next time.
    fn gone(&self, fetch: &mut Fetch) -> Error {
        if let Err(error) = fetch.save() {
            return error.into();
        }
        self.held.map_or_else(|| Error::NoSource { why: self.why.clone() }, Error::Held)
    }

    fn lose(&mut self, line: usize, why: String, fetch: &mut Fetch) {
        if let Some(line) = self.lines.remove(&line) {
            tracing::warn!(machine = %line.machine, %why, "a machine is not asked for more of a generation");
            line.asked.keys().for_each(|name| fetch.again(name));
            self.why = why;
        }
    }
}

/// Is it what came that is wrong?
fn is_damage(error: &tree::Error) -> bool {
    matches!(error, tree::Error::Store(store::Error::Damaged { .. }))
}

/// Carries questions and answers of one machine.
async fn carry(
    line: usize,
    stream: Stream,
    mut asked: mpsc::Receiver<Vec<Hash>>,
    answers: mpsc::Sender<Came>,
    haste: Haste,
) {
    let (mut from, mut to): (ReadHalf<Stream>, WriteHalf<Stream>) = tokio::io::split(stream);
    let (expected_sender, mut expected) = mpsc::channel::<Vec<Hash>>(ASKED_MAX / ASKED_LEAST + 2);
    let mut can_wait = !haste.is_awaited();
    let patience = if can_wait { wire::PATIENCE } else { wire::STALL };
    let asking = async {
        if can_wait {
            wire::ask(&mut to, &[]).await?;
        }
        loop {
            let names = tokio::select! {
                names = asked.recv() => names,
                () = haste.is_called_for(), if can_wait => {
                    can_wait = false;
                    wire::ask(&mut to, &[]).await?;
                    continue;
                }
            };
            let Some(names) = names else { break };
            wire::ask(&mut to, &names).await?;
            if expected_sender.send(names).await.is_err() {
                break;
            }
        }
        drop(expected_sender);
        Ok::<_, std::io::Error>(())
    };
    let hearing = async {
        while let Some(names) = expected.recv().await {
            for name in names {
                let coded = wire::answered_within(&mut from, patience).await?;
                if answers.send(Came::Object { line, name, coded }).await.is_err() {
                    return Ok(());
                }
            }
        }
        Ok(())
    };
    if let Err(error) = tokio::try_join!(asking, hearing) {
        let held = error.get_ref().and_then(|error| error.downcast_ref::<Held>()).copied();
        let _ = answers.send(Came::Lost { line, why: error.to_string(), held }).await;
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use bytes::Bytes;
    use flotilla_api::{
        ApiError,
        limit::{LimitNow, Rate},
    };
    use flotilla_data::{
        Store,
        capture::{Capture, Scope},
    };
    use futures::future::BoxFuture;
    use tokio::time::timeout;

    use super::*;
    use crate::{
        peers::{Handler, Method, memory::Wires},
        volumes::limit::Limiter,
    };

    /// A machine that gives what its store has.
    #[derive(Clone)]
    struct Source {
        store: Store,
        limiter: Arc<Limiter>,
    }

    impl Handler for Source {
        fn call(&self, _: NodeId, _: Method, _: Bytes) -> BoxFuture<'static, Result<Bytes, ApiError>> {
            Box::pin(async { Ok(Bytes::new()) })
        }

        fn stream(&self, _: NodeId, _: String, stream: Stream) -> BoxFuture<'static, ()> {
            let Self { store, limiter } = self.clone();
            Box::pin(async move { drop(wire::serve(&store, &limiter, stream, wire::Served::All).await) })
        }
    }

    /// Machines that have a volume of some megabytes, and one that fetches it.
    struct World {
        _directory: tempfile::TempDir,
        wires: Wires,
        network: Network,
        sources: Vec<(NodeId, Source)>,
        store: Store,
        generation: store::Generation,
    }

    const KEY: &str = "notes/board";

    impl World {
        fn new(limits: &[LimitNow]) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let volume = directory.path().join("volume");
            fs::create_dir(&volume).unwrap();
            let noise = (0..100_000_u64).flat_map(|at| *Hash::of(&at.to_be_bytes()).as_bytes());
            fs::write(volume.join("file"), noise.collect::<Vec<u8>>()).unwrap();
            let wires = Wires::default();
            let network = wires.join(&NodeId("here".to_owned()));
            let mut generation = None;
            let source = |(number, limit): (usize, &LimitNow)| {
                let id = NodeId(format!("far-{number}"));
                let store = Store::open(&directory.path().join(&id.0)).unwrap();
                let captured = Capture::begin(&store, KEY, &volume).unwrap().finish(&Scope::Everything).unwrap();
                generation = Some(captured.commit(1, 1, 7).unwrap());
                let source = Source { store, limiter: Arc::default() };
                source.limiter.set(*limit);
                wires.join(&id);
                wires.serve(&id, Arc::new(source.clone()));
                (id, source)
            };
            let sources = limits.iter().enumerate().map(source).collect();
            let store = Store::open(&directory.path().join("here")).unwrap();
            Self { _directory: directory, wires, network, sources, store, generation: generation.unwrap() }
        }

        async fn fetch(&self, haste: &Haste) -> Result<Figures, Error> {
            let machines = self.sources.iter().map(|(id, _)| id);
            let mut lines = Lines::open(&self.network, machines, haste).await?;
            let (store, generation, runtime) = (self.store.clone(), self.generation, Handle::current());
            let work = move || {
                let fetch = lines.drive(Fetch::begin(&store, KEY, generation)?, &runtime, |_| {})?;
                let figures = fetch.figures();
                fetch.commit()?;
                Ok(figures)
            };
            timeout(Duration::from_secs(60), super::super::blocking(work)).await.expect("it takes far too long")
        }
    }

    fn limit(rate: Option<&str>, until: Option<&str>) -> LimitNow {
        let rate = rate.map(|rate| rate.parse().unwrap());
        LimitNow { rate, until: until.map(|until| until.parse().unwrap()) }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_can_wait_is_not_fetched_from_a_machine_that_sends_nothing_and_what_can_not_is() {
        let world = World::new(&[limit(Some("0"), Some("23:00"))]);
        let error = world.fetch(&Haste::in_advance()).await.unwrap_err();
        assert!(matches!(error, Error::Held(Held { until: Some(_) })), "{error:?}");
        assert!(error.to_string().ends_with("its limit holds copies back until 23:00"), "{error}");
        let figures = world.fetch(&Haste::awaited()).await.unwrap();
        assert!(figures.there == 3_200_000 && figures.of == figures.there, "{figures:?}");
        let sent = world.sources[0].1.limiter.sent();
        assert!(sent.in_advance == 0 && sent.at_once >= figures.bytes, "{sent:?}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn each_machine_gives_its_share() {
        let world = World::new(&[limit(None, None), limit(None, None)]);
        let figures = world.fetch(&Haste::awaited()).await.unwrap();
        let sent: Vec<u64> = world.sources.iter().map(|(_, source)| source.limiter.sent().at_once).collect();
        assert!(sent.iter().all(|sent| *sent > figures.bytes / 8), "{sent:?} of {figures:?}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn another_machine_gives_what_one_holds_back() {
        let world = World::new(&[limit(Some("0"), None), limit(None, None)]);
        let figures = world.fetch(&Haste::in_advance()).await.unwrap();
        let sent: Vec<u64> = world.sources.iter().map(|(_, source)| source.limiter.sent().in_advance).collect();
        assert!(sent[0] == 0 && sent[1] >= figures.bytes, "{sent:?}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_comes_to_be_waited_for_is_hurried_on_its_way() {
        // It would take minutes.
        let world = World::new(&[limit(Some("10kB/s"), None)]);
        let (haste, limiter) = (Haste::in_advance(), Arc::clone(&world.sources[0].1.limiter));
        let hurried = haste.clone();
        let hurry = async move {
            let mut looks = tokio::time::interval(Duration::from_millis(5));
            while limiter.sent().in_advance == 0 {
                looks.tick().await;
            }
            hurried.hurry();
        };
        let (figures, ()) = tokio::join!(world.fetch(&haste), hurry);
        let (figures, sent) = (figures.unwrap(), world.sources[0].1.limiter.sent());
        assert!(sent.at_once > sent.in_advance && sent.at_once + sent.in_advance >= figures.bytes, "{sent:?}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_limit_that_comes_to_nothing_ends_what_can_wait_and_what_came_is_kept() {
        let world = World::new(&[limit(Some("10kB/s"), None)]);
        let limiter = Arc::clone(&world.sources[0].1.limiter);
        let hold = async {
            let mut looks = tokio::time::interval(Duration::from_millis(5));
            while limiter.sent().in_advance < 20_000 {
                looks.tick().await;
            }
            limiter.set(LimitNow { rate: Some(Rate::ZERO), until: None });
        };
        let haste = Haste::in_advance();
        let (fetched, ()) = tokio::join!(world.fetch(&haste), hold);
        assert!(matches!(fetched, Err(Error::Held(Held { until: None }))), "{fetched:?}");
        limiter.set(LimitNow::default());
        let rest = world.fetch(&Haste::in_advance()).await.unwrap();
        assert!(rest.objects < world.sources[0].1.store.count().unwrap(), "{rest:?}");
        world.wires.leave(&world.sources[0].0);
        let error = world.fetch(&Haste::awaited()).await.unwrap_err();
        assert!(matches!(error, Error::NoSource { .. }), "{error:?}");
    }
}
