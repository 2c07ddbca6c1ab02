//! Images that are pushed by their layers: those that the cluster lacks are uploaded one by one, each with its digest, and then the
//! image is put together of what is in the store.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use flotilla_api::rest::{AskLayers, LackingLayers, PushImage, PushedImage};

use super::{
    Error, Images, archive,
    archive::{Digest, Image, LAYERS_MAX},
    blocking, layer_key, travel,
};
use crate::{
    clock,
    engine::{self, Engine, ImageStore as _, uploads::Uploads},
};

/// Names that one image is given at once.
const REFERENCES_MAX: usize = 16;

impl Images {
    /// Which layers have to be sent, and how much of each has come.
    ///
    /// # Errors
    /// Digests that are none, or the store can't be read.
    pub async fn lacking(&self, uploads: &Uploads, asked: &AskLayers) -> Result<LackingLayers, Error> {
        let mut lacking = digests(&asked.layers)?.into_iter().collect::<BTreeSet<Digest>>();
        let (shared, layers) = (Arc::clone(&self.shared), lacking.clone());
        let here = blocking(move || shared.whole(&layers)).await?;
        lacking.retain(|digest| !here.contains_key(digest));
        if !lacking.is_empty() {
            let elsewhere = travel::elsewhere(&self.shared, &lacking).await;
            lacking.retain(|digest| !elsewhere.contains(digest));
        }
        let begun = |digest: &Digest| uploads.view(digest.hex()).map_or(0, |view| view.offset);
        let layers = lacking.iter().map(|digest| (digest.hex().to_owned(), begun(digest))).collect();
        Ok(LackingLayers { layers })
    }

    /// Takes a layer that was uploaded completely into the store, and forgets the upload.
    ///
    /// # Errors
    /// It is not complete, or damaged, or can't be kept.
    pub async fn keep_layer(&self, uploads: &Uploads, digest: &str) -> Result<(), Error> {
        let digest: Digest = digest.parse()?;
        let uploaded = uploads.verify(digest.hex()).await?;
        let len = uploaded.size()?;
        self.shared.check_room(&digest.to_string(), len)?;
        let (shared, file) = (Arc::clone(&self.shared), uploaded.open()?);
        blocking(move || {
            let failed = |source| Error::Archive { image: digest.to_string(), source };
            let mut session = shared.session();
            let bytes = io::BufReader::with_capacity(super::PIECE, file);
            let file = archive::take_layer(bytes, &digest, &mut session).map_err(failed)?;
            shared.keep_layer(&digest, file, &mut session)?;
            shared.cleared([&digest].into_iter());
            Ok(())
        })
        .await?;
        self.shared.counters.pushed_layers.fetch_add(1, Relaxed);
        self.shared.counters.pushed_bytes.fetch_add(len, Relaxed);
        Ok(uploaded.discard().await?)
    }

    /// An image that somebody pushes once more, and that is there, is kept as long as if it had come now.
    ///
    /// # Errors
    /// It is no id, or that can't be noted.
    pub async fn renew(&self, id: &str) -> Result<(), Error> {
        let digest: Digest = id.parse()?;
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            let id = digest.id();
            let is_known = shared.root(&digest).is_some() || shared.record.of(&id).is_some();
            if is_known { shared.record.found(&id, &[], clock::now()) } else { Ok(()) }
        })
        .await
    }

    /// Puts an image together, and has the engine load it.
    ///
    /// # Errors
    /// A layer is missing, it is no image, or the engine does not take it.
    pub async fn push(&self, engine: &Engine, pushed: PushImage) -> Result<PushedImage, Error> {
        let PushImage { config, layers, references } = pushed;
        Engine::check_names(&references)?;
        let layers = digests(&layers)?;
        let id = Digest::of(config.as_bytes());
        let name = references.first().cloned().unwrap_or_else(|| id.id());
        let failed = |source| Error::Archive { image: name.clone(), source };
        if config.len() as u64 > archive::TEXT_MAX {
            return Err(Error::Invalid(format!("a configuration has at most {} bytes", archive::TEXT_MAX)));
        }
        if references.len() > REFERENCES_MAX {
            return Err(Error::Invalid(format!("an image is given at most {REFERENCES_MAX} names at once")));
        }
        if archive::diff_ids(&config).map_err(failed)?.len() != layers.len() {
            return Err(Error::Invalid("the configuration names other layers than were sent".to_owned()));
        }
        let (shared, wanted) = (Arc::clone(&self.shared), layers.iter().cloned().collect());
        let here = blocking(move || shared.whole(&wanted)).await?;
        let elsewhere: BTreeSet<Digest> = layers.iter().filter(|digest| !here.contains_key(*digest)).cloned().collect();
        if !elsewhere.is_empty() {
            travel::bring_layers(&self.shared, &name, &elsewhere).await?;
        }
        let is_new = self.put_together(&id, &name, config, layers).await?;
        match engine.load_stored(&id.id(), &references).await {
            Ok(loaded) => Ok(PushedImage { id: loaded, references }),
            Err(error) => {
                // What the engine takes for no image is none for anybody.
                if is_new && matches!(error, engine::Error::Archive(_)) {
                    let turn = self.shared.turn(&id);
                    let _turn = turn.lock.lock().await;
                    let shared = Arc::clone(&self.shared);
                    blocking(move || shared.forget(&id)).await?;
                }
                Err(error.into())
            }
        }
    }

    /// False where the store had it before.
    async fn put_together(&self, id: &Digest, name: &str, config: String, layers: Vec<Digest>) -> Result<bool, Error> {
        let turn = self.shared.turn(id);
        let _turn = turn.lock.lock().await;
        if self.shared.root(id).is_some() {
            // The engine may call it otherwise.
            self.found(&id.id(), &[]).await;
            return Ok(false);
        }
        let (shared, id, name) = (Arc::clone(&self.shared), id.clone(), name.to_owned());
        blocking(move || {
            let failed = |source| Error::Archive { image: name.clone(), source };
            let mut blobs: BTreeMap<Digest, _> = shared.blobs()?;
            let mut session = shared.session();
            let file = archive::take_layer(config.as_bytes(), &id, &mut session).map_err(failed)?;
            blobs.insert(id.clone(), file);
            let image = Image::of(id.clone(), layers.clone(), &blobs).map_err(failed)?;
            shared.add(&id, &image, &mut session)?;
            // They belong to it now.
            for digest in &layers {
                shared.store.forget_volume(&layer_key(digest))?;
            }
            Ok(true)
        })
        .await
    }
}

fn digests(texts: &[String]) -> Result<Vec<Digest>, Error> {
    if texts.len() > LAYERS_MAX {
        return Err(Error::Invalid(format!("an image has at most {LAYERS_MAX} layers")));
    }
    Ok(texts.iter().map(|text| text.parse()).collect::<Result<_, _>>()?)
}
