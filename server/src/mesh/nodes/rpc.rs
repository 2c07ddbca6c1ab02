//! Calls over a control channel: requests and responses with ids, in pieces, side by side.

use std::{
    collections::HashMap,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flotilla_api::{ApiError, ErrorCode};
use futures::{FutureExt, future::BoxFuture};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot},
    task::AbortHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    outbox::{Forgotten, Outbox, Outgoing, Side, kind},
    pulse::Heard,
};
use crate::{
    peers::{BODY_MAX, CallError, Method},
    tunnel::Channel,
};

/// Calls that one node has open with another. Consensus, leases, reports and forwarded requests need a few dozen.
const CALLS_MAX: usize = 256;

/// Calls of the other node that are answered at one time. Both ends allow the same, so that none is refused that was permitted.
const SERVED_MAX: usize = CALLS_MAX;

/// Bodies of the other node that are not complete yet. Bytes.
const ARRIVING_MAX: usize = 2 * BODY_MAX;

/// Bodies above [`LARGE`] that wait to be sent, together. In units of [`LARGE`].
const LEAVING_MAX: usize = 2 * BODY_MAX / LARGE;
const LARGE: usize = 1024 * 1024;

/// Statuses of a response.
const DONE: u8 = 0;
/// The body is an `ApiError`.
const FAILED: u8 = 1;

/// Who answers calls on a link.
pub(super) trait Answers: Send + Sync + 'static {
    fn answer(&self, method: u8, body: Bytes) -> BoxFuture<'static, Result<Bytes, ApiError>>;
}

/// The calls of one link. Cheap to clone.
#[derive(Clone)]
pub(super) struct Rpc {
    shared: Arc<Shared>,
}

struct Shared {
    outbox: Mutex<Outbox>,
    filled: Notify,
    calls: Mutex<Calls>,
    serving: Mutex<HashMap<u32, AbortHandle>>,
    permits: Semaphore,
    /// Room for large bodies, in units of [`LARGE`].
    room: Arc<Semaphore>,
    heard: Arc<Heard>,
    closed: CancellationToken,
    farewell: Mutex<Option<ApiError>>,
}

#[derive(Default)]
struct Calls {
    next: u32,
    open: HashMap<u32, Call>,
}

struct Call {
    answer: oneshot::Sender<Result<Bytes, CallError>>,
    arriving: Option<Arriving>,
}

/// A body that is not complete.
struct Arriving {
    code: u8,
    total: usize,
    body: BytesMut,
}

impl Arriving {
    fn is_complete(&self) -> bool {
        self.body.len() == self.total
    }
}

/// What the other side sent is no frame of this protocol.
struct Broken(&'static str);

impl Rpc {
    pub(super) fn new(heard: Arc<Heard>, closed: CancellationToken) -> Self {
        let shared = Shared {
            outbox: Mutex::default(),
            filled: Notify::new(),
            calls: Mutex::default(),
            serving: Mutex::default(),
            permits: Semaphore::new(CALLS_MAX),
            room: Arc::new(Semaphore::new(LEAVING_MAX)),
            heard,
            closed,
            farewell: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Asks the other node. Dropping the future cancels the call there too.
    pub(super) async fn call(&self, method: Method, body: Bytes, within: Duration) -> Result<Bytes, CallError> {
        if body.len() > BODY_MAX {
            return Err(CallError::TooLarge { size: body.len() });
        }
        timeout(within, self.exchange(method, body)).await.unwrap_or(Err(CallError::Timeout { within }))
    }

    async fn exchange(&self, method: Method, body: Bytes) -> Result<Bytes, CallError> {
        let shared = &self.shared;
        let _permit = shared.permits.acquire().await.map_err(|_| CallError::Unreachable)?;
        let room = shared.room_for(body.len()).await.map_err(|()| CallError::Unreachable)?;
        let (answer, answered) = oneshot::channel();
        let Some(id) = shared.calls().begin(answer) else { return Err(CallError::Unreachable) };
        let _guard = OpenCall { shared, id };
        if shared.closed.is_cancelled() {
            return Err(CallError::Unreachable);
        }
        shared.send(Outgoing::new(Side::Request, id, method as u8, body, room));
        match shared.closed.run_until_cancelled(answered).await {
            Some(Ok(result)) => result,
            Some(Err(_)) | None => Err(CallError::Unreachable),
        }
    }

    /// What the other side said when it ended the link.
    pub(super) fn farewell(&self) -> Option<ApiError> {
        self.shared.farewell.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Carries calls until the channel ends, or the other side breaks the protocol or says goodbye.
    pub(super) async fn run(&self, channel: &dyn Channel, answers: Arc<dyn Answers>) {
        tokio::select! {
            () = self.shared.write(channel) => {}
            result = self.shared.read(channel, &answers) => {
                if let Err(Broken(why)) = result {
                    tracing::warn!("a node broke the protocol of calls: {why}");
                }
            }
        }
    }

    /// Every open call fails, and every answer that is being made is given up.
    pub(super) fn close(&self) {
        self.shared.closed.cancel();
        self.shared.calls().open.clear();
        for (_, task) in self.shared.serving().drain() {
            task.abort();
        }
    }
}

/// The frame that ends a link.
pub(super) fn goodbye(why: &ApiError) -> BytesMut {
    let mut frame = BytesMut::from(&[kind::BYE][..]);
    frame.put_slice(&serde_json::to_vec(why).unwrap_or_default());
    frame
}

impl Calls {
    /// `None` if all ids are taken, which the permits rule out.
    fn begin(&mut self, answer: oneshot::Sender<Result<Bytes, CallError>>) -> Option<u32> {
        let id = (0..=CALLS_MAX as u32).map(|n| self.next.wrapping_add(n)).find(|id| !self.open.contains_key(id))?;
        self.next = id.wrapping_add(1);
        self.open.insert(id, Call { answer, arriving: None });
        Some(id)
    }
}

/// A call that somebody waits for.
struct OpenCall<'a> {
    shared: &'a Shared,
    id: u32,
}

impl Drop for OpenCall<'_> {
    fn drop(&mut self) {
        let unanswered = self.shared.calls().open.remove(&self.id).is_some();
        // An answer may come before all of the request is sent: the rest of it interests nobody.
        let forgotten = self.shared.outbox().forget(Side::Request, self.id);
        if unanswered && forgotten == Forgotten::Begun && !self.shared.closed.is_cancelled() {
            self.shared.outbox().push_urgent(frame(kind::CANCEL, self.id));
            self.shared.filled.notify_one();
        }
    }
}

fn frame(kind: u8, id: u32) -> BytesMut {
    let mut frame = BytesMut::with_capacity(5);
    frame.put_u8(kind);
    frame.put_u32(id);
    frame
}

impl Shared {
    async fn write(&self, channel: &dyn Channel) {
        loop {
            let next = self.outbox().pop();
            match next {
                Some(frame) => {
                    if channel.send(frame).await.is_err() {
                        return;
                    }
                }
                None => self.filled.notified().await,
            }
        }
    }

    async fn read(self: &Arc<Self>, channel: &dyn Channel, answers: &Arc<dyn Answers>) -> Result<(), Broken> {
        let mut requests: HashMap<u32, Arriving> = HashMap::new();
        while let Some(mut frame) = channel.recv().await {
            self.heard.now();
            let kind = frame.try_get_u8().map_err(|_| Broken("an empty frame"))?;
            if kind == kind::BYE {
                *self.farewell.lock().unwrap_or_else(PoisonError::into_inner) = serde_json::from_slice(&frame).ok();
                return Ok(());
            }
            if !(kind::REQUEST..=kind::CANCEL).contains(&kind) {
                continue;
            }
            let id = frame.try_get_u32().map_err(|_| Broken("a frame without an id"))?;
            match kind {
                kind::REQUEST => {
                    let arriving = begin(&mut frame)?;
                    if requests.contains_key(&id) || self.serving().contains_key(&id) {
                        return Err(Broken("an id that is in use"));
                    }
                    let expected: usize = requests.values().map(|request| request.total).sum();
                    if expected + arriving.total > ARRIVING_MAX || requests.len() + self.serving().len() >= SERVED_MAX {
                        self.respond(id, Err(busy()), None);
                    } else if arriving.is_complete() {
                        self.serve(id, arriving, answers);
                    } else {
                        requests.insert(id, arriving);
                    }
                }
                kind::REQUEST_MORE => {
                    // One that was refused or cancelled is not known any more.
                    let Some(request) = requests.get_mut(&id) else { continue };
                    more(request, &frame)?;
                    if request.is_complete()
                        && let Some(request) = requests.remove(&id)
                    {
                        self.serve(id, request, answers);
                    }
                }
                kind::RESPONSE => {
                    let arriving = begin(&mut frame)?;
                    self.calls().take_response(id, arriving)?;
                }
                kind::RESPONSE_MORE => self.calls().take_more(id, &frame)?,
                _ => {
                    requests.remove(&id);
                    if let Some(task) = self.serving().remove(&id) {
                        task.abort();
                    }
                    self.outbox().forget(Side::Response, id);
                }
            }
        }
        Ok(())
    }

    fn serve(self: &Arc<Self>, id: u32, request: Arriving, answers: &Arc<dyn Answers>) {
        let (shared, answers) = (Arc::clone(self), Arc::clone(answers));
        let task = async move {
            let answer = AssertUnwindSafe(async { answers.answer(request.code, request.body.freeze()).await });
            // A bug in one answer ends that answer alone.
            let result = answer.catch_unwind().await.unwrap_or_else(|_| {
                Err(ApiError::new(ErrorCode::Internal, "the node failed on this call; its log says where"))
            });
            let result =
                result.and_then(|body| if body.len() > BODY_MAX { Err(too_large(body.len())) } else { Ok(body) });
            let size = result.as_ref().map_or(0, Bytes::len);
            let room = shared.room_for(size).await.ok().flatten();
            shared.serving().remove(&id);
            shared.respond(id, result, room);
        };
        // Held while the task is started, so that it can't end before it stands in the table.
        let mut serving = self.serving();
        let task = tokio::spawn(task);
        serving.insert(id, task.abort_handle());
    }

    fn respond(&self, id: u32, result: Result<Bytes, ApiError>, room: Option<OwnedSemaphorePermit>) {
        let (status, body) = match result {
            Ok(body) => (DONE, body),
            Err(error) => (FAILED, Bytes::from(serde_json::to_vec(&error).unwrap_or_default())),
        };
        self.send(Outgoing::new(Side::Response, id, status, body, room));
    }

    fn send(&self, message: Outgoing) {
        self.outbox().push(message);
        self.filled.notify_one();
    }

    /// Waits until a body of this size may be put into the outbox.
    async fn room_for(&self, size: usize) -> Result<Option<OwnedSemaphorePermit>, ()> {
        if size < LARGE {
            return Ok(None);
        }
        let units = u32::try_from(size.div_ceil(LARGE)).map_err(|_| ())?;
        Arc::clone(&self.room).acquire_many_owned(units).await.map(Some).map_err(|_| ())
    }

    fn outbox(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serving(&self) -> MutexGuard<'_, HashMap<u32, AbortHandle>> {
        self.serving.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Calls {
    /// A response to a call that nobody waits for is dropped.
    fn take_response(&mut self, id: u32, response: Arriving) -> Result<(), Broken> {
        let expected: usize = self.open.values().filter_map(|call| call.arriving.as_ref()).map(|body| body.total).sum();
        let Some(call) = self.open.get_mut(&id) else { return Ok(()) };
        if call.arriving.is_some() {
            return Err(Broken("a second response"));
        }
        if expected + response.total > ARRIVING_MAX {
            self.end(id, Err(busy().into()));
            return Ok(());
        }
        call.arriving = Some(response);
        self.end_if_complete(id);
        Ok(())
    }

    fn take_more(&mut self, id: u32, piece: &[u8]) -> Result<(), Broken> {
        let Some(call) = self.open.get_mut(&id) else { return Ok(()) };
        let response = call.arriving.as_mut().ok_or(Broken("a piece without a beginning"))?;
        more(response, piece)?;
        self.end_if_complete(id);
        Ok(())
    }

    fn end_if_complete(&mut self, id: u32) {
        let Some(call) = self.open.get_mut(&id) else { return };
        let Some(response) = call.arriving.take_if(|response| response.is_complete()) else { return };
        let body = response.body.freeze();
        let result = if response.code == DONE {
            Ok(body)
        } else {
            let error = serde_json::from_slice(&body).unwrap_or_else(|_| {
                ApiError::new(ErrorCode::Unknown, "the other node failed, and its error is not understood")
            });
            Err(CallError::Refused(error))
        };
        self.end(id, result);
    }

    fn end(&mut self, id: u32, result: Result<Bytes, CallError>) {
        if let Some(call) = self.open.remove(&id) {
            let _ = call.answer.send(result);
        }
    }
}

fn begin(frame: &mut Bytes) -> Result<Arriving, Broken> {
    let cut = |_| Broken("a frame that is cut off");
    let code = frame.try_get_u8().map_err(cut)?;
    let total = frame.try_get_u32().map_err(cut)? as usize;
    if total > BODY_MAX || frame.len() > total {
        return Err(Broken("a body that is larger than it may be"));
    }
    Ok(Arriving { code, total, body: BytesMut::from(&frame[..]) })
}

fn more(arriving: &mut Arriving, piece: &[u8]) -> Result<(), Broken> {
    if piece.is_empty() || arriving.body.len() + piece.len() > arriving.total {
        return Err(Broken("a piece that does not fit"));
    }
    arriving.body.extend_from_slice(piece);
    Ok(())
}

fn busy() -> ApiError {
    ApiError::new(ErrorCode::RateLimited, "the machine answers too many calls just now; try again")
}

fn too_large(size: usize) -> ApiError {
    ApiError::new(ErrorCode::RequestTooLarge, format!("the answer has {size} bytes; at most {BODY_MAX} are carried"))
}

impl std::fmt::Debug for Rpc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rpc").field("open", &self.shared.calls().open.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::tunnel::tests::{PATIENCE, Pipe, pipe};

    /// Says back what it hears; method 0 is never answered.
    #[derive(Default)]
    struct Echo {
        asked: AtomicUsize,
    }

    impl Answers for Echo {
        fn answer(&self, method: u8, body: Bytes) -> BoxFuture<'static, Result<Bytes, ApiError>> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            if method == 0 {
                return std::future::pending().boxed();
            }
            async { Ok(body) }.boxed()
        }
    }

    fn start(channel: Arc<Pipe>) -> (Rpc, tokio::task::JoinHandle<()>) {
        let rpc = Rpc::new(Arc::default(), CancellationToken::new());
        let running = rpc.clone();
        let task = tokio::spawn(async move {
            running.run(&*channel, Arc::new(Echo::default())).await;
            running.close();
        });
        (rpc, task)
    }

    fn request(id: u32, method: u8, total: u32, piece: &[u8]) -> BytesMut {
        let mut frame = frame(kind::REQUEST, id);
        frame.put_u8(method);
        frame.put_u32(total);
        frame.put_slice(piece);
        frame
    }

    async fn response(channel: &Pipe) -> (u32, u8, Bytes) {
        let mut frame = timeout(PATIENCE, channel.recv()).await.unwrap().unwrap();
        assert_eq!(frame.get_u8(), kind::RESPONSE);
        let (id, status, total) = (frame.get_u32(), frame.get_u8(), frame.get_u32());
        assert_eq!(frame.len(), total as usize);
        (id, status, frame)
    }

    #[tokio::test]
    async fn a_call_of_many_pieces_comes_back_whole() {
        let (a, b) = pipe();
        let ((one, _), (other, task)) = (start(a), start(b));
        let body = Bytes::from((0..10_000_000_u32).map(|n| (n % 241) as u8).collect::<Vec<_>>());
        let calls = [&one, &other].map(|rpc| rpc.call(Method::Append, body.clone(), PATIENCE));
        for answer in futures::future::join_all(calls).await {
            assert!(answer.unwrap() == body);
        }
        one.close();
        assert_eq!(one.call(Method::Append, Bytes::new(), PATIENCE).await, Err(CallError::Unreachable));
        task.abort();
    }

    #[tokio::test]
    async fn frames_of_later_versions_are_left_out() {
        let (a, b) = pipe();
        let _other = start(b);
        for unknown in [&[0][..], &[7, 1, 2], &[255]] {
            a.send(BytesMut::from(unknown)).await.unwrap();
        }
        // Pieces and cancellations of calls that nobody knows, too.
        for kind in [kind::REQUEST_MORE, kind::RESPONSE_MORE, kind::CANCEL] {
            a.send(frame(kind, 99)).await.unwrap();
        }
        a.send(request(1, 9, 2, b"hi")).await.unwrap();
        assert_eq!(response(&a).await, (1, DONE, Bytes::from("hi")));
    }

    #[tokio::test]
    async fn what_breaks_the_protocol_ends_the_link() {
        let too_large = u32::try_from(BODY_MAX + 1).unwrap();
        let more = |id: u32, piece: &[u8]| {
            let mut frame = frame(kind::REQUEST_MORE, id);
            frame.put_slice(piece);
            frame
        };
        for bad in [
            vec![BytesMut::new()],
            vec![BytesMut::from(&[kind::REQUEST, 0, 0][..])],
            vec![frame(kind::REQUEST, 1)],
            vec![frame(kind::RESPONSE, 1)],
            vec![request(1, 1, too_large, b"")],
            vec![request(1, 1, 1, b"two")],
            vec![request(1, 1, 3, b"a"), more(1, b"bcd")],
            vec![request(1, 1, 3, b"a"), more(1, b"")],
            vec![request(1, 1, 3, b"a"), request(1, 1, 3, b"a")],
            vec![request(1, 0, 0, b""), request(1, 0, 0, b"")],
        ] {
            let (a, b) = pipe();
            let (_, task) = start(b);
            for frame in bad.clone() {
                a.send(frame).await.unwrap();
            }
            timeout(PATIENCE, task).await.unwrap_or_else(|_| panic!("{bad:?} was taken")).unwrap();
        }
    }

    #[tokio::test]
    async fn only_so_many_calls_are_answered_at_one_time() {
        let (a, b) = pipe();
        let (other, _) = start(b);
        let max = u32::try_from(SERVED_MAX).unwrap();
        for id in 0..max {
            a.send(request(id, 0, 0, b"")).await.unwrap();
        }
        a.send(request(max, 9, 0, b"")).await.unwrap();
        let (id, status, body) = response(&a).await;
        let error: ApiError = serde_json::from_slice(&body).unwrap();
        assert_eq!((id, status, error.code), (max, FAILED, ErrorCode::RateLimited));
        a.send(frame(kind::CANCEL, 3)).await.unwrap();
        a.send(request(max + 1, 9, 0, b"")).await.unwrap();
        assert_eq!(response(&a).await.1, DONE);
        assert_eq!(other.shared.serving().len(), SERVED_MAX - 1);
        // Bodies that never end are counted by what they were said to have.
        for id in [3, max + 2, max + 3] {
            a.send(request(id, 9, u32::try_from(BODY_MAX).unwrap(), b"a")).await.unwrap();
        }
        for _ in 0..2 {
            assert_eq!(response(&a).await.1, FAILED);
        }
    }

    #[tokio::test]
    async fn a_goodbye_is_heard() {
        let (a, b) = pipe();
        let (other, task) = start(b);
        let why = ApiError::new(ErrorCode::ServiceUnavailable, "the node stops");
        a.send(goodbye(&why)).await.unwrap();
        timeout(PATIENCE, task).await.unwrap().unwrap();
        assert_eq!(other.farewell(), Some(why));
    }
}
