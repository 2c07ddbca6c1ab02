use std::sync::atomic::{AtomicBool, Ordering};

use leptos::prelude::*;

use crate::dashboard::browser;

/// Has anything been shown yet?
static ARRIVED: AtomicBool = AtomicBool::new(false);

/// What comes next is a step from here, not the first thing that the person sees.
pub(crate) fn arrived() -> bool {
    ARRIVED.swap(true, Ordering::Relaxed)
}

/// The frame of a page: its title in the tab and as the heading, which takes the focus when a person comes from another page,
/// so that a screen reader says where it is. The first page leaves the focus to the browser, as any document does.
#[component]
pub(crate) fn Page(
    #[prop(into)] title: String,
    /// Beside the heading: a state, a figure.
    #[prop(optional, into)]
    aside: Option<AnyView>,
    /// One sentence under the heading.
    #[prop(optional, into)]
    lead: Option<AnyView>,
    #[prop(optional, into)] actions: Option<AnyView>,
    children: Children,
) -> impl IntoView {
    browser::set_title(&format!("{title} · Flotilla"));
    let moved = arrived();
    Effect::new(move || {
        if moved {
            browser::focus("page-title");
        }
    });
    view! {
        <header class="page-head">
            <div class="page-heading">
                <div class="page-title">
                    <h1 id="page-title" tabindex="-1">{title}</h1>
                    {aside}
                </div>
                {lead.map(|lead| view! { <div class="page-lead">{lead}</div> })}
            </div>
            {actions.map(|actions| view! { <div class="page-actions">{actions}</div> })}
        </header>
        {children()}
    }
}

/// A part of a page under a heading of its own.
#[component]
pub(crate) fn Section(
    id: &'static str,
    #[prop(into)] title: String,
    #[prop(optional, into)] actions: Option<AnyView>,
    children: Children,
) -> impl IntoView {
    let heading = format!("{id}-heading");
    let labelled_by = heading.clone();
    view! {
        <section class="section" id=id aria-labelledby=labelled_by>
            <header class="section-head">
                <h2 id=heading>{title}</h2>
                {actions}
            </header>
            {children()}
        </section>
    }
}
