use flotilla_api::{ErrorCode, rest::MachineView};
use leptos::prelude::*;

use crate::dashboard::{
    api::Client,
    components::{Act, Dialog, Glyph, Icon, Refusal},
    fleet::Fleet,
};

/// Drain, with a question first; or undo that.
#[component]
pub(crate) fn Turn(machine: Signal<MachineView>, #[prop(optional)] small: bool) -> impl IntoView {
    let (client, fleet) = (expect_context::<Client>(), expect_context::<Fleet>());
    let (asking, act, undo) = (RwSignal::new(false), Act::in_dialog(), Act::new());
    let name = Memo::new(move |_| machine.with(|machine| machine.name.to_string()));
    let drained = Memo::new(move |_| machine.with(|machine| machine.drained));
    let instances = Memo::new(move |_| machine.with(|machine| machine.instances));
    let class = if small { "button small" } else { "button" };
    let drain = move |force| {
        let name = name.get_untracked();
        act.run(async move { client.drain(&name, force).await.map(|()| name) }, move |toasts, name| {
            toasts.tell(format!("`{name}` is being drained."));
            asking.try_set(false);
            fleet.cluster.refresh();
        });
    };
    let undrain = move |_| {
        let name = name.get_untracked();
        undo.run(async move { client.undrain(&name).await.map(|()| name) }, move |toasts, name| {
            toasts.tell(format!("`{name}` takes instances again."));
            fleet.cluster.refresh();
        });
    };
    view! {
        {move || {
            if drained.get() {
                view! {
                    <button class=class disabled=undo.busy on:click=undrain>
                        <Glyph icon=Icon::Play/>
                        "Undrain"
                        <span class="unseen">" " {name}</span>
                    </button>
                }
                    .into_any()
            } else {
                view! {
                    <button class=class on:click=move |_| asking.set(true)>
                        <Glyph icon=Icon::Drain/>
                        "Drain"
                        <span class="unseen">" " {name}</span>
                    </button>
                }
                    .into_any()
            }
        }}
        <Dialog open=asking title=Signal::derive(move || format!("Drain {}?", name.get()))>
            <p>
                {move || match instances.get() {
                    0 => "Nothing runs there now.".to_owned(),
                    1 => "The instance that runs there moves to another machine, without a failed request.".to_owned(),
                    many => format!("The {many} instances that run there move to other machines, without a failed request."),
                }}
                " Nothing new is placed there until you undo it."
            </p>
            <Refusal act/>
            <footer class="dialog-foot">
                <button class="button" on:click=move |_| asking.set(false)>"Cancel"</button>
                {move || {
                    // What finds no other place is stopped then, which nobody shall do without having read it.
                    if act.code() == Some(ErrorCode::NoRoom) {
                        view! { <button class="button danger" disabled=act.busy on:click=move |_| drain(true)>"Drain anyway"</button> }.into_any()
                    } else {
                        view! { <button class="button primary" disabled=act.busy on:click=move |_| drain(false)>"Drain"</button> }.into_any()
                    }
                }}
            </footer>
        </Dialog>
    }
}
