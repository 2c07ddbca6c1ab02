use leptos::prelude::*;

/// Narrows down what is listed, while one types. `label` says what is listed, `hint` what is looked at.
#[component]
pub(crate) fn Filter(value: RwSignal<String>, label: &'static str, hint: &'static str) -> impl IntoView {
    view! {
        <input
            type="search"
            class="filter"
            placeholder=hint
            aria-label=label
            prop:value=value
            on:input=move |event| value.set(event_target_value(&event))
        />
    }
}
