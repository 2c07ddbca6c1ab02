//! All images: which machines hold each, what is on its way, and which services need it.

use std::{collections::BTreeSet, time::Duration};

use flotilla_api::rest::HeldImageView;
use leptos::prelude::*;
use leptos_router::components::A;

use crate::dashboard::{
    api::Client,
    components::{Empty, Filter, Glyph, Icon, Page, badge, shown},
    fleet::refresh_on_change,
    format,
    holdings::{self, Hold, Holding},
    live::Live,
    query::Query,
};

/// An image is on its way for seconds, and machines tell how far it is.
const INTERVAL: Duration = Duration::from_secs(2);

/// With fewer images a filter is in the way.
const FILTER_FROM: usize = 8;

#[component]
pub(crate) fn Images() -> impl IntoView {
    let (client, live) = (expect_context::<Client>(), expect_context::<Live>());
    let images = Query::start(INTERVAL, move || async move { client.held_images().await });
    refresh_on_change(live, images);
    let value = images.value();
    let lead = Memo::new(move |_| {
        value.with(|images| images.as_ref().filter(|it| !it.is_empty()).map(|it| holdings::summary(it)))
    });
    view! {
        <Page title="Images" lead=(move || lead.get()).into_any()>
            {shown(images, 4, |images| view! { <List images/> }.into_any())}
        </Page>
    }
}

#[component]
fn List(images: Signal<Vec<HeldImageView>>) -> impl IntoView {
    let filter = RwSignal::new(String::new());
    let many = Memo::new(move |_| images.with(Vec::len) >= FILTER_FROM);
    let empty = Memo::new(move |_| images.with(Vec::is_empty));
    // Ids alone, so that an image keeps its row while its figures change; in the order of the answer.
    let asked = Memo::new(move |_| {
        let filter = filter.get().trim().to_lowercase();
        images.with(|images| {
            let asked = images.iter().filter(|image| holdings::matches(image, &filter));
            asked.map(|image| image.id.clone()).collect::<Vec<_>>()
        })
    });
    let filter_field = move || {
        many.get().then(|| {
            view! {
                <Filter value=filter label="Filter images" hint="Filter by name, machine or service"/>
            }
        })
    };
    let none = move || {
        asked.with(|asked| asked.is_empty().then(|| view! { <p class="faint none">"No image matches the filter."</p> }))
    };
    view! {
        {filter_field}
        {move || {
            if empty.get() {
                return nothing_yet().into_any();
            }
            view! {
                // Roles are given because the table becomes a list of cards on a narrow screen.
                <table class="table images" role="table" aria-label="Images">
                    <thead role="rowgroup">
                        <tr role="row">
                            <th role="columnheader" scope="col">"Image"</th>
                            <th role="columnheader" scope="col">"State"</th>
                            <th role="columnheader" scope="col">"Size"</th>
                            <th role="columnheader" scope="col">"Held by"</th>
                            <th role="columnheader" scope="col">"Used by"</th>
                        </tr>
                    </thead>
                    <tbody role="rowgroup">
                        <For each=move || asked.get() key=Clone::clone children=move |id| row(id, images)/>
                    </tbody>
                </table>
                {none}
            }
                .into_any()
        }}
    }
}

fn row(id: String, images: Signal<Vec<HeldImageView>>) -> impl IntoView + use<> {
    let of = id.clone();
    let find = move |images: &Vec<HeldImageView>| images.iter().find(|image| image.id == of).cloned();
    let first = images.with_untracked(&find)?;
    // It may be gone from the answer before its row is.
    let image = Memo::new(move |before: Option<&HeldImageView>| {
        images.with(&find).unwrap_or_else(|| before.unwrap_or(&first).clone())
    });
    let holding = Memo::new(move |_| image.with(Holding::of));
    let names = Memo::new(move |_| image.with(holdings::names));
    let size = Memo::new(move |_| {
        image.with(|image| {
            let shared = image.shared_bytes.filter(|bytes| *bytes > 0);
            (image.size_bytes.map(format::bytes), shared.map(|bytes| format!("{} shared", format::bytes(bytes))))
        })
    });
    let used_by = Memo::new(move |_| {
        image.with(|image| {
            let services = image.used_by.iter().map(|it| (it.service.to_string(), holdings::used_by(it)));
            services.collect::<BTreeSet<_>>()
        })
    });
    let short = holdings::short(&id).to_owned();
    Some(view! {
        <tr role="row" data-image=id>
            <th role="rowheader" scope="row" class="cell-name">
                {move || names.get().into_iter().map(|name| view! { <div class="image-name">{name}</div> }).collect_view()}
                <code class="faint">{short}</code>
            </th>
            <td role="cell" class="cell-state">
                {move || {
                    let holding = holding.get();
                    badge(appearance(holding), holding.as_str())
                }}
            </td>
            <td role="cell" class="cell-size number" data-label="Size">
                {move || size.get().0.unwrap_or_else(|| "–".to_owned())}
                {move || size.get().1.map(|shared| view! { <div class="faint">{shared}</div> })}
            </td>
            <td role="cell" class="cell-copies" data-label="Held by"><Holders image/></td>
            <td role="cell" class="cell-used" data-label="Used by">
                {move || {
                    let used_by = used_by.get();
                    if used_by.is_empty() {
                        return view! { <span class="faint">"No service"</span> }.into_any();
                    }
                    let links = used_by.into_iter().map(|(service, words)| {
                        view! { <li><A href=format!("/services/{service}") attr:class="row-link">{words}</A></li> }
                    });
                    view! { <ul class="copies">{links.collect_view()}</ul> }.into_any()
                }}
            </td>
        </tr>
    })
}

fn appearance(holding: Holding) -> (Icon, &'static str, &'static str) {
    match holding {
        Holding::Held => (Icon::Check, "Held", "good"),
        Holding::Travelling => (Icon::Download, "On its way", "warn"),
        Holding::Missing => (Icon::Warning, "Missing", "bad"),
        Holding::Unused => (Icon::Image, "Unused", "calm"),
    }
}

/// The machines that have it, shall have it or are getting it.
#[component]
fn Holders(#[prop(into)] image: Signal<HeldImageView>) -> impl IntoView {
    let holders = Memo::new(move |_| {
        image.with(|image| {
            let told = image.machines.iter().map(|holder| (holder.machine.to_string(), Hold::of(holder)));
            told.collect::<Vec<_>>()
        })
    });
    move || {
        let holders = holders.get();
        if holders.is_empty() {
            return view! { <span class="faint">"No machine"</span> }.into_any();
        }
        let items = holders.into_iter().map(|(machine, hold)| {
            let (icon, word, tone) = match hold {
                Hold::Whole => (Icon::Check, None, "good"),
                Hold::Part(what) => (Icon::Copy, Some(what.to_owned()), "calm"),
                Hold::Moving(what) => (Icon::Download, Some(what), "warn"),
                Hold::Missing => (Icon::Warning, Some("missing".to_owned()), "bad"),
                Hold::Lost => (Icon::Lost, Some("lost".to_owned()), "bad"),
            };
            // That it is there is the rule, and said by its icon to those who see it.
            let word = match word {
                None => view! { <span class="unseen">"Held"</span> }.into_any(),
                Some(word) => view! { <span class="copy-word">{word}</span> }.into_any(),
            };
            view! {
                <li class=format!("copy tone-{tone}")>
                    <Glyph icon/>
                    <span class="copy-name">{machine}</span>
                    {word}
                </li>
            }
        });
        view! { <ul class="copies">{items.collect_view()}</ul> }.into_any()
    }
}

fn nothing_yet() -> impl IntoView {
    view! {
        <Empty icon=Icon::Image title="No machine holds an image.">
            <p>"Deploy a service, and its image is held by every machine that may run it. `flotilla image push` sends one without a registry."</p>
            <A href="/deploy" attr:class="button">"Deploy a service"</A>
        </Empty>
    }
}
