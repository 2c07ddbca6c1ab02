use flotilla_api::rest::{LinkPath, LinkState, MachineState, MachineView, Role};
use leptos::prelude::*;
use leptos_router::components::A;

use crate::dashboard::{
    components::{Glyph, Icon, machine_appearance},
    topology::{self, Edge},
};

/// With more machines there are more lines than figures have room.
const FIGURES_MAX: usize = 5;

/// How far from the middle of its line a figure stands, as a share of the line.
const FIGURE_LOWER: f64 = 0.12;

/// Lines whose ends differ in height by no more than this share of the map are level.
const LEVEL: f64 = 0.05;

/// The machines on a ring and the links between them. Everything that it shows is in the cards and the list of links, too.
#[component]
pub(super) fn Map(machines: Signal<Vec<MachineView>>) -> impl IntoView {
    // What is drawn alone: figures of load change all the time, and move nothing here.
    let drawn = Memo::new(move |_| {
        machines.with(|machines| (machines.iter().map(Spot::of).collect::<Vec<_>>(), topology::edges(machines)))
    });
    move || {
        let (spots, edges) = drawn.get();
        if spots.len() < 2 {
            return ().into_any();
        }
        let places = topology::places(spots.len());
        let many = spots.len() > FIGURES_MAX;
        let lines = edges.iter().map(|edge| line(edge, &places)).collect_view();
        let figures = (!many).then(|| edges.iter().filter_map(|edge| figure(edge, &places)).collect_view());
        let nodes = spots.into_iter().zip(&places).map(|(spot, place)| node(spot, *place)).collect_view();
        view! {
            <figure class="map card" class:many=many aria-label="Machines and the links between them">
                <div class="map-area">
                    // Lines are stretched with the area; strokes keep their width.
                    <svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">{lines}</svg>
                    {figures}
                    {nodes}
                </div>
                <figcaption class="map-legend">
                    <span><i class="key tone-good"></i>"direct"</span>
                    <span><i class="key dashed tone-warn"></i>"through a relay"</span>
                    <span><i class="key dotted tone-bad"></i>"no connection"</span>
                    <span><Glyph icon=Icon::Leader/>"leads"</span>
                    <span><i class="ring"></i>"decides"</span>
                    <span><i class="ring dashed"></i>"follows"</span>
                </figcaption>
            </figure>
        }
        .into_any()
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Spot {
    name: String,
    state: MachineState,
    leads: bool,
    voter: bool,
    here: bool,
}

impl Spot {
    fn of(machine: &MachineView) -> Self {
        Self {
            name: machine.name.to_string(),
            state: machine.condition.state,
            leads: machine.leads,
            voter: machine.role == Role::Voter,
            here: machine.here,
        }
    }
}

fn percent(share: f64) -> String {
    format!("{:.1}%", share * 100.0)
}

fn line(edge: &Edge, places: &[(f64, f64)]) -> impl IntoView + use<> {
    let ((x1, y1), (x2, y2)) = (places[edge.ends.0], places[edge.ends.1]);
    let (_, tone) = topology::appearance(edge);
    let dash = match (edge.state, edge.path) {
        (LinkState::Up, Some(LinkPath::Relayed)) => "dashed",
        (LinkState::Up, _) => "",
        _ => "dotted",
    };
    view! {
        <line
            class=format!("map-line {dash} tone-{tone}")
            x1=x1 * 100.0
            y1=y1 * 100.0
            x2=x2 * 100.0
            y2=y2 * 100.0
            vector-effect="non-scaling-stroke"
        ></line>
    }
}

fn figure(edge: &Edge, places: &[(f64, f64)]) -> Option<impl IntoView + use<>> {
    let ((x1, y1), (x2, y2)) = (places[edge.ends.0], places[edge.ends.1]);
    let text = edge.rtt_ms.map(topology::millis)?;
    // A machine's name and state stand below it: the figure of a line that leads down from there gives way to them.
    let share = match y2 - y1 {
        down if down > LEVEL => 0.5 + FIGURE_LOWER,
        down if down < -LEVEL => 0.5 - FIGURE_LOWER,
        _ => 0.5,
    };
    let (left, top) = (percent(x1 + (x2 - x1) * share), percent(y1 + (y2 - y1) * share));
    Some(view! { <span class="map-figure" style:left=left style:top=top aria-hidden="true">{text}</span> })
}

fn node(spot: Spot, (x, y): (f64, f64)) -> impl IntoView {
    let (icon, state, tone) = machine_appearance(spot.state);
    let role = match (spot.leads, spot.voter) {
        (true, _) => ", leads",
        (false, true) => "",
        (false, false) => ", follows",
    };
    let label = format!("{}: {}{role}", spot.name, state.to_lowercase());
    let ring = if spot.voter { "map-disc" } else { "map-disc learner" };
    view! {
        <div class=format!("map-node tone-{tone}") style:left=percent(x) style:top=percent(y)>
            <A href=format!("/machines/{}", spot.name) attr:class="map-link" attr:aria-label=label>
                <span class=ring>
                    <Glyph icon=if spot.state == MachineState::Ready { Icon::Machine } else { icon }/>
                    {spot.leads.then(|| view! { <span class="map-leader"><Glyph icon=Icon::Leader/></span> })}
                </span>
                <span class="map-name">{spot.name.clone()}</span>
                <span class="map-state">{state}{spot.here.then_some(", here")}</span>
            </A>
        </div>
    }
}
