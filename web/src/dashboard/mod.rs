//! The dashboard: what the API says, drawn; and what a person wants, sent to it. It decides nothing.
//!
//! [`session`] knows who is signed in, [`api`] asks the node, [`query`] keeps answers fresh and [`live`] says when they
//! changed. Pages under [`pages`] draw them with the parts in [`components`]. Whatever can be thought without a browser
//! ([`format`], [`log_buffer`], [`compose_text`], …) is apart from what draws it and tested natively.

#![allow(unreachable_pub, reason = "what #[component] generates is public")]
#![allow(clippy::needless_pass_by_value, reason = "a component owns its properties")]

mod api;
mod backoff;
mod bell;
mod browser;
mod changes;
mod components;
mod compose_text;
mod durability;
mod fleet;
mod format;
mod holdings;
mod incidents;
mod later;
mod live;
mod log_buffer;
mod pace;
mod pages;
mod progress;
mod query;
mod session;
mod shell;
mod storage;
mod task;
mod theme;
mod topology;
mod transfer;

use leptos::{mount::mount_to, prelude::*};
use wasm_bindgen::JsCast;
use wasm_bindgen_futures::spawn_local;

use components::{ToastRegion, Toasts, TransferRegion};
use live::Clock;
use session::{Session, Status};
use shell::Shell;
use theme::Theme;
use transfer::Transfers;

/// Takes the place of the page's placeholder.
pub fn mount() {
    std::panic::set_hook(Box::new(|panic| {
        web_sys::console::error_1(&panic.to_string().into());
        // The page's own markup has a sentence for this; nothing of this program can be relied upon any more.
        if let Some(root) = browser::document().document_element() {
            let _ = root.set_attribute("data-broken", "");
        }
    }));
    // Before anything can read or keep the address: it may hold an invitation's secret.
    let invitation = session::invitation_in(&browser::fragment());
    if invitation.is_some() {
        browser::clear_fragment();
    }
    let Some(root) = browser::document().get_element_by_id("app") else { return };
    root.set_inner_html("");
    mount_to(root.unchecked_into(), move || view! { <App invitation/> }).forget();
}

#[component]
fn App(invitation: Option<String>) -> impl IntoView {
    let session = Session::new();
    let toasts = Toasts::new();
    provide_context(session);
    provide_context(session.client);
    provide_context(toasts);
    let transfers = Transfers::new(toasts);
    provide_context(transfers);
    provide_context(Clock::start());
    provide_context(Theme::start());
    session.watch();
    spawn_local(session.open(invitation));
    Effect::new(move || {
        if let Some(remark) = session.remark.get() {
            toasts.tell(remark);
        }
    });
    // Which of the views it is; who is signed in may change without drawing the page anew.
    let view = Memo::new(move |_| match session.status.get() {
        Status::SignedIn(_) => Status::Opening,
        other => other,
    });
    let signed_in = Memo::new(move |_| matches!(session.status.get(), Status::SignedIn(_)));
    view! {
        {move || {
            if signed_in.get() {
                return view! { <Shell/> }.into_any();
            }
            match view.get() {
                Status::Opening | Status::SignedIn(_) => pages::sign_in::opening().into_any(),
                Status::Unsure(failure) => pages::sign_in::unsure(session, failure).into_any(),
                Status::SignedOut { notice } => view! { <pages::sign_in::SignIn notice/> }.into_any(),
            }
        }}
        <div class="corner">
            <TransferRegion transfers/>
            <ToastRegion toasts/>
        </div>
    }
}
