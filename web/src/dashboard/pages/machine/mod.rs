//! One machine: how it does, what it has, what runs there and why, and what can be done with it.

mod actions;
mod labels;
mod limit;
mod placed;
mod storage;

use std::{collections::BTreeMap, time::Duration};

use flotilla_api::{
    ErrorCode, MachineName, NodeId,
    rest::{EngineView, LinkState, LinkView, MachineDetail, MachineView, Power as Supply},
};
use leptos::prelude::*;
use leptos_router::{components::A, hooks::use_params_map};

use crate::dashboard::{
    api::Client,
    components::{Ago, ConditionBadge, ConditionReason, Empty, Glyph, Icon, Page, Prose, Section, role, shown},
    fleet::refresh_on_change,
    format,
    live::Live,
    pages::cluster::{Meters, link_table},
    query::{Phase, Query},
    topology::Edge,
};
use actions::Actions;
use labels::Labels;
use limit::Limit;
use placed::Placed;
pub(crate) use placed::phase;
use storage::Storage;

/// For figures; changes come with events.
const INTERVAL: Duration = Duration::from_secs(3);

/// Names of the other machines change rarely.
const NAMES_INTERVAL: Duration = Duration::from_secs(30);

#[component]
pub(crate) fn Machine() -> impl IntoView {
    let params = use_params_map();
    let name = Memo::new(move |_| params.with(|params| params.get("name").unwrap_or_default()));
    // Another machine is another page, though the route is the same.
    move || view! { <Named name=name.get()/> }
}

#[component]
fn Named(name: String) -> impl IntoView {
    let (client, live) = (expect_context::<Client>(), expect_context::<Live>());
    let asked = name.clone();
    let machine = Query::start(INTERVAL, move || {
        let name = asked.clone();
        async move { client.machine(&name).await }
    });
    refresh_on_change(live, machine);
    let (detail, failure, phase) = (machine.value(), machine.failure(), machine.phase());
    let gone = Memo::new(move |_| {
        failure
            .with(|failure| failure.as_ref().is_some_and(|failure| failure.code() == Some(ErrorCode::MachineNotFound)))
    });
    let there = Memo::new(move |_| phase.get() == Phase::Ready && !gone.get());
    let view = move || detail.get().map(|detail| detail.view);
    let badge = move || {
        there.get().then(|| {
            let first = view()?;
            let condition =
                Signal::derive(move || view().map_or_else(|| first.condition.clone(), |view| view.condition));
            Some(view! { <ConditionBadge condition/> })
        })
    };
    let actions = move || {
        there.get().then(|| {
            let first = view()?;
            let machine = Signal::derive(move || view().unwrap_or_else(|| first.clone()));
            Some(view! { <Actions machine/> })
        })
    };
    let shown_name = name.clone();
    view! {
        <nav class="crumbs" aria-label="Breadcrumb">
            <A href="/cluster">"Cluster"</A>
            <span aria-hidden="true">"/"</span>
        </nav>
        <Page title=name aside=badge.into_any() actions=actions.into_any()>
            {move || {
                if gone.get() {
                    return not_there(&shown_name).into_any();
                }
                shown(machine, 8, move |detail| view! { <Detail detail machine/> }.into_any())
            }}
        </Page>
    }
}

fn not_there(name: &str) -> impl IntoView + use<> {
    view! {
        <Empty icon=Icon::Question title=format!("There is no machine {name}")>
            <p>"It may have been removed or renamed, or the name may be mistyped."</p>
            <A href="/cluster" attr:class="button">"To the cluster"</A>
        </Empty>
    }
}

#[component]
fn Detail(detail: Signal<MachineDetail>, machine: Query<MachineDetail>) -> impl IntoView {
    let view = Signal::derive(move || detail.with(|detail| detail.view.clone()));
    let condition = Signal::derive(move || detail.with(|detail| detail.view.condition.clone()));
    let known = Memo::new(move |_| detail.with(|detail| detail.view.resources.is_some()));
    view! {
        <ConditionReason condition/>
        <Facts detail/>
        <div class="service-grid">
            <div class="service-main">
                <Placed detail/>
                <LinksOf detail/>
            </div>
            <div class="service-side">
                {move || {
                    known.get().then(|| {
                        view! {
                            <Section id="resources" title="Resources">
                                <div class="card padded"><Meters machine=view/></div>
                            </Section>
                        }
                    })
                }}
                <Storage machine=view changed=Callback::new(move |()| machine.refresh())/>
                <EngineOf detail/>
                <Limit machine=view changed=Callback::new(move |()| machine.refresh())/>
                <Labels machine=view changed=Callback::new(move |()| machine.refresh())/>
            </div>
        </div>
    }
}

#[component]
fn Facts(detail: Signal<MachineDetail>) -> impl IntoView {
    // Without the figures, which change all the time.
    let facts = Memo::new(move |_| {
        detail.with(|detail| {
            let view = &detail.view;
            let still = MachineView { resources: None, links: Vec::new(), lease_left_ms: None, ..view.clone() };
            (still, detail.losses.clone())
        })
    });
    move || {
        let (view, losses) = facts.get();
        let fact = |name: &'static str, value: AnyView| view! { <div><dt>{name}</dt><dd>{value}</dd></div> };
        let told = match (view.here, view.observed_at) {
            (true, _) => "Answers this page".into_any(),
            (false, Some(at)) => view! { <Ago at/> }.into_any(),
            (false, None) => "Nothing yet".into_any(),
        };
        let ago = |at: Option<flotilla_api::UnixMillis>| match at {
            Some(at) => view! { <Ago at/> }.into_any(),
            None => "–".into_any(),
        };
        let losses = losses.last().map(|last| {
            let count = format::counted(losses.len(), "time", "times");
            fact("Was lost", view! { {count} ", last " <Ago at=*last/> }.into_any())
        });
        let joined = match view.joined_at {
            Some(at) => view! { <Ago at/> }.into_any(),
            None => "Made the cluster".into_any(),
        };
        view! {
            <dl class="facts card">
                {fact("Role", role(&view).into_any())}
                {fact("In this state since", ago(Some(view.condition.since)))}
                {fact("Power", if view.power == Supply::Battery { "Battery" } else { "Mains" }.into_any())}
                {fact("Addresses", if view.addresses.is_empty() { "–".to_owned() } else { view.addresses.join(", ") }.into_any())}
                {fact("Flotilla", view.version.into_any())}
                {fact("Started", ago(view.started_at))}
                {fact("Joined", joined)}
                {fact("Told of itself", told)}
                {losses}
                {fact("Node id", view! { <code class="break">{view.id.to_string()}</code> }.into_any())}
            </dl>
        }
    }
}

#[component]
fn EngineOf(detail: Signal<MachineDetail>) -> impl IntoView {
    let engine = Memo::new(move |_| detail.with(|detail| detail.view.engine.clone()));
    let content = move || match engine.get() {
        Some(EngineView::Ready { version, api_version, operating_system }) => view! {
            <p class="engine">
                <span class="badge tone-good"><Glyph icon=Icon::Check/>"Ready"</span>
                <span>"Docker Engine " {version} ", API " {api_version} ", on " {operating_system}</span>
            </p>
        }
        .into_any(),
        Some(EngineView::Unavailable { message, since }) => view! {
            <div class="engine banner tone-bad" role="status">
                <Glyph icon=Icon::Warning/>
                <p>
                    <strong>"The engine does not answer."</strong> " " <Prose text=message/> " "
                    <span class="faint">"Since " <Ago at=since/> "."</span>
                </p>
            </div>
        }
        .into_any(),
        None => view! { <p class="faint">"It has not told yet."</p> }.into_any(),
    };
    view! { <Section id="engine" title="Engine">{content}</Section> }
}

#[component]
fn LinksOf(detail: Signal<MachineDetail>) -> impl IntoView {
    let client = expect_context::<Client>();
    let machines = Query::start(NAMES_INTERVAL, move || async move { client.machines().await });
    let all = machines.value();
    let names = Memo::new(move |_| {
        let machines = all.get().unwrap_or_default();
        machines.into_iter().map(|machine| (machine.id, machine.name)).collect::<BTreeMap<NodeId, MachineName>>()
    });
    let links = Memo::new(move |_| detail.with(|detail| detail.view.links.clone()));
    let table = move || {
        let links = links.get();
        if links.is_empty() {
            return view! { <p class="faint none">"None: there is no other machine, or it has told of none yet."</p> }
                .into_any();
        }
        let names = names.get();
        let rows = links.iter().map(|link| {
            let name = names.get(&link.peer).map_or_else(|| link.peer.to_string(), ToString::to_string);
            (name, edge(link))
        });
        link_table(rows.collect(), "To").into_any()
    };
    view! { <Section id="links" title="Links">{table}</Section> }
}

/// As this machine alone sees it.
fn edge(link: &LinkView) -> Edge {
    let up = link.state == LinkState::Up;
    Edge {
        ends: (0, 0),
        state: link.state,
        path: link.path.filter(|_| up),
        rtt_ms: link.rtt_ms.filter(|_| up),
        jitter_ms: link.jitter_ms.filter(|_| up),
        loss: link.loss.filter(|_| up),
        per_second: link.sent_per_second + link.received_per_second,
        since: link.since,
    }
}
