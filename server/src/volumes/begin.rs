//! What an instance begins with: in its directories before it runs, and there for nobody else meanwhile.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use flotilla_api::{ApiError, ServiceName};
use flotilla_core::{State, state::GenerationName};
use futures::future::BoxFuture;

use super::{
    Error, Shared, Volumes, blocking,
    directories::{Beginning, Lock},
    layout, record, replica,
};
use crate::{clock, engine};

impl engine::Data for Volumes {
    fn ready<'a>(&'a self, service: &'a ServiceName, epoch: u64) -> BoxFuture<'a, Result<(), ApiError>> {
        Box::pin(async move {
            let state = self.shared.parts.state.borrow().clone();
            let source = state.placement(epoch).and_then(|(_, placement)| placement.source);
            let beginning = source.map_or(Beginning::AsItIs, Beginning::With);
            self.shared.ready(state, service, epoch, beginning).await.map_err(ApiError::from)
        })
    }

    fn begins<'a>(&'a self, service: &'a ServiceName, epoch: u64) -> BoxFuture<'a, Result<engine::Begun, ApiError>> {
        Box::pin(async move {
            let lock = self.shared.begins(service, epoch).await?;
            Ok(engine::Begun::new(lock))
        })
    }

    fn prepares<'a>(&'a self, service: &'a ServiceName) -> BoxFuture<'a, Result<engine::Begun, ApiError>> {
        Box::pin(async move {
            let lock = self.shared.directories.lock(service).await;
            let (shared, service) = (Arc::clone(&self.shared), service.clone());
            blocking(move || shared.directories.begin(&service)).await?;
            Ok(engine::Begun::new(lock))
        })
    }

    fn deletes<'a>(&'a self, service: &'a ServiceName) -> BoxFuture<'a, Result<engine::Begun, ApiError>> {
        Box::pin(async move {
            let lock = self.shared.directories.lock(service).await;
            self.shared.begun.send_if_modified(|begun| begun.remove(service).is_some());
            let (shared, prefixes) = (Arc::clone(&self.shared), layout::prefixes(service));
            let forget = move || {
                for prefix in prefixes {
                    for volume in shared.store.volumes(&prefix)? {
                        shared.store.forget_volume(&volume)?;
                    }
                }
                shared.garbage.store(true, Relaxed);
                shared.history.notify_one();
                Ok(())
            };
            blocking(forget).await?;
            Ok(engine::Begun::new(lock))
        })
    }
}

impl Shared {
    /// Learns what an earlier daemon knew of a service's directories.
    pub(super) async fn recall(self: &Arc<Self>, service: &ServiceName) -> Result<(), Error> {
        let _lock = self.directories.lock(service).await;
        let (shared, name) = (Arc::clone(self), service.clone());
        let record = blocking(move || shared.directories.record(&name)).await?;
        if let Some(epoch) = record.and_then(|record| record.written) {
            self.begun.send_if_modified(|begun| begun.insert(service.clone(), epoch) != Some(epoch));
        }
        Ok(())
    }

    /// What is in the directories counts only if an instance wrote it there, or if it is what is committed: a machine that was to go on
    /// with a service and never did has older data.
    async fn beginning(
        self: &Arc<Self>,
        state: &State,
        service: &ServiceName,
        epoch: u64,
        beginning: Beginning,
    ) -> Result<Beginning, Error> {
        let committed = state.services.get(service).and_then(|service| service.data.committed.as_ref());
        let Some(committed) = committed.filter(|_| beginning == Beginning::AsItIs) else { return Ok(beginning) };
        let (shared, name) = (Arc::clone(self), service.clone());
        let record = blocking(move || shared.directories.record(&name)).await?;
        let own = |record: &record::Record| {
            let shows = record.shows.as_ref().map(|shows| shows.name);
            record.written.is_some() || shows.is_some_and(|shows| shows == committed.name || shows.epoch == epoch)
        };
        // Before there were records, whoever had directories had written them.
        Ok(if record.as_ref().is_none_or(own) { beginning } else { Beginning::With(committed.name) })
    }

    /// Is all of a generation here, as far as is known? An earlier one may be on other machines alone, or some of its volumes.
    pub(super) async fn has_all(
        self: &Arc<Self>,
        state: &State,
        service: &ServiceName,
        name: GenerationName,
    ) -> Result<bool, Error> {
        let Some((kept, _)) = self.kept(service, name).await? else { return Ok(false) };
        let Some(service) = state.services.get(service) else { return Ok(true) };
        let committed = service.data.committed.as_ref().filter(|committed| committed.name == name);
        Ok(match committed {
            Some(committed) => committed.volumes.keys().all(|volume| kept.roots.contains_key(volume)),
            None => service.volumes().iter().all(|volume| kept.roots.contains_key(volume)),
        })
    }

    pub(super) async fn ready(
        self: &Arc<Self>,
        state: Arc<State>,
        service: &ServiceName,
        epoch: u64,
        beginning: Beginning,
    ) -> Result<(), Error> {
        let beginning = self.beginning(&state, service, epoch, beginning).await?;
        if let Beginning::With(name) = beginning
            && !self.has_all(&state, service, name).await?
            && let Err(error) = replica::recall(self, service, name).await
        {
            if state.services.get(service).is_none_or(|it| !it.spec().may_start_empty()) {
                return Err(error);
            }
            tracing::warn!(%service, generation = %name, %error, "it begins anew, as its data can't be had");
            return Ok(());
        }
        let _lock = self.directories.lock(service).await;
        let (shared, service) = (Arc::clone(self), service.clone());
        blocking(move || {
            shared.directories.begin(&service)?;
            shared.directories.ready(&state, &service, epoch, &beginning, clock::now())
        })
        .await
    }

    pub(super) async fn begins(self: &Arc<Self>, service: &ServiceName, epoch: u64) -> Result<Lock, Error> {
        let lock = self.directories.lock(service).await;
        let (shared, name) = (Arc::clone(self), service.clone());
        blocking(move || shared.directories.begins(&name, epoch)).await?;
        self.begun.send_if_modified(|begun| begun.insert(service.clone(), epoch) != Some(epoch));
        Ok(lock)
    }
}
