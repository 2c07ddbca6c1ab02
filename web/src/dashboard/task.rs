//! Work that ends with the part of the page that started it.

use std::{pin::pin, time::Duration};

use futures::{
    FutureExt,
    future::{AbortHandle, Abortable, Either, select},
};
use gloo_timers::future::TimeoutFuture;
use leptos::prelude::*;
use wasm_bindgen_futures::spawn_local;

use super::{
    bell::{Sleeper, bell},
    browser::{self, Listener},
};

/// Runs `work` until it is done or the current owner is cleaned up; what it waits for is dropped then.
pub(crate) fn while_shown(work: impl Future<Output = ()> + 'static) {
    let (handle, registration) = AbortHandle::new_pair();
    spawn_local(Abortable::new(work, registration).map(|_| ()));
    on_cleanup(move || handle.abort());
}

pub(crate) async fn sleep(time: Duration) {
    TimeoutFuture::new(u32::try_from(time.as_millis()).unwrap_or(u32::MAX)).await;
}

/// Did the bell ring within `time`?
pub(crate) async fn rings_within(sleeper: &mut Sleeper, time: Duration) -> bool {
    matches!(select(pin!(sleep(time)), pin!(sleeper.rest())).await, Either::Right(_))
}

/// Returns at once if the page is to be seen, otherwise when it is again.
pub(crate) async fn until_visible() {
    if !browser::is_hidden() {
        return;
    }
    let (bell, mut sleeper) = bell();
    let _listener = Listener::new(browser::document().into(), "visibilitychange", move || bell.ring());
    while browser::is_hidden() {
        sleeper.rest().await;
    }
}

/// Returns when the page is hidden.
pub(crate) async fn until_hidden() {
    let (bell, mut sleeper) = bell();
    let _listener = Listener::new(browser::document().into(), "visibilitychange", move || bell.ring());
    while !browser::is_hidden() {
        sleeper.rest().await;
    }
}
