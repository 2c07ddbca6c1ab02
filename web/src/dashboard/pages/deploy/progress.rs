use std::time::Duration;

use flotilla_api::rest::{DeployResponse, Deployed, ServiceView};
use leptos::prelude::*;
use leptos_router::components::A;

use crate::dashboard::{
    browser,
    components::{Glyph, Icon, Page, Prose, StateBadge, appearance},
    fleet::Fleet,
    format,
    live::Clock,
    pages::services::open_link,
    progress::Stage,
    task,
};

/// Events tell of each step; this finds what they missed.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// After this a person is told that waiting here changes nothing. Milliseconds.
const LONG: f64 = 90_000.0;

#[component]
pub(crate) fn Progress(response: DeployResponse, again: Callback<()>) -> impl IntoView {
    let fleet = expect_context::<Fleet>();
    let clock = expect_context::<Clock>();
    let services = fleet.services.value();
    let deployed = StoredValue::new(response.services.clone());
    let stages = Memo::new(move |_| {
        let services = services.get().unwrap_or_default();
        deployed.with_value(|deployed| deployed.iter().map(|one| stage(&services, one)).collect::<Vec<_>>())
    });
    let done = Memo::new(move |_| stages.with(|stages| stages.iter().all(Stage::is_final)));
    let well = Memo::new(move |_| {
        stages.with(|stages| stages.iter().all(|stage| matches!(stage, Stage::Running | Stage::Stopped)))
    });
    let begun = browser::now();
    let took = RwSignal::new(None::<u64>);
    Effect::new(move || {
        if done.get() && took.get_untracked().is_none() {
            took.set(Some((browser::now() - begun) as u64));
        }
    });
    task::while_shown(async move {
        while !done.get_untracked() {
            task::sleep(LOOK_AGAIN).await;
            fleet.services.refresh();
        }
    });
    let elapsed = move || match took.get() {
        Some(took) => format!("after {}", format::duration(took.max(1000))),
        None => format::coarse((clock.now() - begun).max(0.0) as u64),
    };
    let headline = move || match (done.get(), well.get()) {
        (_, true) => (Icon::Check, "good", "Everything runs"),
        (true, false) => (Icon::Warning, "bad", "Not everything runs"),
        (false, _) => (Icon::Starting, "busy", "Starting"),
    };
    let long = Memo::new(move |_| !done.get() && clock.now() - begun > LONG);
    let note = move || {
        long.get().then(|| {
            view! {
                <p class="faint">
                    "This takes long. You may leave this page: it goes on by itself, and a service's page has its log."
                </p>
            }
        })
    };
    let rows = response.services.into_iter().map(|one| view! { <Row deployed=one/> }).collect_view();
    let actions = view! {
        <button class="button" on:click=move |_| again.run(())>
            <Glyph icon=Icon::Back/>
            "Back to the file"
        </button>
        <A href="/" attr:class="button">"To the services"</A>
    };
    view! {
        <Page title=format!("Deploying {}", response.stack) actions=actions.into_any()>
            <section class="card progress">
                <p class=move || format!("progress-head tone-{}", headline().1)>
                    {move || view! { <Glyph icon=headline().0/> }}
                    <strong aria-live="polite">{move || headline().2}</strong>
                    <span class="faint">{elapsed}</span>
                </p>
                <ul class="progress-list">{rows}</ul>
                {note}
            </section>
        </Page>
    }
}

fn stage(services: &[ServiceView], deployed: &Deployed) -> Stage {
    Stage::of(services.iter().find(|service| service.service == deployed.service), deployed.revision)
}

#[component]
fn Row(deployed: Deployed) -> impl IntoView {
    let fleet = expect_context::<Fleet>();
    let services = fleet.services.value();
    let name = deployed.service.to_string();
    let service = {
        let name = deployed.service.clone();
        Memo::new(move |_| {
            services.with(|services| services.as_ref()?.iter().find(|service| service.service == name).cloned())
        })
    };
    let revision = deployed.revision;
    let stage = Memo::new(move |_| service.with(|service| Stage::of(service.as_ref(), revision)));
    let badge = move || match stage.get() {
        Stage::Accepted => {
            view! { <span class="badge tone-busy"><Glyph icon=Icon::Starting/>"Accepted"</span> }.into_any()
        }
        Stage::Starting => view! { <StateBadge state=flotilla_api::rest::ServiceState::Starting/> }.into_any(),
        Stage::Running => view! { <StateBadge state=flotilla_api::rest::ServiceState::Running/> }.into_any(),
        Stage::Stopped => view! { <StateBadge state=flotilla_api::rest::ServiceState::Stopped/> }.into_any(),
        Stage::Troubled(state) => view! { <StateBadge state/> }.into_any(),
        Stage::Replaced => view! { <span class="badge tone-calm"><Glyph icon=Icon::Back/>"Replaced"</span> }.into_any(),
    };
    let message = move || match stage.get() {
        Stage::Replaced => Some("A newer revision took its place.".to_owned()),
        stage => {
            let message = service.with(|service| {
                let service = service.as_ref()?;
                let instance = service.instances.iter().find(|instance| instance.revision == revision);
                instance.and_then(|instance| instance.message.clone()).or_else(|| service.message.clone())
            });
            match (message, stage) {
                (Some(message), _) => Some(message),
                (None, Stage::Troubled(state)) => {
                    Some(format!("It is {}; its log may say why.", appearance(state).1.to_lowercase()))
                }
                _ => None,
            }
        }
    };
    let unchanged = (!deployed.changed).then_some("unchanged");
    let opened = name.clone();
    let link = move || {
        (stage.get() == Stage::Running)
            .then(|| deployed.url.clone().map(|url| open_link(&opened, url, "button primary")))
    };
    view! {
        <li>
            <div class="progress-name">
                <A href=format!("/services/{name}")>{name.clone()}</A>
                <span class="faint">"revision " {revision.to_string()} {unchanged.map(|text| format!(", {text}"))}</span>
            </div>
            <div class="progress-state">
                {badge}
                {move || message().map(|message| view! { <p class="row-message"><Prose text=message/></p> })}
            </div>
            <div class="progress-open">{link}</div>
        </li>
    }
}
