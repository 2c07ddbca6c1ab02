//! One service: how it is, what it says, what it was and what can be done with it.

mod actions;
mod elsewhere;
mod instances;
mod logs;
mod placements;
mod revisions;
mod specification;
mod volumes;

use std::time::Duration;

use flotilla_api::{ErrorCode, MachineName, rest::ServiceDetail};
use leptos::prelude::*;
use leptos_router::{components::A, hooks::use_params_map};

use crate::dashboard::{
    api::Client,
    components::{Ago, Empty, Glyph, Icon, Page, Prose, StateBadge, shown},
    fleet::refresh_on_change,
    format,
    live::Live,
    pages::services::{can_open, open_link},
    query::{Phase, Query},
};
use actions::Actions;
use elsewhere::Elsewhere;
use instances::Instances;
use logs::Logs;
use placements::Placements;
use revisions::Revisions;
use specification::Specification;
use volumes::Volumes;

/// For figures of CPU and memory; changes come with events.
const INTERVAL: Duration = Duration::from_secs(5);

#[component]
pub(crate) fn Service() -> impl IntoView {
    let params = use_params_map();
    let name = Memo::new(move |_| params.with(|params| params.get("name").unwrap_or_default()));
    // Another service is another page, though the route is the same.
    move || view! { <Named name=name.get()/> }
}

#[component]
fn Named(name: String) -> impl IntoView {
    let client = expect_context::<Client>();
    let live = expect_context::<Live>();
    let asked = name.clone();
    let service = Query::start(INTERVAL, move || {
        let name = asked.clone();
        async move { client.service(&name).await }
    });
    refresh_on_change(live, service);
    let detail = service.value();
    let failure = service.failure();
    // Also when it was here a moment ago: someone removed it.
    let gone = Memo::new(move |_| {
        failure
            .with(|failure| failure.as_ref().is_some_and(|failure| failure.code() == Some(ErrorCode::ServiceNotFound)))
    });
    let phase = service.phase();
    let badge =
        move || detail.with(|detail| detail.as_ref().map(|detail| view! { <StateBadge state=detail.view.state/> }));
    let lead = move || {
        detail
            .with(|detail| detail.as_ref()?.view.message.clone().map(|message| view! { <p><Prose text=message/></p> }))
    };
    let acts = {
        let name = name.clone();
        move || {
            (phase.get() == Phase::Ready && !gone.get()).then(|| {
                let opened = name.clone();
                let open = move || {
                    let detail = detail.get()?.view;
                    detail.url.filter(|_| can_open(detail.state)).map(|url| open_link(&opened, url, "button primary"))
                };
                let name = name.clone();
                view! {
                    {open}
                    <Actions name=name.clone() service/>
                }
            })
        }
    };
    let crumb = view! {
        <nav class="crumbs" aria-label="Breadcrumb">
            <A href="/">"Services"</A>
            <span aria-hidden="true">"/"</span>
        </nav>
    };
    let shown_name = name.clone();
    view! {
        {crumb}
        <Page title=name.clone() aside=badge.into_any() lead=lead.into_any() actions=acts.into_any()>
            {move || {
                if gone.get() {
                    return not_there(&shown_name).into_any();
                }
                let name = shown_name.clone();
                shown(service, 8, move |detail| view! { <Detail name=name.clone() detail service/> }.into_any())
            }}
        </Page>
    }
}

fn not_there(name: &str) -> impl IntoView + use<> {
    view! {
        <Empty icon=Icon::Question title=format!("There is no service {name}")>
            <p>"It may have been removed, or the name may be mistyped."</p>
            <A href="/" attr:class="button">"To the services"</A>
        </Empty>
    }
}

#[component]
fn Detail(name: String, detail: Signal<ServiceDetail>, service: Query<ServiceDetail>) -> impl IntoView {
    let logs = name.clone();
    view! {
        <Facts detail/>
        <div class="service-grid">
            <div class="service-main">
                <Instances detail/>
                <Placements detail/>
                <Elsewhere name=name.clone()/>
                <Logs name=logs/>
            </div>
            <div class="service-side">
                <Volumes name=name.clone() detail/>
                <Revisions name detail service/>
                <Specification detail/>
            </div>
        </div>
    }
}

fn machines_linked(machines: Vec<MachineName>) -> AnyView {
    if machines.is_empty() {
        return "–".into_any();
    }
    let links = machines.into_iter().map(|machine| {
        view! { <li><A href=format!("/machines/{machine}") attr:class="row-link">{machine.to_string()}</A></li> }
    });
    view! { <ul class="plain inline">{links.collect_view()}</ul> }.into_any()
}

#[component]
fn Facts(detail: Signal<ServiceDetail>) -> impl IntoView {
    move || {
        let service = detail.get().view;
        let unknown = service.state == flotilla_api::rest::ServiceState::Unknown;
        let mut machines: Vec<_> = service.instances.iter().map(|instance| instance.machine.clone()).collect();
        machines.extend(service.machine.clone());
        machines.sort();
        machines.dedup();
        view! {
            <dl class="facts card">
                <div>
                    <dt>{if machines.len() > 1 { "Machines" } else { "Machine" }}</dt>
                    <dd>{machines_linked(machines)}</dd>
                </div>
                <div>
                    <dt>"Image"</dt>
                    <dd class="break" title=service.image.clone()>{format::image(&service.image)}</dd>
                </div>
                <div>
                    <dt>"Revision"</dt>
                    <dd>{service.revision.to_string()}</dd>
                </div>
                <div>
                    <dt>"Stack"</dt>
                    <dd>{service.stack.to_string()}</dd>
                </div>
                <div>
                    <dt>"In this state since"</dt>
                    <dd><Ago at=service.since/></dd>
                </div>
                <div class:tone-warn=unknown>
                    <dt>"Last confirmed"</dt>
                    <dd>
                        {unknown.then(|| view! { <Glyph icon=Icon::Warning/> })}
                        <Ago at=service.observed_at/>
                    </dd>
                </div>
            </dl>
        }
    }
}
