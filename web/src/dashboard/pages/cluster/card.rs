use flotilla_api::rest::{MachineResources, MachineView};
use leptos::prelude::*;
use leptos_router::components::A;

use super::{Power, Turn};
use crate::dashboard::{
    components::{Ago, ConditionBadge, ConditionReason, Glyph, Icon, Meter, role},
    format,
    shell::You,
    storage,
};

/// One machine in short; its page has the rest.
#[component]
pub(super) fn Card(machine: Signal<MachineView>) -> impl IntoView {
    let you = expect_context::<You>();
    let name = Memo::new(move |_| machine.with(|machine| machine.name.to_string()));
    let condition = Signal::derive(move || machine.with(|machine| machine.condition.clone()));
    let chips = Memo::new(move |_| machine.with(chips));
    let known = Memo::new(move |_| machine.with(|machine| machine.resources.is_some()));
    let stores = Memo::new(move |_| machine.with(|machine| machine.storage_only));
    let trouble = Memo::new(move |_| machine.with(engine_trouble));
    let told = Memo::new(move |_| machine.with(|machine| (machine.here, machine.observed_at)));
    view! {
        <li class="card machine" data-machine=name>
            <header class="card-head">
                <Glyph icon=Icon::Machine/>
                <h2>
                    {move || {
                        let name = name.get();
                        view! { <A href=format!("/machines/{name}") attr:class="row-link">{name.clone()}</A> }
                    }}
                </h2>
                <ConditionBadge condition/>
            </header>
            <ConditionReason condition/>
            <ul class="chips" aria-label="Role and labels">
                {move || chips.get().into_iter().map(|chip| view! { <li class="chip">{chip}</li> }).collect_view()}
            </ul>
            {move || known.get().then(|| view! { <Meters machine/> })}
            {move || {
                trouble.get().map(|trouble| {
                    view! { <p class="machine-trouble tone-bad"><Glyph icon=Icon::Warning/><span>{trouble}</span></p> }
                })
            }}
            <footer class="machine-foot">
                <span class="faint">
                    {move || match told.get() {
                        (true, _) => "Answers this page".into_any(),
                        (false, Some(at)) => view! { "Told " <Ago at/> }.into_any(),
                        (false, None) => "Has told nothing yet".into_any(),
                    }}
                </span>
                <span class="machine-acts">
                    <Power machine/>
                    {move || (you.operates() && !stores.get()).then(|| view! { <Turn machine small=true/> })}
                </span>
            </footer>
        </li>
    }
}

fn chips(machine: &MachineView) -> Vec<String> {
    let instances = format::counted(machine.instances as usize, "instance", "instances");
    let labels = machine.labels.iter().map(|(name, value)| format!("{name}={value}"));
    let instances = (!machine.storage_only).then_some(instances);
    [role(machine).to_owned()].into_iter().chain(instances).chain(labels).collect()
}

fn engine_trouble(machine: &MachineView) -> Option<String> {
    // What only stores needs none.
    match machine.engine.as_ref().filter(|_| !machine.storage_only)? {
        flotilla_api::rest::EngineView::Ready { .. } => None,
        flotilla_api::rest::EngineView::Unavailable { message, .. } => Some(message.clone()),
    }
}

/// CPU, memory and disk, as bars with their figures.
#[component]
pub(crate) fn Meters(machine: Signal<MachineView>) -> impl IntoView {
    let resources = Memo::new(move |_| machine.with(|machine| machine.resources.clone().unwrap_or_default()));
    let of = move |figure: fn(&MachineResources) -> f64| Signal::derive(move || resources.with(figure));
    let words = move |figure: fn(&MachineResources) -> String| Signal::derive(move || resources.with(figure));
    view! {
        <div class="meters">
            <Meter
                label="CPU"
                share=of(|resources| resources.cpu_used)
                detail=words(|resources| {
                    let used = resources.cpu_used * f64::from(resources.cpu_cores);
                    format!("{} of {} in use", format::cores(used), resources.cpu_cores)
                })
            />
            <Meter
                label="Memory"
                share=of(|resources| format::share(resources.memory_used_bytes, resources.memory_total_bytes))
                detail=words(|resources| used_of(resources.memory_used_bytes, resources.memory_total_bytes))
            />
            <Meter
                label="Disk"
                share=of(|resources| format::share(disk_used(resources), resources.disk_total_bytes))
                detail=words(storage::words)
            />
        </div>
    }
}

fn disk_used(resources: &MachineResources) -> u64 {
    resources.disk_total_bytes.saturating_sub(resources.disk_free_bytes)
}

fn used_of(used: u64, total: u64) -> String {
    format!("{} of {}", format::bytes(used), format::bytes(total))
}
