use flotilla_api::UnixMillis;
use leptos::prelude::*;

use crate::dashboard::{api::Client, browser, format, live::Clock};

/// "3 min ago", which goes on by itself; the exact moment on hover and for programs.
#[component]
pub(crate) fn Ago(at: UnixMillis) -> impl IntoView {
    moment(at, format::age)
}

/// "in 7 d".
#[component]
pub(crate) fn Until(at: UnixMillis) -> impl IntoView {
    moment(at, format::expiry)
}

fn moment(at: UnixMillis, words: fn(UnixMillis, UnixMillis) -> String) -> impl IntoView {
    let (clock, client) = (expect_context::<Clock>(), expect_context::<Client>());
    // Compared before it is drawn: most ticks change nothing.
    let text = Memo::new(move |_| words(client.node_time(clock.now()), at));
    view! {
        <time datetime=format::Moment::new(at, 0).iso() title=browser::local(at).full()>
            {text}
        </time>
    }
}
