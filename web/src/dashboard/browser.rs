//! The few things that the dashboard asks of the browser itself.

use flotilla_api::UnixMillis;
use js_sys::{Array, Date};
use wasm_bindgen::{JsCast, JsValue, closure::Closure};
use wasm_bindgen_futures::JsFuture;
use web_sys::{Blob, BlobPropertyBag, Document, HtmlAnchorElement, HtmlElement, Url, Window};

use super::format::Moment;

#[allow(clippy::expect_used, reason = "the dashboard runs in a window or not at all")]
pub(crate) fn window() -> Window {
    web_sys::window().expect("a window")
}

#[allow(clippy::expect_used, reason = "the dashboard runs in a window or not at all")]
pub(crate) fn document() -> Document {
    window().document().expect("a document")
}

/// This browser's clock, in milliseconds since the epoch.
pub(crate) fn now() -> f64 {
    Date::now()
}

pub(crate) fn origin() -> String {
    window().location().origin().unwrap_or_default()
}

pub(crate) fn is_hidden() -> bool {
    document().hidden()
}

/// The moment in this browser's time zone.
pub(crate) fn local(at: UnixMillis) -> Moment {
    let west = Date::new(&JsValue::from_f64(at.0 as f64)).get_timezone_offset();
    Moment::new(at, -(west as i32))
}

/// The fragment of the address, without `#`.
pub(crate) fn fragment() -> String {
    window().location().hash().unwrap_or_default().trim_start_matches('#').to_owned()
}

/// Takes the fragment out of the address bar and of the history entry.
pub(crate) fn clear_fragment() {
    let location = window().location();
    let path = location.pathname().unwrap_or_else(|_| "/".to_owned());
    let query = location.search().unwrap_or_default();
    if let Ok(history) = window().history() {
        let _ = history.replace_state_with_url(&JsValue::NULL, "", Some(&format!("{path}{query}")));
    }
}

/// What a person would call this browser: "Chromium on Linux".
pub(crate) fn device() -> String {
    device_of(&window().navigator().user_agent().unwrap_or_default())
}

fn device_of(agent: &str) -> String {
    let named = |names: &[(&'static str, &'static str)], other| {
        names.iter().find(|(mark, _)| agent.contains(mark)).map_or(other, |(_, name)| *name)
    };
    let browser = named(
        &[("Edg", "Edge"), ("OPR/", "Opera"), ("Firefox", "Firefox"), ("Chrom", "Chrome"), ("Safari", "Safari")],
        "A browser",
    );
    let system = named(
        &[
            ("Android", "Android"),
            ("iPhone", "an iPhone"),
            ("iPad", "an iPad"),
            ("Windows", "Windows"),
            ("Mac OS", "a Mac"),
            ("CrOS", "ChromeOS"),
            ("Linux", "Linux"),
        ],
        "an unknown system",
    );
    format!("{browser} on {system}")
}

/// False where the browser or the person does not allow it.
pub(crate) async fn copy(text: &str) -> bool {
    JsFuture::from(window().navigator().clipboard().write_text(text)).await.is_ok()
}

/// Hands `text` to the person as a file.
pub(crate) fn save(name: &str, text: &str) {
    let save = || -> Result<(), JsValue> {
        let options = BlobPropertyBag::new();
        options.set_type("text/plain;charset=utf-8");
        let blob = Blob::new_with_str_sequence_and_options(&Array::of1(&JsValue::from_str(text)), &options)?;
        Url::revoke_object_url(&save_blob(name, &blob)?)
    };
    if let Err(error) = save() {
        web_sys::console::error_1(&error);
    }
}

/// The same of any bytes. The address under which the browser reads them is to be revoked once it has.
pub(crate) fn save_blob(name: &str, blob: &Blob) -> Result<String, JsValue> {
    let url = Url::create_object_url_with_blob(blob)?;
    let link: HtmlAnchorElement = document().create_element("a")?.unchecked_into();
    link.set_href(&url);
    link.set_download(name);
    link.click();
    Ok(url)
}

pub(crate) fn set_title(title: &str) {
    document().set_title(title);
}

pub(crate) fn focus(id: &str) {
    if let Some(element) = document().get_element_by_id(id).and_then(|element| element.dyn_into::<HtmlElement>().ok()) {
        let _ = element.focus();
    }
}

pub(crate) fn stored(name: &str) -> Option<String> {
    window().local_storage().ok().flatten()?.get_item(name).ok().flatten()
}

pub(crate) fn store(name: &str, value: Option<&str>) {
    // Where storage is blocked, a preference lasts as long as the page.
    if let Ok(Some(storage)) = window().local_storage() {
        let _ = match value {
            Some(value) => storage.set_item(name, value),
            None => storage.remove_item(name),
        };
    }
}

/// Calls `act` on each `event` of `target` until it is dropped.
#[derive(Debug)]
pub(crate) struct Listener {
    target: web_sys::EventTarget,
    event: &'static str,
    act: Closure<dyn Fn()>,
}

impl Listener {
    pub(crate) fn new(target: web_sys::EventTarget, event: &'static str, act: impl Fn() + 'static) -> Self {
        let act = Closure::<dyn Fn()>::new(act);
        let _ = target.add_event_listener_with_callback(event, act.as_ref().unchecked_ref());
        Self { target, event, act }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.target.remove_event_listener_with_callback(self.event, self.act.as_ref().unchecked_ref());
    }
}

#[cfg(test)]
mod tests {
    use super::device_of;

    #[test]
    fn a_browser_is_named_as_a_person_would() {
        for (agent, name) in [
            (
                "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/156.0 Safari/537.36",
                "Chrome on Linux",
            ),
            (
                "Mozilla/5.0 (Linux; Android 16) AppleWebKit/537.36 Chrome/156.0 Mobile Safari/537.36",
                "Chrome on Android",
            ),
            (
                "Mozilla/5.0 (iPhone; CPU iPhone OS 19_0 like Mac OS X) AppleWebKit/605.1 Version/19.0 Safari/604.1",
                "Safari on an iPhone",
            ),
            ("Mozilla/5.0 (Windows NT 10.0; rv:153.0) Gecko/20100101 Firefox/153.0", "Firefox on Windows"),
            ("", "A browser on an unknown system"),
        ] {
            assert_eq!(device_of(agent), name);
        }
    }
}
