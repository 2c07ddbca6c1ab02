use std::time::Duration;

use flotilla_api::{
    ApiError, ErrorCode,
    rest::{COMPOSE_MAX, DeployResponse},
};
use futures::future::{Either, select};
use leptos::prelude::*;

use super::Draft;
use crate::dashboard::{
    api::{Client, Failure},
    bell::{self, Sleeper},
    components::{Glyph, Icon, Prose},
    task,
};

/// Typing pauses this long before the node is asked.
const SETTLE: Duration = Duration::from_millis(400);

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Verdict {
    /// There is no text yet.
    Blank,
    Checking,
    Good(DeployResponse),
    Bad(Failure),
}

/// What the node would make of the draft, asked again after each change.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Check {
    pub(crate) verdict: RwSignal<Verdict>,
}

impl Check {
    pub(crate) fn start(client: Client, draft: Draft) -> Self {
        let verdict = RwSignal::new(Verdict::Blank);
        let request = Memo::new(move |_| draft.request(true));
        let (bell, mut sleeper) = bell::bell();
        Effect::new(move || {
            request.track();
            bell.ring();
        });
        task::while_shown(async move {
            loop {
                sleeper.rest().await;
                answer(client, request, verdict, &mut sleeper).await;
            }
        });
        Self { verdict }
    }

    pub(crate) fn passed(&self) -> bool {
        self.verdict.with(|verdict| matches!(verdict, Verdict::Good(_)))
    }

    /// The line to mark, from 1.
    pub(crate) fn line(&self) -> Option<u32> {
        self.error().and_then(|error| error.line)
    }

    pub(crate) fn error(&self) -> Option<ApiError> {
        self.verdict.with(|verdict| match verdict {
            Verdict::Bad(Failure::Refused(error)) => Some(error.clone()),
            _ => None,
        })
    }
}

/// Until the draft as it is now has a verdict; a change meanwhile ends the request and begins anew.
async fn answer(
    client: Client,
    request: Memo<flotilla_api::rest::DeployRequest>,
    verdict: RwSignal<Verdict>,
    sleeper: &mut Sleeper,
) {
    loop {
        let current = request.get_untracked();
        if current.compose.trim().is_empty() {
            return verdict.set(Verdict::Blank);
        }
        verdict.set(Verdict::Checking);
        if task::rings_within(sleeper, SETTLE).await {
            continue;
        }
        if let Some(error) = too_large(&current.compose) {
            return verdict.set(Verdict::Bad(Failure::Refused(error)));
        }
        let asked = std::pin::pin!(async { client.deploy(&current).await });
        match select(asked, std::pin::pin!(sleeper.rest())).await {
            Either::Left((Ok(response), _)) => return verdict.set(Verdict::Good(response)),
            Either::Left((Err(failure), _)) => return verdict.set(Verdict::Bad(failure)),
            Either::Right(_) => {}
        }
    }
}

fn too_large(text: &str) -> Option<ApiError> {
    (text.len() > COMPOSE_MAX).then(|| {
        let sentence = format!("The file is larger than {} KiB; split it into several stacks.", COMPOSE_MAX / 1024);
        ApiError::new(ErrorCode::ComposeTooLarge, sentence)
    })
}

#[component]
pub(crate) fn CheckPanel(check: Check, example: Callback<()>) -> impl IntoView {
    let content = move || match check.verdict.get() {
        Verdict::Blank => view! {
            <p class="faint">"The node checks the file while you type."</p>
            <button class="button small" on:click=move |_| example.run(())>"Begin with an example"</button>
        }
        .into_any(),
        Verdict::Checking => view! { <p class="faint">"Checking…"</p> }.into_any(),
        Verdict::Good(response) => good(response).into_any(),
        Verdict::Bad(failure) => bad(failure).into_any(),
    };
    view! {
        <section class="card check" aria-labelledby="check-heading">
            <h2 id="check-heading">"What will happen"</h2>
            <div aria-live="polite" class="check-content">{content}</div>
        </section>
    }
}

fn good(response: DeployResponse) -> impl IntoView {
    let services = response.services.into_iter().map(|service| {
        let (tone, what) = match (service.changed, service.revision.0) {
            (false, _) => ("calm", "Stays as it is".to_owned()),
            (true, 1) => ("good", "New".to_owned()),
            (true, revision) => ("busy", format!("Changes to revision {revision}")),
        };
        view! {
            <li>
                <strong>{service.service.to_string()}</strong>
                <span class=format!("chip tone-{tone}")>{what}</span>
            </li>
        }
    });
    view! {
        <p class="check-verdict tone-good"><Glyph icon=Icon::Check/>"The file is in order."</p>
        <p class="faint">"Stack " <strong>{response.stack.to_string()}</strong></p>
        <ul class="check-services">{services.collect_view()}</ul>
    }
}

fn bad(failure: Failure) -> impl IntoView {
    let place = match &failure {
        Failure::Refused(ApiError { line: Some(line), column, .. }) => Some(match column {
            Some(column) => format!("Line {line}, column {column}"),
            None => format!("Line {line}"),
        }),
        _ => None,
    };
    // Where there is a place, the editor has the sentence beneath the marked line.
    let reason = match place {
        Some(place) => view! { <p class="faint">{place}</p> }.into_any(),
        None => view! { <p><Prose text=failure.to_string()/></p> }.into_any(),
    };
    view! {
        <p class="check-verdict tone-bad"><Glyph icon=Icon::Warning/>"Nothing, as it is"</p>
        {reason}
    }
}
