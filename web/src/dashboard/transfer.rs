//! Files that come from the node and are saved by the browser, however large: told in a corner while they come, on every page.
//!
//! A link can't carry the token and its proof, so the bytes come by `fetch`. Where the browser lets the person choose a file
//! they are written as they come; elsewhere they are kept until they are whole, which has a limit.

use std::time::Duration;

use futures::future::{AbortHandle, Abortable};
use js_sys::{Array, Function, Object, Promise, Reflect, Uint8Array};
use leptos::prelude::*;
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::{JsFuture, spawn_local};
use web_sys::{Blob, DomException, FileSystemFileHandle, FileSystemWritableFileStream};

use super::{
    api::{Body, Client, Failure},
    browser,
    components::Toasts,
    format,
    pace::Pace,
    task,
};

/// Each has a connection and a place among the node's long answers.
const TRANSFERS_MAX: usize = 3;

/// Kept by the browser until it is whole; it may be a telephone. Bytes.
const KEPT_MAX: u64 = 512 * 1024 * 1024;

/// A node that sends nothing for so long has trouble, or the way to it has.
const SILENCE: Duration = Duration::from_secs(60);

/// How often a person sees that it goes on. Milliseconds.
const SHOWN_EVERY: f64 = 250.0;

/// A browser begins to read what it is to save, and does not say when it has.
const LET_GO_AFTER: Duration = Duration::from_secs(60);

/// One generation of a volume, to be saved as a tar archive.
#[derive(Clone, Debug)]
pub(crate) struct Archive {
    pub(crate) service: String,
    pub(crate) volume: String,
    pub(crate) generation: String,
    /// The name that is proposed to the person.
    pub(crate) name: String,
    /// How large it becomes, about. Bytes.
    pub(crate) about: u64,
    /// What saves it without a browser.
    pub(crate) command: String,
}

/// One that is under way.
#[derive(Clone, Debug)]
pub(crate) struct Transfer {
    pub(crate) number: u64,
    pub(crate) name: String,
    pub(crate) about: u64,
    pub(crate) pace: ArcRwSignal<Pace>,
    stop: AbortHandle,
}

impl Transfer {
    pub(crate) fn cancel(&self) {
        self.stop.abort();
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Transfers {
    pub(crate) shown: RwSignal<Vec<Transfer>>,
    next: StoredValue<u64>,
    toasts: Toasts,
}

/// Why a file was not saved.
#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("{0}")]
    Refused(#[from] Failure),
    #[error("It was broken off after {}: {why}", format::bytes(*.after))]
    BrokenOff { after: u64, why: Failure },
    #[error("It can't be written ({why}). Is there room on the disk?")]
    File { why: String },
    #[error(
        "It is too large: this browser keeps a file until it is whole, and {} at most. `{command}` saves any size.",
        format::bytes(KEPT_MAX)
    )]
    TooLarge { command: String },
}

impl Transfers {
    pub(crate) fn new(toasts: Toasts) -> Self {
        Self { shown: RwSignal::new(Vec::new()), next: StoredValue::new(0), toasts }
    }

    /// Asks where to, and saves it there. To be called while the browser still knows that a person wanted it. It goes on when
    /// the person leaves the page.
    pub(crate) fn save(self, client: Client, archive: Archive) {
        if self.shown.with_untracked(Vec::len) >= TRANSFERS_MAX {
            return self.toasts.warn("Enough downloads are under way; wait until one of them has ended.");
        }
        spawn_local(async move {
            let name = archive.name.clone();
            match Sink::chosen(&archive).await {
                // The person has thought better of it.
                Ok(None) => {}
                Ok(Some(sink)) => self.carry(client, archive, sink).await,
                Err(problem) => self.toasts.warn(format!("`{name}` is not saved. {problem}")),
            }
        });
    }

    async fn carry(self, client: Client, archive: Archive, mut sink: Sink) {
        let (stop, registration) = AbortHandle::new_pair();
        let number = self.next.get_value();
        self.next.set_value(number + 1);
        let pace = ArcRwSignal::new(Pace::default());
        pace.update_untracked(|pace| pace.note(browser::now(), 0));
        let Archive { name, about, .. } = archive.clone();
        let transfer = Transfer { number, name: name.clone(), about, pace: pace.clone(), stop };
        self.shown.update(|shown| shown.push(transfer));
        let saved = Abortable::new(pump(client, &archive, &mut sink, &pace), registration).await;
        let saved = match saved {
            Ok(Ok(bytes)) => sink.finish(&name).await.map(|()| Some(bytes)),
            Ok(Err(problem)) => {
                sink.discard().await;
                Err(problem)
            }
            Err(_) => {
                sink.discard().await;
                Ok(None)
            }
        };
        self.shown.update(|shown| shown.retain(|transfer| transfer.number != number));
        match saved {
            Ok(Some(bytes)) => self.toasts.tell(format!("`{name}` is saved: {}.", format::bytes(bytes))),
            Ok(None) => self.toasts.tell(format!("`{name}` is not saved; its download was cancelled.")),
            Err(problem) => self.toasts.warn(format!("`{name}` is not saved. {problem}")),
        }
    }
}

/// How many bytes there were.
async fn pump(client: Client, archive: &Archive, sink: &mut Sink, pace: &ArcRwSignal<Pace>) -> Result<u64, Problem> {
    let Archive { service, volume, generation, .. } = archive;
    let body: Body = client.export_volume(service, volume, generation).await?;
    let (mut done, mut shown) = (0, browser::now());
    loop {
        let next = body.next_within(SILENCE).await;
        let Some(piece) = next.map_err(|why| Problem::BrokenOff { after: done, why })? else { return Ok(done) };
        done += u64::from(piece.length());
        sink.write(piece, done, archive).await?;
        let now = browser::now();
        if now - shown >= SHOWN_EVERY {
            shown = now;
            pace.update(|pace| pace.note(now, done));
        }
    }
}

/// Where the bytes go.
#[derive(Debug)]
enum Sink {
    /// A file that the person has chosen. What is written takes its place when it is closed, and not before.
    File(FileSystemWritableFileStream),
    Kept(Array),
}

impl Sink {
    /// `None` if the person chose none.
    async fn chosen(archive: &Archive) -> Result<Option<Self>, Problem> {
        let Some(picker) = picker() else {
            if archive.about > KEPT_MAX {
                return Err(Problem::TooLarge { command: archive.command.clone() });
            }
            return Ok(Some(Self::Kept(Array::new())));
        };
        let handle = match opened(&picker, &archive.name).await {
            Ok(handle) => handle,
            Err(error) if name_of(&error) == "AbortError" => return Ok(None),
            Err(error) => return Err(file(&error)),
        };
        let handle: FileSystemFileHandle = handle.unchecked_into();
        let stream = JsFuture::from(handle.create_writable()).await.map_err(|error| file(&error))?;
        Ok(Some(Self::File(stream.unchecked_into())))
    }

    /// `done` counts this piece, too.
    async fn write(&mut self, piece: Uint8Array, done: u64, archive: &Archive) -> Result<(), Problem> {
        match self {
            Self::File(stream) => {
                let written = stream.write_with_buffer_source(&piece).map_err(|error| file(&error))?;
                JsFuture::from(written).await.map_err(|error| file(&error))?;
            }
            Self::Kept(_) if done > KEPT_MAX => {
                return Err(Problem::TooLarge { command: archive.command.clone() });
            }
            Self::Kept(pieces) => drop(pieces.push(&piece)),
        }
        Ok(())
    }

    async fn finish(self, name: &str) -> Result<(), Problem> {
        match self {
            Self::File(stream) => JsFuture::from(stream.close()).await.map(|_| ()).map_err(|error| file(&error)),
            Self::Kept(pieces) => {
                let url = Blob::new_with_u8_array_sequence(&pieces)
                    .and_then(|blob| browser::save_blob(name, &blob))
                    .map_err(|error| file(&error))?;
                spawn_local(async move {
                    task::sleep(LET_GO_AFTER).await;
                    let _ = web_sys::Url::revoke_object_url(&url);
                });
                Ok(())
            }
        }
    }

    /// Leaves nothing.
    async fn discard(self) {
        if let Self::File(stream) = self {
            let _ = JsFuture::from(stream.abort()).await;
        }
    }
}

/// Not every browser has it (WICG, "File System Access").
fn picker() -> Option<Function> {
    Reflect::get(&browser::window(), &JsValue::from_str("showSaveFilePicker")).ok()?.dyn_into().ok()
}

async fn opened(picker: &Function, name: &str) -> Result<JsValue, JsValue> {
    let set = |object: &Object, key: &str, value: &JsValue| Reflect::set(object, &JsValue::from_str(key), value);
    let (options, kind, accept) = (Object::new(), Object::new(), Object::new());
    set(&accept, "application/x-tar", &Array::of1(&JsValue::from_str(".tar")))?;
    set(&kind, "description", &JsValue::from_str("Tar archive"))?;
    set(&kind, "accept", &accept)?;
    set(&options, "types", &Array::of1(&kind))?;
    set(&options, "suggestedName", &JsValue::from_str(name))?;
    let handle: Promise = picker.call1(&browser::window(), &options)?.dyn_into()?;
    JsFuture::from(handle).await
}

fn name_of(error: &JsValue) -> String {
    error.dyn_ref::<DomException>().map(DomException::name).unwrap_or_default()
}

fn file(error: &JsValue) -> Problem {
    let why = error.dyn_ref::<DomException>().map(DomException::message);
    let why = why.or_else(|| error.dyn_ref::<js_sys::Error>().map(|error| error.message().into()));
    Problem::File { why: why.unwrap_or_else(|| "the browser does not say why".to_owned()) }
}
