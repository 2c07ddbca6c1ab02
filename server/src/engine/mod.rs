//! Everything that is said to Docker Engine: what it shows, making it show what the state says, images, logs and commands
//! in containers.

mod address;
mod again;
mod build;
mod connection;
mod container;
mod data;
mod error;
mod exec;
mod hijack;
mod image;
mod image_store;
mod labels;
mod logs;
mod observe;
mod others;
mod ports;
mod provision;
mod reconciler;
mod scratch;
mod spare;
mod stats;
mod stored;
mod takedown;
mod traffic;
pub mod uploads;
mod values;
mod volume;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use flotilla_api::{
    ApiError, InstanceId, NodeId, ServiceName,
    rest::{BuildLine, BuildQuery, EngineView, ExecRequest, ImageView, LoadedImages, LogLine, LogQuery},
};
use flotilla_core::{
    CommandV1, State,
    reconcile::{self, Memory, Observed, Status, View},
    report::Usage,
};
use futures::{Stream, StreamExt as _, future::BoxFuture, stream::BoxStream};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, watch},
    task::JoinHandle,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use connection::Client;
pub use connection::DEFAULT_HOST;
pub(crate) use connection::DockerHost;
pub use data::{Begun, Data, NoData};
pub use error::Error;
pub use exec::{Exec, ExecEvent, ExecInput, ExecOutput};
pub use image::PullProgress;
pub use image_store::{ImageArchive, ImageParts, ImageStore, Moves, Moving, Need, NoImageStore, Progress};
pub use others::{NoOthers, Others, Told};
use reconciler::Reconciler;
pub use takedown::{answers, pull_the_plug, take_down};
pub use traffic::{Traffic, Visit};
pub use values::{NoValues, Values};

use crate::{clock, fence::Fence};

/// Pulls at once. More would only share the same line.
const PULLS_AT_ONCE: usize = 3;

/// How long a call waits for an engine that is just being connected to. A person sees the answer after that.
const READY_PATIENCE: Duration = Duration::from_secs(2);

/// What the engine needs to know of its node.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// `unix:///path` or `tcp://host:port`; absent: `DOCKER_HOST`, and without that [`DEFAULT_HOST`].
    pub docker_host: Option<String>,
    /// Volumes and uploads lie here. Docker Engine must see the same directory.
    pub data_dir: PathBuf,
    /// `ClusterRecord::id`: which containers are ours.
    pub cluster_id: String,
    pub node_id: NodeId,
}

/// The way by which the node changes the state in its own name.
pub trait Proposer: Send + Sync + 'static {
    fn propose(&self, command: CommandV1) -> BoxFuture<'_, Result<(), ApiError>>;
}

/// Whether this node's lease lets it run what could write a volume.
pub trait Lease: Send + Sync + 'static {
    /// Is there time enough left to start an instance?
    fn may_start(&self) -> bool;
}

/// What the engine needs of the rest of its node.
#[derive(Clone)]
pub struct Surroundings {
    pub proposer: Arc<dyn Proposer>,
    pub lease: Arc<dyn Lease>,
    pub fence: Fence,
    pub others: Arc<dyn Others>,
    pub data: Arc<dyn Data>,
    pub images: Arc<dyn ImageStore>,
    pub values: Arc<dyn Values>,
}

impl fmt::Debug for Surroundings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Surroundings").finish_non_exhaustive()
    }
}

/// What the engine shows, and what is being started: by which a node says what it holds.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    pub observed: Option<Arc<Observed>>,
    /// Index of the state that was planned from last: every start that is not known here comes from a later one.
    pub planned: u64,
    /// Epochs of instances that are being started, or were since the observation began.
    pub starting: BTreeSet<u64>,
}

/// A handle to the one task that talks with Docker Engine. When the last one is dropped, the task ends; containers run on.
#[derive(Clone, Debug)]
pub struct Engine {
    shared: Arc<Shared>,
    _stop: Arc<DropGuard>,
}

#[derive(Debug)]
struct Shared {
    config: EngineConfig,
    host: Arc<DockerHost>,
    fence: Fence,
    others: Arc<dyn Others>,
    data: Arc<dyn Data>,
    images: Arc<dyn ImageStore>,
    values: Arc<dyn Values>,
    files: values::Files,
    client: watch::Sender<Option<Client>>,
    status: watch::Sender<EngineView>,
    observed: watch::Sender<Option<Arc<Observed>>>,
    standing: watch::Sender<Standing>,
    memory: watch::Sender<Arc<Memory>>,
    state: watch::Receiver<Arc<State>>,
    activities: Mutex<BTreeMap<ServiceName, String>>,
    turn: address::Turn,
    traffic: Traffic,
    pulls: Semaphore,
    /// Images of services that are on this machine.
    held: watch::Sender<BTreeSet<String>>,
    images_changed: Notify,
    spares: spare::Spares,
    builds: Arc<Semaphore>,
    commands: Arc<Semaphore>,
    stats: stats::Stats,
    /// Try to connect at once.
    hurry: Notify,
    /// Observe and plan at once.
    look: Notify,
    stop: CancellationToken,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Engine {
    /// Begins to connect, observe and reconcile. An engine that is not there is no error: see [`Engine::status`].
    ///
    /// # Errors
    /// An address of the engine that makes no sense, or a data directory that does not exist.
    pub fn start(
        config: EngineConfig,
        state: watch::Receiver<Arc<State>>,
        surroundings: Surroundings,
    ) -> Result<Self, Error> {
        let data_dir = config.data_dir.canonicalize().map_err(|source| Error::Directory {
            operation: "use the data directory",
            path: config.data_dir.clone(),
            source,
        })?;
        let stop = CancellationToken::new();
        let connecting =
            EngineView::Unavailable { message: "connecting to Docker Engine".to_owned(), since: clock::now() };
        let files = values::Files::new(&config.cluster_id, &config.node_id);
        let shared = Arc::new(Shared {
            host: Arc::new(DockerHost::find(config.docker_host.as_deref())?),
            config: EngineConfig { data_dir, ..config },
            fence: surroundings.fence.clone(),
            others: Arc::clone(&surroundings.others),
            data: Arc::clone(&surroundings.data),
            images: Arc::clone(&surroundings.images),
            values: Arc::clone(&surroundings.values),
            files,
            client: watch::Sender::new(None),
            status: watch::Sender::new(connecting),
            observed: watch::Sender::new(None),
            standing: watch::Sender::default(),
            memory: watch::Sender::new(Arc::default()),
            state: state.clone(),
            activities: Mutex::default(),
            turn: address::Turn::default(),
            traffic: Traffic::default(),
            pulls: Semaphore::new(PULLS_AT_ONCE),
            held: watch::Sender::default(),
            images_changed: Notify::new(),
            spares: spare::Spares::default(),
            builds: Arc::new(Semaphore::new(build::BUILDS_AT_ONCE)),
            commands: Arc::new(Semaphore::new(exec::COMMANDS_AT_ONCE)),
            stats: stats::Stats::default(),
            hurry: Notify::new(),
            look: Notify::new(),
            stop: stop.clone(),
            task: Mutex::default(),
        });
        tokio::spawn(provision::keep(Arc::clone(&shared)));
        let task = tokio::spawn(Reconciler::new(Arc::clone(&shared), state, surroundings).run());
        *shared.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
        Ok(Self { shared, _stop: Arc::new(stop.drop_guard()) })
    }

    /// What freezes this node's containers.
    pub fn fence(&self) -> &Fence {
        &self.shared.fence
    }

    /// Requests that are under way to this node's containers.
    pub fn traffic(&self) -> &Traffic {
        &self.shared.traffic
    }

    /// The other machines, as far as this node knows them.
    pub fn others(&self) -> &Arc<dyn Others> {
        &self.shared.others
    }

    /// Does the engine answer? If not, why, in one sentence, and since when.
    pub fn status(&self) -> EngineView {
        self.shared.status.borrow().clone()
    }

    pub fn watch_status(&self) -> watch::Receiver<EngineView> {
        self.shared.status.subscribe()
    }

    /// The newest that the engine showed; `None` until it answered once.
    pub fn observed(&self) -> Option<Arc<Observed>> {
        self.shared.observed.borrow().clone()
    }

    pub fn watch_observed(&self) -> watch::Receiver<Option<Arc<Observed>>> {
        self.shared.observed.subscribe()
    }

    /// What this node holds.
    pub fn watch_standing(&self) -> watch::Receiver<Standing> {
        self.shared.standing.subscribe()
    }

    /// Failures and back-off, as `reconcile::condition` wants them.
    pub fn memory(&self) -> Arc<Memory> {
        self.shared.memory.borrow().clone()
    }

    pub fn watch_memory(&self) -> watch::Receiver<Arc<Memory>> {
        self.shared.memory.subscribe()
    }

    /// What takes long for this service right now, as a sentence: pulling its image.
    pub fn activity(&self, service: &ServiceName) -> Option<String> {
        self.shared.activities.lock().unwrap_or_else(PoisonError::into_inner).get(service).cloned()
    }

    /// What takes long right now, for each service.
    pub fn activities(&self) -> BTreeMap<ServiceName, String> {
        self.shared.activities.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where a request for the service goes: a replica that is ready, in turn. Looks only at what is known, so it is cheap.
    ///
    /// # Errors
    /// There is no such service, it is stopped, none of its instances runs, or it has no port.
    pub fn address_of(&self, service: &ServiceName) -> Result<SocketAddr, Error> {
        let shared = &self.shared;
        address::of(
            service,
            clock::now(),
            &shared.config.node_id,
            &shared.state.borrow(),
            shared.observed.borrow().as_deref(),
            &shared.memory.borrow(),
            &shared.status.borrow(),
            &shared.turn,
        )
    }

    /// Makes sure that the image is on this machine: looks first, then pulls. The engine's id of the image.
    ///
    /// # Errors
    /// The reference makes no sense, the registry does not know it or can't be reached, or the engine is not there.
    pub async fn ensure_image(&self, image: &str, progress: impl FnMut(PullProgress) + Send) -> Result<String, Error> {
        let client = self.shared.client().await?;
        if let Some(id) = image::local(&client, image).await? {
            return Ok(id);
        }
        provision::pull(&self.shared, &client, image, image, progress).await
    }

    /// The same without pulling it: `None` where its registry says that it has it.
    ///
    /// # Errors
    /// As [`Self::ensure_image`].
    pub async fn find_image(&self, image: &str) -> Result<Option<String>, Error> {
        image::find(&self.shared.client().await?, image).await
    }

    /// Images of the state's services that are on this machine, by what the state calls them: for reports.
    pub fn held_images(&self) -> watch::Receiver<BTreeSet<String>> {
        self.shared.held.subscribe()
    }

    /// Bytes of an image's layers; `None` where the engine does not have it.
    ///
    /// # Errors
    /// The engine does not answer.
    pub async fn image_size(&self, id: &str) -> Result<Option<u64>, Error> {
        stored::size(&self.shared.client().await?, id).await
    }

    /// An image as `docker save` writes it. An engine may write all of it to its own disk before it sends anything.
    ///
    /// # Errors
    /// The engine does not answer. That it does not have the image is told by what comes.
    pub async fn save_image(&self, id: &str) -> Result<BoxStream<'static, io::Result<Bytes>>, Error> {
        Ok(stored::save(&self.shared.client().await?, id))
    }

    /// # Errors
    /// One of them is no name that an image can be given.
    pub fn check_names(names: &[String]) -> Result<(), Error> {
        names.iter().try_for_each(|name| image::check_tag(name))
    }

    /// Has the engine load an image of the store, and gives it names; the engine's id of it.
    ///
    /// # Errors
    /// A name is none, the image is damaged, or the engine does not take it.
    pub async fn load_stored(&self, id: &str, names: &[String]) -> Result<String, Error> {
        Self::check_names(names)?;
        let client = self.shared.client().await?;
        let name = names.first().map_or(id, String::as_str);
        stored::load(&self.shared, &client, id, name, names).await
    }

    /// Takes names from an image, and the image with its last one. True if it is gone.
    ///
    /// # Errors
    /// A container needs it, or the engine does not answer.
    pub async fn forget_image(&self, id: &str, names: &BTreeSet<String>) -> Result<bool, Error> {
        let forgotten = stored::forget(&self.shared.client().await?, id, names).await;
        self.shared.images_changed.notify_one();
        forgotten
    }

    /// The images on this machine that are called `name` (a reference or an id), or all; and which services use them.
    ///
    /// # Errors
    /// The name is no reference, or the engine does not answer.
    pub async fn images(&self, name: Option<&str>) -> Result<Vec<ImageView>, Error> {
        let client = self.shared.client().await?;
        let state = self.shared.state.borrow().clone();
        image::list(&client, &state, name).await
    }

    /// # Errors
    /// The engine does not answer, or a container needs the image.
    pub async fn remove_image(&self, image: &str) -> Result<(), Error> {
        image::remove(&self.shared.client().await?, image).await
    }

    /// Loads an image archive that was uploaded completely, and forgets the upload.
    ///
    /// # Errors
    /// The upload is not complete or damaged, or holds no image.
    pub async fn load_upload(&self, uploads: &uploads::Uploads, digest: &str) -> Result<LoadedImages, Error> {
        let archive = uploads.verify(digest).await?;
        let client = self.shared.client().await?;
        let before = image::ids(&client).await?;
        let images = image::load(&client, archive.stream().await?).await;
        match images {
            Ok(images) => {
                archive.discard().await?;
                for name in &images {
                    if let Some(id) = image::local(&client, name).await? {
                        let names = if *name == id { Vec::new() } else { vec![name.clone()] };
                        self.shared.came(&before, &id, &names).await;
                    }
                }
                self.shared.images_changed.notify_one();
                Ok(LoadedImages { images })
            }
            // The bytes are what the sender meant; sending them again would change nothing.
            Err(error @ Error::Archive(_)) => {
                archive.discard().await?;
                Err(error)
            }
            // The engine may be back in a moment, and the archive is still here.
            Err(error) => Err(error),
        }
    }

    /// Builds an image from a context (a tar archive). Lines as they come; the last one tells how it ended.
    ///
    /// # Errors
    /// What can be known before the build begins.
    pub async fn build<E: fmt::Display + Send + 'static>(
        &self,
        query: &BuildQuery,
        context: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
    ) -> Result<BoxStream<'static, BuildLine>, Error> {
        let options = build::options(query)?;
        let permit = permit(&self.shared.builds, "builds")?;
        let client = self.shared.client().await?;
        let came = Arc::new((Arc::clone(&self.shared), image::ids(&client).await?, query.image.clone()));
        let lines = build::run(client, query.image.clone(), options, context, permit);
        let noted = lines.then(move |line| {
            let came = Arc::clone(&came);
            async move {
                let (shared, before, name) = &*came;
                if let BuildLine::Done { image } = &line {
                    shared.came(before, image, std::slice::from_ref(name)).await;
                }
                line
            }
        });
        Ok(Box::pin(noted))
    }

    /// What a service's instances, or one of them, print. Dropping the stream ends the reading.
    ///
    /// # Errors
    /// There is no such service or instance, or the engine does not answer.
    pub async fn logs(
        &self,
        service: &ServiceName,
        instance: Option<&InstanceId>,
        query: LogQuery,
    ) -> Result<BoxStream<'static, Result<LogLine, Error>>, Error> {
        self.shared.exists(service, instance)?;
        let client = self.shared.client().await?;
        let subject = logs::Subject { service: service.clone(), instance: instance.cloned() };
        Ok(logs::open(Arc::clone(&self.shared), client, subject, query))
    }

    /// Runs a command in an instance of the service that runs: the named one, or the one that requests go to.
    ///
    /// # Errors
    /// There is no such service or instance, none runs, or the engine refuses.
    pub async fn exec(
        &self,
        service: &ServiceName,
        instance: Option<&InstanceId>,
        request: &ExecRequest,
    ) -> Result<Exec, Error> {
        self.shared.exists(service, instance)?;
        let container = self.shared.running(service, instance)?;
        let permit = permit(&self.shared.commands, "commands")?;
        exec::start(&self.shared.client().await?, &container, request, permit).await
    }

    /// What each running instance uses; empty while the engine does not answer. At most 2 s old.
    pub async fn usage(&self) -> Arc<BTreeMap<InstanceId, Usage>> {
        let client = self.shared.client.borrow().clone();
        match (client, self.observed()) {
            (Some(client), Some(observed)) => self.shared.stats.usage(&client, &observed).await,
            _ => Arc::default(),
        }
    }

    /// Observe and plan at once: something changed that the engine does not tell, such as the lease.
    pub fn look(&self) {
        self.shared.look.notify_one();
    }

    /// Ends the loop after what is under way; containers run on.
    pub async fn stop(&self) {
        self.shared.stop.cancel();
        let task = self.shared.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task
            && let Err(panic) = task.await
        {
            tracing::error!(%panic, "the engine's loop panicked");
        }
    }
}

impl Shared {
    /// The engine, if it answers, or does in a moment.
    async fn client(&self) -> Result<Client, Error> {
        let mut client = self.client.subscribe();
        if client.borrow().is_none() {
            self.hurry.notify_one();
        }
        let ready = client.wait_for(Option::is_some);
        match tokio::time::timeout(READY_PATIENCE, ready).await {
            Ok(Ok(client)) => client.clone().ok_or(Error::Cancelled),
            Ok(Err(_)) => Err(Error::Cancelled),
            Err(_) => Err(self.unavailable()),
        }
    }

    /// A service that was removed a moment ago still is one while its containers are there.
    fn exists(&self, service: &ServiceName, instance: Option<&InstanceId>) -> Result<(), Error> {
        let observed = self.observed.borrow();
        let mut containers = observed
            .iter()
            .flat_map(|observed| &observed.containers)
            .filter(|container| container.service == *service)
            .peekable();
        if containers.peek().is_none() && !self.state.borrow().services.contains_key(service) {
            return Err(Error::ServiceNotFound(service.clone()));
        }
        match instance {
            Some(instance) if !containers.any(|container| container.instance == *instance) => {
                Err(Error::InstanceNotFound(instance.clone()))
            }
            _ => Ok(()),
        }
    }

    /// The container in which a command shall run.
    fn running(&self, service: &ServiceName, instance: Option<&InstanceId>) -> Result<String, Error> {
        let unavailable = |why: &str| Error::ServiceUnavailable { service: service.clone(), why: why.to_owned() };
        let observed = self.observed.borrow().clone().ok_or_else(|| self.unavailable())?;
        if let Some(instance) = instance {
            let named = observed.containers.iter().find(|container| container.instance == *instance);
            return match named {
                Some(container) if matches!(container.status, Status::Running { .. }) => Ok(container.id.clone()),
                _ => Err(unavailable("that instance does not run")),
            };
        }
        let state = self.state.borrow().clone();
        let record = state.services.get(service).ok_or_else(|| Error::ServiceNotFound(service.clone()))?;
        if record.replicas == 0 {
            return Err(Error::ServiceStopped(service.clone()));
        }
        let memory = self.memory.borrow().clone();
        let view = View { observed: Some(&observed), memory: &memory, at: observed.at };
        let views = BTreeMap::from([(&self.config.node_id, view)]);
        let serving = reconcile::serving(clock::now(), record, &views);
        serving
            .first()
            .map(|(_, container)| container.id.clone())
            .ok_or_else(|| unavailable("none of its instances runs"))
    }

    /// An image is in the engine, which had these before: one of a person's own stays that.
    async fn came(&self, before: &BTreeSet<String>, id: &str, names: &[String]) {
        if before.contains(id) {
            self.images.found(id, names).await;
        } else {
            self.images.brought(id, names).await;
        }
    }

    fn unavailable(&self) -> Error {
        match &*self.status.borrow() {
            EngineView::Unavailable { message, .. } => Error::Unavailable(message.clone()),
            EngineView::Ready { .. } => Error::Unavailable("Docker Engine is being connected to".to_owned()),
        }
    }

    fn activity(&self, service: &ServiceName, sentence: Option<String>) {
        let mut activities = self.activities.lock().unwrap_or_else(PoisonError::into_inner);
        match sentence {
            Some(sentence) => drop(activities.insert(service.clone(), sentence)),
            None => drop(activities.remove(service)),
        }
    }
}

fn permit(semaphore: &Arc<Semaphore>, what: &'static str) -> Result<OwnedSemaphorePermit, Error> {
    Arc::clone(semaphore).try_acquire_owned().map_err(|_| Error::TooMany(what))
}
