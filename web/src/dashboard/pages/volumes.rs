//! All volumes: where each is written, who has copies, and what would be lost now.

use std::time::Duration;

use flotilla_api::{ServiceName, VolumeName, rest::VolumeView};
use leptos::prelude::*;
use leptos_router::components::A;

use crate::dashboard::{
    api::Client,
    components::{Ago, CopyChips, Empty, Filter, Icon, Page, RiskLine, VolumeBadge, VolumeReason, shown},
    durability,
    fleet::refresh_on_change,
    format,
    live::Live,
    query::Query,
};

/// Generations are made every few seconds, without an event.
const INTERVAL: Duration = Duration::from_secs(3);

/// With fewer volumes a filter is in the way.
const FILTER_FROM: usize = 8;

type Key = (ServiceName, VolumeName);

#[component]
pub(crate) fn Volumes() -> impl IntoView {
    let (client, live) = (expect_context::<Client>(), expect_context::<Live>());
    let volumes = Query::start(INTERVAL, move || async move { client.volumes().await });
    refresh_on_change(live, volumes);
    let value = volumes.value();
    let lead = Memo::new(move |_| {
        value.with(|volumes| volumes.as_ref().filter(|it| !it.is_empty()).map(|it| durability::summary(it)))
    });
    view! {
        <Page title="Volumes" lead=(move || lead.get()).into_any()>
            {shown(volumes, 4, |volumes| view! { <List volumes/> }.into_any())}
        </Page>
    }
}

#[component]
fn List(volumes: Signal<Vec<VolumeView>>) -> impl IntoView {
    let filter = RwSignal::new(String::new());
    let many = Memo::new(move |_| volumes.with(Vec::len) >= FILTER_FROM);
    let empty = Memo::new(move |_| volumes.with(Vec::is_empty));
    // Names alone, so that a volume keeps its row, and a link in it the focus, while its figures change.
    let asked = Memo::new(move |_| {
        let filter = filter.get().trim().to_lowercase();
        volumes.with(|volumes| {
            let asked = volumes.iter().filter(|volume| durability::matches(volume, &filter)).map(key);
            asked.collect::<std::collections::BTreeSet<Key>>()
        })
    });
    let filter_field = move || {
        many.get().then(|| {
            view! {
                <Filter value=filter label="Filter volumes" hint="Filter by name, machine or state"/>
            }
        })
    };
    let none = move || {
        asked
            .with(|asked| asked.is_empty().then(|| view! { <p class="faint none">"No volume matches the filter."</p> }))
    };
    view! {
        {filter_field}
        {move || {
            if empty.get() {
                return nothing_yet().into_any();
            }
            view! {
                // Roles are given because the table becomes a list of cards on a narrow screen.
                <table class="table volumes" role="table" aria-label="Volumes">
                    <thead role="rowgroup">
                        <tr role="row">
                            <th role="columnheader" scope="col">"Volume"</th>
                            <th role="columnheader" scope="col">"State"</th>
                            <th role="columnheader" scope="col">"Written on"</th>
                            <th role="columnheader" scope="col">"Size"</th>
                            <th role="columnheader" scope="col">"Copies"</th>
                            <th role="columnheader" scope="col">"Committed"</th>
                        </tr>
                    </thead>
                    <tbody role="rowgroup">
                        <For each=move || asked.get() key=Clone::clone children=move |key| row(&key, volumes)/>
                    </tbody>
                </table>
                {none}
            }
                .into_any()
        }}
    }
}

fn key(volume: &VolumeView) -> Key {
    (volume.service.clone(), volume.volume.clone())
}

fn row(of: &Key, volumes: Signal<Vec<VolumeView>>) -> impl IntoView + use<> {
    let found = followed(of, volumes);
    found.map(|volume| {
        let name = volume.with_untracked(|volume| format!("{}/{}", volume.service, volume.volume));
        let row_name = name.clone();
        let machine = Memo::new(move |_| volume.with(|volume| volume.machine.clone()));
        let size = Memo::new(move |_| volume.with(|volume| volume.bytes.map(format::bytes)));
        let committed = Memo::new(move |_| volume.with(|volume| volume.committed.clone()));
        view! {
            <tr role="row" data-volume=row_name>
                <th role="rowheader" scope="row" class="cell-name">
                    <A href=format!("/volumes/{name}") attr:class="row-link">{name.clone()}</A>
                </th>
                <td role="cell" class="cell-state">
                    <VolumeBadge volume/>
                    <VolumeReason volume/>
                    <RiskLine volume/>
                </td>
                <td role="cell" class="cell-machine" data-label="Written on">
                    {move || machine.get().map_or_else(|| "–".to_owned(), |machine| machine.to_string())}
                </td>
                <td role="cell" class="cell-size number" data-label="Size">
                    {move || size.get().unwrap_or_else(|| "–".to_owned())}
                </td>
                <td role="cell" class="cell-copies" data-label="Copies"><CopyChips volume/></td>
                <td role="cell" class="cell-committed" data-label="Committed">
                    {move || match committed.get() {
                        Some(it) => view! { <code>{it.generation}</code> " " <span class="faint"><Ago at=it.taken_at/></span> }.into_any(),
                        None => "–".into_any(),
                    }}
                </td>
            </tr>
        }
    })
}

/// One of the volumes, as it changes. It may be gone from the answer before its row is.
pub(crate) fn followed(of: &Key, volumes: Signal<Vec<VolumeView>>) -> Option<Signal<VolumeView>> {
    let of = of.clone();
    let find = move |volumes: &Vec<VolumeView>| volumes.iter().find(|volume| key(volume) == of).cloned();
    let first = volumes.with_untracked(&find)?;
    let newest = Memo::new(move |before: Option<&VolumeView>| {
        volumes.with(&find).unwrap_or_else(|| before.unwrap_or(&first).clone())
    });
    Some(newest.into())
}

fn nothing_yet() -> impl IntoView {
    view! {
        <Empty icon=Icon::Volume title="No service writes a volume.">
            <p>"Name one in a service's compose file, and what is written there is copied to other machines."</p>
            <A href="/deploy" attr:class="button">"Deploy a service"</A>
        </Empty>
    }
}
