use flotilla_api::rest::{MachineDetail, PlacedPhase, PlacedView};
use leptos::prelude::*;
use leptos_router::components::A;

use crate::dashboard::components::{Ago, Prose, Section};

/// What is placed there, and why.
#[component]
pub(super) fn Placed(detail: Signal<MachineDetail>) -> impl IntoView {
    let placed = Memo::new(move |_| detail.with(|detail| detail.placements.clone()));
    let rows = move || {
        let placed = placed.get();
        if placed.is_empty() {
            return view! { <p class="faint none">"Nothing is placed there."</p> }.into_any();
        }
        view! {
            <table class="table placements" role="table" aria-label="Instances">
                <thead role="rowgroup">
                    <tr role="row">
                        <th role="columnheader" scope="col">"Service"</th>
                        <th role="columnheader" scope="col">"Replica"</th>
                        <th role="columnheader" scope="col">"Epoch"</th>
                        <th role="columnheader" scope="col">"Revision"</th>
                        <th role="columnheader" scope="col">"Since"</th>
                        <th role="columnheader" scope="col">"Why here"</th>
                    </tr>
                </thead>
                <tbody role="rowgroup">{placed.into_iter().map(row).collect_view()}</tbody>
            </table>
        }
        .into_any()
    };
    view! { <Section id="instances" title="Instances">{rows}</Section> }
}

fn row(placed: PlacedView) -> impl IntoView {
    let name = placed.service.to_string();
    let phase = phase(placed.phase).map(|(text, tone)| view! { <span class=format!("chip tone-{tone}")>{text}</span> });
    view! {
        <tr role="row">
            <th role="rowheader" scope="row" class="cell-name">
                <A href=format!("/services/{name}") attr:class="row-link">{name.clone()}</A>
                {phase}
            </th>
            <td role="cell" class="number" data-label="Replica">{placed.replica}</td>
            <td role="cell" class="number" data-label="Epoch">{placed.epoch}</td>
            <td role="cell" class="number" data-label="Revision">{placed.revision.to_string()}</td>
            <td role="cell" class="faint" data-label="Since"><Ago at=placed.since/></td>
            <td role="cell" class="cell-why" data-label="Why here"><Prose text=placed.reason/></td>
        </tr>
    }
}

/// What a placement that does not simply run is called.
pub(crate) fn phase(phase: PlacedPhase) -> Option<(&'static str, &'static str)> {
    match phase {
        PlacedPhase::Active => None,
        PlacedPhase::Leaving => Some(("moves away", "busy")),
        PlacedPhase::Vacating => Some(("ends first", "warn")),
    }
}
