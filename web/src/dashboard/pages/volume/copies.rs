use flotilla_api::{
    MachineName,
    rest::{CopyView, VolumeState, VolumeView},
};
use leptos::prelude::*;

use super::facts::machine_link;
use crate::dashboard::{
    components::{Ago, Glyph, Section, copy_appearance},
    durability::{self, Standing},
    format,
};

/// Every machine that has a copy or shall have one.
#[component]
pub(super) fn Copies(volume: Signal<VolumeView>) -> impl IntoView {
    let asked = Memo::new(move |_| {
        volume.with(|volume| volume.copies.iter().map(|copy| copy.machine.clone()).collect::<Vec<_>>())
    });
    let empty = Memo::new(move |_| asked.with(Vec::is_empty));
    let table = move || {
        if empty.get() {
            return view! { <p class="faint none">"None: the only copy is the one that is written."</p> }.into_any();
        }
        view! {
            <table class="table copy-table" role="table" aria-label="Copies">
                <thead role="rowgroup">
                    <tr role="row">
                        <th role="columnheader" scope="col">"Machine"</th>
                        <th role="columnheader" scope="col">"State"</th>
                        <th role="columnheader" scope="col">"Has"</th>
                        <th role="columnheader" scope="col">"Behind"</th>
                    </tr>
                </thead>
                <tbody role="rowgroup">
                    <For each=move || asked.get() key=Clone::clone children=move |machine| row(machine, volume)/>
                </tbody>
            </table>
        }
        .into_any()
    };
    view! { <Section id="copies" title="Copies">{table}</Section> }
}

fn row(machine: MachineName, volume: Signal<VolumeView>) -> impl IntoView {
    let of = machine.clone();
    // With the volume's state, because a copy of nothing waits. It may be gone from the answer before its row is.
    let copy = Memo::new(move |before: Option<&Option<(CopyView, VolumeState)>>| {
        let now = volume.with(|volume| {
            let copy = volume.copies.iter().find(|copy| copy.machine == of).cloned();
            copy.map(|copy| (copy, volume.state))
        });
        now.or_else(|| before.cloned().flatten())
    });
    let standing = Memo::new(move |_| copy.get().map(|(copy, state)| Standing::of(&copy, state)));
    let badge = move || {
        standing.get().map(|standing| {
            let (icon, name, tone) = copy_appearance(standing);
            view! { <span class=format!("badge tone-{tone}")><Glyph icon/>{name}</span> }
        })
    };
    let has = Memo::new(move |_| copy.get().and_then(|(copy, _)| copy.generation));
    let has = move || match has.get() {
        Some(it) => {
            view! { <code>{it.generation}</code> ", " <span class="faint">"taken " <Ago at=it.taken_at/></span> }
                .into_any()
        }
        None => "–".into_any(),
    };
    let behind = move || match copy.get().and_then(|(copy, _)| copy.behind_bytes) {
        Some(0) => "Nothing".to_owned(),
        Some(bytes) => format::bytes(bytes),
        None => "–".to_owned(),
    };
    let coming = Memo::new(move |_| copy.get().and_then(|(copy, _)| copy.coming));
    let label = format!("What {machine} has of it");
    let far = move || {
        coming.get().map(|coming| {
            let share = format::share(coming.bytes, coming.of);
            let percent = format!("{:.0}", share * 100.0);
            view! {
                <div
                    class="meter-track"
                    role="progressbar"
                    aria-label=label.clone()
                    aria-valuemin="0"
                    aria-valuemax="100"
                    aria-valuenow=percent
                >
                    <div class="meter-fill" style:width=format!("{:.1}%", share * 100.0)></div>
                </div>
                <p class="faint number">{durability::on_its_way(&coming)} ", told " <Ago at=coming.observed_at/></p>
            }
        })
    };
    view! {
        <tr role="row">
            <th role="rowheader" scope="row" class="cell-name">{machine_link(machine)}</th>
            <td role="cell" class="cell-state">{badge} {far}</td>
            <td role="cell" data-label="Has">{has}</td>
            <td role="cell" class="number" data-label="Behind">{behind}</td>
        </tr>
    }
}
