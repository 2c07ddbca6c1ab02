use flotilla_api::rest::{ServiceState, ServiceView};
use leptos::prelude::*;
use leptos_router::components::A;

use crate::dashboard::{
    components::{Ago, Empty, Filter, Glyph, Icon, Page, Prose, StateBadge, shown},
    fleet::Fleet,
    format,
    shell::You,
};

/// With fewer services a filter is in the way.
const FILTER_FROM: usize = 8;

#[component]
pub(crate) fn Services() -> impl IntoView {
    let fleet = expect_context::<Fleet>();
    let you = expect_context::<You>();
    let value = fleet.services.value();
    let lead = move || {
        value.with(|services| {
            services.as_ref().filter(|services| !services.is_empty()).map(|services| summary(services))
        })
    };
    let deploy = move || {
        you.operates().then(|| {
            view! {
                <A href="/deploy" attr:class="button primary">
                    <Glyph icon=Icon::Deploy/>
                    "Deploy"
                </A>
            }
        })
    };
    view! {
        <Page title="Services" lead=lead.into_any() actions=deploy.into_any()>
            {shown(fleet.services, 5, |services| view! { <List services/> }.into_any())}
        </Page>
    }
}

/// "5 services: 4 running, 1 failed"
fn summary(services: &[ServiceView]) -> String {
    use ServiceState::{Completed, Failed, Restarting, Running, Starting, Stopped, Unhealthy, Unknown};
    let counts: Vec<_> = [Running, Starting, Unhealthy, Restarting, Failed, Completed, Stopped, Unknown]
        .into_iter()
        .map(|state| (services.iter().filter(|service| service.state == state).count(), state.as_str()))
        .filter(|(count, _)| *count > 0)
        .map(|(count, state)| format!("{count} {state}"))
        .collect();
    format!("{}: {}", format::counted(services.len(), "service", "services"), counts.join(", "))
}

#[component]
fn List(services: Signal<Vec<ServiceView>>) -> impl IntoView {
    let you = expect_context::<You>();
    let filter = RwSignal::new(String::new());
    let many = Memo::new(move |_| services.with(Vec::len) >= FILTER_FROM);
    let empty = Memo::new(move |_| services.with(Vec::is_empty));
    let rows = move || {
        let filter = filter.get().trim().to_lowercase();
        let mut services = services.get();
        services.retain(|service| matches(service, &filter));
        services.sort_by(|a, b| a.service.cmp(&b.service));
        services
    };
    let filter_field = move || {
        many.get().then(|| {
            view! {
                <Filter value=filter label="Filter services" hint="Filter by name, image, machine or state"/>
            }
        })
    };
    let none = move || rows().is_empty().then(|| view! { <p class="faint none">"No service matches the filter."</p> });
    view! {
        {filter_field}
        {move || {
            if empty.get() {
                return nothing_yet(you).into_any();
            }
            view! {
                // Roles are given because the table becomes a list of cards on a narrow screen.
                <table class="table services" role="table" aria-label="Services">
                    <thead role="rowgroup">
                        <tr role="row">
                            <th role="columnheader" scope="col">"Service"</th>
                            <th role="columnheader" scope="col">"State"</th>
                            <th role="columnheader" scope="col">"Machine"</th>
                            <th role="columnheader" scope="col">"Image"</th>
                            <th role="columnheader" scope="col">"Since"</th>
                            <th role="columnheader" scope="col"><span class="unseen">"Open"</span></th>
                        </tr>
                    </thead>
                    <tbody role="rowgroup">{move || rows().into_iter().map(|service| row(service, you.operates())).collect_view()}</tbody>
                </table>
                {none}
            }
                .into_any()
        }}
    }
}

fn matches(service: &ServiceView, filter: &str) -> bool {
    let machine = service.machine.as_ref().map_or("", AsRef::as_ref);
    [service.service.as_str(), service.stack.as_str(), machine, service.state.as_str()]
        .iter()
        .any(|text| text.contains(filter))
        || service.image.to_lowercase().contains(filter)
}

fn row(service: ServiceView, operates: bool) -> impl IntoView {
    let name = service.service.to_string();
    let row_name = name.clone();
    // The service's own page is for those who may change it.
    let title = if operates {
        let (page, name) = (format!("/services/{name}"), name.clone());
        view! { <A href=page attr:class="row-link">{name}</A> }.into_any()
    } else {
        view! { <strong>{name.clone()}</strong> }.into_any()
    };
    let stack = (service.stack.as_str() != name)
        .then(|| view! { <span class="faint">"in " {service.stack.to_string()}</span> });
    let replicas = (service.replicas > 1).then(
        || view! { <span class="faint">{format::counted(service.replicas as usize, "instance", "instances")}</span> },
    );
    let machines = machines(&service);
    let open = service.url.clone().filter(|_| can_open(service.state)).map(|url| open_link(&name, url, "button"));
    view! {
        <tr role="row" data-service=row_name>
            <th role="rowheader" scope="row" class="cell-name">
                {title}
                {stack}
                {replicas}
            </th>
            <td role="cell" class="cell-state">
                <StateBadge state=service.state/>
                {service.message.map(|message| view! { <p class="row-message"><Prose text=message/></p> })}
            </td>
            <td role="cell" class="cell-machine">
                {machines}
            </td>
            <td role="cell" class="cell-image">
                <span class="image" title=service.image.clone()>{format::image(&service.image)}</span>
                <span class="faint">"revision " {service.revision.to_string()}</span>
            </td>
            <td role="cell" class="cell-since faint"><Ago at=service.since/></td>
            <td role="cell" class="cell-open">{open}</td>
        </tr>
    }
}

/// "atlas", "atlas, boreas", "4 machines"
fn machines(service: &ServiceView) -> String {
    const NAMED_MAX: usize = 2;
    let mut names: Vec<&str> = service.instances.iter().map(|instance| instance.machine.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    match names.len() {
        0 => service.machine.as_ref().map_or_else(|| "–".to_owned(), ToString::to_string),
        1..=NAMED_MAX => names.join(", "),
        many => format!("{many} machines"),
    }
}

/// Something may answer, or will soon.
pub(crate) fn can_open(state: ServiceState) -> bool {
    !matches!(state, ServiceState::Failed | ServiceState::Completed | ServiceState::Stopped)
}

/// A service's page opens in a tab of its own: the dashboard stays.
pub(crate) fn open_link(name: &str, url: String, class: &'static str) -> impl IntoView + use<> {
    view! {
        <a class=class href=url target="_blank" rel="noopener">
            "Open"
            <span class="unseen">" " {name.to_owned()} " in a new tab"</span>
            <Glyph icon=Icon::Open/>
        </a>
    }
}

fn nothing_yet(you: You) -> impl IntoView {
    view! {
        <Empty icon=Icon::Services title="No services yet">
            {move || {
                if you.operates() {
                    view! {
                        <p>"Paste or drop a compose file, and Flotilla runs it on this cluster."</p>
                        <A href="/deploy" attr:class="button primary">
                            <Glyph icon=Icon::Deploy/>
                            "Deploy a service"
                        </A>
                        <p class="faint">"Or from a terminal:"</p>
                        <pre class="command"><code>"flotilla deploy -f compose.yaml --wait"</code></pre>
                    }
                        .into_any()
                } else {
                    view! { <p>"Once somebody shares a service with you, it is here."</p> }.into_any()
                }
            }}
        </Empty>
    }
}
