//! A token lives for a while and is renewed while it is used, so that a person signs in once to a browser.

use flotilla_api::{UnixMillis, rest::IssuedToken};
use js_sys::{Object, Reflect};
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::JsFuture;
use web_sys::{AbortSignal, RequestInit, Response};

use crate::identity::{self, Identity};

const TIMEOUT_MS: u32 = 15_000;

/// Renews the token if it is in the last third of its life. A failure is no matter: it is tried again, and the token still
/// counts until it expires.
pub(super) async fn renew_if_due(origin: &str) -> Result<(), identity::Error> {
    let Some(identity) = Identity::load().await? else { return Ok(()) };
    if !identity.renewal_is_due(UnixMillis(js_sys::Date::now() as u64)) {
        return Ok(());
    }
    let url = format!("{origin}/api/v1/tokens/renew");
    let proof = identity.proof("POST", &url).await?;
    if let Ok(Some(issued)) = post(&url, &identity.token, &proof).await {
        Identity::new(issued, identity.key).store().await?;
    }
    Ok(())
}

async fn post(url: &str, token: &str, proof: &str) -> Result<Option<IssuedToken>, JsValue> {
    let headers = Object::new();
    Reflect::set(&headers, &"authorization".into(), &format!("DPoP {token}").into())?;
    Reflect::set(&headers, &"dpop".into(), &proof.into())?;
    let init = RequestInit::new();
    init.set_method("POST");
    init.set_headers(&headers);
    init.set_signal(Some(&AbortSignal::timeout_with_u32(TIMEOUT_MS)));
    let window = web_sys::window().ok_or(JsValue::UNDEFINED)?;
    let response: Response = JsFuture::from(window.fetch_with_str_and_init(url, &init)).await?.dyn_into()?;
    if !response.ok() {
        return Ok(None);
    }
    let text = JsFuture::from(response.text()?).await?.as_string().unwrap_or_default();
    Ok(serde_json::from_str(&text).ok())
}
