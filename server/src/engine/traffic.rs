//! Requests that are under way to each container, so that one is stopped when it has answered what it was asked.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::watch;

/// Clones count together.
#[derive(Clone, Debug, Default)]
pub struct Traffic {
    containers: Arc<Mutex<HashMap<String, Entry>>>,
}

#[derive(Debug, Default)]
struct Entry {
    /// It is about to be stopped, and gets no more requests.
    closed: bool,
    under_way: watch::Sender<usize>,
}

/// A request, or a connection on which one is under way at times. Counts until it is dropped.
#[derive(Debug)]
pub struct Visit {
    traffic: Traffic,
    container: String,
    counts: bool,
}

impl Traffic {
    /// A request goes to this container; `None` if it takes no more.
    pub fn enter(&self, container: &str) -> Option<Visit> {
        let mut containers = self.lock();
        let entry = containers.entry(container.to_owned()).or_default();
        if entry.closed {
            return None;
        }
        entry.under_way.send_modify(|count| *count += 1);
        Some(Visit { traffic: self.clone(), container: container.to_owned(), counts: true })
    }

    pub fn is_closed(&self, container: &str) -> bool {
        self.lock().get(container).is_some_and(|entry| entry.closed)
    }

    /// Lets no more requests in, and waits for those under way, at most so long.
    pub(super) async fn close(&self, container: &str, at_most: Duration) {
        let mut under_way = {
            let mut containers = self.lock();
            let entry = containers.entry(container.to_owned()).or_default();
            entry.closed = true;
            entry.under_way.subscribe()
        };
        let idle = under_way.wait_for(|count| *count == 0);
        if tokio::time::timeout(at_most, idle).await.is_err() {
            tracing::debug!(container, "stopped while it worked on requests");
        }
    }

    /// The container is gone; or it stays after all.
    pub(super) fn open(&self, container: &str) {
        let mut containers = self.lock();
        if let Some(entry) = containers.get_mut(container) {
            entry.closed = false;
        }
        drop(containers);
        self.forget_idle(container);
    }

    fn forget_idle(&self, container: &str) {
        let mut containers = self.lock();
        if containers.get(container).is_some_and(|entry| !entry.closed && *entry.under_way.borrow() == 0) {
            containers.remove(container);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Entry>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Visit {
    /// Whether a request is under way on this connection now.
    pub fn counts(&mut self, counts: bool) {
        if self.counts == counts {
            return;
        }
        self.counts = counts;
        let mut containers = self.traffic.lock();
        let entry = containers.entry(self.container.clone()).or_default();
        entry.under_way.send_modify(|count| *count = if counts { *count + 1 } else { count.saturating_sub(1) });
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.counts(false);
        self.traffic.forget_idle(&self.container);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn what_is_closed_waits_for_the_last_request_and_takes_no_other() {
        let traffic = Traffic::default();
        let first = traffic.enter("a").unwrap();
        let mut second = traffic.enter("a").unwrap();
        let closing = tokio::spawn({
            let traffic = traffic.clone();
            async move { traffic.close("a", PATIENCE).await }
        });
        while !traffic.is_closed("a") {
            tokio::task::yield_now().await;
        }
        assert!(traffic.enter("a").is_none());
        assert!(traffic.enter("b").is_some());
        drop(first);
        tokio::task::yield_now().await;
        assert!(!closing.is_finished());
        // A connection that is idle holds nothing up.
        second.counts(false);
        tokio::time::timeout(PATIENCE, closing).await.unwrap().unwrap();
        drop(second);
        traffic.open("a");
        assert!(traffic.enter("a").is_some());
        assert!(traffic.lock().is_empty(), "what is idle is forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_without_end_is_not_waited_for_without_end() {
        let traffic = Traffic::default();
        let _visit = traffic.enter("a").unwrap();
        traffic.close("a", Duration::from_secs(3)).await;
        assert!(traffic.is_closed("a"));
    }
}
