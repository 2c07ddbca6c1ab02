//! Secrets and configs: what there is, who uses it, and a way to set and remove them. A secret is never shown.

mod dialogs;

use std::time::Duration;

use flotilla_api::{rest::ValueView, spec::ValueKind};
use leptos::prelude::*;
use leptos_router::components::A;

use crate::dashboard::{
    api::Client,
    components::{Ago, Empty, Glyph, Icon, Page, Section, shown},
    fleet::refresh_on_change,
    format,
    live::Live,
    query::Query,
};

use dialogs::{RemoveDialog, SetDialog, ShowDialog};

/// They change by hand alone, and with an event.
const INTERVAL: Duration = Duration::from_secs(30);

/// What a dialog is about: a value that there is, or a new one of a kind.
#[derive(Clone, Debug, PartialEq)]
struct Subject {
    kind: ValueKind,
    value: Option<ValueView>,
}

/// The dialogs of the page; each is about the subject.
#[derive(Clone, Copy)]
struct Opening {
    subject: RwSignal<Option<Subject>>,
    setting: RwSignal<bool>,
    removing: RwSignal<bool>,
    showing: RwSignal<bool>,
}

impl Opening {
    fn open(&self, dialog: RwSignal<bool>, kind: ValueKind, value: Option<ValueView>) {
        self.subject.set(Some(Subject { kind, value }));
        dialog.set(true);
    }
}

#[component]
pub(crate) fn Values() -> impl IntoView {
    let (client, live) = (expect_context::<Client>(), expect_context::<Live>());
    let values = Query::start(INTERVAL, move || async move {
        let mut all = client.values(ValueKind::Secret).await?;
        all.extend(client.values(ValueKind::Config).await?);
        Ok(all)
    });
    refresh_on_change(live, values);
    let opening = Opening {
        subject: RwSignal::new(None),
        setting: RwSignal::new(false),
        removing: RwSignal::new(false),
        showing: RwSignal::new(false),
    };
    let done = Callback::new(move |()| values.refresh());
    let actions = view! {
        <button class="button" on:click=move |_| opening.open(opening.setting, ValueKind::Config, None)>
            <Glyph icon=Icon::File/>
            "New config"
        </button>
        <button class="button primary" on:click=move |_| opening.open(opening.setting, ValueKind::Secret, None)>
            <Glyph icon=Icon::Lock/>
            "New secret"
        </button>
    };
    view! {
        <Page
            title="Secrets and configs"
            lead="What services are given as files or variables. A secret is shown to nobody.".into_any()
            actions=actions.into_any()
        >
            {shown(values, 4, move |values| view! { <Lists values opening/> }.into_any())}
        </Page>
        <SetDialog open=opening.setting subject=opening.subject done/>
        <RemoveDialog open=opening.removing subject=opening.subject done/>
        <ShowDialog open=opening.showing subject=opening.subject/>
    }
}

#[component]
fn Lists(values: Signal<Vec<ValueView>>, opening: Opening) -> impl IntoView {
    let list = move |kind: ValueKind, id: &'static str, title: &'static str| {
        let of_kind = Memo::new(move |_| {
            values.with(|values| values.iter().filter(|value| value.kind == kind).cloned().collect::<Vec<_>>())
        });
        move || {
            let found = of_kind.get();
            (!found.is_empty()).then(|| {
                view! {
                    <Section id title>
                        {table(found, title, opening)}
                    </Section>
                }
            })
        }
    };
    let none = move || {
        values.with(Vec::is_empty).then(|| {
            view! {
                <Empty icon=Icon::Lock title="There are no secrets and no configs.">
                    <p>
                        "Make one here or with " <code>"flotilla secret set"</code>
                        ", and name it under " <code>"secrets"</code> " in a service's compose file."
                    </p>
                </Empty>
            }
        })
    };
    view! {
        {none}
        {list(ValueKind::Secret, "secrets", "Secrets")}
        {list(ValueKind::Config, "configs", "Configs")}
    }
}

fn table(values: Vec<ValueView>, label: &'static str, opening: Opening) -> impl IntoView {
    view! {
        // Roles are given because the table becomes a list of cards on a narrow screen.
        <table class="table values" role="table" aria-label=label>
            <thead role="rowgroup">
                <tr role="row">
                    <th role="columnheader" scope="col">"Name"</th>
                    <th role="columnheader" scope="col">"Version"</th>
                    <th role="columnheader" scope="col">"Size"</th>
                    <th role="columnheader" scope="col">"Set"</th>
                    <th role="columnheader" scope="col">"Used by"</th>
                    <th role="columnheader" scope="col"><span class="unseen">"Change"</span></th>
                </tr>
            </thead>
            <tbody role="rowgroup">{values.into_iter().map(|value| row(value, opening)).collect_view()}</tbody>
        </table>
    }
}

fn row(value: ValueView, opening: Opening) -> impl IntoView {
    let ValueView { kind, name, version, versions, used_by } = value.clone();
    let newest = versions.into_iter().next();
    let size = newest.as_ref().map_or_else(|| "–".to_owned(), |it| format::bytes(it.bytes));
    let set = newest.map(|it| view! { <Ago at=it.set_at/> " by " {it.set_by} });
    let users = used_by.into_iter().map(|user| {
        // After a roll back a service has an older one.
        let older = (user.version != version).then(|| format!(" (version {})", user.version));
        view! { <li class="chip"><A href=format!("/services/{}", user.service)>{user.service.to_string()}</A>{older}</li> }
    });
    let users = users.collect::<Vec<_>>();
    let users = match users.is_empty() {
        true => view! { <span class="faint">"No service"</span> }.into_any(),
        false => view! { <ul class="chips">{users}</ul> }.into_any(),
    };
    let button = |what: &'static str, class: &'static str, dialog: RwSignal<bool>| {
        let (value, name) = (value.clone(), name.to_string());
        view! {
            <button class=class on:click=move |_| opening.open(dialog, kind, Some(value.clone()))>
                {what}
                <span class="unseen">" " {name}</span>
            </button>
        }
    };
    let show = (kind == ValueKind::Config).then(|| button("Show", "button", opening.showing));
    view! {
        <tr role="row" data-value=format!("{kind}/{name}")>
            <th role="rowheader" scope="row" class="cell-name">{name.to_string()}</th>
            <td role="cell" class="number" data-label="Version">{version}</td>
            <td role="cell" class="number" data-label="Size">{size}</td>
            <td role="cell" class="faint" data-label="Set">{set}</td>
            <td role="cell" class="cell-users" data-label="Used by">{users}</td>
            <td role="cell" class="cell-open">
                <div class="button-row">
                    {show}
                    {button("Set", "button", opening.setting)}
                    {button("Remove", "button danger", opening.removing)}
                </div>
            </td>
        </tr>
    }
}
