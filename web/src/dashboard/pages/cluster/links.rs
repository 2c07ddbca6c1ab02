use flotilla_api::rest::MachineView;
use leptos::prelude::*;

use crate::dashboard::{
    components::{Ago, Section},
    format,
    topology::{self, Edge},
};

/// More than these are folded away: with ten machines there are 45.
const OPEN_MAX: usize = 10;

/// Every link with its figures.
#[component]
pub(super) fn Links(machines: Signal<Vec<MachineView>>) -> impl IntoView {
    let drawn = Memo::new(move |_| {
        machines.with(|machines| {
            let names: Vec<String> = machines.iter().map(|machine| machine.name.to_string()).collect();
            let edges = topology::edges(machines);
            let between =
                edges.into_iter().map(|edge| (format!("{} – {}", names[edge.ends.0], names[edge.ends.1]), edge));
            between.collect::<Vec<_>>()
        })
    });
    move || {
        let links = drawn.get();
        if links.is_empty() {
            return ().into_any();
        }
        let count = links.len();
        let table = link_table(links, "Between");
        let content = if count > OPEN_MAX {
            view! {
                <details class="hint">
                    <summary>{format::counted(count, "link", "links")}</summary>
                    {table}
                </details>
            }
            .into_any()
        } else {
            table.into_any()
        };
        view! { <Section id="links" title="Links">{content}</Section> }.into_any()
    }
}

/// Links by what they are called, and how they do.
pub(crate) fn link_table(links: Vec<(String, Edge)>, first: &'static str) -> impl IntoView {
    let rows = links.into_iter().map(row).collect_view();
    view! {
        <table class="table links" role="table" aria-label="Links">
            <thead role="rowgroup">
                <tr role="row">
                    <th role="columnheader" scope="col">{first}</th>
                    <th role="columnheader" scope="col">"State"</th>
                    <th role="columnheader" scope="col">"Round trip"</th>
                    <th role="columnheader" scope="col">"Jitter"</th>
                    <th role="columnheader" scope="col">"Loss"</th>
                    <th role="columnheader" scope="col">"Traffic"</th>
                    <th role="columnheader" scope="col">"Since"</th>
                </tr>
            </thead>
            <tbody role="rowgroup">{rows}</tbody>
        </table>
    }
}

fn row((name, edge): (String, Edge)) -> impl IntoView {
    let (state, tone) = topology::appearance(&edge);
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "–".to_owned());
    view! {
        <tr role="row">
            <th role="rowheader" scope="row" class="cell-name"><strong>{name}</strong></th>
            <td role="cell" class="cell-state"><span class=format!("link-state tone-{tone}")>{state}</span></td>
            <td role="cell" class="number" data-label="Round trip">{or_dash(edge.rtt_ms.map(topology::millis))}</td>
            <td role="cell" class="number" data-label="Jitter">{or_dash(edge.jitter_ms.map(topology::millis))}</td>
            <td role="cell" class="number" data-label="Loss">{or_dash(edge.loss.map(format::percent))}</td>
            <td role="cell" class="number" data-label="Traffic">{format!("{}/s", format::bytes(edge.per_second))}</td>
            <td role="cell" class="faint" data-label="Since"><Ago at=edge.since/></td>
        </tr>
    }
}
