//! The one record in IndexedDB: database `flotilla`, store `identity`, key `current`, holding `{token, keyPair, expiresAt}`.
//! Only IndexedDB can keep a key that can't be exported.

use js_sys::{Object, Promise};
use wasm_bindgen::{JsCast, JsValue, closure::Closure};
use wasm_bindgen_futures::JsFuture;
use web_sys::{IdbDatabase, IdbFactory, IdbObjectStore, IdbRequest, IdbTransactionMode};

use super::{Error, reason};

const DATABASE: &str = "flotilla";
const VERSION: u32 = 1;
const STORE: &str = "identity";
const CURRENT: &str = "current";

pub(super) async fn read() -> Result<Option<JsValue>, Error> {
    let record = in_store(IdbTransactionMode::Readonly, |store| store.get(&CURRENT.into())).await?;
    Ok(Some(record).filter(|record| !record.is_undefined()))
}

pub(super) async fn write(record: &Object) -> Result<(), Error> {
    in_store(IdbTransactionMode::Readwrite, |store| store.put_with_key(record, &CURRENT.into())).await.map(drop)
}

pub(super) async fn delete() -> Result<(), Error> {
    in_store(IdbTransactionMode::Readwrite, |store| store.delete(&CURRENT.into())).await.map(drop)
}

async fn in_store(
    mode: IdbTransactionMode,
    request: impl FnOnce(&IdbObjectStore) -> Result<IdbRequest, JsValue>,
) -> Result<JsValue, Error> {
    let database = open().await?;
    let answer = async {
        let transaction = database.transaction_with_str_and_mode(STORE, mode).map_err(failed)?;
        let store = transaction.object_store(STORE).map_err(failed)?;
        answer(&request(&store).map_err(failed)?).await
    }
    .await;
    // An open connection would block a later version of the page from changing the database's form.
    database.close();
    answer
}

async fn open() -> Result<IdbDatabase, Error> {
    let request = factory()?.open_with_u32(DATABASE, VERSION).map_err(failed)?;
    let upgraded = request.clone();
    let upgrade = Closure::once_into_js(move || {
        // The only earlier version is none at all; a failure shows as a missing store in the transaction that follows.
        if let Ok(Ok(database)) = upgraded.result().map(JsCast::dyn_into::<IdbDatabase>) {
            let _ = database.create_object_store(STORE);
        }
    });
    request.set_onupgradeneeded(Some(upgrade.unchecked_ref()));
    answer(&request).await?.dyn_into().map_err(failed)
}

fn factory() -> Result<IdbFactory, Error> {
    let window = web_sys::window().ok_or_else(|| Error::Storage("it is not a window".to_owned()))?;
    window.indexed_db().map_err(failed)?.ok_or_else(|| Error::Storage("it has no IndexedDB".to_owned()))
}

async fn answer(request: &IdbRequest) -> Result<JsValue, Error> {
    let promise = Promise::new(&mut |resolve, reject| {
        let (succeeded, refused) = (request.clone(), request.clone());
        let on_success = Closure::once_into_js(move || {
            let _ = resolve.call1(&JsValue::NULL, &succeeded.result().unwrap_or(JsValue::UNDEFINED));
        });
        let on_error = Closure::once_into_js(move || {
            let error = refused.error().ok().flatten().map_or(JsValue::UNDEFINED, JsValue::from);
            let _ = reject.call1(&JsValue::NULL, &error);
        });
        request.set_onsuccess(Some(on_success.unchecked_ref()));
        request.set_onerror(Some(on_error.unchecked_ref()));
    });
    JsFuture::from(promise).await.map_err(failed)
}

fn failed(error: impl Into<JsValue>) -> Error {
    Error::Storage(reason(&error.into()))
}
