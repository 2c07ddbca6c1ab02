use flotilla_api::{VolumeName, rest::VolumeDetail};
use leptos::prelude::*;

use super::difference::Difference;
use crate::dashboard::{
    api::Client,
    browser,
    changes::{self, Chosen},
    components::{Act, Refusal, Skeleton},
    fleet::Fleet,
    query::Query,
    task,
};

/// What a restore is and what it would change, and the button that does it.
#[component]
pub(super) fn Restore(
    service: String,
    volume: String,
    chosen: Chosen,
    open: RwSignal<bool>,
    page: Query<VolumeDetail>,
) -> impl IntoView {
    let (client, fleet) = (expect_context::<Client>(), expect_context::<Fleet>());
    let act = Act::in_dialog();
    let (to_restore, generation) = (service.clone(), chosen.generation.clone());
    let restore = move |event: leptos::ev::SubmitEvent| {
        event.prevent_default();
        let (service, generation) = (to_restore.clone(), generation.clone());
        act.run(async move { client.restore(&service, &generation).await }, move |toasts, done| {
            toasts.tell(changes::restored(&done.service, &done.generation));
            open.try_set(false);
            page.refresh();
            fleet.services.refresh();
        });
    };
    let at = browser::local(chosen.at).full();
    let was = match &chosen.aside_on {
        Some(machine) => format!("as they were put aside on {machine}, {at}"),
        None => format!("as they were on {at}"),
    };
    view! {
        <form class="form" on:submit=restore>
            <p>
                <strong>{service.clone()}</strong> " ends, and begins anew with all of its volumes " {was}
                ". What it has now is kept in the history, so you can come back to it."
            </p>
            <Previews service volume to=chosen.generation/>
            <Refusal act/>
            <footer class="dialog-foot">
                <button type="button" class="button" autofocus on:click=move |_| open.set(false)>"Cancel"</button>
                <button type="submit" class="button primary" disabled=act.busy>
                    {move || if act.busy.get() { "Restoring…" } else { "Restore" }}
                </button>
            </footer>
        </form>
    }
}

/// Of each volume of the service: they go back together.
#[component]
fn Previews(service: String, volume: String, to: String) -> impl IntoView {
    let client = expect_context::<Client>();
    let volumes = RwSignal::new(None::<Vec<VolumeName>>);
    {
        let (service, volume) = (service.clone(), volume.clone());
        task::while_shown(async move {
            // Where the others can't be told, this one still can.
            let all =
                client.volumes().await.map(|all| changes::volumes_of(&all, &service, &volume)).unwrap_or_default();
            let own = || volume.parse().into_iter().collect();
            volumes.set(Some(if all.is_empty() { own() } else { all }));
        });
    }
    let one = move |volume: VolumeName, several: bool| {
        let heading = several.then(|| view! { <h4>{volume.to_string()}</h4> });
        view! {
            <div class="preview-of">
                {heading}
                <Difference
                    service=service.clone()
                    volume
                    to=to.clone()
                    same="Nothing but what was written since the newest generation."
                    untold="What would change can't be told; you can restore it all the same."
                />
            </div>
        }
    };
    view! {
        <section class="preview" aria-label="What would change">
            <h3>"What would change"</h3>
            {move || match volumes.get() {
                None => view! { <Skeleton rows=2/> }.into_any(),
                Some(volumes) => {
                    let several = volumes.len() > 1;
                    volumes.into_iter().map(|volume| one(volume, several)).collect_view().into_any()
                }
            }}
        </section>
    }
}
