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
        detail.with(|detail| (detail.placements.clone(), detail.standby.clone(), detail.view.revision))
    });
    let content = move || {
        let (placements, standby, current) = placed.get();
        let standby =
            standby_sentence(&standby).map(|sentence| view! { <p class="faint placements-note">{sentence}</p> });
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
fn standby_sentence(machines: &[MachineName]) -> Option<String> {
    let (last, others) = machines.split_last()?;
    let names: Vec<&str> = others.iter().map(AsRef::as_ref).collect();
    Some(if names.is_empty() {
        format!("{last} stands by: it has the image, and can take over at once.")
    } else {
        format!("{} and {last} stand by: they have the image, and can take over at once.", names.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_stands_by_is_told_in_a_sentence() {
        let machines = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect::<Vec<MachineName>>();
        assert_eq!(standby_sentence(&[]), None);
        assert!(standby_sentence(&machines(&["clio"])).unwrap().starts_with("clio stands by: it has"));
        assert!(
            standby_sentence(&machines(&["atlas", "boreas", "clio"]))
                .unwrap()
                .starts_with("atlas, boreas and clio stand by")
        );
    }
}
