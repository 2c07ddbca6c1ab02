//! With which key what is kept of a volume is sealed (ADR 18).

use std::collections::BTreeMap;

use flotilla_api::{ServiceName, VolumeName};
use flotilla_core::{State, state};
use flotilla_data::{
    Hash, Store,
    capture::{Capture, Scope},
    restore,
    seal::KeyId,
};

use super::{Error, import::Tree, layout};
use crate::clock;

/// As keys are named in what is sealed. `None` where it is the name of none.
pub(crate) fn key_id(id: &state::KeyId) -> Option<KeyId> {
    let digits = Some(id.0.as_bytes()).filter(|digits| digits.len() == 2 * KeyId::LEN)?;
    let mut bytes = [0; KeyId::LEN];
    for (byte, digits) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(KeyId(bytes))
}

/// The key that a volume's next generation is sealed with; `None` where it shall not be.
///
/// # Errors
/// The cluster has no key yet; or the service is gone, and nobody knows what it shall be any more.
pub(super) fn seal_of(state: &State, service: &ServiceName, volume: &VolumeName) -> Result<Option<KeyId>, Error> {
    let known = state.services.get(service).ok_or_else(|| Error::Deleted { service: service.clone() })?;
    if !known.encrypts(volume) {
        return Ok(None);
    }
    let key = state.values.key.as_ref().and_then(key_id);
    key.map(Some).ok_or_else(|| Error::NoKey { service: service.clone() })
}

/// A tree as the volume is kept: one that is kept the other way is brought into a directory, and captured anew from there.
pub(super) fn as_kept(
    store: &Store,
    data_dir: &std::path::Path,
    (service, volume): (&ServiceName, &VolumeName),
    seal: Option<KeyId>,
    tree: Tree,
) -> Result<Tree, Error> {
    if store.sealed_with(&tree.0)?.is_some() == seal.is_some() {
        return Ok(tree);
    }
    let directory = layout::importing(data_dir).map_err(|source| Error::file("create", data_dir, source))?;
    restore::restore(store, directory.path(), None, &tree.0)?;
    let capture = Capture::begin_sealed(store, &layout::import_key(service, volume), directory.path(), seal)?;
    let captured = capture.finish(&Scope::Everything)?;
    let tree = (captured.root, captured.totals);
    captured.commit(1, 1, clock::now().0)?;
    Ok(tree)
}

/// Is each of these kept as its volume is?
///
/// # Errors
/// One is not: the two are never mixed.
pub(super) fn check(
    store: &Store,
    service: &ServiceName,
    seals: &BTreeMap<VolumeName, Option<KeyId>>,
    roots: impl Iterator<Item = (VolumeName, Hash)>,
) -> Result<(), Error> {
    for (volume, root) in roots {
        let sealed = store.sealed_with(&root)?.is_some();
        if seals.get(&volume).is_some_and(|seal| seal.is_some() != sealed) {
            return Err(Error::Mixed { service: service.clone(), volume });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use flotilla_data::seal::Key;

    use super::*;

    #[test]
    fn a_key_is_named_alike_in_the_log_and_in_what_is_sealed() {
        let id = state::KeyId("00ff12ab34cd56ef".to_owned());
        assert_eq!(key_id(&id).unwrap().to_string(), id.0);
        for text in ["", "00ff12ab34cd56", "00ff12ab34cd56zz", "first"] {
            assert_eq!(key_id(&state::KeyId(text.to_owned())), None, "{text}");
        }
    }

    #[test]
    fn what_is_brought_is_kept_as_the_volume_is_and_never_otherwise() {
        let directory = tempfile::tempdir().unwrap();
        let (service, volume) = ("notes".parse().unwrap(), "board".parse().unwrap());
        let store = Store::open(&directory.path().join("store")).unwrap();
        let id = KeyId([7; 8]);
        store.use_keys([Key::derive(id, &[7; 32])]);
        let from = directory.path().join("from");
        fs::create_dir(&from).unwrap();
        fs::write(from.join("note"), "buy bread").unwrap();
        let captured = Capture::begin(&store, "other/board", &from).unwrap().finish(&Scope::Everything).unwrap();
        let plain = (captured.root, captured.totals);
        captured.commit(1, 1, 1).unwrap();

        let of = (&service, &volume);
        assert_eq!(as_kept(&store, directory.path(), of, None, plain).unwrap(), plain);
        let sealed = as_kept(&store, directory.path(), of, Some(id), plain).unwrap();
        assert_eq!(store.sealed_with(&sealed.0).unwrap(), Some(id));
        assert_eq!(sealed.1, plain.1);
        assert_eq!(as_kept(&store, directory.path(), of, None, sealed).unwrap(), plain, "and back");

        let seals = BTreeMap::from([(volume.clone(), Some(id))]);
        check(&store, &service, &seals, [(volume.clone(), sealed.0)].into_iter()).unwrap();
        let mixed = check(&store, &service, &seals, [(volume.clone(), plain.0)].into_iter()).unwrap_err();
        assert!(matches!(mixed, Error::Mixed { .. }), "{mixed}");
    }
}
