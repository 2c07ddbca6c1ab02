use flotilla_api::{VolumeName, rest::VolumeDetail};
use leptos::prelude::*;

use super::difference::Difference;
use crate::dashboard::{browser, changes::Chosen};

/// Two generations beside each other; either can be exchanged.
#[component]
pub(super) fn Compare(
    service: String,
    volume: String,
    /// Of what there was when it was opened: a list must not move under the hand.
    detail: VolumeDetail,
    from: String,
    to: String,
) -> impl IntoView {
    let mut known: Vec<Chosen> = detail.history.iter().rev().map(Chosen::from).collect();
    known.extend(detail.branches.iter().map(Chosen::from));
    let (from, to) = (RwSignal::new(from), RwSignal::new(to));
    let pair = Memo::new(move |_| (from.get(), to.get()));
    let difference = move || {
        let (from, to) = pair.get();
        let volume: VolumeName = volume.parse().ok()?;
        Some(view! {
            <Difference
                service=service.clone()
                volume
                from=Some(from)
                to
                same="Nothing: their files are the same."
                untold="What changed can't be told."
            />
        })
    };
    view! {
        <div class="compare-ends">
            {end("From", from, &known)}
            {end("To", to, &known)}
        </div>
        {difference}
    }
}

fn end(label: &'static str, value: RwSignal<String>, known: &[Chosen]) -> impl IntoView + use<> {
    let options = known.iter().map(|chosen| {
        let generation = chosen.generation.clone();
        let at = browser::local(chosen.at).full();
        let name = match &chosen.aside_on {
            Some(machine) => format!("{at}, put aside on {machine} ({generation})"),
            None => format!("{at} ({generation})"),
        };
        let selected = value.with_untracked(|value| *value == generation);
        view! { <option value=generation selected=selected>{name}</option> }
    });
    view! {
        <label class="field">
            <span>{label}</span>
            <select on:change=move |event| value.set(event_target_value(&event))>{options.collect_view()}</select>
        </label>
    }
}
