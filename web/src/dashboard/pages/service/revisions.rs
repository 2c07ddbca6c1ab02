use flotilla_api::rest::{RevisionView, ServiceDetail};
use leptos::prelude::*;

use crate::dashboard::{
    api::Client,
    components::{Act, Ago, Dialog, Glyph, Icon, Refusal, Section},
    format,
    query::Query,
};

/// Older ones are shown when they are asked for.
const SHOWN: usize = 5;

#[component]
pub(crate) fn Revisions(name: String, detail: Signal<ServiceDetail>, service: Query<ServiceDetail>) -> impl IntoView {
    let client = expect_context::<Client>();
    let act = Act::in_dialog();
    let open = RwSignal::new(false);
    let target = RwSignal::new(None::<RevisionView>);
    let all = RwSignal::new(false);
    let revisions = Memo::new(move |_| detail.with(|detail| detail.revisions.clone()));
    let choose = Callback::new(move |revision| {
        target.set(Some(revision));
        open.set(true);
    });
    let rows = move || {
        let shown = if all.get() { usize::MAX } else { SHOWN };
        revisions.get().into_iter().take(shown).map(|one| row(one, choose)).collect_view()
    };
    let more = move || {
        let hidden = revisions.with(Vec::len).saturating_sub(SHOWN);
        (hidden > 0 && !all.get()).then(|| {
            view! { <button class="button small" on:click=move |_| all.set(true)>"Show " {hidden} " older"</button> }
        })
    };
    let confirmed = name.clone();
    let roll_back = move |_| {
        let Some(to) = target.get_untracked() else { return };
        let name = confirmed.clone();
        act.run(
            async move { client.roll_back(&name, to.revision).await.map(|done| (name, to.revision, done.revision)) },
            move |toasts, (name, to, made)| {
                toasts.tell(format!("`{name}` goes back to what revision {to} was, as revision {made}."));
                open.try_set(false);
                service.refresh();
            },
        );
    };
    let title = Signal::derive(move || {
        target.with(|target| {
            target.as_ref().map_or_else(String::new, |target| format!("Roll back to revision {}?", target.revision))
        })
    });
    view! {
        <Section id="revisions" title="Revisions">
            <ol class="revisions">{rows}</ol>
            {more}
        </Section>
        <Dialog open title>
            <p>
                <strong>{name.clone()}</strong> " is replaced by what it was then, image "
                <code class="break">{move || target.with(|target| target.as_ref().map(|one| format::image(&one.image)))}</code>
                ". Its volumes stay as they are now. It becomes a new revision, so this can be undone in the same way."
            </p>
            <Refusal act/>
            <footer class="dialog-foot">
                <button class="button" on:click=move |_| open.set(false)>"Cancel"</button>
                <button class="button primary" disabled=act.busy on:click=roll_back.clone()>"Roll back"</button>
            </footer>
        </Dialog>
    }
}

fn row(revision: RevisionView, choose: Callback<RevisionView>) -> impl IntoView {
    let number = revision.revision.to_string();
    let current = revision.current;
    let target = revision.clone();
    let action = if current {
        view! { <span class="badge tone-good"><Glyph icon=Icon::Check/>"Current"</span> }.into_any()
    } else {
        view! {
            <button class="button small" on:click=move |_| choose.run(target.clone())>
                "Roll back"
                <span class="unseen">" to revision " {number.clone()}</span>
            </button>
        }
        .into_any()
    };
    view! {
        <li class="revision" class:current=current>
            <span class="revision-number">{revision.revision.to_string()}</span>
            <div class="revision-text">
                <span class="break" title=revision.image.clone()>{format::image(&revision.image)}</span>
                <span class="faint"><Ago at=revision.created_at/> " by " {revision.created_by}</span>
                {revision.note.map(|note| view! { <span class="faint">{note}</span> })}
            </div>
            {action}
        </li>
    }
}
