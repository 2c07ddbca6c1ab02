use std::time::Duration;

use flotilla_api::rest::{ExplainView, MachineVerdict, Verdict};
use leptos::prelude::*;
use leptos_router::components::A;

use crate::dashboard::{
    api::Client,
    components::{Prose, Section, shown},
    query::Query,
};

/// What speaks for and against a machine changes slowly.
const INTERVAL: Duration = Duration::from_secs(10);

/// What each machine is for the service, by the scheduler's own word: asked for when somebody wants to know.
#[component]
pub(crate) fn Elsewhere(name: String) -> impl IntoView {
    let open = RwSignal::new(false);
    let content = move || {
        let name = name.clone();
        view! {
            <button
                class="button small"
                aria-expanded=move || open.get().to_string()
                aria-controls="elsewhere-machines"
                on:click=move |_| open.update(|open| *open = !*open)
            >
                {move || if open.get() { "Hide" } else { "Compare the machines" }}
            </button>
            <div id="elsewhere-machines">{move || open.get().then(|| view! { <Explained name=name.clone()/> })}</div>
        }
    };
    view! { <Section id="elsewhere" title="Why not elsewhere">{content}</Section> }
}

#[component]
fn Explained(name: String) -> impl IntoView {
    let client = expect_context::<Client>();
    let explained = Query::start(INTERVAL, move || {
        let name = name.clone();
        async move { client.explain(&name).await }
    });
    shown(explained, 3, |explained: Signal<ExplainView>| {
        view! {
            <p>{move || explained.with(|explained| view! { <Prose text=explained.summary.clone()/> })}</p>
            <table class="table placements verdicts" role="table" aria-label="Machines for this service">
                <thead role="rowgroup">
                    <tr role="row">
                        <th role="columnheader" scope="col">"Machine"</th>
                        <th role="columnheader" scope="col">"Points"</th>
                        <th role="columnheader" scope="col">"Why"</th>
                    </tr>
                </thead>
                <tbody role="rowgroup">
                    {move || explained.with(|explained| explained.machines.iter().cloned().map(row).collect_view())}
                </tbody>
            </table>
        }
        .into_any()
    })
}

fn row(machine: MachineVerdict) -> impl IntoView {
    let (text, tone) = match machine.verdict {
        Verdict::Chosen => ("chosen", "good"),
        Verdict::Possible => ("possible", "calm"),
        Verdict::Impossible => ("impossible", "warn"),
    };
    let name = machine.machine.to_string();
    let parts = machine.parts.into_iter().map(|part| {
        view! { <li><span class="number">{format!("{:+}", part.points)}</span>" "<Prose text=part.why/></li> }
    });
    view! {
        <tr role="row">
            <th role="rowheader" scope="row" class="cell-name">
                <A href=format!("/machines/{name}") attr:class="row-link">{name.clone()}</A>
                <span class=format!("chip tone-{tone}")>{text}</span>
            </th>
            <td role="cell" class="number" data-label="Points">{machine.score.map_or_else(|| "–".to_owned(), |score| score.to_string())}</td>
            <td role="cell" class="cell-why" data-label="Why">
                <Prose text=machine.why/>
                <ul class="plain faint">{parts.collect_view()}</ul>
            </td>
        </tr>
    }
}
