use flotilla_api::{
    VolumeName,
    rest::{ChangeKind, ChangeView, VolumeDiff},
};
use leptos::prelude::*;

use crate::dashboard::{
    api::{Client, Failure},
    changes,
    components::{Glyph, Icon, Prose, Skeleton},
    format, task,
};

/// What changes on the way from one generation of a volume to another, asked once; without `from`, from what is committed now.
#[component]
pub(super) fn Difference(
    service: String,
    volume: VolumeName,
    #[prop(optional_no_strip)] from: Option<String>,
    to: String,
    /// What to say where nothing changes.
    same: &'static str,
    /// And where it can't be told.
    untold: &'static str,
) -> impl IntoView {
    let client = expect_context::<Client>();
    let answer = RwSignal::new(None::<Result<VolumeDiff, Failure>>);
    let attempt = RwSignal::new(0_u32);
    let label = format!("Changes in {volume}");
    // Each attempt ends with the next one, or with the dialog.
    let asking = move || {
        attempt.track();
        let (service, volume, from, to) = (service.clone(), volume.clone(), from.clone(), to.clone());
        task::while_shown(async move {
            answer.set(Some(client.volume_diff(&service, volume.as_str(), from.as_deref(), &to).await));
        });
    };
    let again = move |_| {
        answer.set(None);
        attempt.update(|attempt| *attempt += 1);
    };
    view! {
        {asking}
        <div class="difference">
            {move || match answer.get() {
                None => view! { <Skeleton rows=2/> }.into_any(),
                Some(Ok(diff)) => told(diff, label.clone(), same),
                Some(Err(failure)) => view! {
                    <div class="banner tone-warn" role="status">
                        <Glyph icon=Icon::Warning/>
                        <p>{untold} " " <Prose text=failure.to_string()/></p>
                        <button type="button" class="button small" on:click=again>"Try again"</button>
                    </div>
                }
                    .into_any(),
            }}
        </div>
    }
}

fn told(diff: VolumeDiff, label: String, same: &'static str) -> AnyView {
    if changes::total(&diff) == 0 {
        return view! { <p class="difference-same" role="status"><Glyph icon=Icon::Check/>{same}</p> }.into_any();
    }
    let counts =
        [(diff.added, ChangeKind::Added), (diff.removed, ChangeKind::Removed), (diff.changed, ChangeKind::Changed)];
    let counts = counts.into_iter().filter(|(count, _)| *count > 0).map(|(count, kind)| {
        let (_, word, tone) = changes::appearance(kind);
        view! { <span class=format!("chip tone-{tone}")>{count} " " {word}</span> }
    });
    let untold = changes::untold(&diff);
    view! {
        <p class="difference-counts" role="status">
            {counts.collect_view()}
            <span class="faint number">
                {format::bytes(diff.bytes_from)} <span aria-hidden="true">" → "</span>
                <span class="unseen">" become "</span> {format::bytes(diff.bytes_to)}
            </span>
        </p>
        // It scrolls, so the keyboard has to reach it.
        <ul class="changes" tabindex="0" role="list" aria-label=label>
            {diff.changes.into_iter().map(change).collect_view()}
        </ul>
        {untold.map(|untold| view! { <p class="faint">{untold}</p> })}
    }
    .into_any()
}

fn change(change: ChangeView) -> impl IntoView {
    let (sign, word, tone) = changes::appearance(change.change);
    view! {
        <li class=format!("change tone-{tone}")>
            <span class="change-sign" aria-hidden="true">{sign}</span>
            <span class="unseen">{word} ": "</span>
            <bdi class="change-path">{changes::printable(&change.path)}</bdi>
            <span class="faint number">{changes::sizes(&change)}</span>
        </li>
    }
}
