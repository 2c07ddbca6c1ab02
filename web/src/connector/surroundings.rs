//! What happens around the page: time passes, networks change, laptops sleep, people sign in and out elsewhere.

use gloo_timers::callback::Interval;
use wasm_bindgen::{JsCast, JsValue, closure::Closure};
use wasm_bindgen_futures::spawn_local;
use web_sys::VisibilityState;

use super::{Event, Events};
use crate::identity::{Changes, Identity};

const TICK_MS: u32 = 1000;

/// Watches for as long as it lives.
#[derive(Debug)]
pub(super) struct Surroundings {
    _ticks: Interval,
    _changes: Option<Changes>,
    _callbacks: [Closure<dyn FnMut()>; 3],
}

impl Surroundings {
    pub(super) fn watch(events: &Events) -> Result<Self, JsValue> {
        let window = web_sys::window().ok_or("the connector runs in a window")?;
        let document = window.document().ok_or("the connector runs in a page")?;

        let ticking = events.clone();
        let ticks = Interval::new(TICK_MS, move || send(&ticking, Event::Tick));

        let signed = events.clone();
        let changes = Changes::listen(move || {
            let events = signed.clone();
            spawn_local(async move { send(&events, Event::Identity(Identity::load().await)) });
        });

        let (online, shown, leaving) = (events.clone(), events.clone(), events.clone());
        let page = document.clone();
        let callbacks = [
            Closure::<dyn FnMut()>::new(move || send(&online, Event::Awake)),
            Closure::<dyn FnMut()>::new(move || {
                if page.visibility_state() == VisibilityState::Visible {
                    send(&shown, Event::Awake);
                }
            }),
            Closure::<dyn FnMut()>::new(move || send(&leaving, Event::Leaving)),
        ];
        let [on_online, on_shown, on_leaving] = &callbacks;
        window.add_event_listener_with_callback("online", on_online.as_ref().unchecked_ref())?;
        document.add_event_listener_with_callback("visibilitychange", on_shown.as_ref().unchecked_ref())?;
        window.add_event_listener_with_callback("pagehide", on_leaving.as_ref().unchecked_ref())?;
        // Without broadcasts a sign-in elsewhere is seen when the page is loaded again.
        Ok(Self { _ticks: ticks, _changes: changes.ok(), _callbacks: callbacks })
    }
}

fn send(events: &Events, event: Event) {
    let _ = events.unbounded_send(event);
}
