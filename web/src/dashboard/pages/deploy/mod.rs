//! From a compose file to running services: text, check, deployment, progress.

mod check;
mod editor;
mod progress;

use std::collections::BTreeMap;

use flotilla_api::rest::{DeployRequest, DeployResponse};
use leptos::prelude::*;

use crate::dashboard::{
    api::Client,
    components::{Act, Glyph, Icon, Page},
    compose_text,
    fleet::Fleet,
};
use check::{Check, CheckPanel};
use editor::Editor;
use progress::Progress;

/// A first file for whoever has none.
const EXAMPLE: &str = "name: hello\n\nservices:\n  hello:\n    image: nginx:alpine\n    ports:\n      - \"80\"\n    volumes:\n      - data:/usr/share/nginx/html\n\nvolumes:\n  data:\n";

/// What is to be deployed, as typed so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Draft {
    pub(crate) text: RwSignal<String>,
    pub(crate) stack: RwSignal<String>,
    pub(crate) values: RwSignal<BTreeMap<String, String>>,
}

impl Draft {
    fn new() -> Self {
        Self {
            text: RwSignal::new(String::new()),
            stack: RwSignal::new(String::new()),
            values: RwSignal::new(BTreeMap::new()),
        }
    }

    /// The request that it amounts to; whoever calls this in a reactive context is run again when it changes.
    fn request(&self, dry_run: bool) -> DeployRequest {
        let compose = self.text.get();
        let wanted = compose_text::variables(&compose);
        let mut variables = self.values.get();
        // A value that was left empty is no value: the node then names the variable that is missing.
        variables.retain(|name, value| wanted.contains(name) && !value.is_empty());
        let stack = Some(self.stack.get().trim().to_owned()).filter(|stack| !stack.is_empty());
        let stack = stack.filter(|_| !compose_text::names_its_stack(&compose));
        DeployRequest { compose, stack, variables, dry_run, values: Vec::new() }
    }
}

#[component]
pub(crate) fn Deploy() -> impl IntoView {
    let deployed = RwSignal::new(None::<DeployResponse>);
    // The text outlives a deployment: whoever finds an error in it comes back to it.
    let draft = Draft::new();
    move || match deployed.get() {
        None => view! { <Compose draft deployed/> }.into_any(),
        Some(response) => view! { <Progress response again=Callback::new(move |()| deployed.set(None))/> }.into_any(),
    }
}

#[component]
fn Compose(draft: Draft, deployed: RwSignal<Option<DeployResponse>>) -> impl IntoView {
    let client = expect_context::<Client>();
    let fleet = expect_context::<Fleet>();
    let act = Act::new();
    let check = Check::start(client, draft);
    let deploy = move |_| {
        let request = untrack(|| draft.request(false));
        act.run(async move { client.deploy(&request).await }, move |_, response| {
            fleet.services.refresh();
            deployed.try_set(Some(response));
        });
    };
    let refused = Memo::new(move |_| !check.passed() || act.busy.get());
    let lead = "Paste a compose file, or drop one on the editor. Nothing changes until you press Deploy.";
    let actions = view! {
        <button class="button primary" disabled=refused on:click=deploy>
            <Glyph icon=Icon::Deploy/>
            {move || if act.busy.get() { "Deploying…" } else { "Deploy" }}
        </button>
    };
    view! {
        <Page title="Deploy" lead=lead.into_any() actions=actions.into_any()>
            <div class="deploy">
                <Editor draft check/>
                <div class="deploy-side">
                    <CheckPanel check example=Callback::new(move |()| draft.text.set(EXAMPLE.to_owned()))/>
                    <Settings draft/>
                </div>
            </div>
        </Page>
    }
}

/// What the file leaves open: the stack's name and values of variables.
#[component]
fn Settings(draft: Draft) -> impl IntoView {
    let names = Memo::new(move |_| compose_text::variables(&draft.text.read()));
    let unnamed = Memo::new(move |_| {
        let text = draft.text.read();
        !text.trim().is_empty() && !compose_text::names_its_stack(&text)
    });
    let stack = move || {
        unnamed.get().then(|| {
            view! {
                <label class="field">
                    <span>"Name of the stack"</span>
                    <input
                        type="text"
                        autocomplete="off"
                        autocapitalize="off"
                        spellcheck="false"
                        placeholder="default"
                        prop:value=draft.stack
                        on:input=move |event| draft.stack.set(event_target_value(&event))
                    />
                    <small>"The file has no " <code>"name:"</code> ". Services of one stack share a private network."</small>
                </label>
            }
        })
    };
    let variables = move || {
        let names = names.get();
        (!names.is_empty()).then(|| {
            let fields = names.into_iter().map(|name| variable(draft, name)).collect_view();
            view! {
                <fieldset class="variables">
                    <legend>"Variables in the file"</legend>
                    {fields}
                </fieldset>
            }
        })
    };
    view! {
        {stack}
        {variables}
    }
}

fn variable(draft: Draft, name: String) -> impl IntoView {
    let (read, label) = (name.clone(), name.clone());
    view! {
        <label class="field">
            <span><code>{label}</code></span>
            <input
                type="text"
                autocomplete="off"
                autocapitalize="off"
                spellcheck="false"
                prop:value=move || draft.values.with(|values| values.get(&read).cloned().unwrap_or_default())
                on:input=move |event| {
                    draft
                        .values
                        .update(|values| {
                            values.insert(name.clone(), event_target_value(&event));
                        });
                }
            />
        </label>
    }
}
