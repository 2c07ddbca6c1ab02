//! What every list of volumes says of one.

use flotilla_api::rest::{VolumeState, VolumeView};
use leptos::prelude::*;

use super::{Glyph, Icon, Prose, state::badge};
use crate::dashboard::{
    api::Client,
    browser,
    durability::{Risk, Standing, behind},
    format,
    live::Clock,
};

/// What a volume's state is called, drawn as and coloured like: three ways, so that none of them is needed.
fn volume_appearance(state: VolumeState) -> (Icon, &'static str, &'static str) {
    match state {
        VolumeState::Copied => (Icon::Check, "Copied", "good"),
        VolumeState::Copying => (Icon::Copy, "Copying", "warn"),
        VolumeState::Alone => (Icon::Warning, "Alone", "bad"),
        VolumeState::Empty => (Icon::Volume, "Empty", "calm"),
    }
}

/// The same of one copy.
pub(crate) fn copy_appearance(standing: Standing) -> (Icon, &'static str, &'static str) {
    match standing {
        Standing::Copied => (Icon::Check, "Copied", "good"),
        Standing::Copying => (Icon::Copy, "Copying", "warn"),
        Standing::Lost => (Icon::Lost, "Lost", "bad"),
        Standing::Waiting => (Icon::Starting, "Waiting", "calm"),
    }
}

#[component]
pub(crate) fn VolumeBadge(#[prop(into)] volume: Signal<VolumeView>) -> impl IntoView {
    let state = Memo::new(move |_| volume.with(|volume| volume.state));
    move || {
        let state = state.get();
        badge(volume_appearance(state), state.as_str())
    }
}

/// Why a volume is in its state, where that alone does not tell.
#[component]
pub(crate) fn VolumeReason(#[prop(into)] volume: Signal<VolumeView>) -> impl IntoView {
    let message = Memo::new(move |_| volume.with(|volume| volume.message.clone()));
    move || message.get().map(|message| view! { <p class="row-message"><Prose text=message/></p> })
}

/// What its machine's loss would take, as it is now.
pub(crate) fn risk_of(volume: Signal<VolumeView>) -> Memo<Option<Risk>> {
    let (clock, client) = (expect_context::<Clock>(), expect_context::<Client>());
    Memo::new(move |_| volume.with(|volume| Risk::of(volume, client.node_time(clock.now()))))
}

/// "The last 12 s would be lost with atlas.", which goes on by itself.
#[component]
pub(crate) fn RiskWords(volume: Signal<VolumeView>, risk: Risk) -> impl IntoView {
    let (clock, client) = (expect_context::<Clock>(), expect_context::<Client>());
    let machine = Memo::new(move |_| volume.with(|volume| volume.machine.clone()));
    let machine = move || machine.get().map_or_else(|| "its machine".to_owned(), |machine| machine.to_string());
    match risk {
        Risk::All => view! { "All of it would be lost with " {machine} "." }.into_any(),
        Risk::Since(since) => {
            let elapsed = Memo::new(move |_| format::duration(client.node_time(clock.now()).since(since)));
            let title = format!("Since {}", browser::local(since).full());
            // A screen reader hears of it once, not of each second.
            view! { "The last " <span class="number" aria-live="off" title=title>{elapsed}</span> " would be lost with " {machine} "." }
                .into_any()
        }
    }
}

/// The same on a line of its own, while there is something to say.
#[component]
pub(crate) fn RiskLine(#[prop(into)] volume: Signal<VolumeView>) -> impl IntoView {
    let risk = risk_of(volume);
    move || {
        risk.get().map(|risk| {
            let tone = risk_tone(risk);
            view! {
                <p class=format!("risk tone-{tone}")>
                    <Glyph icon=Icon::Warning/>
                    <span><RiskWords volume risk/></span>
                </p>
            }
        })
    }
}

pub(crate) fn risk_tone(risk: Risk) -> &'static str {
    match risk {
        Risk::All => "bad",
        Risk::Since(_) => "warn",
    }
}

/// The machines that have a copy or shall have one, each with what it lacks.
#[component]
pub(crate) fn CopyChips(#[prop(into)] volume: Signal<VolumeView>) -> impl IntoView {
    let copies = Memo::new(move |_| {
        volume.with(|volume| {
            let told = volume
                .copies
                .iter()
                .map(|copy| (copy.machine.to_string(), Standing::of(copy, volume.state), behind(copy)));
            told.collect::<Vec<_>>()
        })
    });
    move || {
        let copies = copies.get();
        if copies.is_empty() {
            return view! { <span class="faint">"None"</span> }.into_any();
        }
        let items = copies.into_iter().map(|(machine, standing, behind)| {
            let (icon, name, tone) = copy_appearance(standing);
            // That a copy is well is the rule, and said by its icon to those who see it.
            let word = match standing {
                Standing::Copied => view! { <span class="unseen">{name}</span> }.into_any(),
                _ => view! { <span class="copy-word">{name.to_lowercase()}</span> }.into_any(),
            };
            view! {
                <li class=format!("copy tone-{tone}")>
                    <Glyph icon/>
                    <span class="copy-name">{machine}</span>
                    {word}
                    {behind.map(|behind| view! { <span class="faint">{behind}</span> })}
                </li>
            }
        });
        view! { <ul class="copies">{items.collect_view()}</ul> }.into_any()
    }
}
