use flotilla_api::{
    MachineName, Revision,
    rest::{PlacedView, ServiceDetail},
};
use leptos::prelude::*;
use leptos_router::components::A;

use crate::dashboard::{
    components::{Ago, Prose, Section},
    pages::machine::phase,
};

/// Where each replica shall run, by the leader's decision, and why there.
#[component]
pub(crate) fn Placements(detail: Signal<ServiceDetail>) -> impl IntoView {
    let placed = Memo::new(move |_| {
        detail.with(|detail| {
            let standby = (detail.standby.clone(), detail.standby_ready.clone());
            (detail.placements.clone(), standby, detail.view.revision)
        })
    });
    let content = move || {
        let (placements, standby, current) = placed.get();
        let standby = standby_sentence(&standby.0, &standby.1)
            .map(|sentence| view! { <p class="faint placements-note">{sentence}</p> });
        if placements.is_empty() {
            return view! { <p class="faint none">"It is placed nowhere."</p> {standby} }.into_any();
        }
        let rows = placements.into_iter().map(|placed| row(placed, current)).collect_view();
        view! {
            <table class="table placements" role="table" aria-label="Placements">
                <thead role="rowgroup">
                    <tr role="row">
                        <th role="columnheader" scope="col">"Replica"</th>
                        <th role="columnheader" scope="col">"Machine"</th>
                        <th role="columnheader" scope="col">"Epoch"</th>
                        <th role="columnheader" scope="col">"Revision"</th>
                        <th role="columnheader" scope="col">"Since"</th>
                        <th role="columnheader" scope="col">"Why there"</th>
                    </tr>
                </thead>
                <tbody role="rowgroup">{rows}</tbody>
            </table>
            {standby}
        }
        .into_any()
    };
    view! { <Section id="placements" title="Placements">{content}</Section> }
}

fn row(placed: PlacedView, current: Revision) -> impl IntoView {
    let machine = placed.machine.to_string();
    let phase = phase(placed.phase).map(|(text, tone)| view! { <span class=format!("chip tone-{tone}")>{text}</span> });
    let outdated = (placed.revision != current).then(|| view! { <span class="faint">" to be updated"</span> });
    view! {
        <tr role="row">
            <th role="rowheader" scope="row" class="cell-name">{format!("Replica {}", placed.replica)} {phase}</th>
            <td role="cell" data-label="Machine"><A href=format!("/machines/{machine}") attr:class="row-link">{machine.clone()}</A></td>
            <td role="cell" class="number" data-label="Epoch">{placed.epoch}</td>
            <td role="cell" data-label="Revision">{placed.revision.to_string()} {outdated}</td>
            <td role="cell" class="faint" data-label="Since"><Ago at=placed.since/></td>
            <td role="cell" class="cell-why" data-label="Why there"><Prose text=placed.reason/></td>
        </tr>
    }
}

/// "boreas and clio stand by: they have the image, and can take over at once."
fn standby_sentence(machines: &[MachineName], ready: &[MachineName]) -> Option<String> {
    let (ready, waiting): (Vec<&MachineName>, Vec<&MachineName>) =
        machines.iter().partition(|machine| ready.contains(machine));
    let ready = listed(&ready).map(|(names, many)| {
        let (stand, have) = if many { ("stand", "they have") } else { ("stands", "it has") };
        format!("{names} {stand} by: {have} the image, and can take over at once.")
    });
    let waiting = listed(&waiting).map(|(names, many)| {
        let (have, stand) = if many { ("have", "stand") } else { ("has", "stands") };
        format!("{names} {stand} by, and {have} told nothing of the image yet.")
    });
    let sentences: Vec<String> = ready.into_iter().chain(waiting).collect();
    (!sentences.is_empty()).then(|| sentences.join(" "))
}

/// "atlas, boreas and clio", and whether they are several.
fn listed(machines: &[&MachineName]) -> Option<(String, bool)> {
    let (last, others) = machines.split_last()?;
    let names: Vec<&str> = others.iter().map(|machine| machine.as_str()).collect();
    Some(if names.is_empty() { (last.to_string(), false) } else { (format!("{} and {last}", names.join(", ")), true) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_stands_by_is_told_in_a_sentence() {
        let machines = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect::<Vec<MachineName>>();
        let sentence = |all: &[&str], ready: &[&str]| standby_sentence(&machines(all), &machines(ready));
        assert_eq!(sentence(&[], &[]), None);
        assert_eq!(
            sentence(&["clio"], &["clio"]).unwrap(),
            "clio stands by: it has the image, and can take over at once."
        );
        assert_eq!(sentence(&["clio"], &[]).unwrap(), "clio stands by, and has told nothing of the image yet.");
        assert!(
            sentence(&["atlas", "boreas", "clio"], &["atlas", "boreas", "clio"])
                .unwrap()
                .starts_with("atlas, boreas and clio stand by: they have")
        );
        assert_eq!(
            sentence(&["atlas", "boreas", "clio"], &["clio"]).unwrap(),
            "clio stands by: it has the image, and can take over at once. \
             atlas and boreas stand by, and have told nothing of the image yet."
        );
    }
}
