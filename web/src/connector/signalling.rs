//! The WebSocket to the node on which a connection is agreed upon.

use std::{cell::RefCell, rc::Rc};

use flotilla_api::signal::{FromBrowser, FromNode, SIGNAL_MAX};
use futures::channel::mpsc;
use wasm_bindgen::{JsCast, JsValue, closure::Closure};
use web_sys::{MessageEvent, WebSocket};

/// Where `/signal` is, as a WebSocket and as a proof of possession names it.
#[derive(Clone, Debug)]
pub(super) struct Address {
    pub(super) socket: String,
    pub(super) proof: String,
}

impl Address {
    /// Beside the page that this runs in.
    pub(super) fn of_page() -> Result<Self, JsValue> {
        let origin = web_sys::window().ok_or("the connector runs in a window")?.location().origin()?;
        let proof = format!("{origin}/signal");
        // http to ws, https to wss.
        Ok(Self { socket: proof.replacen("http", "ws", 1), proof })
    }
}

#[derive(Debug)]
pub(super) enum Heard {
    Message(FromNode),
    /// Nothing more will be heard.
    Closed,
}

#[derive(Debug)]
pub(super) struct Socket {
    inner: WebSocket,
    queue: Rc<RefCell<Queue>>,
    _on_open: Closure<dyn FnMut()>,
    _on_close: Closure<dyn FnMut()>,
    _on_message: Closure<dyn FnMut(MessageEvent)>,
}

/// A protocol's first message is ready later than the candidates that follow it.
#[derive(Debug, Default)]
struct Queue {
    open: bool,
    begun: bool,
    /// A handful of candidates.
    waiting: Vec<String>,
}

impl Socket {
    /// Begins to connect; what is heard comes from the receiver.
    pub(super) fn open(address: &Address) -> Result<(Rc<Self>, mpsc::UnboundedReceiver<Heard>), JsValue> {
        let inner = WebSocket::new(&address.socket)?;
        let queue = Rc::new(RefCell::new(Queue::default()));
        let (sender, receiver) = mpsc::unbounded();

        let (socket, opened) = (inner.clone(), Rc::clone(&queue));
        let on_open = Closure::<dyn FnMut()>::new(move || {
            opened.borrow_mut().open = true;
            flush(&socket, &opened);
        });
        let closed = sender.clone();
        let on_close = Closure::<dyn FnMut()>::new(move || {
            let _ = closed.unbounded_send(Heard::Closed);
        });
        let on_message = Closure::<dyn FnMut(MessageEvent)>::new(move |event: MessageEvent| {
            let text = event.data().as_string().filter(|text| text.len() <= SIGNAL_MAX);
            // What this version does not know is not for it.
            if let Some(message) = text.and_then(|text| serde_json::from_str(&text).ok()) {
                let _ = sender.unbounded_send(Heard::Message(message));
            }
        });
        inner.set_onopen(Some(on_open.as_ref().unchecked_ref()));
        inner.set_onclose(Some(on_close.as_ref().unchecked_ref()));
        inner.set_onmessage(Some(on_message.as_ref().unchecked_ref()));
        let socket = Self { inner, queue, _on_open: on_open, _on_close: on_close, _on_message: on_message };
        Ok((Rc::new(socket), receiver))
    }

    /// Sends the first message, and after it what was sent before.
    pub(super) fn begin(&self, first: &FromBrowser) {
        {
            let mut queue = self.queue.borrow_mut();
            queue.waiting.insert(0, json(first));
            queue.begun = true;
        }
        flush(&self.inner, &self.queue);
    }

    pub(super) fn send(&self, message: &FromBrowser) {
        self.queue.borrow_mut().waiting.push(json(message));
        flush(&self.inner, &self.queue);
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.inner.set_onopen(None);
        self.inner.set_onclose(None);
        self.inner.set_onmessage(None);
        let _ = self.inner.close();
    }
}

fn flush(socket: &WebSocket, queue: &RefCell<Queue>) {
    let mut queue = queue.borrow_mut();
    if queue.open && queue.begun {
        for message in queue.waiting.drain(..) {
            // A socket that can't send is closed, which is heard.
            let _ = socket.send_with_str(&message);
        }
    }
}

fn json(message: &FromBrowser) -> String {
    // Enums of strings and numbers always have a JSON form.
    serde_json::to_string(message).unwrap_or_default()
}
