use flotilla_api::{
    MachineName,
    rest::{ChangeMachine, MachineState, MachineView},
};
use leptos::{ev, prelude::*};
use leptos_router::{NavigateOptions, hooks::use_navigate};

use crate::dashboard::{
    api::Client,
    components::{Act, Dialog, Glyph, Icon, Refusal},
    fleet::Fleet,
    pages::cluster::{Power, Turn},
    shell::You,
};

/// Drain, rename, remove; in a demo the plug.
#[component]
pub(super) fn Actions(machine: Signal<MachineView>) -> impl IntoView {
    let you = expect_context::<You>();
    let (renaming, removing) = (RwSignal::new(false), RwSignal::new(false));
    let name = Memo::new(move |_| machine.with(|machine| machine.name.to_string()));
    // Nothing runs on it that could move away.
    let runs = Memo::new(move |_| machine.with(|machine| !machine.storage_only));
    let administers = move || {
        you.administers().then(|| {
            view! {
                <button class="button" on:click=move |_| renaming.set(true)>
                    <Glyph icon=Icon::Pencil/>
                    "Rename"
                </button>
                <button class="button danger" on:click=move |_| removing.set(true)>
                    <Glyph icon=Icon::Trash/>
                    "Remove"
                </button>
            }
        })
    };
    view! {
        <Power machine/>
        {move || runs.get().then(|| view! { <Turn machine/> })}
        {administers}
        <Dialog open=renaming title=Signal::derive(move || format!("Rename {}", name.get()))>
            <Rename machine open=renaming/>
        </Dialog>
        <Dialog open=removing title=Signal::derive(move || format!("Remove {}?", name.get()))>
            <Remove machine open=removing/>
        </Dialog>
    }
}

#[component]
fn Rename(machine: Signal<MachineView>, open: RwSignal<bool>) -> impl IntoView {
    let (client, act, navigate) = (expect_context::<Client>(), Act::in_dialog(), use_navigate());
    let before = machine.with_untracked(|machine| machine.name.to_string());
    let text = RwSignal::new(before.clone());
    let wrong = RwSignal::new(None::<String>);
    let submit = move |event: ev::SubmitEvent| {
        event.prevent_default();
        let name: MachineName = match text.get_untracked().trim().parse() {
            Ok(name) => name,
            Err(error) => return wrong.set(Some(error.to_string())),
        };
        wrong.set(None);
        let (before, navigate) = (before.clone(), navigate.clone());
        let change = ChangeMachine { name: Some(name.clone()), ..ChangeMachine::default() };
        act.run(
            async move { client.change_machine(&before, &change).await.map(|()| (before, name)) },
            move |toasts, (before, name)| {
                toasts.tell(format!("`{before}` is now called `{name}`."));
                open.try_set(false);
                // Its page has another address now.
                navigate(&format!("/machines/{name}"), NavigateOptions { replace: true, ..NavigateOptions::default() });
            },
        );
    };
    view! {
        <form class="form" on:submit=submit>
            <label class="field">
                <span>"New name"</span>
                <input
                    type="text"
                    autofocus
                    autocomplete="off"
                    autocapitalize="off"
                    spellcheck="false"
                    prop:value=text
                    on:input=move |event| text.set(event_target_value(&event))
                />
                <small>"Letters from a to z, digits and hyphens. What runs there is not touched."</small>
            </label>
            <p class="field-error" role="alert">{wrong}</p>
            <Refusal act/>
            <footer class="dialog-foot">
                <button type="button" class="button" on:click=move |_| open.set(false)>"Cancel"</button>
                <button type="submit" class="button primary" disabled=act.busy>"Rename"</button>
            </footer>
        </form>
    }
}

#[component]
fn Remove(machine: Signal<MachineView>, open: RwSignal<bool>) -> impl IntoView {
    let (client, fleet) = (expect_context::<Client>(), expect_context::<Fleet>());
    let (act, navigate) = (Act::in_dialog(), use_navigate());
    // As it was when the question was asked: it must not change under the person's finger.
    let view = machine.get_untracked();
    let name = view.name.to_string();
    let is_safe = view.condition.state == MachineState::Lost || (view.drained && view.instances == 0);
    let typed = RwSignal::new(String::new());
    let expected = name.clone();
    let refused = Memo::new(move |_| act.busy.get() || (!is_safe && typed.get().trim() != expected));
    let removed = name.clone();
    let remove = move |event: ev::SubmitEvent| {
        event.prevent_default();
        if refused.get_untracked() {
            return;
        }
        let (name, navigate) = (removed.clone(), navigate.clone());
        act.run(async move { client.remove_machine(&name, !is_safe).await.map(|()| name) }, move |toasts, name| {
            toasts.tell(format!("`{name}` is no member any more."));
            open.try_set(false);
            fleet.cluster.refresh();
            navigate("/cluster", NavigateOptions::default());
        });
    };
    let confirmation = (!is_safe).then(|| {
        let name = name.clone();
        view! {
            <p class="field-error">
                <Glyph icon=Icon::Warning/>
                <span>"It is in use. Drain it first, and nothing is lost; now, what is only on its disk is."</span>
            </p>
            <label class="field">
                <span>"Type " <strong>{name}</strong> " to remove it all the same."</span>
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
    });
    view! {
        <form class="form" on:submit=remove>
            <p>
                "The cluster forgets " <strong>{name}</strong>
                ", and never takes its key again: to come back, it needs an empty data directory and a new join token."
            </p>
            {confirmation}
            <Refusal act/>
            <footer class="dialog-foot">
                <button type="button" class="button" autofocus on:click=move |_| open.set(false)>"Cancel"</button>
                <button type="submit" class="button danger solid" disabled=refused>"Remove"</button>
            </footer>
        </form>
    }
}
