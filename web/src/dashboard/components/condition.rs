use flotilla_api::rest::{MachineCondition, MachineState, MachineView, Role};
use leptos::prelude::*;

use super::{Icon, Prose, state::badge};

/// What a machine's condition is called, drawn as and coloured like: three ways, so that none of them is needed.
pub(crate) fn machine_appearance(state: MachineState) -> (Icon, &'static str, &'static str) {
    match state {
        MachineState::Ready => (Icon::Check, "Ready", "good"),
        MachineState::Suspect => (Icon::Question, "Suspect", "warn"),
        MachineState::Lost => (Icon::Lost, "Lost", "bad"),
        MachineState::Draining => (Icon::Drain, "Draining", "busy"),
        MachineState::Drained => (Icon::Pause, "Drained", "calm"),
        MachineState::KeptOut => (Icon::Warning, "Kept out", "warn"),
    }
}

#[component]
pub(crate) fn ConditionBadge(#[prop(into)] condition: Signal<MachineCondition>) -> impl IntoView {
    let state = Memo::new(move |_| condition.with(|condition| condition.state));
    move || {
        let state = state.get();
        badge(machine_appearance(state), state.as_str())
    }
}

/// Why a machine is in its condition, where that alone does not tell.
#[component]
pub(crate) fn ConditionReason(#[prop(into)] condition: Signal<MachineCondition>) -> impl IntoView {
    let reason = Memo::new(move |_| condition.with(|condition| condition.reason.clone()));
    move || reason.get().map(|reason| view! { <p class="row-message"><Prose text=reason/></p> })
}

/// Whether it decides, in a word.
pub(crate) fn role(machine: &MachineView) -> &'static str {
    if machine.storage_only {
        return "Stores only";
    }
    match (machine.leads, machine.role) {
        (true, _) => "Leader",
        (false, Role::Voter) => "Voter",
        (false, Role::Learner) => "Learner",
    }
}
