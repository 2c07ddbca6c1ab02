//! What the store has of images: their parts by digest, which several may share, and which of these are damaged.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{MutexGuard, PoisonError},
};

use flotilla_data::{Session, tree::File};

use super::{Digest, Error, LAYERS, Shared, archive, kept, layer_key};

impl Shared {
    /// All blobs that can be told from their digest: of images, and of layers that were sent ahead.
    pub(super) fn blobs(&self) -> Result<BTreeMap<Digest, File>, Error> {
        let failed = |source| Error::Archive { image: "a layer".to_owned(), source };
        let ids: Vec<Digest> = self.stock().keys().cloned().collect();
        let mut blobs = BTreeMap::new();
        for id in ids {
            match self.image(&id) {
                Ok(image) => blobs.extend(image.blobs),
                // It may have gone just now.
                Err(error) => drop(self.noticed(&id, error)),
            }
        }
        for (digest, generation) in kept(&self.store, LAYERS)? {
            match archive::read_layer(&self.store, &generation.root).map_err(failed) {
                Ok(layer) => blobs.extend(layer),
                Err(error) if error.is_damage() => {
                    tracing::error!(layer = %digest, %error, "a layer that was sent ahead is damaged; it has to be sent again");
                    self.store.forget_volume(&layer_key(&digest))?;
                }
                Err(error) => return Err(error),
            }
        }
        let suspect = self.suspect();
        blobs.retain(|digest, _| !suspect.contains(digest));
        Ok(blobs)
    }

    fn suspect(&self) -> MutexGuard<'_, BTreeSet<Digest>> {
        self.suspect.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These were just laid down, or read and found to be whole.
    pub(super) fn cleared<'a>(&self, blobs: impl Iterator<Item = &'a Digest>) {
        let mut suspect = self.suspect();
        for digest in blobs {
            suspect.remove(digest);
        }
    }

    /// Begins to write an image, or a part of one. What is here already is laid down once more where something is damaged: which objects
    /// of it these are nobody knows.
    pub(super) fn session(&self) -> Session {
        if self.suspect().is_empty() { self.store.session() } else { self.store.renewing_session() }
    }

    /// Of these layers, those of which all is in the store.
    pub(super) fn whole(&self, layers: &BTreeSet<Digest>) -> Result<BTreeMap<Digest, File>, Error> {
        let mut blobs = self.blobs()?;
        let session = self.store.session();
        blobs.retain(|digest, file| layers.contains(digest) && archive::claim(file, &session).is_ok());
        Ok(blobs)
    }

    /// Whoever reads what the store has of an image says here what that failed with. What is damaged is forgotten: this machine does not say
    /// any more that it has it, and it comes anew from another one, or from the engine. What it shares with other images is not taken
    /// from those.
    pub(super) fn noticed(&self, id: &Digest, error: Error) -> Error {
        if error.is_damage() {
            let layers = self.stock().get(id).map(|stored| stored.layers.clone()).unwrap_or_default();
            self.suspect().extend(layers.into_iter().map(|(layer, _)| layer).chain([id.clone()]));
            tracing::error!(image = %id, %error, "a stored image is damaged; it will be fetched anew");
            if let Err(error) = self.forget(id) {
                tracing::error!(image = %id, %error, "a damaged image could not be forgotten");
            }
        }
        error
    }
}
