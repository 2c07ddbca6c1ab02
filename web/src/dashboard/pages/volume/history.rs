use flotilla_api::rest::{MomentView, VolumeDetail};
use leptos::prelude::*;

use crate::dashboard::{
    browser,
    components::{Ago, Empty, Glyph, Icon, Section},
    durability::{Day, by_day},
    format,
};

/// Shown at first, and with each press of the button.
const PAGE: usize = 40;

/// What the volume was, as one machine keeps it.
#[component]
pub(super) fn History(detail: Signal<VolumeDetail>) -> impl IntoView {
    let limit = RwSignal::new(PAGE);
    let newest_first =
        Memo::new(move |_| detail.with(|detail| detail.history.iter().rev().cloned().collect::<Vec<_>>()));
    let days = Memo::new(move |_| {
        newest_first.with(|moments| {
            let shown = &moments[..moments.len().min(limit.get())];
            by_day(shown, |at| browser::local(at).date())
        })
    });
    let read_on = Memo::new(move |_| detail.with(|detail| detail.read_on.to_string()));
    let empty = Memo::new(move |_| newest_first.with(Vec::is_empty));
    let more = Memo::new(move |_| newest_first.with(Vec::len) > limit.get());
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
                    {move || days.get().into_iter().map(day).collect_view()}
                    {rest}
                }
                    .into_any()
            }}
        </Section>
    }
}

fn day(day: Day) -> AnyView {
    let dated = day.date.is_some();
    let items = day.moments.into_iter().map(|one| item(one, dated)).collect_view();
    let list = view! { <ol class="timeline">{items}</ol> };
    match day.date {
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
fn item(moment: MomentView, dated: bool) -> impl IntoView {
    let MomentView { generation, files, bytes, committed } = moment;
    let at = browser::local(generation.taken_at);
    let (icon, tone) = if committed { (Icon::Check, "good") } else { (Icon::Starting, "warn") };
    let standing = if committed {
        view! { <span>"Committed"</span> }.into_any()
    } else {
        view! { <span class="chip tone-warn">"not committed yet"</span> }.into_any()
    };
    let files = format::counted(usize::try_from(files).unwrap_or(usize::MAX), "file", "files");
    view! {
        <li class="event">
            <span class=format!("event-icon tone-{tone}")><Glyph icon/></span>
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
        </li>
    }
}
