//! One volume: what of it is safe, who has copies of it, what it was, and what was put aside.

mod acts;
mod branches;
mod compare;
mod copies;
mod difference;
mod facts;
mod history;
mod restore;

use std::time::Duration;

use flotilla_api::{
    ErrorCode,
    rest::{VolumeDetail, VolumeView},
};
use leptos::prelude::*;
use leptos_router::{components::A, hooks::use_params_map};

use crate::dashboard::{
    api::{Client, Failure},
    browser,
    components::{Empty, Glyph, Icon, Page, Prose, RiskWords, VolumeBadge, risk_of, risk_tone, shown},
    durability::Risk,
    fleet::refresh_on_change,
    live::Live,
    query::{Phase, Query},
};
use acts::{Acts, Dialogs};
use branches::Branches;
use copies::Copies;
use facts::Facts;
use history::History;

/// As in the list, but each answer asks every machine.
const INTERVAL: Duration = Duration::from_secs(5);

#[component]
pub(crate) fn Volume() -> impl IntoView {
    let params = use_params_map();
    let name = Memo::new(move |_| {
        params.with(|params| {
            let part = |name| params.get(name).unwrap_or_default();
            (part("service"), part("volume"))
        })
    });
    // Another volume is another page, though the route is the same.
    move || {
        let (service, volume) = name.get();
        view! { <Named service volume/> }
    }
}

#[component]
fn Named(service: String, volume: String) -> impl IntoView {
    let (client, live) = (expect_context::<Client>(), expect_context::<Live>());
    let title = format!("{service}/{volume}");
    let names = StoredValue::new((service.clone(), volume.clone()));
    let query = Query::start(INTERVAL, move || {
        let (service, volume) = (service.clone(), volume.clone());
        async move { client.volume(&service, &volume).await }
    });
    refresh_on_change(live, query);
    let (detail, failure, phase) = (query.value(), query.failure(), query.phase());
    // Also when it was here a moment ago: someone removed it, or its service.
    let gone = Memo::new(move |_| {
        let code = failure.with(|failure| failure.as_ref().and_then(Failure::code));
        matches!(code, Some(ErrorCode::VolumeNotFound | ErrorCode::ServiceNotFound))
    });
    let there = Memo::new(move |_| phase.get() == Phase::Ready && !gone.get());
    let badge = move || {
        there.get().then(|| {
            let first = detail.get_untracked()?.view;
            let volume = Signal::derive(move || detail.get().map_or_else(|| first.clone(), |detail| detail.view));
            Some(view! { <VolumeBadge volume/> })
        })
    };
    let message = Memo::new(move |_| detail.with(|detail| detail.as_ref()?.view.message.clone()));
    let lead = move || message.get().filter(|_| there.get()).map(|message| view! { <p><Prose text=message/></p> });
    let shown_name = title.clone();
    view! {
        <nav class="crumbs" aria-label="Breadcrumb">
            <A href="/volumes">"Volumes"</A>
            <span aria-hidden="true">"/"</span>
        </nav>
        <Page title aside=badge.into_any() lead=lead.into_any()>
            {move || {
                if gone.get() {
                    return not_there(&shown_name).into_any();
                }
                shown(query, 8, move |detail| view! { <Detail names=names.get_value() detail query/> }.into_any())
            }}
        </Page>
    }
}

fn not_there(name: &str) -> impl IntoView + use<> {
    view! {
        <Empty icon=Icon::Question title=format!("There is no volume {name}")>
            <p>"Its service may have been removed or no longer write it, or the name may be mistyped."</p>
            <A href="/volumes" attr:class="button">"To the volumes"</A>
        </Empty>
    }
}

#[component]
fn Detail(names: (String, String), detail: Signal<VolumeDetail>, query: Query<VolumeDetail>) -> impl IntoView {
    let (service, of) = names;
    let acts = Acts::new(service.clone(), of.clone());
    let newest = Memo::new(move |_| detail.with(|detail| detail.view.clone()));
    let volume = Signal::from(newest);
    view! {
        <AtRisk volume/>
        <Facts volume/>
        <div class="volume-parts">
            <Copies volume/>
            <Branches detail acts/>
            <History detail acts/>
        </div>
        <Dialogs acts service volume=of detail page=query/>
    }
}

/// What would be lost now, before anything else.
#[component]
fn AtRisk(volume: Signal<VolumeView>) -> impl IntoView {
    let risk = risk_of(volume);
    move || {
        risk.get().map(|risk| {
            let why = match risk {
                Risk::All => "No other machine has a copy that could be used.".into_any(),
                Risk::Since(since) => {
                    view! { "What was written since " {browser::local(since).time()} " is not committed yet." }
                        .into_any()
                }
            };
            view! {
                <div class=format!("banner tone-{}", risk_tone(risk)) role="status">
                    <Glyph icon=Icon::Warning/>
                    <p><strong><RiskWords volume risk/></strong> " " {why}</p>
                </div>
            }
        })
    }
}
