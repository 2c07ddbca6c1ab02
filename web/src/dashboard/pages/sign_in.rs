use leptos::{ev, prelude::*};
use wasm_bindgen_futures::spawn_local;

use crate::dashboard::{
    api::Failure,
    browser,
    components::{Glyph, Icon, Problem, Prose, arrived},
    session::{DEVICE_MAX, Notice, Pasted, Session},
    shell::Mark,
};

/// While the browser looks for its key or the node redeems an invitation: a moment, and bounded by the request's limit.
pub(crate) fn opening() -> impl IntoView {
    frame(view! {
        <p class="gate-wait" role="status">
            "Signing you in…"
        </p>
    })
}

pub(crate) fn unsure(session: Session, failure: Failure) -> impl IntoView {
    let retry = Callback::new(move |()| spawn_local(session.open(None)));
    frame(view! {
        <h1 class="unseen">"Flotilla"</h1>
        <Problem failure retry/>
        <button class="button quiet" on:click=move |_| spawn_local(session.end(Notice::SignedOut))>
            "Sign out of this browser"
        </button>
    })
}

#[component]
pub(crate) fn SignIn(notice: Option<Notice>) -> impl IntoView {
    browser::set_title("Sign in · Flotilla");
    arrived();
    let session = expect_context::<Session>();
    let pasted = RwSignal::new(String::new());
    let device = RwSignal::new(browser::device());
    let busy = RwSignal::new(false);
    let (calm, first) = match notice {
        Some(Notice::SignedOut) => (Some("You are signed out of this browser."), None),
        Some(Notice::Failed(sentence)) => (None, Some(sentence)),
        None => (None, None),
    };
    let error = RwSignal::new(first);

    let submit = move |event: ev::SubmitEvent| {
        event.prevent_default();
        if busy.get_untracked() {
            return;
        }
        let name = match device.get_untracked().trim() {
            "" => browser::device(),
            name => name.chars().take(DEVICE_MAX).collect(),
        };
        let what = Pasted::read(&pasted.get_untracked());
        if what == Pasted::Neither {
            error.set(Some(
                "This is neither an invitation link nor a token; copy all of it and paste it again.".to_owned(),
            ));
            browser::focus("credential");
            return;
        }
        busy.set(true);
        error.set(None);
        spawn_local(async move {
            let result = match what {
                Pasted::Invitation(invitation) => session.redeem(invitation, name).await,
                Pasted::Token(token) => session.bind(&token, name).await,
                Pasted::Neither => Ok(()),
            };
            if let Err(failure) = result {
                busy.try_set(false);
                error.try_set(Some(failure.to_string()));
            }
        });
    };
    frame(view! {
        <h1>"Sign in"</h1>
        {calm.map(|calm| view! { <p class="gate-notice" role="status">{calm}</p> })}
        <p class="faint">"Open the invitation link that you were sent, or paste it here. A token works too."</p>
        <form class="form" on:submit=submit>
            <label class="field">
                <span>"Invitation link or token"</span>
                <textarea
                    id="credential"
                    rows="3"
                    autocomplete="off"
                    autocapitalize="off"
                    spellcheck="false"
                    placeholder="http://app.home.localhost:7070/#invite=…"
                    aria-invalid=move || error.with(Option::is_some).then_some("true")
                    aria-describedby="credential-error"
                    prop:value=pasted
                    on:input=move |event| pasted.set(event_target_value(&event))
                ></textarea>
            </label>
            <div id="credential-error" role="alert">
                {move || {
                    error
                        .get()
                        .map(|error| {
                            view! {
                                <p class="field-error">
                                    <Glyph icon=Icon::Warning/>
                                    <span>
                                        <Prose text=error/>
                                    </span>
                                </p>
                            }
                        })
                }}
            </div>
            <label class="field">
                <span>"Name of this browser"</span>
                <input
                    type="text"
                    maxlength=DEVICE_MAX
                    prop:value=device
                    on:input=move |event| device.set(event_target_value(&event))
                />
                <small>"Shown in the list of tokens, so that you can tell your devices apart."</small>
            </label>
            <button class="button primary wide" type="submit" disabled=busy>
                {move || if busy.get() { "Signing in…" } else { "Sign in" }}
            </button>
        </form>
        <details class="hint">
            <summary>"Where do I get an invitation?"</summary>
            <p>
                "On a machine of the cluster, " <code>"flotilla invite create NAME"</code>
                " prints a new link. An admin can also make one here, under Access."
            </p>
        </details>
    })
}

fn frame(content: impl IntoView) -> impl IntoView {
    view! {
        <main class="gate">
            <div class="gate-card">
                <div class="gate-brand">
                    <Mark/>
                    <span class="brand-name">"Flotilla"</span>
                </div>
                {content}
            </div>
        </main>
    }
}
