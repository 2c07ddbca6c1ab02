use std::collections::BTreeMap;

use flotilla_api::rest::{ChangeMachine, MachineView};
use leptos::{ev, prelude::*};

use crate::dashboard::{
    api::Client,
    components::{Act, Glyph, Icon, Refusal, Section},
    shell::You,
};

/// Labels, by which services can be placed: shown to all, changed by an administrator.
#[component]
pub(super) fn Labels(machine: Signal<MachineView>, changed: Callback<()>) -> impl IntoView {
    let (client, you) = (expect_context::<Client>(), expect_context::<You>());
    let act = Act::in_dialog();
    let text = RwSignal::new(String::new());
    let lack = RwSignal::new(None::<&'static str>);
    let labels = Memo::new(move |_| machine.with(|machine| machine.labels.clone()));
    let name = Memo::new(move |_| machine.with(|machine| machine.name.to_string()));
    let change = move |labels: BTreeMap<String, Option<String>>| {
        let (name, change) = (name.get_untracked(), ChangeMachine { labels, ..ChangeMachine::default() });
        act.run(async move { client.change_machine(&name, &change).await }, move |_, ()| {
            text.try_set(String::new());
            changed.try_run(());
        });
    };
    let add = move |event: ev::SubmitEvent| {
        event.prevent_default();
        let label = parse(&text.get_untracked());
        lack.set(label.is_none().then_some("Write it as key=value, for example room=attic."));
        if let Some((key, value)) = label {
            change(BTreeMap::from([(key, Some(value))]));
        }
    };
    let chip = move |(key, value): (String, String)| {
        let shown = format!("{key}={value}");
        let remove = you.administers().then(|| {
            let (label, gone) = (format!("Remove the label {key}"), key.clone());
            view! {
                <button
                    class="chip-remove"
                    aria-label=label
                    disabled=act.busy
                    on:click=move |_| change(BTreeMap::from([(gone.clone(), None)]))
                >
                    <Glyph icon=Icon::Cross/>
                </button>
            }
        });
        view! { <li class="chip removable">{shown} {remove}</li> }
    };
    let list = move || {
        let labels = labels.get();
        if labels.is_empty() {
            return view! { <p class="faint">"None. Services can be placed by them, for example near a disk."</p> }
                .into_any();
        }
        view! { <ul class="chips">{labels.into_iter().map(chip).collect_view()}</ul> }.into_any()
    };
    let form = move || {
        you.administers().then(|| {
            view! {
                <form class="label-form" on:submit=add>
                    <input
                        type="text"
                        aria-label="New label"
                        placeholder="room=attic"
                        autocomplete="off"
                        autocapitalize="off"
                        spellcheck="false"
                        prop:value=text
                        on:input=move |event| text.set(event_target_value(&event))
                    />
                    <button class="button" disabled=act.busy>"Add"</button>
                </form>
                <p class="field-error" role="alert">{lack}</p>
                <Refusal act/>
            }
        })
    };
    view! {
        <Section id="labels" title="Labels">
            <div class="card padded label-card">{list} {form}</div>
        </Section>
    }
}

fn parse(text: &str) -> Option<(String, String)> {
    let (key, value) = text.trim().split_once('=')?;
    let (key, value) = (key.trim(), value.trim());
    (!key.is_empty()).then(|| (key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn a_label_is_a_key_and_a_value() {
        assert_eq!(parse(" room = attic "), Some(("room".to_owned(), "attic".to_owned())));
        assert_eq!(parse("gpu="), Some(("gpu".to_owned(), String::new())));
        for none in ["", "room", "=attic"] {
            assert_eq!(parse(none), None, "{none}");
        }
    }
}
