//! Images from machine to machine: the archive that the engine saves there goes, as it comes, into the one that loads it here.
//!
//! A stream `image/<id>` begins with what is said of the image, in JSON. Then come the bytes in pieces, each with its length in
//! front, and a piece without bytes at the end, which the other side answers with one byte: a stream that was cut short is never
//! taken for a whole one, and one that is whole is not closed before it has arrived.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use flotilla_api::{ApiError, ErrorCode, NodeId, ServiceName, spec::ServiceSpec};
use futures::{Stream, StreamExt, stream};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::SemaphorePermit,
    time::timeout,
};

use super::{
    Error, Shared,
    connection::{CALL_LIMIT, Client},
    image,
};
use crate::peers::{self, CallError, Network};

/// Images that are sent at once. More would only share the same line; who finds no room asks another machine, or again.
pub(super) const SENT_AT_ONCE: usize = 4;

/// Before the bytes. Bytes.
const HEAD_MAX: usize = 64 * 1024;

/// Of the archive; what the mesh takes as one message or a few. Bytes.
const PIECE_MAX: usize = 64 * 1024;

/// How long opening a stream, and the first answer on it, may take.
const HEAD_LIMIT: Duration = Duration::from_secs(10);

/// A stream on which nothing has moved for so long is given up: the engine at one end, or the way, is gone.
const STALL: Duration = Duration::from_secs(60);

const RECEIVED: u8 = 1;

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
enum Head {
    Image {
        /// As the engine counts it; the archive has about as many. Bytes.
        size_bytes: u64,
    },
    Refused {
        error: ApiError,
    },
}

/// What streams for images are labelled with.
pub const LABEL: &str = "image/";

/// Sends the image of this id, or says why not.
pub(super) async fn serve(shared: &Shared, id: &str, mut to: peers::Stream) {
    let sent = async {
        match begin(shared, id).await {
            Ok((_permit, size_bytes, archive)) => {
                head(&mut to, &Head::Image { size_bytes }).await?;
                send(&mut to, archive).await
            }
            Err(error) => {
                head(&mut to, &Head::Refused { error: error.into() }).await?;
                // Its end tells that this was read.
                timeout(STALL, to.read_u8()).await.map(drop).map_err(io::Error::from)
            }
        }
    };
    if let Err(error) = sent.await {
        tracing::info!(image = id, %error, "an image was not sent to its end");
    }
}

async fn begin<'a>(
    shared: &'a Shared,
    id: &str,
) -> Result<(SemaphorePermit<'a>, u64, impl Stream<Item = io::Result<Bytes>> + use<>), Error> {
    if !image::is_id(id) {
        return Err(Error::Invalid("an image is asked for by its id".to_owned()));
    }
    let permit = shared.sent.try_acquire().map_err(|_| Error::TooMany("images are sent"))?;
    let client = shared.client().await?;
    let inspected = client.call("look an image up", CALL_LIMIT, client.docker().inspect_image(id)).await;
    let inspected = inspected.map_err(|error| match error {
        error if error.is_absent() => Error::ImageNotLocal { image: id.to_owned() },
        other => other,
    })?;
    let size = u64::try_from(inspected.size.unwrap_or_default()).unwrap_or_default();
    let archive = client.docker().export_image(id).map(|piece| piece.map_err(io::Error::other));
    Ok((permit, size, archive))
}

async fn head(to: &mut peers::Stream, head: &Head) -> io::Result<()> {
    let json = serde_json::to_vec(head)?;
    write(to, &json).await?;
    to.flush().await
}

async fn send(to: &mut peers::Stream, archive: impl Stream<Item = io::Result<Bytes>>) -> io::Result<()> {
    let mut archive = std::pin::pin!(archive);
    while let Some(piece) = timeout(STALL, archive.next()).await? {
        for piece in piece?.chunks(PIECE_MAX) {
            write(to, piece).await?;
        }
    }
    write(to, &[]).await?;
    to.flush().await?;
    // Closing could throw away what is under way.
    timeout(STALL, to.read_u8()).await?.map(drop)
}

async fn write(to: &mut peers::Stream, piece: &[u8]) -> io::Result<()> {
    let length = u32::try_from(piece.len()).map_err(io::Error::other)?;
    let written = async {
        to.write_u32(length).await?;
        to.write_all(piece).await
    };
    timeout(STALL, written).await?
}

async fn read(from: &mut peers::Stream, max: usize, within: Duration) -> io::Result<Bytes> {
    let reading = async {
        let length = from.read_u32().await? as usize;
        if length > max {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no image's stream"));
        }
        let mut piece = vec![0; length];
        from.read_exact(&mut piece).await?;
        Ok(piece.into())
    };
    timeout(within, reading).await?
}

/// Why a machine did not send an image.
enum Failed {
    /// It does not have it.
    Absent,
    Broken(String),
}

/// Gets the image of a specification from another machine; `None` if none of those that can be reached has it.
///
/// # Errors
/// One has it, and it could not be brought here; or the engine did not take it.
pub(super) async fn fetch(
    shared: &Arc<Shared>,
    client: &Client,
    spec: &ServiceSpec,
    id: &str,
) -> Result<Option<String>, Error> {
    let Some(network) = shared.others.network() else { return Ok(None) };
    let mut broken = None;
    for machine in holders(shared, &network, id) {
        match fetch_from(shared, client, &network, &machine, spec, id).await {
            Ok(loaded) => return name(client, spec, id, loaded).await.map(Some),
            Err(Failed::Absent) => {}
            Err(Failed::Broken(why)) => {
                let machine = shared.machine_name(&machine);
                tracing::warn!(image = %spec.image, machine, why, "an image could not be fetched");
                broken = Some(Error::Transfer { image: spec.image.clone(), machine, why });
            }
        }
    }
    broken.map_or(Ok(None), Err)
}

/// Those that can be reached, the ones that say that they have it first.
fn holders(shared: &Shared, network: &Network, id: &str) -> Vec<NodeId> {
    let reports = shared.others.reports();
    let says_so =
        |machine: &NodeId| reports.get(machine).is_some_and(|(_, report)| report.images.iter().any(|it| it == id));
    let connected = network.connected().borrow().clone();
    let (mut holders, others): (Vec<_>, Vec<_>) = connected.into_iter().partition(says_so);
    holders.extend(others);
    holders
}

async fn fetch_from(
    shared: &Arc<Shared>,
    client: &Client,
    network: &Network,
    machine: &NodeId,
    spec: &ServiceSpec,
    id: &str,
) -> Result<Vec<String>, Failed> {
    let broken = |error: &dyn std::fmt::Display| Failed::Broken(error.to_string());
    let mut from = match timeout(HEAD_LIMIT, network.stream(machine, &format!("{LABEL}{id}"))).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(CallError::Unreachable)) => return Err(Failed::Absent),
        Ok(Err(error)) => return Err(broken(&error)),
        Err(elapsed) => return Err(broken(&elapsed)),
    };
    let head = read(&mut from, HEAD_MAX, HEAD_LIMIT).await.map_err(|error| broken(&error))?;
    let size_bytes = match serde_json::from_slice(&head).map_err(|error| broken(&error))? {
        Head::Image { size_bytes } => size_bytes,
        Head::Refused { error } if error.code == ErrorCode::ImageNotFound => return Err(Failed::Absent),
        Head::Refused { error } => return Err(broken(&error)),
    };
    let machine = shared.machine_name(machine);
    tracing::info!(image = %spec.image, id, %machine, size_bytes, "fetching");
    let incoming = Incoming {
        shared: Arc::clone(shared),
        service: spec.name.clone(),
        what: format!("getting image `{}` from `{machine}`", spec.image),
        from,
        received: 0,
        size_bytes,
    };
    image::load(client, incoming.pieces()).await.map_err(|error| broken(&error))
}

/// A name for what was loaded by its id, so that nobody who tidies up takes it for unused.
async fn name(client: &Client, spec: &ServiceSpec, id: &str, loaded: Vec<String>) -> Result<String, Error> {
    // An engine that names images by another digest has it under another id.
    let id = match image::local(client, id).await? {
        Some(id) => id,
        None => loaded.into_iter().next().ok_or_else(|| Error::ImageNotLocal { image: spec.image.clone() })?,
    };
    if image::check_tag(&spec.image).is_ok() && image::local(client, &spec.image).await?.is_none() {
        image::tag(client, &id, &spec.image).await?;
    }
    Ok(id)
}

struct Incoming {
    shared: Arc<Shared>,
    service: ServiceName,
    /// For people.
    what: String,
    from: peers::Stream,
    received: u64,
    size_bytes: u64,
}

impl Incoming {
    fn pieces(self) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        stream::try_unfold(self, |mut incoming| async move {
            let piece = read(&mut incoming.from, PIECE_MAX, STALL).await?;
            if piece.is_empty() {
                incoming.from.write_u8(RECEIVED).await?;
                incoming.from.flush().await?;
                return Ok(None);
            }
            incoming.count(piece.len());
            Ok(Some((piece, incoming)))
        })
    }

    fn count(&mut self, bytes: usize) {
        const MEGABYTE: u64 = 1_000_000;
        let before = self.received / MEGABYTE;
        self.received += bytes as u64;
        let (now, of) = (self.received / MEGABYTE, self.size_bytes.max(self.received).div_ceil(MEGABYTE));
        if now != before {
            self.shared.activity(&self.service, Some(format!("{}: {now} of {of} MB", self.what)));
        }
    }
}
