use flotilla_api::rest::{Removed, ServiceDetail};
use leptos::prelude::*;
use leptos_router::hooks::use_navigate;

use crate::dashboard::{
    api::Client,
    components::{Act, Dialog, Glyph, Icon, Refusal},
    fleet::Fleet,
    query::Query,
};

/// Restart, stop or start, remove.
#[component]
pub(crate) fn Actions(name: String, service: Query<ServiceDetail>) -> impl IntoView {
    let client = expect_context::<Client>();
    let act = Act::new();
    let removing = RwSignal::new(false);
    let detail = service.value();
    let stopped =
        Memo::new(move |_| detail.with(|detail| detail.as_ref().is_some_and(|detail| detail.view.replicas == 0)));
    // To start again with as many as its file says, or one where the file says none.
    let replicas =
        Memo::new(move |_| detail.with(|detail| detail.as_ref().map_or(1, |detail| detail.spec.replicas.max(1))));

    let restart = {
        let name = name.clone();
        move |_| {
            let name = name.clone();
            act.run(async move { client.restart(&name).await.map(|()| name) }, move |toasts, name| {
                toasts.tell(format!("`{name}` is being restarted."));
                service.refresh();
            });
        }
    };
    let scale = {
        let name = name.clone();
        move |_| {
            let name = name.clone();
            let wanted = if stopped.get_untracked() { replicas.get_untracked() } else { 0 };
            act.run(async move { client.scale(&name, wanted).await.map(|()| name) }, move |toasts, name| {
                let what = if wanted == 0 { "stopped; its volumes stay" } else { "started" };
                toasts.tell(format!("`{name}` is being {what}."));
                service.refresh();
            });
        }
    };
    view! {
        <button class="button" disabled=move || act.busy.get() || stopped.get() on:click=restart>
            <Glyph icon=Icon::Refresh/>
            "Restart"
        </button>
        <button class="button" disabled=act.busy on:click=scale>
            {move || view! { <Glyph icon=if stopped.get() { Icon::Play } else { Icon::Stop }/> }}
            {move || if stopped.get() { "Start" } else { "Stop" }}
        </button>
        <button class="button danger" disabled=act.busy on:click=move |_| removing.set(true)>
            <Glyph icon=Icon::Trash/>
            "Remove"
        </button>
        <Dialog open=removing title=format!("Remove {name}?")>
            <Remove name=name.clone() service open=removing/>
        </Dialog>
    }
}

#[component]
fn Remove(name: String, service: Query<ServiceDetail>, open: RwSignal<bool>) -> impl IntoView {
    let client = expect_context::<Client>();
    let fleet = expect_context::<Fleet>();
    let act = Act::in_dialog();
    let navigate = use_navigate();
    let detail = service.value();
    let count = Memo::new(move |_| detail.with(|detail| detail.as_ref().map_or(0, |detail| detail.spec.volumes.len())));
    let with_volumes = RwSignal::new(false);
    let typed = RwSignal::new(String::new());
    let expected = name.clone();
    let refused = Memo::new(move |_| act.busy.get() || (with_volumes.get() && typed.get().trim() != expected));
    let removed = name.clone();
    let remove = move |event: leptos::ev::SubmitEvent| {
        event.prevent_default();
        if refused.get_untracked() {
            return;
        }
        let (name, navigate) = (removed.clone(), navigate.clone());
        let volumes = with_volumes.get_untracked();
        act.run(
            async move { client.remove(&name, volumes).await.map(|removed| (name, removed)) },
            move |toasts, it| {
                let (name, Removed { last_writes_on }) = it;
                let rest = if volumes { "and its volumes are deleted" } else { "its volumes are kept" };
                toasts.tell(format!("`{name}` is removed, {rest}."));
                if let Some(machine) = last_writes_on {
                    toasts.tell(format!(
                        "What `{name}` wrote last is on `{machine}` alone, for when it is deployed again."
                    ));
                }
                open.try_set(false);
                fleet.services.refresh();
                navigate("/", leptos_router::NavigateOptions::default());
            },
        );
    };
    let confirm = name.clone();
    let volumes = move || {
        (count.get() > 0).then(|| {
            view! {
                <label class="tick">
                    <input
                        type="checkbox"
                        prop:checked=with_volumes
                        on:change=move |event| with_volumes.set(event_target_checked(&event))
                    />
                    {if count.get() == 1 {
                        "Also delete its volume and all data in it".to_owned()
                    } else {
                        format!("Also delete its {} volumes and all data in them", count.get())
                    }}
                </label>
            }
        })
    };
    let confirmation = move || {
        let confirm = confirm.clone();
        with_volumes.get().then(move || {
            view! {
                <label class="field">
                    <span>"This can't be undone. Type " <strong>{confirm}</strong> " to confirm."</span>
                    <input
                        type="text"
                        autocomplete="off"
                        autocapitalize="off"
                        spellcheck="false"
                        prop:value=typed
                        on:input=move |event| typed.set(event_target_value(&event))
                    />
                </label>
            }
        })
    };
    view! {
        <form class="form" on:submit=remove>
            <p>
                <strong>{name}</strong> " stops at once, and its page can no longer be opened. "
                {move || (count.get() > 0).then_some("Its volumes are kept, to the last write, unless you say otherwise.")}
            </p>
            {volumes}
            {confirmation}
            <Refusal act/>
            <footer class="dialog-foot">
                <button type="button" class="button" autofocus on:click=move |_| open.set(false)>"Cancel"</button>
                <button type="submit" class="button danger solid" disabled=refused>
                    {move || if act.busy.get() { "Removing…" } else { "Remove" }}
                </button>
            </footer>
        </form>
    }
}
