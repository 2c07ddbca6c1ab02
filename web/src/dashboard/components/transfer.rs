use leptos::prelude::*;

use super::{Glyph, Icon};
use crate::dashboard::{
    format,
    pace::Pace,
    transfer::{Transfer, Transfers},
};

/// What is on its way from the node into a file: how far, how fast, and for how long still.
#[component]
pub(crate) fn TransferRegion(transfers: Transfers) -> impl IntoView {
    let any = Memo::new(move |_| transfers.shown.with(|shown| !shown.is_empty()));
    move || {
        any.get().then(|| {
            view! {
                <section aria-label="Downloads">
                    <ul class="transfers">
                        <For each=move || transfers.shown.get() key=|transfer| transfer.number children=one/>
                    </ul>
                </section>
            }
        })
    }
}

fn one(transfer: Transfer) -> impl IntoView {
    let (name, about, pace) = (transfer.name.clone(), transfer.about, transfer.pace.clone());
    let words = {
        let pace = pace.clone();
        move || pace.with(|pace| pace.words(about))
    };
    // The estimate may be too low; it is whole when it is gone from here.
    let share = Memo::new(move |_| format::share(pace.with(Pace::done), about).min(0.99));
    let percent = move || format!("{:.0}", share.get() * 100.0);
    let label = format!("Cancel the download of {name}");
    view! {
        <li class="transfer">
            <Glyph icon=Icon::Download/>
            <div class="transfer-text">
                <p class="break">{name.clone()}</p>
                <div
                    class="meter-track"
                    role="progressbar"
                    aria-label=name
                    aria-valuemin="0"
                    aria-valuemax="100"
                    aria-valuenow=percent
                >
                    <div class="meter-fill" style:width=move || format!("{:.1}%", share.get() * 100.0)></div>
                </div>
                <p class="faint number">{words}</p>
            </div>
            <button class="button quiet square" aria-label=label on:click=move |_| transfer.cancel()>
                <Glyph icon=Icon::Cross/>
            </button>
        </li>
    }
}
