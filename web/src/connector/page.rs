//! The service's page around this frame: what it asks, and what it is told.

use js_sys::{Object, Reflect};
use wasm_bindgen::{JsCast, JsValue, closure::Closure};
use web_sys::{MessageEvent, MessagePort, Window};

use super::{Event, Events, origin};

/// What a page may ask of its connector.
#[derive(Debug)]
pub(super) enum Said {
    /// First: connect already.
    Hello,
    /// A port to the page's service worker.
    Link { id: String, port: MessagePort },
    /// That service worker has been stopped.
    Unlink { id: String },
    /// A port to a WebSocket shim.
    Socket { port: MessagePort },
}

/// What the page shows to the person.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Connecting,
    Open,
    Reconnecting,
    SignIn,
    Refused,
    Outdated,
    Unreachable,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Open => "open",
            Self::Reconnecting => "reconnecting",
            Self::SignIn => "sign-in",
            Self::Refused => "refused",
            Self::Outdated => "outdated",
            Self::Unreachable => "unreachable",
        }
    }
}

/// The page that holds this frame.
#[derive(Debug)]
pub(super) struct Page {
    parent: Window,
    _callback: Closure<dyn FnMut(MessageEvent)>,
}

impl Page {
    /// Listens to the page around, and tells it so.
    pub(super) fn listen(events: &Events) -> Result<Self, JsValue> {
        let window = web_sys::window().ok_or("the connector runs in a window")?;
        let parent =
            window.parent()?.filter(|parent| *parent != window).ok_or("the connector runs in a service's page")?;
        let own = window.location().origin()?;
        let (source, events) = (parent.clone(), events.clone());
        let callback = Closure::<dyn FnMut(MessageEvent)>::new(move |event: MessageEvent| {
            if event.source().is_none_or(|from| !Object::is(&from, &source)) {
                return;
            }
            // Frame-ancestors let only services of this cluster hold this page; here their names are read off.
            let Some(service) = origin::service_of(&event.origin(), &own) else { return };
            if let Some(said) = read(&event) {
                let _ = events.unbounded_send(Event::Page(service, said));
            }
        });
        window.add_event_listener_with_callback("message", callback.as_ref().unchecked_ref())?;
        let page = Self { parent, _callback: callback };
        page.post(&[("flotilla", "ready")]);
        Ok(page)
    }

    /// `message` is the node's own sentence, where there is one.
    pub(super) fn show(&self, state: State, message: Option<&str>) {
        let mut fields = vec![("flotilla", "state"), ("state", state.name())];
        fields.extend(message.map(|message| ("message", message)));
        self.post(&fields);
    }

    /// To whatever page holds this frame: nothing that is said here is a secret.
    fn post(&self, fields: &[(&str, &str)]) {
        let message = Object::new();
        for (name, value) in fields {
            let _ = Reflect::set(&message, &(*name).into(), &(*value).into());
        }
        let _ = self.parent.post_message(&message, "*");
    }
}

fn read(event: &MessageEvent) -> Option<Said> {
    let data = event.data();
    let field = |name: &str| Reflect::get(&data, &name.into()).ok().and_then(|value| value.as_string());
    let port = || event.ports().get(0).dyn_into::<MessagePort>().ok();
    match field("flotilla")?.as_str() {
        "hello" => Some(Said::Hello),
        "link" => Some(Said::Link { id: field("id")?, port: port()? }),
        "unlink" => Some(Said::Unlink { id: field("id")? }),
        "socket" => Some(Said::Socket { port: port()? }),
        _ => None,
    }
}
