//! Who this browser is: a token and the key that it is bound to (RFC 9449, DPoP).
//!
//! The key is made here, its private half can't be exported, and both lie in the IndexedDB of the dashboard's origin, which
//! the connector shares. A copied token is useless without the key, and the key can't be copied.
//!
//! Every other page of the origin is told of a change (sign-in, renewal, sign-out) through [`Changes`].

mod database;
mod lifetime;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use flotilla_api::{
    UnixMillis,
    rest::{IssuedToken, PublicKey},
};
use js_sys::{Array, Object, Reflect, Uint8Array};
use serde::Serialize;
use wasm_bindgen::{JsCast, JsValue, closure::Closure};
use wasm_bindgen_futures::JsFuture;
use web_sys::{BroadcastChannel, Crypto, CryptoKey, CryptoKeyPair, SubtleCrypto};

/// The name of the channel on which pages of this origin tell each other that the identity changed.
const CHANGES: &str = "flotilla-identity";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "this page is not a secure context, so the browser offers no keys; open it by its https or .localhost address"
    )]
    NoCrypto,
    #[error("this browser keeps no data for this page ({0}); allow it to, or leave private browsing")]
    Storage(String),
    #[error("the browser refused to {operation}: {reason}")]
    Crypto { operation: &'static str, reason: String },
}

/// A P-256 key pair of this browser's, made for one token.
#[derive(Clone, Debug)]
pub struct Key {
    pair: CryptoKeyPair,
    public: PublicKey,
}

impl Key {
    /// Makes a key whose private half never leaves the browser.
    ///
    /// # Errors
    /// Where the page is no secure context.
    pub async fn generate() -> Result<Self, Error> {
        let algorithm = object(&[("name", "ECDSA".into()), ("namedCurve", "P-256".into())]);
        let uses = Array::of2(&"sign".into(), &"verify".into());
        let promise = subtle()?.generate_key_with_object(&algorithm, false, &uses).map_err(refused("make a key"))?;
        let pair = JsFuture::from(promise).await.map_err(refused("make a key"))?;
        Self::of(pair.unchecked_into()).await
    }

    async fn of(pair: CryptoKeyPair) -> Result<Self, Error> {
        const OPERATION: &str = "show the public key";
        let promise = subtle()?.export_key("jwk", &pair.get_public_key()).map_err(refused(OPERATION))?;
        let jwk = JsFuture::from(promise).await.map_err(refused(OPERATION))?;
        let field = |name: &str| {
            Reflect::get(&jwk, &name.into()).ok().and_then(|value| value.as_string()).ok_or_else(|| Error::Crypto {
                operation: OPERATION,
                reason: format!("its JSON Web Key has no `{name}`"),
            })
        };
        let public = PublicKey { kty: field("kty")?, crv: field("crv")?, x: field("x")?, y: field("y")? };
        Ok(Self { pair, public })
    }

    /// To send to the node, with an invitation or a plain token.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// A proof that the sender of one request holds this key (RFC 9449, 4.2): `method` and `url` are the request's, `token`
    /// is the one it carries.
    ///
    /// # Errors
    /// Where the browser refuses to sign.
    pub async fn proof(&self, method: &str, url: &str, token: &str) -> Result<String, Error> {
        let header = Header { typ: "dpop+jwt", alg: "ES256", jwk: &self.public };
        let claims = Claims {
            jti: URL_SAFE_NO_PAD.encode(random::<16>()?),
            htm: method,
            htu: url.split(['?', '#']).next().unwrap_or(url),
            iat: (js_sys::Date::now() / 1000.0) as u64,
            ath: URL_SAFE_NO_PAD.encode(sha256(token.as_bytes()).await?),
        };
        let signed = format!("{}.{}", json_base64(&header), json_base64(&claims));
        let signature = self.sign(signed.as_bytes()).await?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// ES256 as JSON Web Signatures have it (RFC 7518, 3.4): 64 bytes, which is also what Web Cryptography returns.
    async fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let algorithm = object(&[("name", "ECDSA".into()), ("hash", "SHA-256".into())]);
        let key: CryptoKey = self.pair.get_private_key();
        let promise = subtle()?.sign_with_object_and_u8_array(&algorithm, &key, message).map_err(refused("sign"))?;
        bytes_of(promise, "sign").await
    }
}

/// A token with its key, as it is kept.
#[derive(Clone, Debug)]
pub struct Identity {
    pub token: String,
    pub key: Key,
    pub expires_at: UnixMillis,
}

impl Identity {
    pub fn new(issued: IssuedToken, key: Key) -> Self {
        Self { token: issued.token, key, expires_at: issued.principal.expires_at }
    }

    /// The person signed in to this browser, if any; one whose token has expired is none.
    ///
    /// # Errors
    /// Where the browser keeps no data for this page.
    pub async fn load() -> Result<Option<Self>, Error> {
        let Some(record) = database::read().await? else { return Ok(None) };
        let field = |name: &str| Reflect::get(&record, &name.into()).unwrap_or(JsValue::UNDEFINED);
        let (Some(token), Some(expires_at), Ok(pair)) =
            (field("token").as_string(), field("expiresAt").as_f64(), field("keyPair").dyn_into::<Object>())
        else {
            // What another version wrote in another form can't be used: that is as good as signed out.
            return Ok(None);
        };
        if expires_at <= js_sys::Date::now() {
            return Ok(None);
        }
        let key = Key::of(pair.unchecked_into()).await?;
        Ok(Some(Self { token, key, expires_at: UnixMillis(expires_at as u64) }))
    }

    /// Has the last third of the token's life begun? `now` is the node's time as well as it is known.
    pub fn renewal_is_due(&self, now: UnixMillis) -> bool {
        lifetime::renewal_is_due(&self.token, now)
    }

    /// Signs this browser in, or renews its token, for all pages of the origin.
    ///
    /// # Errors
    /// Where the browser keeps no data for this page.
    pub async fn store(&self) -> Result<(), Error> {
        let record = object(&[
            ("token", self.token.as_str().into()),
            ("keyPair", self.key.pair.clone().into()),
            ("expiresAt", (self.expires_at.0 as f64).into()),
        ]);
        database::write(&record).await?;
        announce();
        Ok(())
    }

    /// Signs this browser out: token and key are forgotten, and connections made with them end.
    ///
    /// # Errors
    /// Where the browser keeps no data for this page.
    pub async fn forget() -> Result<(), Error> {
        database::delete().await?;
        announce();
        Ok(())
    }

    /// The value of the `DPoP` header beside `Authorization: DPoP <token>`.
    ///
    /// # Errors
    /// Where the browser refuses to sign.
    pub async fn proof(&self, method: &str, url: &str) -> Result<String, Error> {
        self.key.proof(method, url, &self.token).await
    }
}

/// Calls back when another page of this origin signed in or out or renewed the token; until it is dropped.
#[derive(Debug)]
pub struct Changes {
    channel: BroadcastChannel,
    _callback: Closure<dyn FnMut()>,
}

impl Changes {
    /// # Errors
    /// Where the browser has no broadcast channels.
    pub fn listen(callback: impl FnMut() + 'static) -> Result<Self, Error> {
        let channel = BroadcastChannel::new(CHANGES).map_err(|error| Error::Storage(reason(&error)))?;
        let callback = Closure::<dyn FnMut()>::new(callback);
        channel.set_onmessage(Some(callback.as_ref().unchecked_ref()));
        Ok(Self { channel, _callback: callback })
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.channel.close();
    }
}

/// Best effort: a page that misses it sees the change when it next loads the identity.
fn announce() {
    if let Ok(channel) = BroadcastChannel::new(CHANGES) {
        let _ = channel.post_message(&JsValue::NULL);
        channel.close();
    }
}

#[derive(Serialize)]
struct Header<'a> {
    typ: &'static str,
    alg: &'static str,
    jwk: &'a PublicKey,
}

#[derive(Serialize)]
struct Claims<'a> {
    jti: String,
    htm: &'a str,
    htu: &'a str,
    iat: u64,
    ath: String,
}

fn json_base64(value: &impl Serialize) -> String {
    // Structs of strings and numbers always have a JSON form.
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(value).unwrap_or_default())
}

fn crypto() -> Result<Crypto, Error> {
    web_sys::window().ok_or(Error::NoCrypto)?.crypto().map_err(|_| Error::NoCrypto)
}

fn subtle() -> Result<SubtleCrypto, Error> {
    let subtle = crypto()?.subtle();
    // Outside of a secure context there is none, whatever its declaration says.
    if subtle.is_undefined() { Err(Error::NoCrypto) } else { Ok(subtle) }
}

fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    crypto()?.get_random_values_with_u8_array(&mut bytes).map_err(refused("give random bytes"))?;
    Ok(bytes)
}

async fn sha256(bytes: &[u8]) -> Result<Vec<u8>, Error> {
    let promise = subtle()?.digest_with_str_and_u8_array("SHA-256", bytes).map_err(refused("hash"))?;
    bytes_of(promise, "hash").await
}

async fn bytes_of(promise: js_sys::Promise, operation: &'static str) -> Result<Vec<u8>, Error> {
    Ok(Uint8Array::new(&JsFuture::from(promise).await.map_err(refused(operation))?).to_vec())
}

fn object(fields: &[(&str, JsValue)]) -> Object {
    let object = Object::new();
    for (name, value) in fields {
        // Setting a field of a plain object can't fail.
        let _ = Reflect::set(&object, &(*name).into(), value);
    }
    object
}

fn refused(operation: &'static str) -> impl Fn(JsValue) -> Error {
    move |error| Error::Crypto { operation, reason: reason(&error) }
}

/// What a browser said with an exception.
pub(crate) fn reason(error: &JsValue) -> String {
    let message = Reflect::get(error, &"message".into()).ok().and_then(|message| message.as_string());
    message.unwrap_or_else(|| "it gave no reason".to_owned())
}
