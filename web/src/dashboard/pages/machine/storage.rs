use flotilla_api::rest::{MachineResources, MachineView};
use leptos::prelude::*;

use crate::dashboard::{
    components::Section,
    format,
    storage::{self, Part},
};

/// The disk that holds the node's data, and what volumes take up of it. Nothing where a machine has not measured it.
#[component]
pub(super) fn Storage(machine: Signal<MachineView>) -> impl IntoView {
    let resources = Memo::new(move |_| {
        machine.with(|machine| {
            // Without the figures, which change all the time.
            machine.resources.as_ref().map(|resources| MachineResources {
                disk_total_bytes: resources.disk_total_bytes,
                disk_free_bytes: resources.disk_free_bytes,
                storage: resources.storage,
                ..MachineResources::default()
            })
        })
    });
    let parts =
        Memo::new(move |_| resources.with(|resources| resources.as_ref().map(storage::parts).unwrap_or_default()));
    move || {
        let parts = parts.get();
        (!parts.is_empty()).then(|| {
            let bar = parts.iter().map(|part| {
                let width = format!("{:.2}%", storage::width(part, &parts));
                view! { <span class=format!("storage-{}", part.class) style:width=width></span> }
            });
            let bar = bar.collect_view();
            let lead = resources.with(|resources| resources.as_ref().map(storage::words));
            view! {
                <Section id="storage" title="Storage">
                    <div class="card padded storage">
                        <p>{lead}</p>
                        <div class="storage-bar" aria-hidden="true">{bar}</div>
                        <dl class="storage-parts">{parts.into_iter().map(row).collect_view()}</dl>
                    </div>
                </Section>
            }
        })
    }
}

fn row(part: Part) -> impl IntoView {
    let Part { name, meaning, class, bytes } = part;
    view! {
        <div class="storage-part">
            <dt>
                <span class=format!("storage-key storage-{class}") aria-hidden="true"></span>
                <span>{name}</span>
                <span class="faint">{meaning}</span>
            </dt>
            <dd class="number">{format::bytes(bytes)}</dd>
        </div>
    }
}
