use std::time::Duration;

use flotilla_api::rest::{EngineView, MachineView};
use leptos::prelude::*;

use crate::dashboard::{
    api::Client,
    components::{Ago, Empty, Glyph, Icon, Meter, Page, Prose, shown},
    fleet::Fleet,
    format,
    query::Query,
};

/// Figures move; this is quick enough to watch them, and cheap.
const INTERVAL: Duration = Duration::from_secs(5);

#[component]
pub(crate) fn Machines() -> impl IntoView {
    let client = expect_context::<Client>();
    let fleet = expect_context::<Fleet>();
    let machines = Query::start(INTERVAL, move || async move { client.machines().await });
    let cluster = fleet.cluster.value();
    let alone =
        Memo::new(move |_| cluster.with(|cluster| cluster.as_ref().is_some_and(|cluster| !cluster.fault_tolerant)));
    let note = move || {
        alone.get().then(|| {
            view! {
                <div class="banner tone-calm">
                    <Glyph icon=Icon::Warning/>
                    <p>
                        <strong>"This cluster is not fault tolerant."</strong>
                        " Services stop when their machine does. With three machines or more, the others would take over."
                    </p>
                </div>
            }
        })
    };
    view! {
        <Page title="Machines">
            {note}
            {shown(machines, 6, |machines| view! { <List machines/> }.into_any())}
        </Page>
    }
}

#[component]
fn List(machines: Signal<Vec<MachineView>>) -> impl IntoView {
    move || {
        let machines = machines.get();
        if machines.is_empty() {
            return view! {
                <Empty icon=Icon::Machine title="No machines">
                    <p>"The node has not told of any machine yet."</p>
                </Empty>
            }
            .into_any();
        }
        view! { <ul class="cards">{machines.into_iter().map(card).collect_view()}</ul> }.into_any()
    }
}

fn card(machine: MachineView) -> impl IntoView {
    let resources = machine.resources;
    let disk_used = resources.disk_total_bytes.saturating_sub(resources.disk_free_bytes);
    let cores_used = resources.cpu_used * f64::from(resources.cpu_cores);
    let cpu = format!("{} of {} in use", format::cores(cores_used), resources.cpu_cores);
    let memory = used_of(resources.memory_used_bytes, resources.memory_total_bytes);
    let disk = format!(
        "{}, {} free",
        used_of(disk_used, resources.disk_total_bytes),
        format::bytes(resources.disk_free_bytes)
    );
    let labels = (!machine.labels.is_empty()).then(|| {
        let labels = machine.labels.into_iter().map(|(name, value)| view! { <li class="chip">{name} "=" {value}</li> });
        view! { <ul class="chips" aria-label="Labels">{labels.collect_view()}</ul> }
    });
    view! {
        <li class="card machine">
            <header class="card-head">
                <Glyph icon=Icon::Machine/>
                <h2>{machine.name.to_string()}</h2>
                <span class="faint">{format::counted(machine.instances as usize, "instance", "instances")}</span>
            </header>
            {labels}
            <div class="meters">
                <Meter label="CPU" share=resources.cpu_used detail=cpu/>
                <Meter
                    label="Memory"
                    share=format::share(resources.memory_used_bytes, resources.memory_total_bytes)
                    detail=memory
                />
                <Meter label="Disk" share=format::share(disk_used, resources.disk_total_bytes) detail=disk/>
            </div>
            {engine(machine.engine)}
            <dl class="facts">
                <div>
                    <dt>"Flotilla"</dt>
                    <dd>{machine.version}</dd>
                </div>
                <div>
                    <dt>"Started"</dt>
                    <dd><Ago at=machine.started_at/></dd>
                </div>
                <div>
                    <dt>"Figures from"</dt>
                    <dd><Ago at=machine.observed_at/></dd>
                </div>
                <div>
                    <dt>"Node id"</dt>
                    <dd><code class="break">{machine.id.to_string()}</code></dd>
                </div>
            </dl>
        </li>
    }
}

fn used_of(used: u64, total: u64) -> String {
    format!("{} of {}", format::bytes(used), format::bytes(total))
}

fn engine(engine: EngineView) -> AnyView {
    match engine {
        EngineView::Ready { version, api_version, operating_system } => view! {
            <p class="engine">
                <span class="badge tone-good"><Glyph icon=Icon::Check/>"Engine ready"</span>
                <span>"Docker Engine " {version} ", API " {api_version} ", on " {operating_system}</span>
            </p>
        }
        .into_any(),
        EngineView::Unavailable { message, since } => view! {
            <div class="engine banner tone-bad" role="status">
                <Glyph icon=Icon::Warning/>
                <p>
                    <strong>"The engine does not answer."</strong> " " <Prose text=message/> " "
                    <span class="faint">"Since " <Ago at=since/> "."</span>
                </p>
            </div>
        }
        .into_any(),
    }
}
