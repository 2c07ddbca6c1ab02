//! WebSockets: each has a data channel of its own, to which its frames go unchanged.

use std::collections::{BTreeMap, VecDeque};

use flotilla_api::{ApiError, ErrorCode, frame::Kind};
use js_sys::{Array, ArrayBuffer};
use wasm_bindgen::{JsCast, closure::Closure};
use web_sys::{MessageEvent, MessagePort};

use super::{Event, Events, channel::Channel, message, peer::Peer};

/// Open at once in one tab. Browsers allow 255 to all hosts.
const SOCKETS_MAX: usize = 255;

/// Bytes that may wait for one channel: a little more than the credit that a shim has.
const WAITING_MAX: u32 = 2 * 1024 * 1024;

/// The one stream on a WebSocket's channel.
const STREAM: u32 = 1;

#[derive(Debug)]
pub(super) struct Sockets {
    events: Events,
    open: BTreeMap<u32, Socket>,
    last: u32,
}

#[derive(Debug)]
struct Socket {
    port: MessagePort,
    _on_message: Closure<dyn FnMut(MessageEvent)>,
    /// Absent until there is a connection.
    channel: Option<Channel>,
    waiting: VecDeque<ArrayBuffer>,
    waiting_bytes: u32,
    since: f64,
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.port.set_onmessage(None);
        // What was posted still arrives.
        self.port.close();
    }
}

impl Sockets {
    pub(super) fn new(events: Events) -> Self {
        Self { events, open: BTreeMap::new(), last: 0 }
    }

    /// Takes the port of a shim, whose frames then come as [`Event::Socket`].
    pub(super) fn add(&mut self, port: MessagePort, peer: Option<&Peer>, now: f64) {
        if self.open.len() >= SOCKETS_MAX {
            let sentence = format!("more than {SOCKETS_MAX} WebSockets are open in this tab; close some");
            fail(&port, &ApiError::new(ErrorCode::RateLimited, sentence));
            return;
        }
        self.last += 1;
        let id = self.last;
        let events = self.events.clone();
        let on_message = Closure::<dyn FnMut(MessageEvent)>::new(move |event: MessageEvent| {
            if let Ok(message) = event.data().dyn_into::<ArrayBuffer>() {
                let _ = events.unbounded_send(Event::Socket(id, message));
            }
        });
        port.set_onmessage(Some(on_message.as_ref().unchecked_ref()));
        self.open.insert(
            id,
            Socket {
                port,
                _on_message: on_message,
                channel: peer.map(|peer| peer.open_socket(id)),
                waiting: VecDeque::new(),
                waiting_bytes: 0,
                since: now,
            },
        );
    }

    /// There is a connection for those that waited for one.
    pub(super) fn connect(&mut self, peer: &Peer) {
        for (id, socket) in &mut self.open {
            socket.channel.get_or_insert_with(|| peer.open_socket(*id));
        }
    }

    pub(super) fn page_sent(&mut self, id: u32, frame: ArrayBuffer) {
        let Some(socket) = self.open.get_mut(&id) else { return };
        let Ok(header) = message::header_of(&frame) else { return };
        socket.waiting_bytes += frame.byte_length();
        socket.waiting.push_back(frame);
        if socket.waiting_bytes > WAITING_MAX {
            self.fail(id, &ApiError::new(ErrorCode::FrameInvalid, "the page sent more than it had credit for"));
            return;
        }
        self.send(id);
        if header.kind == Kind::Reset {
            self.open.remove(&id);
        }
    }

    /// The node has the last word: after its end or reset the channel is closed.
    pub(super) fn node_sent(&mut self, id: u32, frame: &ArrayBuffer) {
        let Some(socket) = self.open.get_mut(&id) else { return };
        let Ok(header) = message::header_of(frame) else { return };
        match header.kind {
            Kind::GoAway => {
                if let Some(error) = message::json_of(frame) {
                    self.fail(id, &error);
                }
            }
            _ if header.stream != STREAM => {}
            kind => {
                post(&socket.port, frame);
                if matches!(kind, Kind::End | Kind::Reset) {
                    self.open.remove(&id);
                }
            }
        }
    }

    /// Sends what waits, as far as the channel has room.
    pub(super) fn send(&mut self, id: u32) {
        let Some(socket) = self.open.get_mut(&id) else { return };
        let Some(channel) = &socket.channel else { return };
        while channel.has_room()
            && let Some(frame) = socket.waiting.pop_front()
        {
            socket.waiting_bytes = socket.waiting_bytes.saturating_sub(frame.byte_length());
            channel.send(&frame);
        }
    }

    /// There will be no connection for this one.
    pub(super) fn refuse(port: &MessagePort, error: &ApiError) {
        fail(port, error);
    }

    /// The socket ends for the page as if its connection had broken.
    pub(super) fn fail(&mut self, id: u32, error: &ApiError) {
        if let Some(socket) = self.open.remove(&id) {
            fail(&socket.port, error);
        }
    }

    pub(super) fn fail_all(&mut self, error: &ApiError) {
        for socket in std::mem::take(&mut self.open).into_values() {
            fail(&socket.port, error);
        }
    }

    /// Ends those that have waited for a connection since `before` or longer.
    pub(super) fn expire(&mut self, before: f64, error: &ApiError) {
        for (_, socket) in self.open.extract_if(.., |_, socket| socket.channel.is_none() && socket.since <= before) {
            fail(&socket.port, error);
        }
    }
}

fn fail(port: &MessagePort, error: &ApiError) {
    post(port, &message::reset(STREAM, error));
}

/// Moves the frame; a port whose page is gone takes it to nowhere.
pub(super) fn post(port: &MessagePort, frame: &ArrayBuffer) {
    let _ = port.post_message_with_transferable(frame, &Array::of1(frame));
}
