use flotilla_api::rest::VolumeDetail;
use leptos::prelude::*;

use super::{compare::Compare, restore::Restore};
use crate::dashboard::{
    api::Client,
    browser,
    changes::{self, Chosen},
    components::{Dialog, Glyph, Icon},
    query::Query,
    shell::You,
    transfer::{Archive, Transfers},
};

/// What a person may do with a generation. The dialogs are those of the page: a row may go while one is open.
#[derive(Clone, Copy, Debug)]
pub(super) struct Acts {
    restoring: RwSignal<bool>,
    comparing: RwSignal<bool>,
    chosen: RwSignal<Option<Chosen>>,
    /// From which generation to which.
    pair: RwSignal<Option<(String, String)>>,
    download: Callback<Chosen>,
}

impl Acts {
    pub(super) fn new(service: String, volume: String) -> Self {
        let (client, transfers) = (expect_context::<Client>(), expect_context::<Transfers>());
        let download = move |chosen: Chosen| {
            let generation = chosen.generation.clone();
            let archive = Archive {
                name: changes::file_name(&service, &volume, &generation),
                about: changes::archive_bytes(&chosen),
                command: changes::export_command(&service, &volume, &generation),
                service: service.clone(),
                volume: volume.clone(),
                generation,
            };
            transfers.save(client, archive);
        };
        Self {
            restoring: RwSignal::new(false),
            comparing: RwSignal::new(false),
            chosen: RwSignal::new(None),
            pair: RwSignal::new(None),
            download: Callback::new(download),
        }
    }

    fn restore(self, chosen: Chosen) {
        self.chosen.set(Some(chosen));
        self.restoring.set(true);
    }

    fn compare(self, from: String, to: String) {
        self.pair.set(Some((from, to)));
        self.comparing.set(true);
    }
}

/// The buttons of one generation. `before` is what it is compared with, if there is something.
#[component]
pub(super) fn Buttons(chosen: Chosen, #[prop(into)] before: Signal<Option<String>>, acts: Acts) -> impl IntoView {
    let you = expect_context::<You>();
    let at = StoredValue::new(format!(" of {}", browser::local(chosen.at).full()));
    let chosen = StoredValue::new(chosen);
    let has_before = Memo::new(move |_| before.with(Option::is_some));
    let changes = move || {
        has_before.get().then(|| {
            let compare = move |_| {
                if let Some(from) = before.get_untracked() {
                    acts.compare(from, chosen.with_value(|chosen| chosen.generation.clone()));
                }
            };
            view! {
                <button class="button quiet small" on:click=compare>
                    "Changes" <span class="unseen">{at.get_value()}</span>
                </button>
            }
        })
    };
    let rest = move || {
        you.operates().then(|| {
            view! {
                <button class="button quiet small" on:click=move |_| acts.download.run(chosen.get_value())>
                    <Glyph icon=Icon::Download/>
                    <span class="act-word">"Download"</span>
                    <span class="unseen">{at.get_value()}</span>
                </button>
                <button class="button small" on:click=move |_| acts.restore(chosen.get_value())>
                    "Restore" <span class="unseen">{at.get_value()}</span>
                </button>
            }
        })
    };
    view! { <div class="acts">{changes} {rest}</div> }
}

#[component]
pub(super) fn Dialogs(
    acts: Acts,
    service: String,
    volume: String,
    detail: Signal<VolumeDetail>,
    page: Query<VolumeDetail>,
) -> impl IntoView {
    let (service, volume) = (StoredValue::new(service), StoredValue::new(volume));
    let at = move || acts.chosen.with(|chosen| chosen.as_ref().map(|chosen| browser::local(chosen.at).full()));
    let restore = move || format!("Restore {} as of {}?", service.get_value(), at().unwrap_or_default());
    let compare = move || format!("What changed in {}/{}", service.get_value(), volume.get_value());
    view! {
        <Dialog open=acts.restoring title=Signal::derive(restore) wide=true>
            {move || {
                let chosen = acts.chosen.get()?;
                let (service, volume) = (service.get_value(), volume.get_value());
                Some(view! { <Restore service volume chosen open=acts.restoring page/> })
            }}
        </Dialog>
        <Dialog open=acts.comparing title=Signal::derive(compare) wide=true>
            {move || {
                let (from, to) = acts.pair.get()?;
                let (service, volume) = (service.get_value(), volume.get_value());
                let detail = detail.get_untracked();
                Some(view! { <Compare service volume detail from to/> })
            }}
        </Dialog>
    }
}
