use flotilla_api::rest::ServiceState;
use leptos::prelude::*;

use super::{Glyph, Icon};

/// What a state is called, drawn as and coloured like: three ways, so that none of them is needed.
pub(crate) fn appearance(state: ServiceState) -> (Icon, &'static str, &'static str) {
    match state {
        ServiceState::Starting => (Icon::Starting, "Starting", "busy"),
        ServiceState::Running => (Icon::Check, "Running", "good"),
        ServiceState::Unhealthy => (Icon::Warning, "Unhealthy", "warn"),
        ServiceState::Restarting => (Icon::Refresh, "Restarting", "warn"),
        ServiceState::Failed => (Icon::Cross, "Failed", "bad"),
        ServiceState::Completed => (Icon::Finished, "Completed", "calm"),
        ServiceState::Stopped => (Icon::Stop, "Stopped", "calm"),
        ServiceState::Unknown => (Icon::Question, "Unknown", "warn"),
    }
}

#[component]
pub(crate) fn StateBadge(state: ServiceState) -> impl IntoView {
    badge(appearance(state), state.as_str())
}

/// A state as it is called, drawn and coloured; `state` is its name for programs.
pub(crate) fn badge((icon, name, tone): (Icon, &'static str, &'static str), state: &'static str) -> impl IntoView {
    view! {
        <span class=format!("badge tone-{tone}") data-state=state>
            <Glyph icon/>
            {name}
        </span>
    }
}
