use std::time::Duration;

use flotilla_api::ErrorCode;
use leptos::prelude::*;
use wasm_bindgen_futures::spawn_local;

use super::{Glyph, Icon, Prose};
use crate::dashboard::{api::Failure, task};

/// More would cover the page; the oldest goes.
const TOASTS_MAX: usize = 3;

/// Long enough to read a sentence twice. An error stays until it is closed.
const SHOWN: Duration = Duration::from_secs(7);

#[derive(Clone, Debug, PartialEq)]
struct Toast {
    number: u64,
    text: String,
    bad: bool,
}

/// What was done, or why it was not, told in a corner of the page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Toasts {
    shown: RwSignal<Vec<Toast>>,
    next: StoredValue<u64>,
}

impl Toasts {
    pub(crate) fn new() -> Self {
        Self { shown: RwSignal::new(Vec::new()), next: StoredValue::new(0) }
    }

    pub(crate) fn tell(self, text: impl Into<String>) {
        let number = self.add(text.into(), false);
        spawn_local(async move {
            task::sleep(SHOWN).await;
            self.close(number);
        });
    }

    pub(crate) fn warn(self, text: impl Into<String>) {
        self.add(text.into(), true);
    }

    fn add(self, text: String, bad: bool) -> u64 {
        let number = self.next.get_value();
        self.next.set_value(number + 1);
        self.shown.update(|shown| {
            // The same sentence again takes the place of the first.
            shown.retain(|toast| toast.text != text);
            shown.push(Toast { number, text, bad });
            if shown.len() > TOASTS_MAX {
                shown.remove(0);
            }
        });
        number
    }

    fn close(self, number: u64) {
        self.shown.update(|shown| shown.retain(|toast| toast.number != number));
    }
}

#[component]
pub(crate) fn ToastRegion(toasts: Toasts) -> impl IntoView {
    let one = move |toast: Toast| {
        let number = toast.number;
        view! {
            <div class="toast" class:tone-bad=toast.bad class:tone-good=!toast.bad>
                <Glyph icon=if toast.bad { Icon::Warning } else { Icon::Check }/>
                <p><Prose text=toast.text/></p>
                <button class="button quiet square" aria-label="Dismiss" on:click=move |_| toasts.close(number)>
                    <Glyph icon=Icon::Cross/>
                </button>
            </div>
        }
    };
    view! {
        <div class="toasts" role="log" aria-live="polite" aria-label="Messages">
            <For each=move || toasts.shown.get() key=|toast| toast.number children=one/>
        </div>
    }
}

/// One change that a person asked for: busy while it runs, told when it is done or refused. It goes on when the person
/// leaves the page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Act {
    pub(crate) busy: RwSignal<bool>,
    /// Where a refusal is told: here for a dialog, which lies over all toasts and makes them inert.
    refusal: Option<RwSignal<Option<Failure>>>,
    toasts: Toasts,
}

impl Act {
    pub(crate) fn new() -> Self {
        Self { busy: RwSignal::new(false), refusal: None, toasts: expect_context() }
    }

    /// For a dialog, which shows a [`Refusal`].
    pub(crate) fn in_dialog() -> Self {
        Self { refusal: Some(RwSignal::new(None)), ..Self::new() }
    }

    pub(crate) fn run<T: 'static>(
        self,
        work: impl Future<Output = Result<T, Failure>> + 'static,
        done: impl FnOnce(Toasts, T) + 'static,
    ) {
        if self.busy.get_untracked() {
            return;
        }
        self.busy.set(true);
        self.refused(None);
        spawn_local(async move {
            let result = work.await;
            // The page may be gone by now, and its signals with it.
            self.busy.try_set(false);
            match result {
                Ok(value) => done(self.toasts, value),
                Err(failure) => self.refused(Some(failure)),
            }
        });
    }

    /// With which code the last try was refused, in a dialog.
    pub(crate) fn code(self) -> Option<ErrorCode> {
        self.refusal?.with(|refusal| refusal.as_ref().and_then(Failure::code))
    }

    fn refused(self, failure: Option<Failure>) {
        match (self.refusal, failure) {
            (Some(refusal), failure) => drop(refusal.try_set(failure)),
            (None, Some(failure)) => self.toasts.warn(failure.to_string()),
            (None, None) => {}
        }
    }
}

/// Why the last try of a dialog's [`Act`] was refused.
#[component]
pub(crate) fn Refusal(act: Act) -> impl IntoView {
    let sentence = move || {
        let sentence = act.refusal?.get()?.to_string();
        Some(view! {
            <p class="field-error">
                <Glyph icon=Icon::Warning/>
                <span>
                    <Prose text=sentence/>
                </span>
            </p>
        })
    };
    view! { <div role="alert">{sentence}</div> }
}
