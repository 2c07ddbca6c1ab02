//! What machines say to each other of volumes.
//!
//! The machine that writes *offers* a generation; one that shall have it fetches what it lacks, from any machine that has it, and then
//! says that it *holds* it. Objects come over a stream `objects`: in one direction lists of names, in the other the objects in the same
//! order, as they are laid down. All numbers are big-endian.
//!
//! ```text
//! asked:     count (2), count x name (32)
//! answered:  length (4), bytes; or 0xffffffff where it is not there
//! ```

use std::{collections::BTreeMap, io, time::Duration};

use bytes::Bytes;
use flotilla_api::{ApiError, ErrorCode, NodeId, ServiceName, UnixMillis, VolumeName};
use flotilla_core::state::GenerationName;
use flotilla_data::{Hash, Store, seal, store};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::mpsc,
    time::timeout,
};

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

/// A stream on which nothing has moved for so long is given up.
pub(super) const STALL: Duration = Duration::from_secs(30);

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
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Offered {
    /// All of it is on the other machine's disk.
    pub(super) held: bool,
}

/// All of a generation is on the sender's disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Holds {
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
pub(super) async fn serve(store: &Store, stream: Stream, served: Served) -> io::Result<()> {
    let (mut asked, mut answers) = tokio::io::split(stream);
    let (found, mut objects) = mpsc::channel(READ_AHEAD);
    let reading = async move {
        loop {
            let names = match timeout(STALL, read_names(&mut asked)).await? {
                Ok(names) => names,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(error),
            };
            let store = store.clone();
            let one = move |name: &Hash| store.laid_down(name).and_then(|coded| served.filter(name, coded));
            let read = move || names.iter().map(one).collect::<Vec<_>>();
            if found.send(tokio::task::spawn_blocking(read).await?).await.is_err() {
                return Ok(());
            }
        }
    };
    let answering = async {
        while let Some(batch) = objects.recv().await {
            for object in batch {
                timeout(STALL, answer(&mut answers, object)).await??;
            }
            timeout(STALL, answers.flush()).await??;
        }
        Ok(())
    };
    tokio::try_join!(reading, answering).map(drop)
}

async fn answer(to: &mut (impl AsyncWrite + Unpin), object: Result<Vec<u8>, store::Error>) -> io::Result<()> {
    match object {
        Ok(bytes) => {
            to.write_u32(u32::try_from(bytes.len()).map_err(io::Error::other)?).await?;
            to.write_all(&bytes).await
        }
        Err(error) => {
            tracing::debug!(%error, "an object was asked for that is not here");
            to.write_u32(ABSENT).await
        }
    }
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

/// Asks for objects.
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
    let reading = async {
        let len = from.read_u32().await?;
        if len == ABSENT {
            return Ok(None);
        }
        if len > OBJECT_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "an object is larger than any may be"));
        }
        let mut bytes = vec![0; len as usize];
        from.read_exact(&mut bytes).await?;
        Ok(Some(bytes))
    };
    timeout(STALL, reading).await?
}

#[cfg(test)]
mod tests {
    use flotilla_data::{
        seal::{Key, KeyId},
        store::{News, Sink as _},
    };

    use super::*;

    async fn answers(store: &Store, served: Served, names: &[Hash]) -> Vec<Option<Vec<u8>>> {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (store, stream): (Store, Stream) = (store.clone(), Box::new(far));
        let serving = tokio::spawn(async move { serve(&store, stream, served).await });
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
