use flotilla_api::{
    ValueName,
    rest::{self, ValueSet},
    spec::ValueKind,
};
use leptos::{ev, prelude::*};

use super::Subject;
use crate::dashboard::{
    api::{Client, plain},
    components::{Act, Dialog, Refusal, shown},
    query::Query,
};

/// The node is asked for a config once.
const NEVER: std::time::Duration = std::time::Duration::from_secs(24 * 3600);

fn kind(subject: RwSignal<Option<Subject>>) -> ValueKind {
    subject.with(|subject| subject.as_ref().map_or(ValueKind::Secret, |subject| subject.kind))
}

/// The name of what there is.
fn name(subject: RwSignal<Option<Subject>>) -> Option<ValueName> {
    subject.with(|subject| Some(subject.as_ref()?.value.as_ref()?.name.clone()))
}

#[component]
pub(super) fn SetDialog(open: RwSignal<bool>, subject: RwSignal<Option<Subject>>, done: Callback<()>) -> impl IntoView {
    let title = move || match (kind(subject), name(subject)) {
        (kind, Some(name)) => format!("Set the {kind} {name}"),
        (kind, None) => format!("New {kind}"),
    };
    view! {
        <Dialog open title=Signal::derive(title)>
            <Form open subject done/>
        </Dialog>
    }
}

#[component]
fn Form(open: RwSignal<bool>, subject: RwSignal<Option<Subject>>, done: Callback<()>) -> impl IntoView {
    let client = expect_context::<Client>();
    let act = Act::in_dialog();
    let (of, known) = (kind(subject), name(subject));
    let users = subject.with_untracked(|subject| {
        let value = subject.as_ref().and_then(|subject| subject.value.as_ref());
        value.map_or(0, |value| value.used_by.len())
    });
    let (text, typed) = (RwSignal::new(String::new()), RwSignal::new(String::new()));
    let lack = RwSignal::new(None::<String>);
    let fixed = known.clone();
    let submit = move |event: ev::SubmitEvent| {
        event.prevent_default();
        lack.set(None);
        let named = match &fixed {
            Some(name) => Ok(name.clone()),
            None => typed.get_untracked().trim().parse::<ValueName>(),
        };
        let named = match named {
            Ok(named) => named,
            Err(error) => return lack.set(Some(error.to_string())),
        };
        if text.with_untracked(String::is_empty) {
            return lack.set(Some("Give it a value.".to_owned()));
        }
        let request = rest::SetValue { value: plain(&text.get_untracked()), update: true };
        act.run(async move { client.set_value(of, &named, &request).await }, move |toasts, set| {
            toasts.tell(told(&set));
            text.try_set(String::new());
            open.try_set(false);
            done.try_run(());
        });
    };
    let name_field = known.is_none().then(|| {
        view! {
            <label class="field">
                <span>"Name"</span>
                <input
                    type="text"
                    autofocus
                    autocomplete="off"
                    autocapitalize="off"
                    spellcheck="false"
                    maxlength=flotilla_api::id::VALUE_NAME_MAX
                    placeholder=if of == ValueKind::Secret { "db-password" } else { "nginx.conf" }
                    prop:value=typed
                    on:input=move |event| typed.set(event_target_value(&event))
                />
            </label>
        }
    });
    let what = match users {
        0 => "Nothing uses it yet.".to_owned(),
        1 => "The service that uses it is updated at once; if it fails, it goes back to what it had.".to_owned(),
        users => {
            format!("The {users} services that use it are updated at once; one that fails goes back to what it had.")
        }
    };
    view! {
        <form class="form" on:submit=submit autocomplete="off">
            {name_field}
            <label class="field">
                <span>"Value"</span>
                <textarea
                    class:masked=of == ValueKind::Secret
                    rows="5"
                    autocomplete="off"
                    autocapitalize="off"
                    spellcheck="false"
                    prop:value=text
                    on:input=move |event| text.set(event_target_value(&event))
                ></textarea>
            </label>
            <p class="faint">{what}</p>
            <p class="field-error" role="alert">{lack}</p>
            <Refusal act/>
            <footer class="dialog-foot">
                <button type="button" class="button" on:click=move |_| open.set(false)>"Cancel"</button>
                <button type="submit" class="button primary" disabled=act.busy>"Set"</button>
            </footer>
        </form>
    }
}

/// What setting it did, in a sentence.
fn told(set: &ValueSet) -> String {
    let ValueSet { name, version, changed, updated } = set;
    match (changed, updated.len()) {
        (false, _) => format!("`{name}` is the same already, in version {version}."),
        (true, 0) => format!("`{name}` has version {version} now."),
        (true, 1) => format!("`{name}` has version {version} now, and `{}` is updated.", updated[0].service),
        (true, users) => format!("`{name}` has version {version} now, and {users} services are updated."),
    }
}

#[component]
pub(super) fn RemoveDialog(
    open: RwSignal<bool>,
    subject: RwSignal<Option<Subject>>,
    done: Callback<()>,
) -> impl IntoView {
    let client = expect_context::<Client>();
    let act = Act::in_dialog();
    let remove = move |_| {
        let Some(name) = name(subject) else { return };
        let kind = kind(subject);
        act.run(async move { client.remove_value(kind, &name).await.map(|()| name) }, move |toasts, name| {
            toasts.tell(format!("The {kind} `{name}` was removed."));
            open.try_set(false);
            done.try_run(());
        });
    };
    let title = Signal::derive(move || format!("Remove this {}?", kind(subject)));
    view! {
        <Dialog open title>
            <p>
                <strong>{move || name(subject).map(|name| name.to_string())}</strong>
                " goes with all of its versions. This can't be undone."
            </p>
            <Refusal act/>
            <footer class="dialog-foot">
                <button class="button" on:click=move |_| open.set(false)>"Keep it"</button>
                <button class="button danger solid" disabled=act.busy on:click=remove>"Remove"</button>
            </footer>
        </Dialog>
    }
}

#[component]
pub(super) fn ShowDialog(open: RwSignal<bool>, subject: RwSignal<Option<Subject>>) -> impl IntoView {
    let title = Signal::derive(move || name(subject).map_or_else(String::new, |name| name.to_string()));
    view! {
        <Dialog open title wide=true>
            <Content subject/>
        </Dialog>
    }
}

#[component]
fn Content(subject: RwSignal<Option<Subject>>) -> impl IntoView {
    let client = expect_context::<Client>();
    let name = name(subject);
    let content = Query::start(NEVER, move || {
        let name = name.clone();
        async move {
            match name {
                Some(name) => client.config(&name).await,
                None => Ok(String::new()),
            }
        }
    });
    shown(content, 4, |text| view! { <pre class="config-text" tabindex="0">{text}</pre> }.into_any())
}

#[cfg(test)]
mod tests {
    use flotilla_api::{Revision, rest::ValueUpdated};

    use super::*;

    #[test]
    fn what_was_done_is_a_sentence() {
        let updated = |service: &str| ValueUpdated { service: service.parse().unwrap(), revision: Revision(2) };
        let set = |changed, updated| ValueSet { name: "db".parse().unwrap(), version: 3, changed, updated };
        for (set, sentence) in [
            (set(false, vec![]), "`db` is the same already, in version 3."),
            (set(true, vec![]), "`db` has version 3 now."),
            (set(true, vec![updated("web")]), "`db` has version 3 now, and `web` is updated."),
            (set(true, vec![updated("web"), updated("shop")]), "`db` has version 3 now, and 2 services are updated."),
        ] {
            assert_eq!(told(&set), sentence);
        }
    }
}
