//! The node's event stream: what makes the pages live, and how the person is told when it is lost.

use std::{collections::VecDeque, time::Duration};

use flotilla_api::rest::EventView;
use futures::future::{Either, select};
use leptos::prelude::*;

use super::{
    api::{Client, Failure},
    backoff::Backoff,
    bell::{self, Bell},
    browser, task,
};

/// Newest events that a page can show beside the audit trail.
const RECENT_MAX: usize = 200;

/// A burst of events asks for the pages' data once.
const SETTLE: Duration = Duration::from_millis(150);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    Connecting,
    Live,
    /// Pages ask at intervals until it is back.
    Lost,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Live {
    pub(crate) link: RwSignal<Link>,
    /// Counts bursts of events: whoever shows the cluster's state asks again when it changes.
    pub(crate) changes: RwSignal<u64>,
    /// Newest last.
    pub(crate) recent: RwSignal<VecDeque<EventView>>,
}

impl Live {
    /// Follows the events while the page is to be seen. A hidden page lets go of its stream, because a browser opens no
    /// more than six connections to one HTTP/1.1 host and a few forgotten tabs would hold them all.
    pub(crate) fn start(client: Client) -> Self {
        let live = Self {
            link: RwSignal::new(Link::Connecting),
            changes: RwSignal::new(0),
            recent: RwSignal::new(VecDeque::new()),
        };
        let (bell, mut sleeper) = bell::bell();
        task::while_shown(async move {
            let mut backoff = Backoff::new();
            loop {
                task::until_visible().await;
                let followed = match select(
                    std::pin::pin!(live.follow(client, &bell)),
                    std::pin::pin!(task::until_hidden()),
                )
                .await
                {
                    Either::Left((Err(failure), _)) => Some(failure),
                    Either::Left((Ok(()), _)) => None,
                    Either::Right(_) => continue,
                };
                if live.link.get_untracked() == Link::Live {
                    backoff.reset();
                }
                live.link.set(Link::Lost);
                if followed.is_some_and(|failure| failure.ends_session()) {
                    return;
                }
                task::sleep(backoff.after_failure(js_sys::Math::random())).await;
            }
        });
        task::while_shown(async move {
            loop {
                sleeper.rest().await;
                task::sleep(SETTLE).await;
                live.changes.update(|count| *count += 1);
            }
        });
        live
    }

    async fn follow(self, client: Client, bell: &Bell) -> Result<(), Failure> {
        let mut events = client.events().await?;
        self.link.set(Link::Live);
        // Whatever happened while nobody listened.
        bell.ring();
        while let Some(event) = events.next().await? {
            self.recent.update(|recent| {
                recent.push_back(event);
                if recent.len() > RECENT_MAX {
                    recent.pop_front();
                }
            });
            bell.ring();
        }
        Ok(())
    }
}

/// Seconds that tick while the page is to be seen, for ages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    now: RwSignal<f64>,
}

impl Clock {
    pub(crate) fn start() -> Self {
        let now = RwSignal::new(browser::now());
        task::while_shown(async move {
            loop {
                task::until_visible().await;
                now.set(browser::now());
                task::sleep(Duration::from_secs(1)).await;
            }
        });
        Self { now }
    }

    /// This browser's time in milliseconds; what reads it is drawn again each second.
    pub(crate) fn now(&self) -> f64 {
        self.now.get()
    }
}
