use flotilla_api::{MachineName, rest::VolumeView};
use leptos::prelude::*;
use leptos_router::components::A;

use crate::dashboard::{
    browser,
    components::{Ago, Glyph, Icon},
    durability, format,
};

/// Each fact for itself: some change with every answer, and a link keeps the focus meanwhile.
#[component]
pub(super) fn Facts(volume: Signal<VolumeView>) -> impl IntoView {
    let service = volume.with_untracked(|volume| volume.service.to_string());
    let machine = Memo::new(move |_| volume.with(|volume| volume.machine.clone()));
    let size = Memo::new(move |_| volume.with(|volume| volume.bytes.map(format::bytes)));
    let asked_for = Memo::new(move |_| volume.with(|volume| durability::asked_for(volume.replicas, volume.sync)));
    let encrypted = Memo::new(move |_| volume.with(|volume| volume.encrypted));
    let history = Memo::new(move |_| volume.with(|volume| volume.history.to_string()));
    let committed = Memo::new(move |_| volume.with(|volume| volume.committed.clone()));
    let uncommitted = Memo::new(move |_| volume.with(|volume| volume.uncommitted_since));
    let held = Memo::new(move |_| volume.with(|volume| volume.held_ms));
    let told = Memo::new(move |_| volume.with(|volume| volume.observed_at));
    let has_told = Memo::new(move |_| told.with(Option::is_some));
    let fact = |name: &'static str, value: AnyView| view! { <div><dt>{name}</dt><dd>{value}</dd></div> };
    let written_on = move || machine.get().map_or_else(|| "–".into_any(), machine_link);
    let committed = move || match committed.get() {
        Some(it) => view! { <code>{it.generation}</code> ", " <Ago at=it.taken_at/> }.into_any(),
        None => "Nothing yet".into_any(),
    };
    let since = move || match uncommitted.get() {
        Some(since) => view! { "Since " {browser::local(since).time()} ", " <Ago at=since/> }.into_any(),
        None if has_told.get() => "Nothing".into_any(),
        None => "Not known".into_any(),
    };
    let held =
        move || held.get().map_or_else(|| "–".to_owned(), |held| format!("{} for the newest", durability::pause(held)));
    let untold = move || (!has_told.get()).then(|| view! { <Glyph icon=Icon::Warning/> });
    let told = move || match told.get() {
        Some(at) => view! { <Ago at/> }.into_any(),
        None => "Nothing".into_any(),
    };
    view! {
        <dl class="facts card">
            {fact("Written by", view! { <A href=format!("/services/{service}") attr:class="row-link">{service.clone()}</A> }.into_any())}
            {fact("Written on", written_on.into_any())}
            {fact("Size", (move || size.get().unwrap_or_else(|| "–".to_owned())).into_any())}
            {fact("Copies asked for", (move || asked_for.get()).into_any())}
            {fact("Encrypted", (move || durability::encryption(encrypted.get())).into_any())}
            {fact("History kept", (move || history.get()).into_any())}
            {fact("Committed", committed.into_any())}
            {fact("Not committed yet", since.into_any())}
            {fact("Stood still", held.into_any())}
            <div class:tone-warn=move || !has_told.get()>
                <dt>"Its machine told"</dt>
                <dd>{untold} {told}</dd>
            </div>
        </dl>
    }
}

pub(super) fn machine_link(machine: MachineName) -> AnyView {
    view! { <A href=format!("/machines/{machine}") attr:class="row-link">{machine.to_string()}</A> }.into_any()
}
