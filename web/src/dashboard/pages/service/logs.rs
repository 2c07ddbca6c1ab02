use std::time::Duration;

use flotilla_api::{UnixMillis, rest::LogQuery};
use leptos::{html, prelude::*};

use crate::dashboard::{
    api::{Client, Failure},
    backoff::Backoff,
    bell::{self, Bell},
    browser,
    components::{Filter, Glyph, Icon, Section},
    format,
    log_buffer::{Line, LogBuffer},
    task,
};

/// Lines of the past to begin with.
const TAIL: u32 = 500;

/// Lines are drawn in batches: a service may write thousands in a second.
const DRAW_EVERY: Duration = Duration::from_millis(120);

/// Closer to the end than this counts as being there. Pixels.
const AT_END: i32 = 24;

#[derive(Clone, Debug, PartialEq)]
enum Following {
    Connecting,
    Live,
    /// The node ended the stream, or it was lost; it is opened again.
    Again(Option<Failure>),
}

/// A log as it comes in, apart from how it is drawn.
#[derive(Clone, Copy)]
struct Tail {
    buffer: StoredValue<LogBuffer>,
    /// Counts batches: what draws the buffer reads this.
    batch: RwSignal<u64>,
    following: RwSignal<Following>,
}

impl Tail {
    fn start(client: Client, name: String) -> Self {
        let tail = Self {
            buffer: StoredValue::new(LogBuffer::default()),
            batch: RwSignal::new(0),
            following: RwSignal::new(Following::Connecting),
        };
        let (bell, mut sleeper) = bell::bell();
        task::while_shown(async move {
            let mut backoff = Backoff::new();
            let mut newest = None;
            loop {
                task::until_visible().await;
                let before = newest;
                let ended = tail.follow(client, &name, &mut newest, &bell).await;
                if newest != before {
                    backoff.reset();
                }
                tail.following.set(Following::Again(ended.err()));
                task::sleep(backoff.after_failure(js_sys::Math::random())).await;
            }
        });
        task::while_shown(async move {
            loop {
                sleeper.rest().await;
                tail.batch.update(|batch| *batch += 1);
                task::sleep(DRAW_EVERY).await;
            }
        });
        tail
    }

    async fn follow(
        self,
        client: Client,
        name: &str,
        newest: &mut Option<UnixMillis>,
        bell: &Bell,
    ) -> Result<(), Failure> {
        let query = match *newest {
            None => LogQuery { follow: true, tail: Some(TAIL), since: None },
            // What was written in the same millisecond as the last line is not seen twice, and may be missed.
            Some(at) => LogQuery { follow: true, tail: None, since: Some(at.plus(1)) },
        };
        let mut lines = client.logs(name, query).await?;
        self.following.set(Following::Live);
        while let Some(line) = lines.next().await? {
            *newest = (*newest).max(Some(line.at));
            self.buffer.update_value(|buffer| buffer.push(line));
            bell.ring();
        }
        Ok(())
    }
}

#[component]
pub(crate) fn Logs(name: String) -> impl IntoView {
    let tail = Tail::start(expect_context(), name.clone());
    let filter = RwSignal::new(String::new());
    let wrap = RwSignal::new(true);
    let follow = RwSignal::new(true);
    // The number of the last line to show, while paused.
    let paused_at = RwSignal::new(None::<u64>);
    let view_port = NodeRef::<html::Div>::new();

    let visible = Memo::new(move |_| {
        tail.batch.track();
        let last = paused_at.get().unwrap_or(u64::MAX);
        tail.buffer.with_value(|buffer| buffer.matching(&filter.read(), last))
    });
    let waiting = Memo::new(move |_| {
        tail.batch.track();
        let taken = tail.buffer.with_value(LogBuffer::taken);
        paused_at.get().map_or(0, |last| taken - last)
    });
    Effect::new(move || {
        visible.track();
        wrap.track();
        if let (true, Some(port)) = (follow.get(), view_port.get()) {
            // After the lines are in the document.
            request_animation_frame(move || port.set_scroll_top(port.scroll_height()));
        }
    });
    let on_scroll = move |_| {
        let Some(port) = view_port.get_untracked() else { return };
        let at_end = port.scroll_height() - port.scroll_top() - port.client_height() <= AT_END;
        if at_end != follow.get_untracked() {
            follow.set(at_end);
        }
    };
    let pause = move |_| match paused_at.get_untracked() {
        Some(_) => {
            paused_at.set(None);
            follow.set(true);
        }
        None => paused_at.set(Some(tail.buffer.with_value(LogBuffer::taken))),
    };
    let file = format!("{name}.log");
    let download = move |_| {
        let text = tail.buffer.with_value(|buffer| buffer.to_text(|at| format::Moment::new(at, 0).iso()));
        browser::save(&file, &text);
    };
    let clear = move |_| {
        tail.buffer.update_value(LogBuffer::clear);
        tail.batch.update(|batch| *batch += 1);
    };
    let paused = Memo::new(move |_| paused_at.get().is_some());
    let empty = Memo::new(move |_| visible.with(Vec::is_empty));
    let held = Memo::new(move |_| {
        tail.batch.track();
        tail.buffer.with_value(|buffer| (buffer.len(), buffer.dropped()))
    });
    let status = move || match (paused.get(), tail.following.get()) {
        (true, _) => ("calm", format!("Paused, {} new", waiting.get())),
        (false, Following::Live) => ("good", "Live".to_owned()),
        (false, Following::Connecting) => ("calm", "Connecting".to_owned()),
        (false, Following::Again(None)) => ("calm", "Waiting for output".to_owned()),
        (false, Following::Again(Some(_))) => ("warn", "Interrupted".to_owned()),
    };
    let controls = view! {
        <span class=move || format!("link-state tone-{}", status().0)>{move || status().1}</span>
    };
    let instead = move || {
        empty.get().then(|| {
            let sentence = match tail.following.get() {
                _ if !filter.read().is_empty() => "No line contains this text.".to_owned(),
                Following::Connecting => "Asking for the log…".to_owned(),
                Following::Again(Some(failure)) => failure.to_string(),
                Following::Live | Following::Again(None) => "Nothing was written yet.".to_owned(),
            };
            view! { <p class="log-none">{sentence}</p> }
        })
    };
    let to_end = move || {
        (!follow.get() && !empty.get()).then(|| {
            view! {
                <button class="button small log-to-end" on:click=move |_| follow.set(true)>
                    <Glyph icon=Icon::Follow/>
                    "To the newest"
                </button>
            }
        })
    };
    view! {
        <Section id="logs" title="Log" actions=controls.into_any()>
            <div class="log">
                <div class="log-bar" role="group" aria-label="Log">
                    <Filter value=filter label="Filter the log" hint="Filter"/>
                    <button class="button small" aria-pressed=move || paused.get().to_string() on:click=pause>
                        {move || view! { <Glyph icon=if paused.get() { Icon::Play } else { Icon::Pause }/> }}
                        {move || if paused.get() { "Resume" } else { "Pause" }}
                    </button>
                    <button
                        class="button small"
                        aria-pressed=move || wrap.get().to_string()
                        on:click=move |_| wrap.update(|wrap| *wrap = !*wrap)
                    >
                        <Glyph icon=Icon::Wrap/>
                        "Wrap"
                    </button>
                    <button class="button small" disabled=move || held.get().0 == 0 on:click=download>
                        <Glyph icon=Icon::Download/>
                        "Download"
                    </button>
                    <button class="button small" disabled=move || held.get().0 == 0 on:click=clear>"Clear"</button>
                </div>
                <div
                    class="log-lines"
                    class:wrap=wrap
                    tabindex="0"
                    role="log"
                    aria-live="off"
                    aria-label=format!("Log of {name}")
                    node_ref=view_port
                    on:scroll=on_scroll
                >
                    <For each=move || visible.get() key=|line| line.number children=line/>
                    {instead}
                </div>
                {to_end}
            </div>
            <p class="faint log-held">
                {move || {
                    let (held, dropped) = held.get();
                    let dropped = if dropped > 0 { format!("; {dropped} older ones were let go") } else { String::new() };
                    format!("{} held in this page{dropped}", format::counted(held, "line", "lines"))
                }}
            </p>
        </Section>
    }
}

fn line(line: Line) -> impl IntoView {
    let moment = browser::local(line.at);
    view! {
        <div class="log-line" class:err=line.error>
            <time title=format!("{}, {}", moment.full(), line.instance)>{moment.time()}</time>
            <span>{line.text}</span>
        </div>
    }
}
