use flotilla_api::{
    limit::{CopyLimit, LimitNow, LimitWindow, Rate, Span},
    rest::{ChangeMachine, MachineView},
};
use leptos::{ev, prelude::*};

use crate::dashboard::{
    api::Client,
    components::{Act, Glyph, Icon, Refusal, Section},
    shell::You,
};

/// How much of its line a machine takes for copies: shown to all, changed by an administrator.
#[component]
pub(super) fn Limit(machine: Signal<MachineView>, changed: Callback<()>) -> impl IntoView {
    let (client, you) = (expect_context::<Client>(), expect_context::<You>());
    let act = Act::in_dialog();
    let (rate, from, to) = (RwSignal::new(String::new()), RwSignal::new(String::new()), RwSignal::new(String::new()));
    let lack = RwSignal::new(None::<String>);
    let limit = Memo::new(move |_| machine.with(|machine| machine.copy_limit.clone()));
    let now = Memo::new(move |_| machine.with(|machine| machine.copy_limit_now));
    let name = Memo::new(move |_| machine.with(|machine| machine.name.to_string()));
    let set = move |limit: CopyLimit| {
        let (name, change) = (name.get_untracked(), ChangeMachine { copy_limit: Some(limit), ..Default::default() });
        act.run(async move { client.change_machine(&name, &change).await }, move |_, ()| {
            [rate, from, to].into_iter().for_each(|field| drop(field.try_set(String::new())));
            changed.try_run(());
        });
    };
    let add = move |event: ev::SubmitEvent| {
        event.prevent_default();
        let asked = (rate.get_untracked(), from.get_untracked(), to.get_untracked());
        match parse(&limit.get_untracked(), &asked.0, &asked.1, &asked.2) {
            Ok(limit) => {
                lack.set(None);
                set(limit);
            }
            Err(why) => lack.set(Some(why)),
        }
    };
    let chip = move |(shown, without): (String, CopyLimit)| {
        let remove = you.administers().then(|| {
            let label = format!("Take away {shown}");
            view! {
                <button
                    class="chip-remove"
                    aria-label=label
                    disabled=act.busy
                    on:click=move |_| set(without.clone())
                >
                    <Glyph icon=Icon::Cross/>
                </button>
            }
        });
        view! { <li class="chip removable">{shown} {remove}</li> }
    };
    let list = move || {
        let limit = limit.get();
        let lead = view! { <p class:faint=limit.is_off()>{words(&limit, now.get())}</p> };
        let chips = parts(&limit);
        (
            lead,
            (!chips.is_empty()).then(|| view! { <ul class="chips">{chips.into_iter().map(chip).collect_view()}</ul> }),
        )
    };
    let field = |label: &'static str, kind: &'static str, hint: &'static str, value: RwSignal<String>| {
        view! {
            <input
                type=kind
                aria-label=label
                placeholder=hint
                autocomplete="off"
                autocapitalize="off"
                spellcheck="false"
                prop:value=value
                on:input=move |event| value.set(event_target_value(&event))
            />
        }
    };
    let form = move || {
        you.administers().then(|| {
            view! {
                <form class="label-form limit-form" on:submit=add>
                    {field("Rate", "text", "500kB/s", rate)}
                    {field("From", "time", "", from)}
                    {field("To", "time", "", to)}
                    <button class="button" disabled=act.busy>"Set"</button>
                </form>
                <p class="faint">
                    "Without hours it holds always; 0 sends no copies at all. Hours are of the machine's own local time."
                </p>
                <p class="field-error" role="alert">{lack}</p>
                <Refusal act/>
            }
        })
    };
    view! {
        <Section id="limit" title="Copies it sends">
            <div class="card padded label-card">{list} {form}</div>
        </Section>
    }
}

/// The limit with what a person typed: a rate, and the hours in which it holds, or none.
fn parse(limit: &CopyLimit, rate: &str, from: &str, to: &str) -> Result<CopyLimit, String> {
    let rate: Rate = rate.parse().map_err(|error: flotilla_api::limit::InvalidLimit| error.to_string())?;
    match (from.trim(), to.trim()) {
        ("", "") => Ok(CopyLimit { rate: Some(rate), ..limit.clone() }),
        ("", _) | (_, "") => Err("Say both from when and until when, or neither.".to_owned()),
        (from, to) => {
            let span: Span = format!("{from}-{to}").parse().map_err(|_| "These are no hours.".to_owned())?;
            Ok(limit.clone().with(Some(rate), &[span]))
        }
    }
}

/// Each part of a limit in words, and the limit without it.
fn parts(limit: &CopyLimit) -> Vec<(String, CopyLimit)> {
    let always = limit.rate.map(|rate| {
        let shown = if limit.windows.is_empty() { "always" } else { "else" };
        (format!("{rate} {shown}"), CopyLimit { rate: None, ..limit.clone() })
    });
    let windows = limit.windows.iter().map(|window| {
        let LimitWindow { from, to, rate } = window;
        let what = if *rate == Rate::ZERO { "nothing".to_owned() } else { rate.to_string() };
        (format!("{what} from {from} to {to}"), limit.clone().with(None, &[window.span()]))
    });
    always.into_iter().chain(windows).collect()
}

/// What holds now, as a sentence.
fn words(limit: &CopyLimit, now: Option<LimitNow>) -> String {
    if limit.is_off() {
        return "As fast as its line takes them.".to_owned();
    }
    let Some(LimitNow { rate, until }) = now else { return "It has not told what holds now.".to_owned() };
    let what = match rate {
        None => "as fast as its line takes them".to_owned(),
        Some(Rate::ZERO) => "none".to_owned(),
        Some(rate) => format!("at most {rate}"),
    };
    match until {
        Some(until) => format!("Now {what}, until {until}."),
        None => format!("Now {what}."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_typed_as_a_rate_and_hours() {
        let none = CopyLimit::default();
        let always = parse(&none, " 2MB/s ", "", "").unwrap();
        assert_eq!(always.to_string(), "2 MB/s");
        let day = parse(&always, "500kB/s", "07:00", "23:00").unwrap();
        assert_eq!(day.to_string(), "2 MB/s, 500 kB/s from 07:00 to 23:00");
        assert_eq!(parse(&day, "0", "07:00", "23:00").unwrap().windows.len(), 1, "the same hours");
        for (rate, from, to) in [("fast", "", ""), ("1MB/s", "07:00", ""), ("1MB/s", "", "07:00"), ("1MB/s", "7", "8")]
        {
            assert!(parse(&none, rate, from, to).is_err(), "{rate} {from} {to}");
        }
    }

    #[test]
    fn each_part_can_be_taken_away() {
        let limit = parse(&parse(&CopyLimit::default(), "2MB/s", "", "").unwrap(), "0", "18:00", "22:00").unwrap();
        let told: Vec<_> = parts(&limit).into_iter().map(|(words, without)| (words, without.to_string())).collect();
        let expected = [("2 MB/s else", "nothing from 18:00 to 22:00"), ("nothing from 18:00 to 22:00", "2 MB/s")];
        assert_eq!(told, expected.map(|(words, without)| (words.to_owned(), without.to_owned())));
    }

    #[test]
    fn it_is_said_what_holds_now() {
        let limit = parse(&CopyLimit::default(), "0", "18:00", "22:00").unwrap();
        let now = |rate: Option<&str>, until: Option<&str>| LimitNow {
            rate: rate.map(|rate| rate.parse().unwrap()),
            until: until.map(|until| until.parse().unwrap()),
        };
        assert_eq!(words(&CopyLimit::default(), None), "As fast as its line takes them.");
        assert_eq!(words(&limit, Some(now(Some("0"), Some("22:00")))), "Now none, until 22:00.");
        assert_eq!(words(&limit, Some(now(None, Some("18:00")))), "Now as fast as its line takes them, until 18:00.");
        assert_eq!(words(&limit, Some(now(Some("1MB/s"), None))), "Now at most 1 MB/s.");
        assert_eq!(words(&limit, None), "It has not told what holds now.");
    }
}
