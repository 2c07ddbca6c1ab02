//! What stands around every page of a signed-in person: brand, navigation, account.

use flotilla_api::{Scope, rest::Principal};
use leptos::prelude::*;
use leptos_router::{
    components::{A, FlatRoutes, Redirect, Route, Router},
    hooks::use_location,
    path,
};
use wasm_bindgen_futures::spawn_local;

use super::{
    browser,
    components::{Empty, Glyph, Icon, Page, Until},
    fleet::Fleet,
    later::{self, later},
    live::{Link, Live},
    pages::services::Services,
    query::Phase,
    session::{Notice, Session, Status},
    theme::{Choice, Theme},
};

/// Who is signed in; the node checks again whatever the page offers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct You(pub(crate) Memo<Option<Principal>>);

impl You {
    pub(crate) fn operates(&self) -> bool {
        self.0.with(|you| you.as_ref().is_some_and(|you| you.grant.operates()))
    }

    pub(crate) fn administers(&self) -> bool {
        self.0.with(|you| you.as_ref().is_some_and(|you| you.grant.administers()))
    }
}

#[component]
pub(crate) fn Shell() -> impl IntoView {
    let session = expect_context::<Session>();
    let live = Live::start(session.client);
    let fleet = Fleet::start(session.client, live);
    let you = You(Memo::new(move |_| match session.status.get() {
        Status::SignedIn(you) => Some(you),
        _ => None,
    }));
    provide_context(live);
    provide_context(fleet);
    provide_context(you);
    // A right that was changed on the node is a right that was changed here.
    let cluster = fleet.cluster.value();
    Effect::new(move || {
        if let Some(cluster) = cluster.get()
            && you.0.with_untracked(|you| you.as_ref() != Some(&cluster.you))
        {
            session.status.set(Status::SignedIn(cluster.you));
        }
    });
    view! {
        <Router>
            <button class="skip" on:click=|_| browser::focus("page-title")>"Skip to content"</button>
            <div class="shell">
                <Masthead/>
                <Navigation/>
                <main class="main" id="main">
                    <div class="content">
                        <FlatRoutes fallback=|| view! { <NotFound/> }>
                            <Route path=path!("/") view=Services/>
                            <Route path=path!("/deploy") view=|| allowed("Deploy", You::operates, || later(later::deploy))/>
                            <Route path=path!("/services/:name") view=|| allowed("Service", You::operates, || later(later::service))/>
                            <Route path=path!("/images") view=|| allowed("Images", You::operates, || later(later::images))/>
                            <Route path=path!("/volumes") view=|| allowed("Volumes", You::operates, || later(later::volumes))/>
                            <Route path=path!("/volumes/:service/:volume") view=|| allowed("Volume", You::operates, || later(later::volume))/>
                            <Route path=path!("/secrets") view=|| allowed("Secrets and configs", You::operates, || later(later::values))/>
                            <Route path=path!("/cluster") view=|| allowed("Cluster", You::operates, || later(later::cluster))/>
                            // Where the list of machines was before there were several.
                            <Route path=path!("/machines") view=|| view! { <Redirect path="/cluster"/> }/>
                            <Route path=path!("/machines/:name") view=|| allowed("Machine", You::operates, || later(later::machine))/>
                            <Route path=path!("/access") view=|| allowed("Access", You::administers, || later(later::access))/>
                            <Route path=path!("/activity") view=|| allowed("Activity", You::operates, || later(later::activity))/>
                        </FlatRoutes>
                    </div>
                </main>
            </div>
            <p class="unseen" aria-live="polite">{fleet.announcement}</p>
        </Router>
    }
}

#[component]
fn Masthead() -> impl IntoView {
    let fleet = expect_context::<Fleet>();
    let cluster = fleet.cluster.value();
    let name = Memo::new(move |_| cluster.with(|cluster| cluster.as_ref().map(|cluster| cluster.name.clone())));
    view! {
        <header class="masthead">
            <A href="/" attr:class="brand" attr:aria-label="Flotilla, to the services">
                <Mark/>
                <span class="brand-name">"Flotilla"</span>
            </A>
            <div class="cluster">
                <span class="cluster-name">{move || name.get().unwrap_or_else(|| "…".to_owned())}</span>
                <LinkState/>
            </div>
            <Account/>
        </header>
    }
}

/// The flotilla: three sails on one line of water.
#[component]
pub(crate) fn Mark() -> impl IntoView {
    view! {
        <svg class="mark" viewBox="0 0 32 32" aria-hidden="true">
            <path class="mark-far" d="M9 8.5v12.5H2.5C4 17 6.5 12.5 9 8.5z"></path>
            <path class="mark-mid" d="M18.5 3v18h-8C11.5 14.5 14.5 8 18.5 3z"></path>
            <path class="mark-near" d="M21 9.5c4 3 7 7 8.5 11.5H21z"></path>
            <path
                class="mark-water"
                d="M2.5 25.5c2.25-2 4.5-2 6.75 0s4.5 2 6.75 0 4.5-2 6.75 0 4.5 2 6.75 0"
            ></path>
        </svg>
    }
}

#[component]
fn LinkState() -> impl IntoView {
    let (live, fleet) = (expect_context::<Live>(), expect_context::<Fleet>());
    let phase = fleet.services.phase();
    let failure = fleet.services.failure();
    let state = Memo::new(move |_| {
        if failure.with(Option::is_some) || matches!(phase.get(), Phase::Failed(_)) {
            return ("bad", "Not connected");
        }
        match live.link.get() {
            Link::Live => ("good", "Live"),
            Link::Connecting => ("calm", "Connecting"),
            Link::Lost => ("warn", "Updating every 10 s"),
        }
    });
    view! { <span class=move || format!("link-state tone-{}", state.get().0)>{move || state.get().1}</span> }
}

#[component]
fn Navigation() -> impl IntoView {
    let you = expect_context::<You>();
    let path = use_location().pathname;
    let item = |class: &'static str, href: &'static str, icon: Icon, name: &'static str| {
        view! {
            <li class=class>
                <NavLink href icon name/>
            </li>
        }
    };
    // A narrow screen shows these behind its last button.
    let deploy = move |class| you.operates().then(|| item(class, "/deploy", Icon::Deploy, "Deploy"));
    let images = move |class| you.operates().then(|| item(class, "/images", Icon::Image, "Images"));
    let secrets = move |class| you.operates().then(|| item(class, "/secrets", Icon::Lock, "Secrets"));
    let access = move |class| you.administers().then(|| item(class, "/access", Icon::Access, "Access"));
    let is_less = move || path.with(|path| ["/deploy", "/images", "/secrets", "/access"].contains(&path.as_str()));
    // Made anew with each page, and so closed.
    let menu = move || {
        path.track();
        view! {
            <ul class="nav-menu" id="nav-menu" popover="auto">
                {deploy("")} {images("")} {secrets("")} {access("")}
            </ul>
        }
    };
    view! {
        <nav class="nav" aria-label="Main">
            <ul>
                {item("", "/", Icon::Services, "Services")}
                {move || deploy("nav-less")}
                {move || you.operates().then(|| item("", "/volumes", Icon::Volume, "Volumes"))}
                {move || images("nav-less")}
                {move || secrets("nav-less")}
                {move || you.operates().then(|| item("", "/cluster", Icon::Cluster, "Cluster"))}
                {move || access("nav-less")}
                {move || you.operates().then(|| item("", "/activity", Icon::Activity, "Activity"))}
                {move || you.operates().then(|| view! {
                    <li class="nav-more">
                        <button class="nav-link" class:current=is_less popovertarget="nav-menu">
                            <Glyph icon=Icon::More/>
                            <span>"More"</span>
                        </button>
                        {menu}
                    </li>
                })}
            </ul>
        </nav>
    }
}

#[component]
fn NavLink(href: &'static str, icon: Icon, name: &'static str) -> impl IntoView {
    let path = use_location().pathname;
    // A service's page belongs to the services, a volume's to the volumes, a machine's to the cluster.
    let current = move || {
        path.with(|path| {
            let under = match href {
                "/" => "/services/",
                "/cluster" => "/machines/",
                "/volumes" => "/volumes/",
                _ => return path == href,
            };
            path == href || path.starts_with(under)
        })
    };
    view! {
        <a href=href class="nav-link" aria-current=move || current().then_some("page")>
            <Glyph icon/>
            <span>{name}</span>
        </a>
    }
}

#[component]
fn Account() -> impl IntoView {
    let (session, you, theme) = (expect_context::<Session>(), expect_context::<You>(), expect_context::<Theme>());
    let fleet = expect_context::<Fleet>();
    let cluster = fleet.cluster.value();
    let name = Memo::new(move |_| you.0.get().map(|you| you.name).unwrap_or_default());
    let details = move || {
        let you = you.0.get()?;
        let rights = match you.grant.scope {
            Scope::Admin => "Admin: may change everything",
            Scope::Operator => "Operator: may deploy and change services",
            Scope::User => "User: may open services",
            Scope::Machine => "Machine",
        };
        Some(view! {
            <p class="account-name">{you.name}</p>
            <p class="faint">{rights}</p>
            <p class="faint">"Sign-in expires " <Until at=you.expires_at/> ", and is renewed while you use it."</p>
        })
    };
    let version =
        move || cluster.with(|cluster| cluster.as_ref().map(|cluster| format!("Flotilla {}", cluster.version)));
    let choice = move |choice: Choice| {
        view! {
            <label class="segment">
                <input
                    type="radio"
                    name="theme"
                    prop:checked=move || theme.0.get() == choice
                    on:change=move |_| theme.0.set(choice)
                />
                <span>{choice.name()}</span>
            </label>
        }
    };
    view! {
        <div class="account">
            <button class="button quiet account-button" popovertarget="account-menu">
                <Glyph icon=Icon::Person/>
                <span class="account-label">{name}</span>
                <span class="unseen">"Account and appearance"</span>
            </button>
            <div class="account-menu" id="account-menu" popover="auto">
                {details}
                <fieldset class="segments">
                    <legend>"Appearance"</legend>
                    {Choice::ALL.map(choice).collect_view()}
                </fieldset>
                <button class="button" on:click=move |_| spawn_local(session.end(Notice::SignedOut))>
                    "Sign out"
                </button>
                <p class="faint account-version">{version}</p>
            </div>
        </div>
    }
}

/// The page, or in its place why it is not for this person: a link may come from somebody with more rights.
fn allowed(title: &'static str, has_right: fn(&You) -> bool, page: fn() -> AnyView) -> impl IntoView {
    let you = expect_context::<You>();
    let allowed = Memo::new(move |_| has_right(&you));
    move || {
        if allowed.get() {
            return page();
        }
        view! {
            <Page title>
                <Empty icon=Icon::Key title="This page is not among your rights">
                    <p>"An admin of this cluster can invite you with more of them."</p>
                    <A href="/" attr:class="button">"To the services"</A>
                </Empty>
            </Page>
        }
        .into_any()
    }
}

#[component]
fn NotFound() -> impl IntoView {
    view! {
        <Page title="Not found">
            <Empty icon=Icon::Question title="There is no such page">
                <p>"The address may be mistyped, or come from another version of the dashboard."</p>
                <A href="/" attr:class="button">"To the services"</A>
            </Empty>
        </Page>
    }
}
