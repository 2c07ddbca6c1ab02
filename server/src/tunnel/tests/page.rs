//! A browser's side of the frames, as the connector and the service worker speak it.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use bytes::{Bytes, BytesMut};
use flotilla_api::{
    ApiError,
    frame::{DATA_MAX, FRAME_VERSION, Frame, HEADER_LEN, Head, Hello, INITIAL_CREDIT, Kind, Open, flags},
};
use serde::Serialize;
use tokio::{
    sync::{Semaphore, mpsc},
    time::timeout,
};

use super::{Channel, PATIENCE};

/// A frame that came, whole.
#[derive(Clone, Debug)]
pub(crate) struct Got {
    pub(crate) kind: Kind,
    pub(crate) flags: u8,
    pub(crate) payload: Bytes,
    /// Whether it came on the bulk lane.
    pub(crate) bulk: bool,
}

type Streams = Arc<Mutex<HashMap<u32, (mpsc::UnboundedSender<Got>, Arc<Semaphore>)>>>;

pub(crate) struct Page {
    interactive: Arc<dyn Channel>,
    streams: Streams,
    next: AtomicU32,
    /// Frames of stream 0.
    own: tokio::sync::Mutex<mpsc::UnboundedReceiver<Got>>,
}

pub(crate) fn get(path: &str) -> Open {
    Open {
        method: "GET".to_owned(),
        path: path.to_owned(),
        headers: Vec::new(),
        protocols: Vec::new(),
        referrer: None,
        destination: String::new(),
    }
}

pub(crate) async fn send<T: Serialize>(channel: &dyn Channel, kind: Kind, stream: u32, flags: u8, value: &T) {
    let payload = serde_json::to_vec(value).unwrap();
    let message = Frame::new(kind, stream, &payload).with_flags(flags).encode();
    channel.send(BytesMut::from(&message[..])).await.unwrap();
}

pub(crate) async fn send_bytes(channel: &dyn Channel, frame: Frame<'_>) {
    channel.send(BytesMut::from(&frame.encode()[..])).await.unwrap();
}

impl Page {
    pub(crate) async fn new(interactive: Arc<dyn Channel>, bulk: Option<Arc<dyn Channel>>) -> Self {
        let streams = Streams::default();
        let (own_sender, own) = mpsc::unbounded_channel();
        let lanes = [(Some(Arc::clone(&interactive)), false), (bulk, true)];
        for (channel, is_bulk) in lanes {
            let Some(channel) = channel else { continue };
            let hello = timeout(PATIENCE, channel.recv()).await.unwrap().expect("a hello");
            assert_eq!(hello[0], Kind::Hello as u8, "a node says hello first");
            send(&*channel, Kind::Hello, 0, 0, &Hello { version: FRAME_VERSION }).await;
            let (streams, own_sender) = (Arc::clone(&streams), own_sender.clone());
            tokio::spawn(async move {
                while let Some(message) = channel.recv().await {
                    let frame = Frame::decode(&message).unwrap();
                    let got = Got {
                        kind: frame.kind,
                        flags: frame.flags,
                        payload: message.slice(HEADER_LEN..),
                        bulk: is_bulk,
                    };
                    if frame.stream == 0 {
                        let _ = own_sender.send(got);
                        continue;
                    }
                    let streams = streams.lock().unwrap();
                    let Some((events, credit)) = streams.get(&frame.stream) else { continue };
                    match frame.credit() {
                        Some(more) if frame.kind == Kind::Credit => credit.add_permits(more as usize),
                        _ => drop(events.send(got)),
                    }
                }
                streams.lock().unwrap().clear();
            });
        }
        Self { interactive, streams, next: AtomicU32::new(1), own: tokio::sync::Mutex::new(own) }
    }

    pub(crate) fn channel(&self) -> &dyn Channel {
        &*self.interactive
    }

    /// The next frame of stream 0.
    pub(crate) async fn own(&self) -> Option<Got> {
        timeout(PATIENCE, self.own.lock().await.recv()).await.expect("a frame in time")
    }

    pub(crate) async fn open(&self, open: &Open) -> Answer {
        self.start(open, 0).await
    }

    /// Takes the answer as one frame, where it comes as one.
    pub(crate) async fn open_whole(&self, open: &Open) -> Answer {
        self.start(open, flags::WHOLE).await
    }

    /// Opens a stream whose body follows.
    pub(crate) async fn upload(&self, open: &Open) -> Answer {
        self.start(open, flags::BODY).await
    }

    async fn start(&self, open: &Open, flags: u8) -> Answer {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let answer = self.expect(id);
        send(&*self.interactive, Kind::Open, id, flags, open).await;
        answer
    }

    /// Listens to a stream that something else opens.
    pub(crate) fn expect(&self, id: u32) -> Answer {
        let (sender, events) = mpsc::unbounded_channel();
        let credit = Arc::new(Semaphore::new(INITIAL_CREDIT as usize));
        self.streams.lock().unwrap().insert(id, (sender, Arc::clone(&credit)));
        Answer { id, channel: Arc::clone(&self.interactive), events, credit }
    }

    /// A whole answer.
    pub(crate) async fn fetch(&self, open: &Open) -> (Head, Bytes) {
        let mut answer = self.open(open).await;
        (answer.head().await, answer.body().await)
    }
}

/// One stream.
pub(crate) struct Answer {
    pub(crate) id: u32,
    channel: Arc<dyn Channel>,
    events: mpsc::UnboundedReceiver<Got>,
    credit: Arc<Semaphore>,
}

impl Answer {
    pub(crate) async fn next(&mut self) -> Got {
        timeout(PATIENCE, self.events.recv()).await.expect("a frame in time").expect("the channel is open")
    }

    /// Whether nothing more came.
    pub(crate) fn is_quiet(&mut self) -> bool {
        self.events.is_empty()
    }

    pub(crate) async fn head(&mut self) -> Head {
        self.head_and_lane().await.0
    }

    pub(crate) async fn head_and_lane(&mut self) -> (Head, bool) {
        let got = self.next().await;
        assert_eq!(got.kind, Kind::Head, "{}", String::from_utf8_lossy(&got.payload));
        (serde_json::from_slice(&got.payload).unwrap(), got.bulk)
    }

    /// An answer that came as one frame.
    pub(crate) async fn whole(&mut self) -> (Head, Bytes) {
        let got = self.next().await;
        assert_eq!((got.kind, got.flags), (Kind::Head, flags::WHOLE));
        let (len, rest) = got.payload.split_first_chunk().unwrap();
        let (head, body) = rest.split_at(u32::from_be_bytes(*len) as usize);
        (serde_json::from_slice(head).unwrap(), Bytes::copy_from_slice(body))
    }

    pub(crate) async fn reset(&mut self) -> ApiError {
        loop {
            let got = self.next().await;
            match got.kind {
                Kind::Reset => return serde_json::from_slice(&got.payload).unwrap(),
                Kind::Head | Kind::Data => {}
                other => panic!("{other:?} instead of a reset"),
            }
        }
    }

    /// The rest of the body; gives credit as it reads.
    pub(crate) async fn body(&mut self) -> Bytes {
        let mut body = BytesMut::new();
        loop {
            let got = self.next().await;
            match got.kind {
                Kind::Data => {
                    assert!(got.payload.len() <= DATA_MAX);
                    body.extend_from_slice(&got.payload);
                    self.give(got.payload.len()).await;
                }
                Kind::End => return body.freeze(),
                other => panic!("{other:?} in a body: {}", String::from_utf8_lossy(&got.payload)),
            }
        }
    }

    pub(crate) async fn give(&self, bytes: usize) {
        let credit = u32::try_from(bytes).unwrap().to_be_bytes();
        send_bytes(&*self.channel, Frame::new(Kind::Credit, self.id, &credit)).await;
    }

    /// Sends part of a body, as credit allows.
    pub(crate) async fn data(&self, bytes: &[u8]) {
        for part in bytes.chunks(DATA_MAX) {
            self.frame_data(part, 0).await;
        }
    }

    pub(crate) async fn frame_data(&self, part: &[u8], flags: u8) {
        let permits = self.credit.acquire_many(u32::try_from(part.len()).unwrap());
        timeout(PATIENCE, permits).await.expect("credit in time").unwrap().forget();
        send_bytes(&*self.channel, Frame::new(Kind::Data, self.id, part).with_flags(flags)).await;
    }

    /// What may still be sent.
    pub(crate) fn credit(&self) -> usize {
        self.credit.available_permits()
    }

    pub(crate) async fn end(&self) {
        send_bytes(&*self.channel, Frame::new(Kind::End, self.id, &[])).await;
    }

    pub(crate) async fn abort(&self) {
        let error = ApiError::new(flotilla_api::ErrorCode::Unknown, "the page aborted");
        send(&*self.channel, Kind::Reset, self.id, 0, &error).await;
    }
}
