use flotilla_api::{
    Grant, Scope,
    rest::{CreateToken, CreatedToken, JoinHint},
};
use leptos::prelude::*;

use crate::dashboard::{
    api::Client,
    components::{Act, CopyButton, Glyph, Icon, Prose, QrImage, Refusal, Secret, Until},
};

/// A machine is at hand when its token is made. Seconds.
const TOKEN_LIFE: u64 = 24 * 3600;

/// A join token, made when the dialog is opened on purpose: it is a secret, and works once.
#[component]
pub(super) fn Join(open: RwSignal<bool>) -> impl IntoView {
    let client = expect_context::<Client>();
    let act = Act::in_dialog();
    let made = RwSignal::new(None::<CreatedToken>);
    let storage_only = RwSignal::new(false);
    let make = move |_| {
        let request = CreateToken {
            name: if storage_only.get_untracked() { "storage machine" } else { "machine" }.to_owned(),
            grant: Grant { scope: Scope::Machine, services: [].into() },
            ttl_seconds: TOKEN_LIFE,
            storage_only: storage_only.get_untracked(),
        };
        act.run(async move { client.create_token(&request).await }, move |_, created| {
            made.try_set(Some(created));
        });
    };
    move || {
        match made.get() {
        None => view! {
            <p>
                "Install Docker and Flotilla on the new machine. A join token lets it become a member, once: it says where "
                "the cluster is, and proves both to each other."
            </p>
            <label class="tick">
                <input
                    type="checkbox"
                    name="storage-only"
                    prop:checked=storage_only
                    on:change=move |event| storage_only.set(event_target_checked(&event))
                />
                <span>
                    "It only stores: copies of encrypted volumes, which it can't read. Nothing runs there, and that can't be "
                    "changed later. It sees names, sizes and times, and the specifications of services."
                </span>
            </label>
            <Refusal act/>
            <footer class="dialog-foot">
                <button class="button" on:click=move |_| open.set(false)>"Cancel"</button>
                <button class="button primary" autofocus disabled=act.busy on:click=make>"Make a join token"</button>
            </footer>
        }
        .into_any(),
        Some(created) => view! { <Made created open/> }.into_any(),
    }
    }
}

#[component]
fn Made(created: CreatedToken, open: RwSignal<bool>) -> impl IntoView {
    let CreatedToken { token, expires_at, join, .. } = created;
    let JoinHint { command, addresses, warning } = join.unwrap_or_else(|| JoinHint {
        command: format!("sudo flotilla join {token}"),
        addresses: Vec::new(),
        warning: None,
    });
    let warning = warning.map(|warning| {
        view! {
            <div class="banner tone-warn" role="status">
                <Glyph icon=Icon::Warning/>
                <p><Prose text=warning/></p>
            </div>
        }
    });
    let found = (!addresses.is_empty())
        .then(|| view! { <p class="faint">"It will look for the cluster at " {addresses.join(", ")} "."</p> });
    view! {
        <p>
            "Run this on the new machine, then " <code>"sudo flotilla up"</code> ". It works once, for one machine, until it "
            "expires " <Until at=expires_at/> ", and is not shown again."
        </p>
        {warning}
        <div class="secret">
            <code class="join-command">{command.clone()}</code>
            <CopyButton text=command what="command"/>
        </div>
        {found}
        <details class="hint">
            <summary>"As a QR code, or the token alone"</summary>
            <QrImage text=token.clone() label="The join token as a QR code"/>
            <Secret text=token what="token"/>
        </details>
        <footer class="dialog-foot">
            <button class="button primary" on:click=move |_| open.set(false)>"Done"</button>
        </footer>
    }
}
