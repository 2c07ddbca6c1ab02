use flotilla_api::rest::{MomentView, VolumeDetail};
use leptos::prelude::*;

use super::acts::{Acts, Buttons};
use crate::dashboard::{
    browser,
    changes::{self, Chosen},
    components::{Ago, Empty, Glyph, Icon, Section},
    durability::{Day, by_day},
    format,
};

/// Shown at first, and with each press of the button.
const PAGE: usize = 40;

/// What the volume was, as one machine keeps it.
#[component]
pub(super) fn History(detail: Signal<VolumeDetail>, acts: Acts) -> impl IntoView {
    let limit = RwSignal::new(PAGE);
    let history = Memo::new(move |_| detail.with(|detail| detail.history.clone()));
    let days = Memo::new(move |_| {
        history.with(|history| {
            let shown: Vec<_> = history.iter().rev().take(limit.get()).cloned().collect();
            by_day(&shown, |at| browser::local(at).date())
        })
    });
    let read_on = Memo::new(move |_| detail.with(|detail| detail.read_on.to_string()));
    let empty = Memo::new(move |_| history.with(Vec::is_empty));
    let more = Memo::new(move |_| history.with(Vec::len) > limit.get());
    // Dates alone, and names of generations below: a button keeps the focus while generations come and go.
    let dates = move || days.with(|days| days.iter().map(|day| day.date.clone()).collect::<Vec<_>>());
    let rest = move || {
        more.get().then(|| {
            view! {
                <button class="button" on:click=move |_| limit.update(|limit| *limit += PAGE)>"Show earlier"</button>
            }
        })
    };
    view! {
        <Section id="history" title="History">
            {move || {
                if empty.get() {
                    return view! {
                        <Empty icon=Icon::Activity title="No generation yet">
                            <p>"As soon as something is written, what the volume was will be listed here."</p>
                        </Empty>
                    }
                        .into_any();
                }
                view! {
                    <p class="faint">"Generations that " <strong>{move || read_on.get()}</strong> " keeps, the newest first."</p>
                    <For each=dates key=Clone::clone children=move |date| day(date, days, history, acts)/>
                    {rest}
                }
                    .into_any()
            }}
        </Section>
    }
}

fn day(date: Option<String>, days: Memo<Vec<Day>>, history: Memo<Vec<MomentView>>, acts: Acts) -> AnyView {
    let dated = date.is_some();
    let of = date.clone();
    let moments = Memo::new(move |_| {
        days.with(|days| days.iter().find(|day| day.date == of).map(|day| day.moments.clone()).unwrap_or_default())
    });
    let list = view! {
        <ol class="timeline">
            <For
                each=move || moments.get()
                key=|moment| moment.generation.generation.clone()
                children=move |moment| item(moment, dated, history, acts)
            />
        </ol>
    };
    match date {
        Some(date) => view! {
            <section class="day">
                <h3>{date}</h3>
                {list}
            </section>
        }
        .into_any(),
        None => list.into_any(),
    }
}

/// Under a heading the date is said already.
fn item(moment: MomentView, dated: bool, history: Memo<Vec<MomentView>>, acts: Acts) -> impl IntoView {
    let chosen = Chosen::from(&moment);
    let MomentView { generation, files, bytes, committed } = moment;
    let at = browser::local(generation.taken_at);
    let name = generation.generation.clone();
    // All else of a generation stays as it is.
    let committed = Memo::new(move |before: Option<&bool>| {
        let now = history.with(|history| {
            history.iter().rev().find(|moment| moment.generation.generation == name).map(|moment| moment.committed)
        });
        now.unwrap_or_else(|| before.copied().unwrap_or(committed))
    });
    let (name, of) = (generation.generation.clone(), generation.generation.clone());
    let before = Memo::new(move |_| {
        history.with(|history| changes::before(history, &of).map(|moment| moment.generation.generation.clone()))
    });
    let icon = move || {
        let (icon, tone) = if committed.get() { (Icon::Check, "good") } else { (Icon::Starting, "warn") };
        view! { <span class=format!("event-icon tone-{tone}")><Glyph icon/></span> }
    };
    let standing = move || {
        if committed.get() {
            view! { <span>"Committed"</span> }.into_any()
        } else {
            view! { <span class="chip tone-warn">"not committed yet"</span> }.into_any()
        }
    };
    let files = format::counted(usize::try_from(files).unwrap_or(usize::MAX), "file", "files");
    view! {
        <li class="event moment" data-generation=name>
            {icon}
            <p class="event-text">
                <time datetime=format::Moment::new(generation.taken_at, 0).iso() title=at.full()>
                    {if dated { at.time() } else { at.full() }}
                </time>
                ": " {files} ", " {format::bytes(bytes)}
            </p>
            <p class="event-meta faint">
                {standing}
                <span>"Generation " {generation.generation}</span>
                <Ago at=generation.taken_at/>
            </p>
            <Buttons chosen before acts/>
        </li>
    }
}
