use leptos::prelude::*;

use super::{Glyph, Icon, Toasts};
use crate::dashboard::{browser, task};

#[component]
pub(crate) fn CopyButton(#[prop(into)] text: String, #[prop(into)] what: String) -> impl IntoView {
    let toasts = expect_context::<Toasts>();
    let copied = RwSignal::new(false);
    let label = format!("Copy {what}");
    let copy = move |_| {
        let (text, what) = (text.clone(), what.clone());
        wasm_bindgen_futures::spawn_local(async move {
            if browser::copy(&text).await {
                copied.try_set(true);
                task::sleep(std::time::Duration::from_secs(2)).await;
                copied.try_set(false);
            } else {
                toasts.warn(format!("The browser did not allow copying the {what}; select it and copy it by hand."));
            }
        });
    };
    view! {
        <button type="button" class="button" aria-label=label on:click=copy>
            {move || view! { <Glyph icon=if copied.get() { Icon::Check } else { Icon::Copy }/> }}
            <span aria-live="polite">{move || if copied.get() { "Copied" } else { "Copy" }}</span>
        </button>
    }
}

/// A text to hand on, whole and selectable, with a button that copies it.
#[component]
pub(crate) fn Secret(#[prop(into)] text: String, #[prop(into)] what: String) -> impl IntoView {
    let shown = text.clone();
    view! {
        <div class="secret">
            <code>{shown}</code>
            <CopyButton text what/>
        </div>
    }
}
