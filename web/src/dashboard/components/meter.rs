use leptos::prelude::*;

use crate::dashboard::format;

/// How full something is: a bar, and the numbers in words.
#[component]
pub(crate) fn Meter(
    label: &'static str,
    /// 0.0 to 1.0
    #[prop(into)]
    share: Signal<f64>,
    #[prop(into)] detail: Signal<String>,
) -> impl IntoView {
    /// A disk or memory this full needs a look soon.
    const TIGHT: f64 = 0.85;
    const FULL: f64 = 0.95;
    view! {
        <div class="meter">
            <span class="meter-label">{label}</span>
            <span class="meter-figure">{move || format::percent(share.get())}</span>
            <div
                class="meter-track"
                class:tone-warn=move || { (TIGHT..FULL).contains(&share.get()) }
                class:tone-bad=move || { share.get() >= FULL }
                role="meter"
                aria-label=label
                aria-valuemin="0"
                aria-valuemax="100"
                aria-valuenow=move || format!("{:.0}", share.get().clamp(0.0, 1.0) * 100.0)
                aria-valuetext=move || detail.get()
            >
                <div class="meter-fill" style:width=move || format!("{:.1}%", share.get().clamp(0.0, 1.0) * 100.0)></div>
            </div>
            <span class="meter-detail">{detail}</span>
        </div>
    }
}
