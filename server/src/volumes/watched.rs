//! What the kernel tells of changes in one volume's directory.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use flotilla_data::{capture::Scope, tree::Name, watch::Watch};
use tokio::io::unix::AsyncFd;
use tokio_util::sync::{CancellationToken, DropGuard};

/// What happens in so short a time is taken in together.
const TOGETHER: Duration = Duration::from_millis(20);

/// A directory, and what was changed in it since it was captured.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) directory: PathBuf,
    /// Where programs see it.
    pub(super) target: PathBuf,
    seen: Arc<Mutex<Seen>>,
    _stop: DropGuard,
}

#[derive(Debug)]
struct Seen {
    /// Absent where the kernel can't watch it: then everything has to be looked at each time.
    watch: Option<Watch>,
    scope: Scope,
}

impl Watched {
    /// Calls `changed` whenever something has changed. What was changed before is not known: everything is to be looked at once.
    /// Blocking.
    pub(super) fn begin(
        directory: PathBuf,
        target: PathBuf,
        runtime: &tokio::runtime::Handle,
        changed: impl Fn() + Send + 'static,
    ) -> Self {
        let watch = Watch::begin(&directory).map_err(|error| {
            tracing::warn!(directory = %directory.display(), %error, "a volume can't be watched; it is looked at as a whole");
        });
        let seen = Arc::new(Mutex::new(Seen { watch: watch.ok(), scope: Scope::Everything }));
        let stop = CancellationToken::new();
        let task = follow(Arc::clone(&seen), changed);
        let stopped = stop.clone();
        runtime.spawn(async move {
            tokio::select! {
                () = stopped.cancelled() => {}
                () = task => {}
            }
        });
        Self { directory, target, seen, _stop: stop.drop_guard() }
    }

    /// Does the kernel tell of changes?
    pub(super) fn is_told(&self) -> bool {
        lock(&self.seen).watch.is_some()
    }

    /// What was changed since the last time. Blocking, for a moment.
    pub(super) fn take(&self) -> Scope {
        let mut seen = lock(&self.seen);
        seen.tell();
        if seen.watch.is_none() {
            return Scope::Everything;
        }
        std::mem::replace(&mut seen.scope, Scope::nothing())
    }

    /// Was nothing changed since [`Self::take`]? What was is not told by anybody else any more. Blocking, for a moment.
    pub(super) fn is_quiet(&self) -> bool {
        let mut seen = lock(&self.seen);
        seen.tell();
        seen.watch.is_some() && seen.scope == Scope::nothing()
    }

    /// The kernel did not tell of it: a file has changed.
    pub(super) fn note(&self, path: &[Name]) {
        lock(&self.seen).scope.add(path);
    }

    /// Whatever is known of changes is not enough: everything is to be looked at.
    pub(super) fn doubt(&self) {
        lock(&self.seen).scope = Scope::Everything;
    }
}

impl Seen {
    /// True if anything was changed.
    fn tell(&mut self) -> bool {
        let Some(watch) = &mut self.watch else { return false };
        match watch.tell(&mut self.scope) {
            Ok(any) => any,
            Err(error) => {
                tracing::warn!(%error, "a volume can't be watched any more; it is looked at as a whole");
                self.watch = None;
                self.scope = Scope::Everything;
                true
            }
        }
    }
}

async fn follow(seen: Arc<Mutex<Seen>>, changed: impl Fn() + Send + 'static) {
    let kernel = lock(&seen).watch.as_ref().map(|watch| std::os::fd::AsFd::as_fd(watch).try_clone_to_owned());
    let Some(Ok(kernel)) = kernel else { return };
    #[expect(deprecated, reason = "what replaces it is unsafe; the descriptor is owned, and never replaced")]
    let Ok(kernel) = AsyncFd::new(kernel) else { return };
    loop {
        let Ok(mut ready) = kernel.readable().await else { return };
        ready.clear_ready();
        let told = Arc::clone(&seen);
        let Ok(any) = tokio::task::spawn_blocking(move || lock(&told).tell()).await else { return };
        if any {
            changed();
        }
        tokio::time::sleep(TOGETHER).await;
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}
