use std::time::Duration;

use flotilla_api::{
    UnixMillis,
    rest::{EventView, ServiceState},
};
use leptos::prelude::*;
use leptos_router::components::A;

use crate::dashboard::{
    api::Client,
    browser,
    components::{Ago, Empty, Glyph, Icon, Page, Prose, appearance as state_appearance, shown},
    fleet::refresh_on_change,
    format,
    incidents::{self, Entry, Incident, Kind, Move},
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
    let entries = Memo::new(move |_| live.recent.with(|recent| incidents::grouped(merged(audit.get(), recent.iter()))));
    let days = move || {
        let entries: Vec<_> = entries.with(|entries| entries.iter().take(limit.get()).cloned().collect());
        entries
            .chunk_by(|a, b| browser::local(a.at()).date() == browser::local(b.at()).date())
            .filter_map(|day| {
                let date = browser::local(day.first()?.at()).date();
                let items = day.iter().cloned().map(entry).collect_view();
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
        let more = entries.with(Vec::len) > limit.get();
        more.then(|| {
            view! {
                <button class="button" on:click=move |_| limit.update(|limit| *limit += PAGE)>"Show earlier"</button>
            }
        })
    };
    view! {
        {move || {
            if entries.with(Vec::is_empty) {
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

fn entry(entry: Entry) -> AnyView {
    match entry {
        Entry::Event(event) => item(event).into_any(),
        Entry::Incident(incident) => story(incident).into_any(),
    }
}

/// What belongs to the loss or the drain of a machine: told in sentences, and each event below.
fn story(incident: Incident) -> impl IntoView {
    let Incident { kind, machine, began, ended, moves, events } = incident;
    let machine = machine.to_string();
    let (icon, tone) = match (kind, ended) {
        (Kind::Lost, None) => (Icon::Lost, "bad"),
        (Kind::Drained, None) => (Icon::Drain, "busy"),
        (_, Some(_)) => (Icon::Machine, "calm"),
    };
    let began_at = browser::local(began);
    let headline = match kind {
        Kind::Lost => " was lost at ",
        Kind::Drained => " was drained at ",
    };
    let moved = moves.into_iter().map(|one| moved(one, kind, began)).collect_view();
    let end = ended.map(|ended| {
        let (what, after) = match kind {
            Kind::Lost => (" came back at ", "after"),
            Kind::Drained => (" takes instances again since ", "after"),
        };
        let took = format::duration(ended.since(began) / 1000 * 1000);
        view! {
            <li class="story-step">
                <strong>{machine.clone()}</strong> {what} <Clock at=ended/> ", " {after} " " {took} "."
            </li>
        }
    });
    let count = format::counted(events.len(), "event", "events");
    let items = events.into_iter().rev().map(item).collect_view();
    view! {
        <li class="event story">
            <span class=format!("event-icon tone-{tone}")><Glyph icon/></span>
            <div class="story-body card">
                <p class="story-head">
                    <A href=format!("/machines/{machine}") attr:class="row-link">{machine.clone()}</A>
                    {headline}
                    <time datetime=format::Moment::new(began, 0).iso() title=began_at.full()>{began_at.time()}</time>
                    "."
                </p>
                <ul class="story-steps">{moved} {end}</ul>
                <details class="hint">
                    <summary>{count}</summary>
                    <ol class="timeline">{items}</ol>
                </details>
            </div>
            <p class="event-meta faint"><Ago at=began/></p>
        </li>
    }
}

fn moved(one: Move, kind: Kind, began: UnixMillis) -> impl IntoView {
    let service = one.service.to_string();
    let link = view! { <A href=format!("/services/{service}") attr:class="row-link">{service.clone()}</A> };
    let rest = match (one.to, one.runs_at, one.placed_at) {
        (Some(to), Some(at), _) => {
            let took = (kind == Kind::Lost).then(|| format!(", {:.1} s later", at.since(began) as f64 / 1000.0));
            view! { " back on " <strong>{to.to_string()}</strong> " at " <Clock at/> {took} "." }.into_any()
        }
        (Some(to), None, Some(at)) => {
            view! { " placed on " <strong>{to.to_string()}</strong> " at " <Clock at/> "." }.into_any()
        }
        _ => " waits for a machine.".into_any(),
    };
    view! { <li class="story-step">{link} {rest}</li> }
}

/// "12:03:10"
#[component]
fn Clock(at: UnixMillis) -> impl IntoView {
    let moment = browser::local(at);
    view! { <time datetime=format::Moment::new(at, 0).iso() title=moment.full()>{moment.time()}</time> }
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
        "placed" => (Icon::Machine, "busy"),
        "moving" | "machine-drained" => (Icon::Drain, "busy"),
        "ended" => (Icon::Stop, "calm"),
        "leader" => (Icon::Leader, "calm"),
        "machine-lost" => (Icon::Lost, "bad"),
        "machine-back" | "machine-undrained" | "machine-joined" => (Icon::Machine, "good"),
        "machine-removed" => (Icon::Trash, "bad"),
        "rolled-back" => (Icon::Back, "busy"),
        "restarted" => (Icon::Refresh, "warn"),
        "scaled" => (Icon::Services, "calm"),
        "removed" | "volumes-condemned" | "volumes-deleted" => (Icon::Trash, "bad"),
        "copy-dropped" | "copy-deleted" => (Icon::Trash, "calm"),
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
