use std::time::Duration;

use flotilla_api::rest::{EventView, ServiceState};
use leptos::prelude::*;

use crate::dashboard::{
    api::Client,
    browser,
    components::{Ago, Empty, Glyph, Icon, Page, Prose, appearance as state_appearance, shown},
    fleet::refresh_on_change,
    live::Live,
    query::Query,
};

const INTERVAL: Duration = Duration::from_secs(30);

/// Shown at first, and with each press of the button.
const PAGE: usize = 60;

#[component]
pub(crate) fn Activity() -> impl IntoView {
    let client = expect_context::<Client>();
    let live = expect_context::<Live>();
    let audit = Query::start(INTERVAL, move || async move { client.audit().await });
    refresh_on_change(live, audit);
    view! {
        <Page title="Activity" lead="Every change, who made it, and what was seen since.".into_any()>
            {shown(audit, 8, move |audit| view! { <Timeline audit live/> }.into_any())}
        </Page>
    }
}

#[component]
fn Timeline(audit: Signal<Vec<EventView>>, live: Live) -> impl IntoView {
    let limit = RwSignal::new(PAGE);
    let events = Memo::new(move |_| live.recent.with(|recent| merged(audit.get(), recent.iter())));
    let days = move || {
        let events: Vec<_> = events.with(|events| events.iter().take(limit.get()).cloned().collect());
        events
            .chunk_by(|a, b| browser::local(a.at).date() == browser::local(b.at).date())
            .filter_map(|day| {
                let date = browser::local(day.first()?.at).date();
                let items = day.iter().cloned().map(item).collect_view();
                Some(view! {
                    <section class="day">
                        <h2>{date}</h2>
                        <ol class="timeline">{items}</ol>
                    </section>
                })
            })
            .collect_view()
    };
    let rest = move || {
        let more = events.with(Vec::len) > limit.get();
        more.then(|| {
            view! {
                <button class="button" on:click=move |_| limit.update(|limit| *limit += PAGE)>"Show earlier"</button>
            }
        })
    };
    view! {
        {move || {
            if events.with(Vec::is_empty) {
                return view! {
                    <Empty icon=Icon::Activity title="Nothing has happened yet">
                        <p>"Deployments, restarts and sign-ins will be listed here."</p>
                    </Empty>
                }
                    .into_any();
            }
            view! {
                {days}
                {rest}
            }
                .into_any()
        }}
    }
}

/// Newest first. An event that is in the trail and also came over the stream is there once.
fn merged<'a>(mut trail: Vec<EventView>, recent: impl Iterator<Item = &'a EventView>) -> Vec<EventView> {
    for event in recent {
        if !trail.contains(event) {
            trail.push(event.clone());
        }
    }
    trail.sort_by_key(|event| std::cmp::Reverse((event.at, event.index)));
    trail
}

fn item(event: EventView) -> impl IntoView {
    let (icon, tone) = appearance(&event.kind, &event.message);
    view! {
        <li class="event">
            <span class=format!("event-icon tone-{tone}")><Glyph icon/></span>
            <p class="event-text"><Prose text=event.message service=event.service/></p>
            <p class="event-meta faint">
                <span>{event.actor}{event.from.map(|address| format!(", from {address}"))}</span>
                <Ago at=event.at/>
            </p>
        </li>
    }
}

fn appearance(kind: &str, message: &str) -> (Icon, &'static str) {
    match kind {
        // What the engine showed: the state is in the sentence, "`web` is running: …".
        "observed" => observed(message).map_or((Icon::Activity, "calm"), |state| {
            let (icon, _, tone) = state_appearance(state);
            (icon, tone)
        }),
        "deployed" | "unchanged" => (Icon::Deploy, "busy"),
        "rolled-back" => (Icon::Back, "busy"),
        "restarted" => (Icon::Refresh, "warn"),
        "scaled" => (Icon::Services, "calm"),
        "removed" | "volumes-condemned" | "volumes-deleted" => (Icon::Trash, "bad"),
        "confirmed" => (Icon::Check, "good"),
        kind if kind.starts_with("token") => (Icon::Key, "calm"),
        kind if kind.starts_with("invitation") => (Icon::Link, "calm"),
        kind if kind.starts_with("machine") || kind.starts_with("cluster") || kind.starts_with("engine") => {
            (Icon::Machine, "calm")
        }
        _ => (Icon::Activity, "calm"),
    }
}

fn observed(message: &str) -> Option<ServiceState> {
    let (_, state) = message.split_once(" is ")?;
    let word = state.split(|c: char| !c.is_ascii_alphabetic()).next()?;
    ServiceState::ALL.iter().copied().find(|state| state.as_str() == word)
}

#[cfg(test)]
mod tests {
    use flotilla_api::UnixMillis;

    use super::*;

    #[test]
    fn an_observation_looks_like_the_state_it_tells_of() {
        assert_eq!(observed("`web` is running."), Some(ServiceState::Running));
        assert_eq!(observed("`web` is failed: its image is missing."), Some(ServiceState::Failed));
        assert_eq!(observed("Something else"), None);
    }

    #[test]
    fn an_event_heard_twice_is_listed_once_and_the_newest_comes_first() {
        let event = |index: Option<u64>, at| EventView {
            index,
            at: UnixMillis(at),
            kind: "deployed".into(),
            actor: "ada".into(),
            from: None,
            service: None,
            machine: None,
            message: String::new(),
        };
        let trail = vec![event(Some(1), 10), event(Some(2), 20)];
        let recent = [event(Some(2), 20), event(None, 15), event(Some(3), 20)];
        let indices: Vec<_> = merged(trail, recent.iter()).into_iter().map(|event| event.index).collect();
        assert_eq!(indices, [Some(3), Some(2), None, Some(1)]);
    }
}
