//! The requests of service workers: frames from their ports to the lanes, and back.

use std::collections::BTreeMap;

use flotilla_api::{
    ApiError, ErrorCode,
    frame::{Header, Kind, Lane, STREAMS_MAX, flags},
};
use js_sys::ArrayBuffer;
use wasm_bindgen::{JsCast, closure::Closure};
use web_sys::{MessageEvent, MessagePort};

use super::{
    Event, Events, message,
    outbox::{Full, Outbox},
    peer::Peer,
    sockets::post,
    streams::{Local, PortId, Refused, Streams},
};

/// Runs of a service worker that one page is linked to. An old one lives as long as its last answer, then its page says so.
const PORTS_MAX: usize = 8;

/// The stream of frames that belong to none.
const CONNECTION: u32 = 0;

#[derive(Debug)]
pub(super) struct Pipes {
    events: Events,
    ports: BTreeMap<PortId, Port>,
    last_port: u32,
    streams: Streams,
    interactive: Outbox<ArrayBuffer>,
    bulk: Outbox<ArrayBuffer>,
}

#[derive(Debug)]
struct Port {
    /// The link's name, as page and service worker know it.
    name: String,
    inner: MessagePort,
    _on_message: Closure<dyn FnMut(MessageEvent)>,
}

impl Drop for Port {
    fn drop(&mut self) {
        self.inner.set_onmessage(None);
        self.inner.close();
    }
}

impl Pipes {
    pub(super) fn new(events: Events) -> Self {
        Self {
            events,
            ports: BTreeMap::new(),
            last_port: 0,
            streams: Streams::default(),
            interactive: Outbox::default(),
            bulk: Outbox::default(),
        }
    }

    /// Takes the port of a service worker, whose frames then come as [`Event::Port`].
    pub(super) fn link(&mut self, name: String, inner: MessagePort, peer: Option<&Peer>) {
        if self.ports.len() >= PORTS_MAX
            && let Some((oldest, _)) = self.ports.pop_first()
        {
            self.lose_port(oldest, peer);
        }
        self.last_port += 1;
        let id = PortId(self.last_port);
        let events = self.events.clone();
        let on_message = Closure::<dyn FnMut(MessageEvent)>::new(move |event: MessageEvent| {
            if let Ok(message) = event.data().dyn_into::<ArrayBuffer>() {
                let _ = events.unbounded_send(Event::Port(id, message));
            }
        });
        inner.set_onmessage(Some(on_message.as_ref().unchecked_ref()));
        self.ports.insert(id, Port { name, inner, _on_message: on_message });
    }

    /// The service worker behind this link has been stopped: nobody waits for its requests any more.
    pub(super) fn unlink(&mut self, name: &str, peer: Option<&Peer>) {
        let gone: Vec<_> = self.ports.iter().filter(|(_, port)| port.name == name).map(|(id, _)| *id).collect();
        for id in gone {
            self.ports.remove(&id);
            self.lose_port(id, peer);
        }
    }

    fn lose_port(&mut self, port: PortId, peer: Option<&Peer>) {
        let aborted = ApiError::new(ErrorCode::Unknown, "the page that asked is gone");
        for (wire, lane) in self.streams.lose_port(port) {
            self.give_up(wire, lane, &aborted, peer);
        }
    }

    /// A frame of a page. `refusal` is why there will be no connection for a new request.
    pub(super) fn page_sent(
        &mut self,
        port: PortId,
        frame: &ArrayBuffer,
        peer: Option<&Peer>,
        refusal: Option<&ApiError>,
        now: f64,
    ) {
        // A page that sends what is no frame harms itself alone.
        let Ok(header) = message::header_of(frame) else { return };
        let local = Local { port, stream: header.stream };
        match header.kind {
            Kind::Open => self.open(local, header, frame, peer, refusal, now),
            Kind::Data | Kind::End => {
                if let Some((wire, lane)) = self.streams.page_sent(local, header.kind) {
                    self.queue(wire, lane, header, frame, peer);
                }
            }
            Kind::Credit => {
                if let (Some((wire, lane)), Some(_)) = (self.streams.page_sent(local, header.kind), peer) {
                    message::set_header(frame, Header { stream: wire, ..header });
                    self.outbox(lane).push_urgent(frame.clone());
                    self.send(lane, peer);
                }
            }
            Kind::Reset => {
                if let Some((wire, lane)) = self.streams.page_sent(local, header.kind) {
                    self.give_up(wire, lane, &ApiError::new(ErrorCode::Unknown, "the page gave the request up"), peer);
                }
            }
            Kind::Cookie => self.queue(CONNECTION, Lane::Interactive, header, frame, peer),
            Kind::Hello | Kind::Head | Kind::Ping | Kind::GoAway => {}
        }
    }

    fn open(
        &mut self,
        local: Local,
        header: Header,
        frame: &ArrayBuffer,
        peer: Option<&Peer>,
        refusal: Option<&ApiError>,
        now: f64,
    ) {
        if let Some(error) = refusal {
            self.refuse(local, error);
            return;
        }
        let has_body = header.flags & flags::BODY != 0;
        let lane = if header.flags & flags::LARGE == 0 { Lane::Interactive } else { Lane::Bulk };
        match self.streams.open(local, lane, has_body, now) {
            Ok(wire) => {
                let whole = if header.flags & flags::TAKES_WHOLE != 0 { flags::WHOLE } else { 0 };
                let flags = header.flags & flags::BODY | whole;
                self.queue(wire, lane, Header { flags, ..header }, frame, peer);
            }
            Err(Refused::TooMany) => {
                let sentence =
                    format!("more than {STREAMS_MAX} requests are under way in this tab; wait for some to end");
                self.refuse(local, &ApiError::new(ErrorCode::RateLimited, sentence));
            }
            Err(Refused::Repeated) => {}
        }
    }

    fn queue(&mut self, wire: u32, lane: Lane, header: Header, frame: &ArrayBuffer, peer: Option<&Peer>) {
        message::set_header(frame, Header { stream: wire, ..header });
        if self.outbox(lane).push(wire, frame.clone(), frame.byte_length() as usize) == Err(Full) {
            let error = ApiError::new(ErrorCode::FrameInvalid, "the page sent more than it had credit for");
            if let Some(local) = self.streams.node_sent(Header { kind: Kind::Reset, flags: 0, stream: wire }) {
                self.refuse(local, &error);
            }
            self.give_up(wire, lane, &error, peer);
        }
        self.send(lane, peer);
    }

    /// A frame of the node on a lane, other than those of stream 0.
    pub(super) fn node_sent(&mut self, header: Header, frame: &ArrayBuffer) {
        if let Some(local) = self.streams.node_sent(header)
            && let Some(port) = self.ports.get(&local.port)
        {
            message::set_header(frame, Header { stream: local.stream, ..header });
            post(&port.inner, frame);
        }
    }

    /// A frame of the connector's own.
    pub(super) fn say(&mut self, lane: Lane, frame: ArrayBuffer, peer: Option<&Peer>) {
        self.outbox(lane).push_urgent(frame);
        self.send(lane, peer);
    }

    /// Sends what waits for a lane, as far as it has room.
    pub(super) fn send(&mut self, lane: Lane, peer: Option<&Peer>) {
        let Some(peer) = peer else { return };
        let channel = peer.lane(lane);
        let outbox = self.outbox(lane);
        while channel.has_room()
            && let Some(frame) = outbox.pop()
        {
            channel.send(&frame);
        }
    }

    /// The connection is lost, and with it every request that was sent over it.
    pub(super) fn lose_connection(&mut self, error: &ApiError) {
        self.interactive = Outbox::default();
        self.bulk = Outbox::default();
        for local in self.streams.lose_all() {
            self.refuse(local, error);
        }
    }

    /// Ends the requests that have waited for a connection since `before` or longer.
    pub(super) fn expire(&mut self, before: f64, error: &ApiError) {
        for (wire, lane, local) in self.streams.expire(before) {
            self.outbox(lane).forget(wire);
            self.refuse(local, error);
        }
    }

    fn refuse(&self, local: Local, error: &ApiError) {
        if let Some(port) = self.ports.get(&local.port) {
            post(&port.inner, &message::reset(local.stream, error));
        }
    }

    fn give_up(&mut self, wire: u32, lane: Lane, why: &ApiError, peer: Option<&Peer>) {
        let unsent = self.outbox(lane).forget(wire);
        // Of a request that was never sent the node needs to know nothing.
        let unknown =
            unsent.is_some_and(|frame| message::header_of(&frame).is_ok_and(|first| first.kind == Kind::Open));
        if peer.is_some() && !unknown {
            self.say(lane, message::reset(wire, why), peer);
        }
    }

    fn outbox(&mut self, lane: Lane) -> &mut Outbox<ArrayBuffer> {
        match lane {
            Lane::Interactive => &mut self.interactive,
            Lane::Bulk => &mut self.bulk,
        }
    }
}
