//! Pages whose code comes when one of their kind is first opened, so that the list of services is there sooner. The build cuts the program
//! where a function says `wasm_split` (`server/build/split.rs`): what has one name comes together.

use leptos::{
    prelude::*,
    wasm_split::{SplitLoaderError, wasm_split},
};
use send_wrapper::SendWrapper;

use super::{
    components::{Glyph, Icon, Skeleton},
    pages::{
        access::Access, activity::Activity, cluster::Cluster, deploy::Deploy, images::Images, machine::Machine,
        service::Service, values::Values, volume::Volume, volumes::Volumes,
    },
};

/// A page, once its code is here.
type Fetched = Result<AnyView, SplitLoaderError>;

#[wasm_split(machines, wasm_split_path = ::leptos::wasm_split, fallible)]
pub(crate) fn access() -> Fetched {
    Ok(view! { <Access/> }.into_any())
}

#[wasm_split(machines, wasm_split_path = ::leptos::wasm_split, fallible)]
pub(crate) fn activity() -> Fetched {
    Ok(view! { <Activity/> }.into_any())
}

#[wasm_split(machines, wasm_split_path = ::leptos::wasm_split, fallible)]
pub(crate) fn cluster() -> Fetched {
    Ok(view! { <Cluster/> }.into_any())
}

#[wasm_split(services, wasm_split_path = ::leptos::wasm_split, fallible)]
pub(crate) fn deploy() -> Fetched {
    Ok(view! { <Deploy/> }.into_any())
}

#[wasm_split(services, wasm_split_path = ::leptos::wasm_split, fallible)]
pub(crate) fn images() -> Fetched {
    Ok(view! { <Images/> }.into_any())
}

#[wasm_split(machines, wasm_split_path = ::leptos::wasm_split, fallible)]
pub(crate) fn machine() -> Fetched {
    Ok(view! { <Machine/> }.into_any())
}

#[wasm_split(services, wasm_split_path = ::leptos::wasm_split, fallible)]
pub(crate) fn service() -> Fetched {
    Ok(view! { <Service/> }.into_any())
}

#[wasm_split(services, wasm_split_path = ::leptos::wasm_split, fallible)]
pub(crate) fn values() -> Fetched {
    Ok(view! { <Values/> }.into_any())
}

#[wasm_split(data, wasm_split_path = ::leptos::wasm_split, fallible)]
pub(crate) fn volume() -> Fetched {
    Ok(view! { <Volume/> }.into_any())
}

#[wasm_split(data, wasm_split_path = ::leptos::wasm_split, fallible)]
pub(crate) fn volumes() -> Fetched {
    Ok(view! { <Volumes/> }.into_any())
}

/// Shows a page as soon as its code is here.
pub(crate) fn later<F: Future<Output = Fetched> + 'static>(page: fn() -> F) -> AnyView {
    let attempt = RwSignal::new(0_u32);
    let shown = move || {
        attempt.track();
        // The browser has one thread.
        Suspend::new(SendWrapper::new(async move {
            page().await.unwrap_or_else(|_| view! { <NotFetched attempt/> }.into_any())
        }))
    };
    view! { <Suspense fallback=|| view! { <Skeleton/> }>{shown}</Suspense> }.into_any()
}

/// The node is out of reach, or has another version by now, which has other files.
#[component]
fn NotFetched(attempt: RwSignal<u32>) -> impl IntoView {
    view! {
        <div class="vacant problem" role="alert">
            <Glyph icon=Icon::Lost/>
            <p class="vacant-title">"This page could not be loaded"</p>
            <p>"The node does not answer, or has been updated since the dashboard was opened: then " <a href="">"load the dashboard again"</a>"."</p>
            <button class="button" on:click=move |_| attempt.update(|attempt| *attempt += 1)>
                <Glyph icon=Icon::Refresh/>
                "Try again"
            </button>
        </div>
    }
}
