use flotilla_api::rest::{MachineResources, MachineView, ScrubView};
use leptos::prelude::*;

use crate::dashboard::{
    api::Client,
    components::{Act, Ago, Glyph, Icon, Refusal, Section},
    format,
    shell::You,
    storage::{self, Part, Scrubbed},
};

/// The disk that holds the node's data, and what volumes take up of it. Nothing where a machine has not measured it.
#[component]
pub(super) fn Storage(machine: Signal<MachineView>, changed: Callback<()>) -> impl IntoView {
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
                        <Scrub machine changed/>
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

/// When all of it was read last, and a button that has it read now. Nothing of a machine of an older version.
#[component]
fn Scrub(machine: Signal<MachineView>, changed: Callback<()>) -> impl IntoView {
    let (client, you, act) = (expect_context::<Client>(), expect_context::<You>(), Act::in_dialog());
    let scrub = Memo::new(move |_| machine.with(|machine| machine.resources.as_ref().and_then(|it| it.scrub)));
    let begin = move |_| {
        let name = machine.with_untracked(|machine| machine.name.to_string());
        act.run(async move { client.scrub(&name).await }, move |_, _| {
            changed.try_run(());
        });
    };
    let button = move |view: ScrubView| {
        let asked = view.running.is_some_and(|running| running.asked);
        (you.operates() && !asked).then(|| {
            view! {
                <button class="button small" disabled=act.busy on:click=begin>"Read it all now"</button>
            }
        })
    };
    move || {
        scrub.get().map(|view| {
            let last = match Scrubbed::of(&view) {
                Scrubbed::Never => view! { <p class="faint">"It was not read as a whole yet."</p> }.into_any(),
                Scrubbed::Well(at, result) => {
                    view! { <p class="faint">"All of it was read " <Ago at/> ": " {result} "."</p> }.into_any()
                }
                Scrubbed::Damaged(at, result) => view! {
                    <p class="field-error">
                        <Glyph icon=Icon::Warning/>
                        <span>"All of it was read " <Ago at/> ": " {result} ". Look at this disk."</span>
                    </p>
                }
                .into_any(),
            };
            let running = storage::scrubbing(&view)
                .map(|far| view! { <p class="faint number" role="status">"It is being read: " {far} "."</p> });
            view! { {last} {running} {button(view)} <Refusal act/> }
        })
    }
}
