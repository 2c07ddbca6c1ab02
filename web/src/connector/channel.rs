//! One data channel: frames in, frames out while its buffer has room.

use std::{cell::Cell, rc::Rc};

use flotilla_api::frame::{FRAME_VERSION, Hello, Kind};
use js_sys::ArrayBuffer;
use wasm_bindgen::{JsCast, closure::Closure};
use web_sys::{MessageEvent, RtcDataChannel, RtcDataChannelState, RtcDataChannelType};

use super::message;

/// Bytes that may wait in the browser for the network. Enough to keep it busy, and little enough that a reset or a frame of
/// another stream is not late.
const BUFFERED_MAX: u32 = 512 * 1024;

/// When to send on.
const BUFFERED_LOW: u32 = 128 * 1024;

#[derive(Debug)]
pub(super) enum Event {
    Open,
    Message(ArrayBuffer),
    /// There is room again.
    Drained,
    Closed,
}

#[derive(Debug)]
pub(super) struct Channel {
    inner: RtcDataChannel,
    /// A channel begins with hello; what waits for it to open comes after.
    greeted: Rc<Cell<bool>>,
    _on_event: [Closure<dyn FnMut()>; 3],
    _on_message: Closure<dyn FnMut(MessageEvent)>,
}

impl Channel {
    pub(super) fn new(inner: RtcDataChannel, on: impl Fn(Event) + Clone + 'static) -> Self {
        inner.set_binary_type(RtcDataChannelType::Arraybuffer);
        inner.set_buffered_amount_low_threshold(BUFFERED_LOW);
        let (opened, drained, closed, heard) = (on.clone(), on.clone(), on.clone(), on);
        let greeted = Rc::new(Cell::new(false));
        let (channel, greeting) = (inner.clone(), Rc::clone(&greeted));
        let on_event = [
            Closure::<dyn FnMut()>::new(move || {
                let hello = message::json(Kind::Hello, 0, &Hello { version: FRAME_VERSION });
                let _ = channel.send_with_array_buffer(&hello);
                greeting.set(true);
                opened(Event::Open);
            }),
            Closure::<dyn FnMut()>::new(move || drained(Event::Drained)),
            Closure::<dyn FnMut()>::new(move || closed(Event::Closed)),
        ];
        let on_message = Closure::<dyn FnMut(MessageEvent)>::new(move |event: MessageEvent| {
            // Frames are binary; text is no frame.
            if let Ok(message) = event.data().dyn_into::<ArrayBuffer>() {
                heard(Event::Message(message));
            }
        });
        let [open, low, close] = &on_event;
        inner.set_onopen(Some(open.as_ref().unchecked_ref()));
        inner.set_onbufferedamountlow(Some(low.as_ref().unchecked_ref()));
        inner.set_onclose(Some(close.as_ref().unchecked_ref()));
        inner.set_onmessage(Some(on_message.as_ref().unchecked_ref()));
        Self { inner, greeted, _on_event: on_event, _on_message: on_message }
    }

    pub(super) fn is_open(&self) -> bool {
        self.greeted.get() && self.inner.ready_state() == RtcDataChannelState::Open
    }

    /// May another frame be sent now? If not, [`Event::Open`] or [`Event::Drained`] says when.
    pub(super) fn has_room(&self) -> bool {
        self.is_open() && self.inner.buffered_amount() < BUFFERED_MAX
    }

    /// A channel that can't send is about to be closed, which is an event of its own.
    pub(super) fn send(&self, message: &ArrayBuffer) {
        let _ = self.inner.send_with_array_buffer(message);
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.inner.set_onopen(None);
        self.inner.set_onbufferedamountlow(None);
        self.inner.set_onclose(None);
        self.inner.set_onmessage(None);
        // What was sent still arrives.
        self.inner.close();
    }
}
