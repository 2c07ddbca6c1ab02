//! One service's channel: requests go out as streams of frames, and whole answers come back.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use flotilla_api::{
    ApiError, ErrorCode,
    frame::{CREDIT_STEP, FRAME_VERSION, Frame, HEADER_LEN, Head, Hello, Kind, Open, STREAMS_MAX, flags},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::{
    Answer,
    ended::{self, Ended},
};
use crate::{
    client::Error,
    mesh::MeshChannel,
    tunnel::{Channel, ChannelClosed},
};

/// The largest answer that is held: this client is for looking at services, not for downloads. Bytes.
const ANSWER_MAX: usize = 32 * 1024 * 1024;

/// How long the node may take to close a channel that it has no more use for.
const ENDING: Duration = Duration::from_secs(10);

/// Requests that wait to be sent: no more of them can be open at once either.
const ASKED_MAX: usize = STREAMS_MAX;

type Answered = oneshot::Sender<Result<Answer, Error>>;

/// A handle to the task that owns the channel; the task ends with the last of them.
#[derive(Clone, Debug)]
pub(super) struct Lane {
    asked: mpsc::Sender<Asked>,
    next: Arc<AtomicU32>,
}

#[derive(Debug)]
struct Asked {
    path: String,
    answered: Answered,
}

impl Lane {
    /// On a channel that is open. The first stream has the id `first`.
    pub(super) fn new(channel: MeshChannel, first: u32) -> Self {
        let (asked, queue) = mpsc::channel(ASKED_MAX);
        let next = Arc::new(AtomicU32::new(first));
        tokio::spawn(Driver { channel, next: Arc::clone(&next), streams: HashMap::new() }.run(queue));
        Self { asked, next }
    }

    pub(super) fn is_open(&self) -> bool {
        !self.asked.is_closed()
    }

    pub(super) fn next_id(&self) -> u32 {
        self.next.load(Relaxed)
    }

    /// Sends a request; its answer comes from the receiver. Dropping that gives the request up.
    pub(super) async fn get(&self, path: &str) -> Result<oneshot::Receiver<Result<Answer, Error>>, Error> {
        let (answered, answer) = oneshot::channel();
        let asked = Asked { path: path.to_owned(), answered };
        self.asked.send(asked).await.map_err(|_| ended::lost().into_error())?;
        Ok(answer)
    }
}

struct Driver {
    channel: MeshChannel,
    next: Arc<AtomicU32>,
    streams: HashMap<u32, Stream>,
}

/// An answer that is coming.
struct Stream {
    answered: Answered,
    head: Option<Head>,
    body: BytesMut,
    /// Bytes of it for which no credit was returned yet.
    owed: u32,
}

impl Driver {
    async fn run(mut self, mut queue: mpsc::Receiver<Asked>) {
        let why = match self.carry(&mut queue).await {
            Ok(why) => why,
            Err(ChannelClosed) => self.last_words().await,
        };
        queue.close();
        let unsent = std::iter::from_fn(|| queue.try_recv().ok()).map(|asked| asked.answered);
        for answered in self.streams.drain().map(|(_, stream)| stream.answered).chain(unsent) {
            let _ = answered.send(Err(why.clone().into_error()));
        }
        // The node first, if it means to: the library gives the number of a channel that is closed here to the next one at once,
        // which the node's own reset of it would then hit.
        let _ = timeout(ENDING, async { while self.channel.recv().await.is_some() {} }).await;
        self.channel.close().await;
    }

    async fn carry(&mut self, queue: &mut mpsc::Receiver<Asked>) -> Result<Ended, ChannelClosed> {
        self.send_json(Kind::Hello, 0, &Hello { version: FRAME_VERSION }).await?;
        loop {
            tokio::select! {
                message = self.channel.recv() => {
                    let Some(message) = message else { return Ok(ended::lost()) };
                    if let Some(why) = self.take(&message).await? {
                        return Ok(why);
                    }
                }
                asked = queue.recv() => match asked {
                    Some(asked) => self.ask(asked).await?,
                    None => return Ok(Ended::left()),
                },
            }
        }
    }

    /// Why the node closed the channel: what it said before is still to be heard, if it was met by something to send.
    async fn last_words(&mut self) -> Ended {
        let heard = async {
            while let Some(message) = self.channel.recv().await {
                if let Ok(Some(why)) = self.take(&message).await {
                    return why;
                }
            }
            ended::lost()
        };
        timeout(ENDING, heard).await.unwrap_or_else(|_| ended::lost())
    }

    async fn ask(&mut self, asked: Asked) -> Result<(), ChannelClosed> {
        self.give_up_what_nobody_awaits().await?;
        let id = self.next.fetch_add(1, Relaxed);
        let open = Open {
            method: "GET".to_owned(),
            path: asked.path,
            headers: vec![("accept".to_owned(), "*/*".to_owned())],
            protocols: Vec::new(),
            referrer: None,
            destination: String::new(),
        };
        self.streams.insert(id, Stream { answered: asked.answered, head: None, body: BytesMut::new(), owed: 0 });
        self.send_json(Kind::Open, id, &open).await
    }

    /// Requests whose callers have lost their patience.
    async fn give_up_what_nobody_awaits(&mut self) -> Result<(), ChannelClosed> {
        let dead: Vec<u32> =
            self.streams.iter().filter(|(_, stream)| stream.answered.is_closed()).map(|(id, _)| *id).collect();
        for id in dead {
            self.streams.remove(&id);
            let reason = ApiError::new(ErrorCode::Unknown, "the client gave the request up");
            self.send_json(Kind::Reset, id, &reason).await?;
        }
        Ok(())
    }

    /// A frame of the node's. Returns why nothing more will come, if so.
    async fn take(&mut self, message: &Bytes) -> Result<Option<Ended>, ChannelClosed> {
        let Ok(frame) = Frame::decode(message) else { return Ok(Some(misunderstood())) };
        match frame.kind {
            Kind::Hello => match parse::<Hello>(frame.payload) {
                Some(hello) if hello.version == FRAME_VERSION => {}
                _ => return Ok(Some(misunderstood())),
            },
            Kind::Ping if frame.flags & flags::REPLY == 0 => {
                self.send(Frame::new(Kind::Ping, 0, frame.payload).with_flags(flags::REPLY)).await?;
            }
            Kind::GoAway => return Ok(Some(parse(frame.payload).map_or_else(misunderstood, Ended::Told))),
            Kind::Head => {
                if let Some(stream) = self.streams.get_mut(&frame.stream) {
                    stream.head = parse(frame.payload);
                }
            }
            Kind::Data => self.data(frame.stream, frame.payload).await?,
            Kind::End => {
                if let Some(Stream { answered, head, body, .. }) = self.streams.remove(&frame.stream) {
                    let answer =
                        head.map(|head| Answer { status: head.status, headers: head.headers, body: body.freeze() });
                    let _ = answered.send(answer.ok_or_else(|| misunderstood().into_error()));
                }
            }
            Kind::Reset => {
                if let Some(stream) = self.streams.remove(&frame.stream) {
                    let why = parse(frame.payload).map_or_else(misunderstood, Ended::Told);
                    let _ = stream.answered.send(Err(why.into_error()));
                }
            }
            // A request here has no body that credit would be for; the others are a browser's to send.
            Kind::Credit | Kind::Ping | Kind::Open | Kind::Cookie => {}
        }
        Ok(None)
    }

    async fn data(&mut self, id: u32, payload: &[u8]) -> Result<(), ChannelClosed> {
        // Of a request that was given up.
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        stream.body.extend_from_slice(payload);
        // A frame has at most 64 KiB.
        stream.owed += u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let owed = stream.owed;
        if stream.body.len() > ANSWER_MAX {
            if let Some(stream) = self.streams.remove(&id) {
                let why = format!("it has more than {ANSWER_MAX} bytes");
                let _ = stream.answered.send(Err(Error::Answer { why }));
            }
            return self.send_json(Kind::Reset, id, &ApiError::new(ErrorCode::Unknown, "the answer is too long")).await;
        }
        if owed >= CREDIT_STEP {
            stream.owed = 0;
            self.send(Frame::new(Kind::Credit, id, &owed.to_be_bytes())).await?;
        }
        Ok(())
    }

    async fn send_json<T: Serialize>(&self, kind: Kind, stream: u32, value: &T) -> Result<(), ChannelClosed> {
        // Structs of strings and numbers always have a JSON form.
        let payload = serde_json::to_vec(value).map_err(|_| ChannelClosed)?;
        self.send(Frame::new(kind, stream, &payload)).await
    }

    async fn send(&self, frame: Frame<'_>) -> Result<(), ChannelClosed> {
        let mut message = BytesMut::with_capacity(HEADER_LEN + frame.payload.len());
        message.extend_from_slice(&frame.header());
        message.extend_from_slice(frame.payload);
        self.channel.send(message).await
    }
}

fn parse<T: DeserializeOwned>(payload: &[u8]) -> Option<T> {
    serde_json::from_slice(payload).ok()
}

fn misunderstood() -> Ended {
    Ended::Broken("the node speaks another version of the tunnel".to_owned())
}
