use std::time::Duration;

use flotilla_api::{
    VolumeName,
    rest::{ServiceDetail, VolumeView},
};
use leptos::prelude::*;
use leptos_router::components::A;

use crate::dashboard::{
    api::Client,
    components::{CopyChips, RiskLine, Section, VolumeBadge, shown},
    fleet::refresh_on_change,
    format,
    live::Live,
    pages::volumes::followed,
    query::Query,
};

/// A volume's own page is for those who watch it.
const INTERVAL: Duration = Duration::from_secs(5);

/// What the service writes that outlives it, and whether it is safe. A service that writes none asks for none.
#[component]
pub(crate) fn Volumes(name: String, detail: Signal<ServiceDetail>) -> impl IntoView {
    let writes = Memo::new(move |_| detail.with(|detail| detail.spec.written().next().is_some()));
    move || {
        let name = name.clone();
        writes.get().then(|| {
            view! {
                <Section id="volumes" title="Volumes">
                    <Written name/>
                </Section>
            }
        })
    }
}

#[component]
fn Written(name: String) -> impl IntoView {
    let (client, live) = (expect_context::<Client>(), expect_context::<Live>());
    let volumes = Query::start(INTERVAL, move || {
        let name = name.clone();
        async move {
            let mut volumes = client.volumes().await?;
            volumes.retain(|volume| volume.service.as_str() == name);
            Ok(volumes)
        }
    });
    refresh_on_change(live, volumes);
    shown(volumes, 1, |volumes| view! { <List volumes/> }.into_any())
}

#[component]
fn List(volumes: Signal<Vec<VolumeView>>) -> impl IntoView {
    let asked = Memo::new(move |_| {
        volumes.with(|volumes| {
            let asked = volumes.iter().map(|volume| (volume.service.clone(), volume.volume.clone()));
            asked.collect::<Vec<_>>()
        })
    });
    view! {
        <ul class="volume-list">
            <For each=move || asked.get() key=Clone::clone children=move |of| followed(&of, volumes).map(|volume| item(of.1, volume))/>
        </ul>
    }
}

fn item(name: VolumeName, volume: Signal<VolumeView>) -> impl IntoView {
    let page = volume.with_untracked(|volume| format!("/volumes/{}/{}", volume.service, volume.volume));
    let size = Memo::new(move |_| volume.with(|volume| volume.bytes.map(format::bytes)));
    view! {
        <li class="volume-item">
            <p class="volume-head">
                <A href=page attr:class="row-link">{name.to_string()}</A>
                <VolumeBadge volume/>
            </p>
            <p class="faint">{move || size.get()}</p>
            <CopyChips volume/>
            <RiskLine volume/>
        </li>
    }
}
