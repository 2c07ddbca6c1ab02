use flotilla_api::rest::{BranchView, VolumeDetail};
use leptos::prelude::*;

use super::{
    acts::{Acts, Buttons},
    facts::machine_link,
};
use crate::dashboard::{
    browser,
    changes::Chosen,
    components::{Ago, Section},
    format,
};

/// What machines wrote before they were lost, and nobody serves. There is none as a rule, and then no heading either.
#[component]
pub(super) fn Branches(detail: Signal<VolumeDetail>, acts: Acts) -> impl IntoView {
    let branches = Memo::new(move |_| {
        let mut branches = detail.with(|detail| detail.branches.clone());
        branches.sort_by_key(|branch| std::cmp::Reverse(branch.kept_at));
        branches
    });
    let committed = Memo::new(move |_| {
        detail.with(|detail| detail.view.committed.as_ref().map(|committed| committed.generation.clone()))
    });
    move || {
        let branches = branches.get();
        (!branches.is_empty()).then(|| {
            let items = branches.into_iter().map(|branch| item(branch, committed, acts)).collect_view();
            view! {
                <Section id="branches" title="Put aside">
                    <ul class="branches">{items}</ul>
                </Section>
            }
        })
    }
}

fn item(branch: BranchView, committed: Memo<Option<String>>, acts: Acts) -> impl IntoView {
    let chosen = Chosen::from(&branch);
    let BranchView { generation, machine, kept_at, files, bytes } = branch;
    let (at, name) = (browser::local(kept_at), generation.clone());
    let files = format::counted(usize::try_from(files).unwrap_or(usize::MAX), "file", "files");
    view! {
        <li class="branch" data-generation=name>
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
            <Buttons chosen before=committed acts/>
        </li>
    }
}
