//! Work that ends with the part of the page that started it.

use std::time::Duration;

use futures::{
    FutureExt, StreamExt,
    channel::mpsc,
    future::{AbortHandle, Abortable, Either, select},
};
use gloo_timers::future::TimeoutFuture;
use leptos::prelude::*;
use wasm_bindgen_futures::spawn_local;

use super::browser::{self, Listener};

/// Runs `work` until it is done or the current owner is cleaned up; what it waits for is dropped then.
pub(crate) fn while_shown(work: impl Future<Output = ()> + 'static) {
    let (handle, registration) = AbortHandle::new_pair();
    spawn_local(Abortable::new(work, registration).map(|_| ()));
    on_cleanup(move || handle.abort());
}

pub(crate) async fn sleep(time: Duration) {
    TimeoutFuture::new(u32::try_from(time.as_millis()).unwrap_or(u32::MAX)).await;
}

/// Wakes one loop. Calls while it is awake count as one.
#[derive(Clone, Debug)]
pub(crate) struct Bell(mpsc::Sender<()>);

/// The loop's side of a [`Bell`].
#[derive(Debug)]
pub(crate) struct Sleeper(mpsc::Receiver<()>);

pub(crate) fn bell() -> (Bell, Sleeper) {
    let (sender, receiver) = mpsc::channel(0);
    (Bell(sender), Sleeper(receiver))
}

impl Bell {
    pub(crate) fn ring(&self) {
        // A full channel holds a ring that was not heard yet, which says the same.
        let _ = self.0.clone().try_send(());
    }
}

impl Sleeper {
    /// Until the bell rings, or `time` is over.
    pub(crate) async fn sleep(&mut self, time: Duration) {
        self.hears_within(time).await;
    }

    /// Did the bell ring within `time`?
    pub(crate) async fn hears_within(&mut self, time: Duration) -> bool {
        matches!(select(std::pin::pin!(sleep(time)), self.0.next()).await, Either::Right((Some(()), _)))
    }

    /// Until the bell rings.
    pub(crate) async fn rest(&mut self) {
        if self.0.next().await.is_none() {
            // Nobody is left who could ring.
            std::future::pending::<()>().await;
        }
    }
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
