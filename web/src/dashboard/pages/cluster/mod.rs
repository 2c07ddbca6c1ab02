//! The cluster: its machines and the links between them, and how another one joins.

mod card;
mod join;
mod links;
mod map;
mod power;
mod turn;

use std::time::Duration;

use flotilla_api::rest::{ClusterView, MachineView};
use leptos::prelude::*;

use crate::dashboard::{
    api::Client,
    components::{Dialog, Empty, Glyph, Icon, Page, Prose, shown},
    fleet::{Fleet, refresh_on_change},
    format,
    live::Live,
    query::Query,
    shell::You,
};
use card::Card;
pub(crate) use card::Meters;
use join::Join;
use links::Links;
use map::Map;

pub(crate) use links::link_table;
pub(crate) use power::Power;
pub(crate) use turn::Turn;

/// Figures move; this is quick enough to watch them, and cheap.
const INTERVAL: Duration = Duration::from_secs(3);

#[component]
pub(crate) fn Cluster() -> impl IntoView {
    let (client, live, fleet, you) =
        (expect_context::<Client>(), expect_context::<Live>(), expect_context::<Fleet>(), expect_context::<You>());
    let machines = Query::start(INTERVAL, move || async move { client.machines().await });
    refresh_on_change(live, machines);
    let cluster = fleet.cluster.value();
    let joining = RwSignal::new(false);
    let actions = move || {
        you.administers().then(|| {
            view! {
                <button class="button primary" on:click=move |_| joining.set(true)>
                    <Glyph icon=Icon::Plus/>
                    "Add a machine"
                </button>
            }
        })
    };
    let lead = move || cluster.with(|cluster| cluster.as_ref().map(sentence));
    view! {
        <Page title="Cluster" aside=verdict(cluster).into_any() lead=lead.into_any() actions=actions.into_any()>
            {weakness(cluster)}
            {shown(machines, 6, move |machines| view! { <Machines machines asked=machines_asked(machines)/> }.into_any())}
        </Page>
        <Dialog open=joining title="Add a machine">
            <Join open=joining/>
        </Dialog>
    }
}

/// Ids in the order of the names, so that a machine keeps its card while its figures change.
fn machines_asked(machines: Signal<Vec<MachineView>>) -> Memo<Vec<flotilla_api::NodeId>> {
    Memo::new(move |_| machines.with(|machines| machines.iter().map(|machine| machine.id.clone()).collect()))
}

/// "3 machines decide, led by atlas, in term 4; 1 follows."
fn sentence(cluster: &ClusterView) -> String {
    let voters = cluster.voters.len();
    let decide = format!(
        "{} {}",
        format::counted(voters, "machine", "machines"),
        if voters == 1 { "decides" } else { "decide" }
    );
    let leader = match &cluster.leader {
        Some(leader) => format!("led by {leader} in term {}", cluster.term),
        None => "and none of them leads".to_owned(),
    };
    let learners = match cluster.learners.len() {
        0 => String::new(),
        1 => "; 1 follows".to_owned(),
        many => format!("; {many} follow"),
    };
    format!("{decide}, {leader}{learners}.")
}

fn verdict(cluster: Memo<Option<ClusterView>>) -> impl IntoView {
    let tolerant = Memo::new(move |_| cluster.with(|cluster| cluster.as_ref().map(|cluster| cluster.fault_tolerant)));
    move || {
        tolerant.get().map(|tolerant| {
            let (tone, icon, text) = if tolerant {
                ("good", Icon::Check, "Fault tolerant")
            } else {
                ("warn", Icon::Warning, "Not fault tolerant")
            };
            view! { <span class=format!("badge tone-{tone}")><Glyph icon/>{text}</span> }
        })
    }
}

fn weakness(cluster: Memo<Option<ClusterView>>) -> impl IntoView {
    let why = Memo::new(move |_| {
        cluster.with(|cluster| cluster.as_ref().and_then(|cluster| cluster.not_fault_tolerant_because.clone()))
    });
    move || {
        why.get().map(|why| {
            view! {
                <div class="banner tone-warn" role="status">
                    <Glyph icon=Icon::Warning/>
                    <p><strong>"A loss would be felt. "</strong><Prose text=why/></p>
                </div>
            }
        })
    }
}

#[component]
fn Machines(machines: Signal<Vec<MachineView>>, asked: Memo<Vec<flotilla_api::NodeId>>) -> impl IntoView {
    let card = move |id: flotilla_api::NodeId| {
        let first = machines.with_untracked(|machines| machines.iter().find(|machine| machine.id == id).cloned());
        let machine = Memo::new(move |before: Option<&Option<MachineView>>| {
            let now = machines.with(|machines| machines.iter().find(|machine| machine.id == id).cloned());
            // It may be gone from the answer before its card is.
            now.or_else(|| before.cloned().flatten())
        });
        first.map(
            |first| view! { <Card machine=Signal::derive(move || machine.get().unwrap_or_else(|| first.clone()))/> },
        )
    };
    let empty = Memo::new(move |_| machines.with(Vec::is_empty));
    move || {
        if empty.get() {
            return view! {
                <Empty icon=Icon::Machine title="No machines">
                    <p>"The node has not told of any machine yet."</p>
                </Empty>
            }
            .into_any();
        }
        view! {
            <Map machines/>
            <ul class="cards machines">
                <For each=move || asked.get() key=|id| id.clone() children=card/>
            </ul>
            <Links machines/>
        }
        .into_any()
    }
}

#[cfg(test)]
mod tests {
    use flotilla_api::{Grant, TokenId, UnixMillis, rest::Principal};

    use super::*;

    #[test]
    fn the_sentence_says_who_decides() {
        let names = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect::<Vec<_>>();
        let mut cluster = ClusterView {
            id: String::new(),
            name: "home".to_owned(),
            version: String::new(),
            domain: String::new(),
            dashboard_url: String::new(),
            applied_index: 0,
            machine: None,
            leader: Some("atlas".parse().unwrap()),
            term: 4,
            voters: names(&["atlas", "boreas", "clio"]),
            learners: names(&["dora"]),
            fault_tolerant: true,
            not_fault_tolerant_because: None,
            demo: false,
            you: Principal {
                token: TokenId(String::new()),
                name: String::new(),
                grant: Grant::admin(),
                expires_at: UnixMillis(0),
            },
        };
        assert_eq!(sentence(&cluster), "3 machines decide, led by atlas in term 4; 1 follows.");
        cluster.voters.truncate(1);
        cluster.learners.clear();
        cluster.leader = None;
        assert_eq!(sentence(&cluster), "1 machine decides, and none of them leads.");
    }
}
