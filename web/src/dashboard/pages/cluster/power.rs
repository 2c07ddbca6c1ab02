use flotilla_api::rest::{DemoAnswer, DemoOutage, MachineState, MachineView};
use leptos::prelude::*;

use crate::dashboard::{
    api::Client,
    components::{Act, Glyph, Icon},
    fleet::Fleet,
    shell::You,
};

/// In a demo alone: pulls a machine's plug, and puts it in again.
#[component]
pub(crate) fn Power(machine: Signal<MachineView>) -> impl IntoView {
    let (client, fleet, you) = (expect_context::<Client>(), expect_context::<Fleet>(), expect_context::<You>());
    let cluster = fleet.cluster.value();
    let demo = Memo::new(move |_| cluster.with(|cluster| cluster.as_ref().is_some_and(|cluster| cluster.demo)));
    let act = Act::new();
    let name = Memo::new(move |_| machine.with(|machine| machine.name.to_string()));
    let off = Memo::new(move |_| {
        machine.with(|machine| matches!(machine.condition.state, MachineState::Lost | MachineState::Suspect))
    });
    let kill = move |_| {
        let name = name.get_untracked();
        act.run(
            async move { client.pull_plug(&name).await.map(|answer| (name, answer)) },
            move |toasts, (name, answer)| {
                toasts.tell(told(&name, &answer));
                fleet.services.refresh();
            },
        );
    };
    let start = move |_| {
        let name = name.get_untracked();
        act.run(async move { client.put_plug(&name).await.map(|_| name) }, move |toasts, name| {
            toasts.tell(format!("`{name}` has power again."));
        });
    };
    move || {
        (demo.get() && you.administers()).then(|| {
            if off.get() {
                view! {
                    <button class="button small" disabled=act.busy on:click=start>
                        <Glyph icon=Icon::Plug/>
                        {move || if act.busy.get() { "Starting…" } else { "Start" }}
                        <span class="unseen">" " {name}</span>
                    </button>
                }
                .into_any()
            } else {
                view! {
                    <button class="button small danger" disabled=act.busy on:click=kill>
                        <Glyph icon=Icon::Plug/>
                        {move || if act.busy.get() { "Measuring…" } else { "Pull the plug" }}
                        <span class="unseen">" of " {name}</span>
                    </button>
                }
                .into_any()
            }
        })
    }
}

/// "The plug of `atlas` was pulled: notes was away for 3.2 s, hello was never away."
fn told(name: &str, answer: &DemoAnswer) -> String {
    let Some(outage) = &answer.outage else { return format!("The plug of `{name}` was pulled.") };
    let services = seen(outage);
    if services.is_empty() {
        return format!("The plug of `{name}` was pulled.");
    }
    format!("The plug of `{name}` was pulled: {}.", services.join(", "))
}

/// Worst first; what nobody noticed is one remark.
fn seen(outage: &DemoOutage) -> Vec<String> {
    let mut noticed: Vec<_> = outage.services.iter().filter(|service| service.outcome != "never-there").collect();
    noticed.sort_by_key(|service| std::cmp::Reverse((service.outcome == "away", service.gap_ms)));
    let unnoticed = noticed.iter().filter(|service| service.gap_ms.is_none() && service.outcome != "away").count();
    let mut sentences: Vec<String> = noticed
        .iter()
        .filter_map(|service| match (service.outcome.as_str(), service.gap_ms) {
            ("away", _) => Some(format!("`{}` is still away", service.service)),
            (_, Some(gap)) => Some(format!("`{}` was away for {:.1} s", service.service, gap as f64 / 1000.0)),
            (_, None) => None,
        })
        .collect();
    match unnoticed {
        0 => {}
        1 => sentences.push("one service went on without a gap".to_owned()),
        many => sentences.push(format!("{many} services went on without a gap")),
    }
    sentences
}

#[cfg(test)]
mod tests {
    use flotilla_api::rest::DemoServiceOutage;

    use super::*;

    #[test]
    fn what_people_saw_is_told_with_the_worst_first() {
        let service = |name: &str, gap_ms: Option<u64>, outcome: &str| DemoServiceOutage {
            service: name.parse().unwrap(),
            polls: 100,
            failed: 3,
            gap_ms,
            outcome: outcome.to_owned(),
            before: Vec::new(),
            after: Vec::new(),
            why: None,
        };
        let mut answer = DemoAnswer { ok: true, error: None, outage: None };
        assert_eq!(told("atlas", &answer), "The plug of `atlas` was pulled.");
        answer.outage = Some(DemoOutage {
            machine: "atlas".parse().unwrap(),
            services: vec![
                service("hello", None, "back"),
                service("notes", Some(3230), "back"),
                service("ghost", None, "never-there"),
                service("db", None, "away"),
            ],
        });
        assert_eq!(
            told("atlas", &answer),
            "The plug of `atlas` was pulled: `db` is still away, `notes` was away for 3.2 s, one service went on without a gap."
        );
    }
}
