//! The states of an answer: none yet, none at all, an old one, an empty one.

use leptos::prelude::*;

use super::{Glyph, Icon, Prose};
use crate::dashboard::{
    api::Failure,
    format,
    live::{Clock, Link, Live},
    query::{Phase, Query},
};

/// Grey shapes where content will be. Screen readers hear one word.
#[component]
pub(crate) fn Skeleton(#[prop(default = 4)] rows: usize) -> impl IntoView {
    let rows = (0..rows).map(|_| view! { <span class="bone"></span> }).collect_view();
    view! {
        <div class="skeleton" role="status">
            <span class="unseen">"Loading"</span>
            {rows}
        </div>
    }
}

#[component]
pub(crate) fn Problem(failure: Failure, retry: Callback<()>) -> impl IntoView {
    let lost = matches!(failure, Failure::Unreachable | Failure::TimedOut { .. });
    view! {
        <div class="vacant problem" role="alert">
            <Glyph icon=if lost { Icon::Lost } else { Icon::Warning }/>
            <p class="vacant-title">{if lost { "No connection to the node" } else { "This could not be shown" }}</p>
            <p><Prose text=failure.to_string()/></p>
            <button class="button" on:click=move |_| retry.run(())>
                <Glyph icon=Icon::Refresh/>
                "Try again"
            </button>
        </div>
    }
}

#[component]
pub(crate) fn Empty(icon: Icon, #[prop(into)] title: String, children: Children) -> impl IntoView {
    view! {
        <div class="vacant">
            <Glyph icon/>
            <p class="vacant-title">{title}</p>
            {children()}
        </div>
    }
}

/// A banner while what is shown may be out of date, with its age and the reason.
#[component]
pub(crate) fn Stale<T: Clone + PartialEq + Send + Sync + 'static>(query: Query<T>) -> impl IntoView {
    let (clock, live) = (expect_context::<Clock>(), expect_context::<Live>());
    let (phase, failure, at) = (query.phase(), query.failure(), query.at());
    let banner = move || {
        let failure = failure.get()?;
        (phase.get() == Phase::Ready).then(|| {
            let age = move || format::coarse((clock.now() - at.get()).max(0.0) as u64);
            let retrying = move || if live.link.get() == Link::Live { "" } else { " It is asked again by itself." };
            view! {
                <div class="banner tone-warn" role="status">
                    <Glyph icon=Icon::Lost/>
                    <p>
                        <Prose text=failure.to_string()/> {retrying} " "
                        // A screen reader hears of the loss once, not of each second.
                        <span aria-live="off">"Shown as of " {age} " ago."</span>
                    </p>
                    <button class="button small" on:click=move |_| query.refresh()>"Try now"</button>
                </div>
            }
        })
    };
    view! { {banner} }
}

/// Draws `ready` when there is an answer, and what stands for it while there is none.
pub(crate) fn shown<T: Clone + PartialEq + Send + Sync + 'static>(
    query: Query<T>,
    skeleton_rows: usize,
    ready: impl Fn(Signal<T>) -> AnyView + Send + Sync + 'static,
) -> AnyView {
    let (phase, value) = (query.phase(), query.value());
    let ready = StoredValue::new(ready);
    let content = move || match phase.get() {
        Phase::Loading => view! { <Skeleton rows=skeleton_rows/> }.into_any(),
        Phase::Failed(failure) => {
            view! { <Problem failure retry=Callback::new(move |()| query.refresh())/> }.into_any()
        }
        Phase::Ready => {
            // There is a value from here on: an answer is never taken back, only replaced.
            let Some(first) = value.get_untracked() else { return ().into_any() };
            let value = Signal::derive(move || value.get().unwrap_or_else(|| first.clone()));
            ready.with_value(|ready| ready(value))
        }
    };
    view! {
        <Stale query/>
        {content}
    }
    .into_any()
}
