use flotilla_api::rest::{BranchView, VolumeDetail};
use leptos::prelude::*;

use super::facts::machine_link;
use crate::dashboard::{
    browser,
    components::{Ago, Section},
    format,
};

/// What machines wrote before they were lost, and nobody serves. There is none as a rule, and then no heading either.
#[component]
pub(super) fn Branches(detail: Signal<VolumeDetail>) -> impl IntoView {
    let branches = Memo::new(move |_| {
        let mut branches = detail.with(|detail| detail.branches.clone());
        branches.sort_by_key(|branch| std::cmp::Reverse(branch.kept_at));
        branches
    });
    move || {
        let branches = branches.get();
        (!branches.is_empty()).then(|| {
            view! {
                <Section id="branches" title="Put aside">
                    <ul class="branches">{branches.into_iter().map(item).collect_view()}</ul>
                </Section>
            }
        })
    }
}

fn item(branch: BranchView) -> impl IntoView {
    let BranchView { generation, machine, kept_at, files, bytes } = branch;
    let at = browser::local(kept_at);
    let files = format::counted(usize::try_from(files).unwrap_or(usize::MAX), "file", "files");
    view! {
        <li class="branch">
            <p>
                "Put aside on " {machine_link(machine)} " at "
                <time datetime=format::Moment::new(kept_at, 0).iso() title=at.full()>{at.full()}</time>
                ": what was written there before it was lost and is nowhere else."
            </p>
            <p class="event-meta faint">
                <code class="break">{generation}</code>
                <span>{files} ", " {format::bytes(bytes)}</span>
                <Ago at=kept_at/>
            </p>
        </li>
    }
}
