use std::{collections::BTreeSet, time::Duration};

use flotilla_api::{
    Grant, Scope, ServiceName, UnixMillis,
    rest::{CreateInvitation, CreateToken, CreatedInvitation, CreatedToken, TokenView},
};
use leptos::{ev, prelude::*};

use crate::dashboard::{
    api::Client,
    browser,
    components::{Act, Ago, CopyButton, Dialog, Empty, Glyph, Icon, Page, QrImage, Refusal, Secret, Until, shown},
    fleet::{Fleet, refresh_on_change},
    live::Live,
    query::Query,
    shell::You,
};

const INTERVAL: Duration = Duration::from_secs(30);

/// As the node has it: names are for people, in lists. Characters.
const NAME_MAX: usize = 60;

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;

#[component]
pub(crate) fn Access() -> impl IntoView {
    let client = expect_context::<Client>();
    let live = expect_context::<Live>();
    let tokens = Query::start(INTERVAL, move || async move { client.tokens().await });
    refresh_on_change(live, tokens);
    let inviting = RwSignal::new(false);
    let creating = RwSignal::new(false);
    let revoking = RwSignal::new(false);
    let target = RwSignal::new(None::<TokenView>);
    let revoke = Callback::new(move |token| {
        target.set(Some(token));
        revoking.set(true);
    });
    let actions = view! {
        <button class="button" on:click=move |_| creating.set(true)>
            <Glyph icon=Icon::Key/>
            "Create a token"
        </button>
        <button class="button primary" on:click=move |_| inviting.set(true)>
            <Glyph icon=Icon::Link/>
            "Invite someone"
        </button>
    };
    view! {
        <Page
            title="Access"
            lead="Who may use this cluster. Invitations are for people, tokens for programs.".into_any()
            actions=actions.into_any()
        >
            {shown(tokens, 5, move |tokens| view! { <List tokens revoke/> }.into_any())}
        </Page>
        <Dialog open=inviting title="Invite someone">
            <Invite open=inviting/>
        </Dialog>
        <Dialog open=creating title="Create a token">
            <Create open=creating made=Callback::new(move |()| tokens.refresh())/>
        </Dialog>
        <Revoke open=revoking target done=Callback::new(move |()| tokens.refresh())/>
    }
}

#[component]
fn List(tokens: Signal<Vec<TokenView>>, revoke: Callback<TokenView>) -> impl IntoView {
    let client = expect_context::<Client>();
    let you = expect_context::<You>();
    // When the list was last told: a token that expires meanwhile moves with the next answer.
    let live_and_ended = Memo::new(move |_| {
        let now = client.node_time(browser::now());
        let mut tokens = tokens.get();
        tokens.sort_by_key(|token| std::cmp::Reverse(token.created_at));
        tokens.into_iter().partition::<Vec<_>, _>(|token| counts(token, now))
    });
    let table = move |tokens: Vec<TokenView>, label: &'static str| {
        let you = you.0.get().map(|you| you.token);
        let rows = tokens.into_iter().map(|token| {
            let mine = you.as_ref() == Some(&token.id);
            row(token, mine, revoke)
        });
        view! {
            <table class="table tokens" role="table" aria-label=label>
                <thead role="rowgroup">
                    <tr role="row">
                        <th role="columnheader" scope="col">"Who"</th>
                        <th role="columnheader" scope="col">"May"</th>
                        <th role="columnheader" scope="col">"Bound to"</th>
                        <th role="columnheader" scope="col">"Made"</th>
                        <th role="columnheader" scope="col">"Expires"</th>
                        <th role="columnheader" scope="col"><span class="unseen">"Revoke"</span></th>
                    </tr>
                </thead>
                <tbody role="rowgroup">{rows.collect_view()}</tbody>
            </table>
        }
    };
    view! {
        {move || {
            let live = live_and_ended.get().0;
            if live.is_empty() {
                return view! {
                    <Empty icon=Icon::Key title="No tokens">
                        <p>"Nobody has access yet. Invite someone, or create a token for a program."</p>
                    </Empty>
                }
                    .into_any();
            }
            table(live, "Tokens").into_any()
        }}
        {move || {
            let old = live_and_ended.get().1;
            (!old.is_empty())
                .then(|| {
                    view! {
                        <details class="hint">
                            <summary>{old.len()} " expired or revoked"</summary>
                            {table(old, "Expired and revoked tokens")}
                        </details>
                    }
                })
        }}
    }
}

fn counts(token: &TokenView, now: UnixMillis) -> bool {
    token.revoked_at.is_none() && token.expires_at > now
}

fn row(token: TokenView, mine: bool, revoke: Callback<TokenView>) -> impl IntoView {
    let revoked = token.revoked_at;
    let bound = match &token.bound_to {
        Some(thumbprint) => view! {
            <span title=format!("Key {thumbprint}")>"One browser"</span>
        }
        .into_any(),
        None if token.unused => view! { <span class="faint">"Nobody yet: it works once"</span> }.into_any(),
        None => view! { <span class="faint">"Nothing: whoever has it can use it"</span> }.into_any(),
    };
    let (verb, unused) = (withdrawal(&token), token.unused);
    let name = token.name.clone();
    let target = token.clone();
    let button = revoked.is_none().then(|| {
        view! {
            <button class="button danger" on:click=move |_| revoke.run(target.clone())>
                {verb}
                <span class="unseen">" " {name.clone()}</span>
            </button>
        }
    });
    view! {
        <tr role="row">
            <th role="rowheader" scope="row" class="cell-name">
                <span>{token.name}</span>
                {mine.then(|| view! { <span class="chip tone-busy">"this browser"</span> })}
                {unused.then(|| view! { <span class="chip">"not used yet"</span> })}
            </th>
            <td role="cell" class="cell-may" data-label="May">{rights(&token.grant)}</td>
            <td role="cell" class="cell-bound" data-label="Bound to">{bound}</td>
            <td role="cell" class="faint" data-label="Made"><Ago at=token.created_at/></td>
            <td role="cell" class="faint" data-label="Expires">
                {match revoked {
                    Some(at) => view! { "Revoked " <Ago at/> }.into_any(),
                    None => view! { <Until at=token.expires_at/> }.into_any(),
                }}
            </td>
            <td role="cell" class="cell-open">{button}</td>
        </tr>
    }
}

/// What ends it.
fn withdrawal(token: &TokenView) -> &'static str {
    if token.unused { "Withdraw" } else { "Revoke" }
}

fn rights(grant: &Grant) -> String {
    match grant.scope {
        Scope::Admin => "Everything".to_owned(),
        Scope::Operator => "Deploy and change services".to_owned(),
        Scope::Machine => "Be a machine".to_owned(),
        Scope::User if grant.services.is_empty() => "Open nothing".to_owned(),
        Scope::User => {
            format!("Open {}", grant.services.iter().map(ServiceName::as_str).collect::<Vec<_>>().join(", "))
        }
    }
}

#[component]
fn Revoke(open: RwSignal<bool>, target: RwSignal<Option<TokenView>>, done: Callback<()>) -> impl IntoView {
    let client = expect_context::<Client>();
    let you = expect_context::<You>();
    let act = Act::in_dialog();
    let revoke = move |_| {
        let Some(token) = target.get_untracked() else { return };
        act.run(async move { client.revoke_token(&token.id).await.map(|()| token) }, move |toasts, token| {
            let what = if token.unused { "invitation for" } else { "token of" };
            toasts.tell(format!("The {what} `{}` no longer counts.", token.name));
            open.try_set(false);
            done.try_run(());
        });
    };
    view! {
        <Dialog open title="End this access?">
            {move || {
                target
                    .get()
                    .map(|token| {
                        if token.unused {
                            return view! {
                                <p>
                                    "Whoever has the invitation for " <strong>{token.name}</strong>
                                    " can't use it any more. Another one can be made at any time."
                                </p>
                            }
                                .into_any();
                        }
                        let mine = you.0.with(|you| you.as_ref().is_some_and(|you| you.token == token.id));
                        view! {
                            <p>
                                "Whoever uses the token of " <strong>{token.name}</strong>
                                " is signed out at once, and their open services close. This can't be undone."
                            </p>
                            {mine.then(|| view! { <p class="field-error">"It is the one that you use now."</p> })}
                        }
                            .into_any()
                    })
            }}
            <Refusal act/>
            <footer class="dialog-foot">
                <button class="button" on:click=move |_| open.set(false)>"Keep it"</button>
                <button class="button danger solid" disabled=act.busy on:click=revoke>
                    {move || target.with(|token| token.as_ref().map(withdrawal))}
                </button>
            </footer>
        </Dialog>
    }
}

/// What both forms ask for.
#[derive(Clone, Copy)]
struct Terms {
    name: RwSignal<String>,
    scope: RwSignal<Scope>,
    services: RwSignal<BTreeSet<ServiceName>>,
    ttl_seconds: RwSignal<u64>,
}

impl Terms {
    fn new(scope: Scope, ttl_seconds: u64) -> Self {
        Self {
            name: RwSignal::new(String::new()),
            scope: RwSignal::new(scope),
            services: RwSignal::new(BTreeSet::new()),
            ttl_seconds: RwSignal::new(ttl_seconds),
        }
    }

    fn grant(&self) -> Grant {
        let scope = self.scope.get_untracked();
        let services = if scope == Scope::User { self.services.get_untracked() } else { BTreeSet::new() };
        Grant { scope, services }
    }

    /// What is missing, in a sentence.
    fn lacks(&self) -> Option<&'static str> {
        if self.name.with_untracked(|name| name.trim().is_empty()) {
            return Some("Give a name, so that the list of tokens says whose it is.");
        }
        let opens_nothing =
            self.scope.get_untracked() == Scope::User && self.services.with_untracked(BTreeSet::is_empty);
        opens_nothing.then_some("Choose at least one service that a user may open.")
    }
}

fn terms_fields(terms: Terms, name_hint: &'static str, lifetimes: &'static [(u64, &'static str)]) -> impl IntoView {
    let fleet = expect_context::<Fleet>();
    let services = fleet.services.value();
    let scope = move |scope: Scope, title: &'static str, what: &'static str| {
        view! {
            <label class="choice">
                <input
                    type="radio"
                    name="scope"
                    prop:checked=move || terms.scope.get() == scope
                    on:change=move |_| terms.scope.set(scope)
                />
                <span>
                    <strong>{title}</strong>
                    <small>{what}</small>
                </span>
            </label>
        }
    };
    let which = move || {
        (terms.scope.get() == Scope::User).then(|| {
            let names = services.get().unwrap_or_default().into_iter().map(|service| service.service);
            let boxes = names
                .map(|name| {
                    let (shown, tested) = (name.to_string(), name.clone());
                    let toggle = move |_| {
                        terms.services.update(|services| {
                            if !services.remove(&name) {
                                services.insert(name.clone());
                            }
                        });
                    };
                    view! {
                        <label class="tick">
                            <input
                                type="checkbox"
                                prop:checked=move || terms.services.with(|services| services.contains(&tested))
                                on:change=toggle
                            />
                            {shown}
                        </label>
                    }
                })
                .collect::<Vec<_>>();
            let none = boxes.is_empty().then(|| view! { <p class="faint">"There are no services yet."</p> });
            view! {
                <fieldset class="ticks">
                    <legend>"Which services"</legend>
                    {boxes}
                    {none}
                </fieldset>
            }
        })
    };
    view! {
        <label class="field">
            <span>"Name"</span>
            <input
                type="text"
                autofocus
                autocomplete="off"
                maxlength=NAME_MAX
                placeholder=name_hint
                prop:value=terms.name
                on:input=move |event| terms.name.set(event_target_value(&event))
            />
        </label>
        <fieldset class="choices">
            <legend>"May"</legend>
            {scope(Scope::User, "Open services", "The ones chosen below, in a browser, and nothing else.")}
            {scope(Scope::Operator, "Deploy and change services", "And open all of them.")}
            {scope(Scope::Admin, "Everything", "Also tokens, invitations and machines.")}
        </fieldset>
        {which}
        <label class="field">
            <span>"Works for"</span>
            <select on:change=move |event| {
                if let Ok(seconds) = event_target_value(&event).parse() {
                    terms.ttl_seconds.set(seconds);
                }
            }>
                {lifetimes
                    .iter()
                    .map(|(seconds, name)| {
                        view! {
                            <option value=seconds.to_string() prop:selected=move || terms.ttl_seconds.get() == *seconds>
                                {*name}
                            </option>
                        }
                    })
                    .collect_view()}
            </select>
        </label>
    }
}

fn form_foot(
    open: RwSignal<bool>,
    act: Act,
    lack: RwSignal<Option<&'static str>>,
    verb: &'static str,
) -> impl IntoView {
    view! {
        <p class="field-error" role="alert">{lack}</p>
        <Refusal act/>
        <footer class="dialog-foot">
            <button type="button" class="button" on:click=move |_| open.set(false)>"Cancel"</button>
            <button type="submit" class="button primary" disabled=act.busy>{verb}</button>
        </footer>
    }
}

#[component]
fn Invite(open: RwSignal<bool>) -> impl IntoView {
    const LIFETIMES: &[(u64, &str)] = &[(HOUR, "1 hour"), (DAY, "1 day"), (7 * DAY, "7 days")];
    let client = expect_context::<Client>();
    let act = Act::in_dialog();
    let terms = Terms::new(Scope::User, DAY);
    let lack = RwSignal::new(None);
    let made = RwSignal::new(None::<CreatedInvitation>);
    let submit = move |event: ev::SubmitEvent| {
        event.prevent_default();
        lack.set(terms.lacks());
        if lack.get_untracked().is_some() {
            return;
        }
        let request = CreateInvitation {
            name: terms.name.get_untracked().trim().to_owned(),
            grant: terms.grant(),
            ttl_seconds: terms.ttl_seconds.get_untracked(),
        };
        act.run(async move { client.create_invitation(&request).await }, move |_, invitation| {
            made.try_set(Some(invitation));
        });
    };
    move || match made.get() {
        None => view! {
            <form class="form" on:submit=submit>
                {terms_fields(terms, "Who it is for", LIFETIMES)}
                {form_foot(open, act, lack, "Create the link")}
            </form>
        }
        .into_any(),
        Some(invitation) => view! {
            <p>
                "Send this link to " <strong>{terms.name.get_untracked()}</strong> ". It works once, until it expires "
                <Until at=invitation.expires_at/> ", and is not shown again."
            </p>
            <QrImage text=invitation.url.clone() label="The link as a QR code"/>
            <Secret text=invitation.url what="link"/>
            <footer class="dialog-foot">
                <button class="button primary" on:click=move |_| open.set(false)>"Done"</button>
            </footer>
        }
        .into_any(),
    }
}

#[component]
fn Create(open: RwSignal<bool>, made: Callback<()>) -> impl IntoView {
    const LIFETIMES: &[(u64, &str)] =
        &[(DAY, "1 day"), (30 * DAY, "30 days"), (90 * DAY, "90 days"), (365 * DAY, "1 year")];
    let client = expect_context::<Client>();
    let act = Act::in_dialog();
    let terms = Terms::new(Scope::Operator, 30 * DAY);
    let lack = RwSignal::new(None);
    let token = RwSignal::new(None::<CreatedToken>);
    let submit = move |event: ev::SubmitEvent| {
        event.prevent_default();
        lack.set(terms.lacks());
        if lack.get_untracked().is_some() {
            return;
        }
        let request = CreateToken {
            name: terms.name.get_untracked().trim().to_owned(),
            grant: terms.grant(),
            ttl_seconds: terms.ttl_seconds.get_untracked(),
            storage_only: false,
        };
        act.run(async move { client.create_token(&request).await }, move |_, created| {
            token.try_set(Some(created));
            made.try_run(());
        });
    };
    move || match token.get() {
        None => view! {
            <form class="form" on:submit=submit>
                {terms_fields(terms, "Which program or device it is for", LIFETIMES)}
                {form_foot(open, act, lack, "Create the token")}
            </form>
        }
        .into_any(),
        Some(created) => view! {
            <p>
                "Copy it now: it is shown once and kept nowhere. Whoever has it can use it, until it expires "
                <Until at=created.expires_at/> " or is revoked."
            </p>
            <Secret text=created.token.clone() what="token"/>
            <p class="faint">"In a terminal:"</p>
            <div class="secret">
                <code>"export FLOTILLA_API=" {browser::origin()} " FLOTILLA_TOKEN=…"</code>
                <CopyButton
                    text=format!("export FLOTILLA_API={} FLOTILLA_TOKEN={}", browser::origin(), created.token)
                    what="commands"
                />
            </div>
            <footer class="dialog-foot">
                <button class="button primary" on:click=move |_| open.set(false)>"Done"</button>
            </footer>
        }
        .into_any(),
    }
}
