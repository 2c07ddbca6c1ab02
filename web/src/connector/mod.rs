//! The connector: the page of the dashboard's origin that services' pages hold in a hidden frame.
//!
//! It alone has the person's token and the connection to the node. It is a pipe: frames come from service workers and
//! WebSocket shims through ports, and go to the node through data channels, and back. Payloads stay in the browser's
//! buffers; only headers are read here.
//!
//! One task owns all state ([`driver::Driver`]); whatever happens in the browser reaches it as an [`Event`].

mod attempt;
mod backoff;
mod channel;
mod driver;
mod message;
mod origin;
mod outbox;
mod page;
mod peer;
mod pipes;
mod renewal;
mod signalling;
mod sockets;
mod streams;
mod surroundings;

use std::rc::Rc;

use flotilla_api::{ServiceName, frame::Lane};
use futures::channel::mpsc;
use js_sys::ArrayBuffer;
use wasm_bindgen::JsValue;

use self::{
    attempt::{Connection, Failure},
    signalling::{Heard, Socket},
    streams::PortId,
};
use crate::identity::{self, Identity};

/// Runs until the page is closed.
pub fn run() {
    match driver::Driver::new() {
        Ok(driver) => wasm_bindgen_futures::spawn_local(driver.run()),
        Err(error) => web_sys::console::error_1(&error),
    }
}

/// Its queue is emptied in the same turn of the browser's event loop that filled it, and what fills it is held by credit.
type Events = mpsc::UnboundedSender<Event>;

/// A connection among those that this page made, one after the other.
type Generation = u32;

enum Event {
    /// The service's page says something; the service is told by the page's origin.
    Page(ServiceName, page::Said),
    /// A frame of a service worker.
    Port(PortId, ArrayBuffer),
    /// A frame of a WebSocket shim.
    Socket(u32, ArrayBuffer),
    Attempted(Generation, Result<Connection, Failure>),
    Channel(Generation, Carrier, channel::Event),
    Signal(Generation, Heard),
    /// A new signalling socket for a session that lost its own.
    Resumed(Generation, Result<Rc<Socket>, Failure>),
    /// The connection's own state changed.
    Peer(Generation, web_sys::RtcPeerConnectionState),
    /// A new offer for an ICE restart, or why there is none.
    Offer(Generation, Result<String, JsValue>),
    /// Somebody signed in or out, or the token was renewed.
    Identity(Result<Option<Identity>, identity::Error>),
    /// The network is back, or the page is shown again.
    Awake,
    /// The page goes away.
    Leaving,
    /// A second has passed.
    Tick,
}

/// What a data channel carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Carrier {
    Lane(Lane),
    Socket(u32),
}

/// Milliseconds of a clock that never goes back.
fn now() -> f64 {
    web_sys::window().and_then(|window| window.performance()).map_or_else(js_sys::Date::now, |clock| clock.now())
}
