//! What machines say to each other of volumes.
//!
//! The machine that writes *offers* a generation; one that shall have it fetches what it lacks, from any machine that has it, and then
//! says that it *holds* it. Objects come over a stream `objects`: in one direction lists of names, in the other the objects in the same
//! order, as they are laid down. All numbers are big-endian.
//!
//! ```text
//! asked:     count (2), count x name (32)
//! answered:  length (4), bytes; or 0xffffffff where it is not there
//!            or 0xfffffffe, minute of the day (2): nothing is sent before that, by the limit of the machine that is asked
//! ```
//!
//! An empty question says that what is asked for from here on can wait for that limit, and another one that it no longer can. A machine
//! of a version that knows no limits answers nothing to it, and one that never says so is not limited.

use std::{
    collections::BTreeMap,
    io,
    pin::pin,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use flotilla_api::{ApiError, ErrorCode, NodeId, ServiceName, UnixMillis, VolumeName, limit::TimeOfDay};
use flotilla_core::state::GenerationName;
use flotilla_data::{Hash, Store, seal, store};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::{mpsc, watch},
    time::timeout,
};

use super::limit::{Held, Limiter, PIECE};
use crate::peers::Stream;

/// What streams of objects are labelled with.
pub const LABEL: &str = "objects";

/// Names that are asked for at once.
pub(super) const NAMES_MAX: usize = 64;

/// Of one object as it is laid down. Bytes.
const OBJECT_MAX: u32 = seal::LAID_DOWN_MAX as u32;

/// Batches that are read and not yet sent.
const READ_AHEAD: usize = 2;

const ABSENT: u32 = u32::MAX;

const HELD: u32 = u32::MAX - 1;

/// In the place of a minute of the day, where no other time is set.
const NEVER: u16 = u16::MAX;

/// A stream on which nothing has moved for so long is given up.
pub(super) const STALL: Duration = Duration::from_secs(30);

/// The same for one that can wait: at the smallest rate many streams take turns.
pub(super) const PATIENCE: Duration = Duration::from_secs(300);

/// There is a new generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Offer {
    pub(super) service: ServiceName,
    #[serde(flatten)]
    pub(super) name: GenerationName,
    pub(super) taken_at: UnixMillis,
    /// Those that the other machine shall have, and their roots.
    pub(super) volumes: BTreeMap<VolumeName, String>,
    /// Who else has it.
    pub(super) holders: Vec<NodeId>,
    /// Something waits for it: an instance that is to begin with it elsewhere, or a person.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) awaited: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Offered {
    /// All of it is on the other machine's disk.
    pub(super) held: bool,
    /// When that one gave up a copy last (`Data::dropped`), as it knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) dropped: Option<u64>,
}

/// All of a generation is on the sender's disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Holds {
    pub(super) service: ServiceName,
    #[serde(flatten)]
    pub(super) name: GenerationName,
    /// As in [`Offered`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) dropped: Option<u64>,
}

/// Which machine has a generation?
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Recall {
    pub(super) service: ServiceName,
    #[serde(flatten)]
    pub(super) name: GenerationName,
}

pub(super) fn write<T: Serialize>(message: &T) -> Result<Bytes, ApiError> {
    let written = serde_json::to_vec(message).map(Bytes::from);
    written.map_err(|error| ApiError::new(ErrorCode::Internal, format!("a message can't be written: {error}")))
}

pub(super) fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| {
        let why = format!("a message on volumes can't be read ({error}); run the same version on both machines");
        ApiError::new(ErrorCode::InvalidRequest, why)
    })
}

/// What another machine may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    All,
    /// It only stores: what it could read is not there for it.
    Sealed,
}

impl Served {
    fn filter(self, name: &Hash, coded: Vec<u8>) -> Result<Vec<u8>, store::Error> {
        match self {
            Self::Sealed if !seal::is_sealed(&coded) => Err(store::Error::Missing { name: *name }),
            Self::All | Self::Sealed => Ok(coded),
        }
    }
}

/// Gives another machine what it asks for, until it asks for no more. The disk is read while what was read before is on its way.
pub(super) async fn serve(store: &Store, limiter: &Limiter, stream: Stream, served: Served) -> io::Result<()> {
    let (mut asked, mut answers) = tokio::io::split(stream);
    let (found, mut objects) = mpsc::channel(READ_AHEAD);
    let unanswered = AtomicUsize::new(0);
    let (patient, mut can_wait) = watch::channel(false);
    let reading = async {
        let found = found;
        while let Some(names) = next_names(&mut asked, &unanswered).await? {
            if names.is_empty() {
                patient.send_modify(|can_wait| *can_wait = !*can_wait);
                continue;
            }
            unanswered.fetch_add(1, Relaxed);
            let store = store.clone();
            let one = move |name: &Hash| store.laid_down(name).and_then(|coded| served.filter(name, coded));
            let read = move || names.iter().map(one).collect::<Vec<_>>();
            if found.send(tokio::task::spawn_blocking(read).await?).await.is_err() {
                break;
            }
        }
        io::Result::Ok(())
    };
    let answering = async {
        while let Some(batch) = objects.recv().await {
            for object in batch {
                match answer(&mut answers, object, limiter, &mut can_wait).await? {
                    Ok(()) => {}
                    Err(held) => return timeout(STALL, hold(&mut answers, held)).await?,
                }
            }
            timeout(STALL, answers.flush()).await??;
            unanswered.fetch_sub(1, Relaxed);
        }
        Ok(())
    };
    let mut answering = pin!(answering);
    tokio::select! {
        answered = &mut answering => return answered,
        read = reading => read?,
    }
    answering.await
}

/// The next question; `None` where there is none any more. Who waits for answers has nothing to say meanwhile, however long they take.
async fn next_names(asked: &mut (impl AsyncRead + Unpin), unanswered: &AtomicUsize) -> io::Result<Option<Vec<Hash>>> {
    let mut reading = pin!(read_names(asked));
    let mut idle = false;
    loop {
        match timeout(STALL, &mut reading).await {
            Ok(Ok(names)) => return Ok(Some(names)),
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Ok(Err(error)) => return Err(error),
            Err(late) if idle => return Err(late.into()),
            Err(_) => idle = unanswered.load(Relaxed) == 0,
        }
    }
}

async fn answer(
    to: &mut (impl AsyncWrite + Unpin),
    object: Result<Vec<u8>, store::Error>,
    limiter: &Limiter,
    can_wait: &mut watch::Receiver<bool>,
) -> io::Result<Result<(), Held>> {
    let bytes = match object {
        Ok(bytes) => bytes,
        Err(error) => {
            tracing::debug!(%error, "an object was asked for that is not here");
            timeout(STALL, to.write_u32(ABSENT)).await??;
            return Ok(Ok(()));
        }
    };
    let len = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    for (number, piece) in bytes.chunks(PIECE).enumerate() {
        match limiter.pass(piece.len(), can_wait).await {
            Err(held) if number == 0 => return Ok(Err(held)),
            // What has begun is sent to its end.
            _ => {}
        }
        if number == 0 {
            timeout(STALL, to.write_u32(len)).await??;
        }
        timeout(STALL, to.write_all(piece)).await??;
    }
    if bytes.is_empty() {
        timeout(STALL, to.write_u32(len)).await??;
    }
    Ok(Ok(()))
}

async fn hold(to: &mut (impl AsyncWrite + Unpin), held: Held) -> io::Result<()> {
    to.write_u32(HELD).await?;
    to.write_u16(held.until.map_or(NEVER, TimeOfDay::minutes)).await?;
    to.flush().await?;
    to.shutdown().await
}

async fn read_names(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<Hash>> {
    let count = usize::from(from.read_u16().await?);
    if count > NAMES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "too many objects are asked for at once"));
    }
    let mut names = Vec::with_capacity(count);
    for _ in 0..count {
        let mut name = [0; Hash::LEN];
        from.read_exact(&mut name).await?;
        names.push(Hash::from(name));
    }
    Ok(names)
}

/// Asks for objects; for none of them, to say that what comes can wait, or no longer can.
pub(crate) async fn ask(to: &mut (impl AsyncWrite + Unpin), names: &[Hash]) -> io::Result<()> {
    let asking = async {
        let mut message = Vec::with_capacity(2 + names.len() * Hash::LEN);
        message.extend_from_slice(&u16::try_from(names.len()).map_err(io::Error::other)?.to_be_bytes());
        names.iter().for_each(|name| message.extend_from_slice(name.as_bytes()));
        to.write_all(&message).await?;
        to.flush().await
    };
    timeout(STALL, asking).await?
}

/// The next object that was asked for, as it is laid down; `None` where the other machine does not have it.
pub(crate) async fn answered(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    answered_within(from, STALL).await
}

/// The same, given up when nothing has moved for so long. [`Held`] is within the error where the other machine sends nothing for now.
pub(super) async fn answered_within(
    from: &mut (impl AsyncRead + Unpin),
    patience: Duration,
) -> io::Result<Option<Vec<u8>>> {
    let len = match timeout(patience, from.read_u32()).await?? {
        ABSENT => return Ok(None),
        HELD => {
            let minutes = timeout(patience, from.read_u16()).await??;
            let until = (minutes != NEVER).then(|| TimeOfDay::of_minutes(minutes));
            return Err(io::Error::other(Held { until }));
        }
        len if len > OBJECT_MAX => {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "an object is larger than any may be"));
        }
        len => len as usize,
    };
    let (mut bytes, mut filled) = (vec![0; len], 0);
    while filled < len {
        match timeout(patience, from.read(&mut bytes[filled..])).await?? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => filled += read,
        }
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use flotilla_api::limit::{LimitNow, Rate};
    use flotilla_data::{
        seal::{Key, KeyId},
        store::{News, Sink as _},
    };
    use tokio::{
        io::DuplexStream,
        task::JoinHandle,
        time::{Instant, sleep},
    };

    use super::*;

    /// Of one object. Bytes.
    const LEN: usize = 50_000;

    struct World {
        _directory: tempfile::TempDir,
        store: Store,
        names: Vec<Hash>,
        limiter: Arc<Limiter>,
    }

    impl World {
        fn new(objects: u64) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let store = Store::open(directory.path()).unwrap();
            let mut session = store.session();
            let noise = |seed: u64| {
                let hashes = (0..LEN as u64 / 32).map(|at| Hash::of(&[seed.to_be_bytes(), at.to_be_bytes()].concat()));
                hashes.flat_map(|hash| *hash.as_bytes()).collect::<Vec<u8>>()
            };
            let names = (0..objects).map(|seed| session.put(&noise(seed)).unwrap()).collect();
            session.commit(&News::default()).unwrap();
            Self { _directory: directory, store, names, limiter: Arc::default() }
        }

        fn limit(&self, rate: &str, until: Option<&str>) {
            let until = until.map(|until| until.parse().unwrap());
            self.limiter.set(LimitNow { rate: Some(rate.parse().unwrap()), until });
        }

        fn open(&self) -> (DuplexStream, JoinHandle<io::Result<()>>) {
            let (here, there) = tokio::io::duplex(256 * 1024);
            let (store, limiter) = (self.store.clone(), Arc::clone(&self.limiter));
            (here, tokio::spawn(async move { serve(&store, &limiter, Box::new(there), Served::All).await }))
        }

        /// Asks for all, and takes them. Bytes.
        async fn fetch(&self, stream: &mut DuplexStream) -> u64 {
            ask(stream, &self.names).await.unwrap();
            let mut bytes = 0;
            for name in &self.names {
                let object = answered_within(stream, PATIENCE).await.unwrap().unwrap();
                assert_eq!(object, self.store.laid_down(name).unwrap());
                bytes += object.len() as u64;
            }
            bytes
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_can_wait_keeps_to_the_limit_however_long_that_takes() {
        let world = World::new(60);
        world.limit("10kB/s", None);
        let (mut stream, serving) = world.open();
        ask(&mut stream, &[]).await.unwrap();
        let began = Instant::now();
        let bytes = world.fetch(&mut stream).await;
        let rate = bytes as f64 / began.elapsed().as_secs_f64();
        assert!(began.elapsed() > 5 * STALL, "longer than anybody is silent");
        assert!((rate / 10e3 - 1.0).abs() < 0.03, "{rate}");
        drop(stream);
        serving.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_asked_for_without_a_word_is_sent_at_once() {
        let world = World::new(60);
        world.limit("0", None);
        let (mut stream, _serving) = world.open();
        let began = Instant::now();
        assert_eq!(world.fetch(&mut stream).await, world.limiter.sent().at_once);
        assert!(began.elapsed() < Duration::from_secs(1));
        assert_eq!(world.limiter.sent().in_advance, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_to_be_waited_for_is_sent_at_once_from_then_on() {
        let world = World::new(60);
        world.limit("10kB/s", None);
        let (stream, _serving) = world.open();
        let (mut from, mut to) = tokio::io::split(stream);
        ask(&mut to, &[]).await.unwrap();
        ask(&mut to, &world.names).await.unwrap();
        answered_within(&mut from, PATIENCE).await.unwrap().unwrap();
        let began = Instant::now();
        ask(&mut to, &[]).await.unwrap();
        for _ in 1..world.names.len() {
            answered_within(&mut from, PATIENCE).await.unwrap().unwrap();
        }
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_machine_that_sends_nothing_says_until_when_and_ends() {
        let world = World::new(60);
        world.limit("10kB/s", None);
        let (mut stream, serving) = world.open();
        ask(&mut stream, &[]).await.unwrap();
        ask(&mut stream, &world.names).await.unwrap();
        answered_within(&mut stream, PATIENCE).await.unwrap().unwrap();
        world.limiter.set(LimitNow { rate: Some(Rate::ZERO), until: Some("23:00".parse().unwrap()) });
        // What has begun comes to its end.
        let error = loop {
            match answered_within(&mut stream, PATIENCE).await {
                Ok(object) => drop(object.unwrap()),
                Err(error) => break error,
            }
        };
        let held = error.get_ref().unwrap().downcast_ref::<Held>().unwrap();
        assert_eq!(held.to_string(), "its limit holds copies back until 23:00");
        serving.await.unwrap().unwrap();

        world.limit("0", None);
        let (mut stream, _serving) = world.open();
        ask(&mut stream, &[]).await.unwrap();
        ask(&mut stream, &world.names).await.unwrap();
        let error = answered_within(&mut stream, PATIENCE).await.unwrap_err();
        assert_eq!(*error.get_ref().unwrap().downcast_ref::<Held>().unwrap(), Held { until: None });
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_for_nothing_more_is_not_waited_for_for_ever() {
        let world = World::new(1);
        let (mut stream, serving) = world.open();
        world.fetch(&mut stream).await;
        sleep(3 * STALL).await;
        assert_eq!(serving.await.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    async fn answers(store: &Store, served: Served, names: &[Hash]) -> Vec<Option<Vec<u8>>> {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (store, stream): (Store, Stream) = (store.clone(), Box::new(far));
        let serving = tokio::spawn(async move { serve(&store, &Limiter::default(), stream, served).await });
        let (mut from, mut to) = tokio::io::split(near);
        ask(&mut to, names).await.unwrap();
        let mut all = Vec::new();
        for _ in names {
            all.push(answered(&mut from).await.unwrap());
        }
        drop((from, to));
        serving.await.unwrap().unwrap();
        all
    }

    #[tokio::test]
    async fn a_machine_that_only_stores_is_given_what_is_sealed_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let key = KeyId([3; 8]);
        store.use_keys([Key::derive(key, &[3; 32])]);
        let mut open = store.session();
        let plain = open.put(b"anybody may read this").unwrap();
        open.commit(&News::default()).unwrap();
        let mut sealing = store.sealing_session(key).unwrap();
        let sealed = sealing.put(b"nobody may read this").unwrap();
        sealing.commit(&News::default()).unwrap();

        let names = [plain, sealed, Hash::of(b"nothing")];
        let all = answers(&store, Served::All, &names).await;
        assert_eq!(all.iter().map(Option::is_some).collect::<Vec<_>>(), [true, true, false]);
        let some = answers(&store, Served::Sealed, &names).await;
        assert_eq!(some.iter().map(Option::is_some).collect::<Vec<_>>(), [false, true, false]);
        assert!(seal::is_sealed(some[1].as_ref().unwrap()));
    }
}
