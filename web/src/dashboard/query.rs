//! A question to the node that is asked again and again while its answer is on the page.

use std::time::Duration;

use leptos::prelude::*;

use super::{
    api::Failure,
    backoff::Backoff,
    bell::{self, Bell},
    browser, task,
};

/// What is known of an answer.
#[derive(Clone, Debug)]
pub(crate) struct Known<T> {
    /// The newest answer, if there ever was one.
    pub(crate) value: Option<T>,
    /// When it came, by this browser's clock. Milliseconds.
    pub(crate) at: f64,
    /// Why the last attempt brought none.
    pub(crate) failure: Option<Failure>,
}

/// What there is to draw.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Phase {
    Loading,
    Failed(Failure),
    Ready,
}

#[derive(Debug)]
pub(crate) struct Query<T: 'static> {
    known: RwSignal<Known<T>>,
    bell: StoredValue<Bell>,
}

impl<T> Clone for Query<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Query<T> {}

impl<T: Clone + PartialEq + Send + Sync + 'static> Query<T> {
    /// Asks at once, then every `interval`, sooner when [`Query::refresh`] is called, and not while the page is hidden.
    /// Ends with the current owner.
    pub(crate) fn start<F>(interval: Duration, ask: impl Fn() -> F + 'static) -> Self
    where
        F: Future<Output = Result<T, Failure>> + 'static,
    {
        let known = RwSignal::new(Known { value: None, at: 0.0, failure: None });
        let (bell, mut sleeper) = bell::bell();
        task::while_shown(async move {
            let mut backoff = Backoff::new();
            loop {
                task::until_visible().await;
                let wait = match ask().await {
                    Ok(value) => {
                        backoff.reset();
                        known.set(Known { value: Some(value), at: browser::now(), failure: None });
                        interval
                    }
                    Err(failure) => {
                        known.update(|known| known.failure = Some(failure));
                        backoff.after_failure(js_sys::Math::random())
                    }
                };
                task::rings_within(&mut sleeper, wait).await;
            }
        });
        Self { known, bell: StoredValue::new(bell) }
    }

    pub(crate) fn refresh(&self) {
        self.bell.with_value(Bell::ring);
    }

    pub(crate) fn phase(&self) -> Memo<Phase> {
        let known = self.known;
        Memo::new(move |_| {
            known.with(|known| match (&known.value, &known.failure) {
                (Some(_), _) => Phase::Ready,
                (None, Some(failure)) => Phase::Failed(failure.clone()),
                (None, None) => Phase::Loading,
            })
        })
    }

    pub(crate) fn value(&self) -> Memo<Option<T>> {
        let known = self.known;
        Memo::new(move |_| known.with(|known| known.value.clone()))
    }

    pub(crate) fn failure(&self) -> Memo<Option<Failure>> {
        let known = self.known;
        Memo::new(move |_| known.with(|known| known.failure.clone()))
    }

    /// When the newest answer came, by this browser's clock. Milliseconds.
    pub(crate) fn at(&self) -> Signal<f64> {
        let known = self.known;
        Signal::derive(move || known.with(|known| known.at))
    }
}
