//! The control link to another node: who is there, calls, and probes.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::{Buf, BufMut, BytesMut};
use flotilla_api::{ApiError, rest::LinkPath};
use serde::{Deserialize, Serialize};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    bulk::Bulk,
    dial::Manner,
    figures::{Figures, Read},
    pulse::{Heard, LOOK_EVERY, Silence},
    rpc::{self, Answers, Rpc},
};
use crate::{
    mesh::{
        Error,
        link::{Link, LinkState, MeshChannel, Path},
    },
    tunnel::Channel,
};

/// Versions of what is said on a link: calls, their methods' bodies, streams.
pub(super) const PROTOCOL: (u32, u32) = (1, 1);

/// Ids of the two channels of a control link.
const CALLS: u16 = 0;
const PROBES: u16 = 1;

/// From the answer to a connection: checks between all addresses, a handshake, over a slow line.
pub(super) const CONNECTING: Duration = Duration::from_secs(4);

/// From the connection to the other node's first word.
const HELLO: Duration = Duration::from_secs(3);

/// A word of farewell is brought, or the link is gone anyway.
const GOODBYE: Duration = Duration::from_millis(300);

/// Two looks, each with a probe: twice a second.
const LOOKS_PER_PROBE: u32 = 2;
/// Looks after which the path is read again: five seconds.
const LOOKS_PER_PATH: u32 = 20;

/// First byte of a message on the channel of probes; a number follows.
const PROBE: u8 = 1;
const ECHO: u8 = 2;

/// The first words on a link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hello {
    /// Versions of the protocol that this node speaks.
    pub(super) oldest: u32,
    pub(super) newest: u32,
    /// Of the program.
    pub(super) version: String,
    /// Names this run of it.
    pub(super) boot: String,
}

impl Hello {
    /// # Errors
    /// The sentence for the person who has to update one of the two.
    fn agrees_with(&self, other: &Self) -> Result<(), String> {
        if self.newest < other.oldest || other.newest < self.oldest {
            let older = if self.newest < other.oldest { "this" } else { "that" };
            return Err(format!(
                "this node ({}) and that one ({}) have no version of the mesh in common; update {older} one",
                self.version, other.version
            ));
        }
        Ok(())
    }
}

/// Why a link did not come up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NotUp {
    /// Packets did not come through.
    Silent,
    /// The two programs don't understand each other.
    Version(String),
    /// It ended while it was being set up.
    Ended,
}

/// The channels of a control link; opened before the link is.
#[derive(Debug)]
pub(super) struct Lanes {
    calls: MeshChannel,
    probes: MeshChannel,
}

impl Lanes {
    pub(super) async fn open(link: &Link) -> Result<Self, Error> {
        Ok(Self { calls: link.open_agreed(CALLS, true).await?, probes: link.open_agreed(PROBES, false).await? })
    }
}

/// A control link that is up.
pub(super) struct Control {
    link: Link,
    rpc: Rpc,
    pub(super) other: Hello,
    manner: Manner,
    heard: Arc<Heard>,
    figures: Mutex<Figures>,
    path: Mutex<Option<Path>>,
    ending: CancellationToken,
    farewell: Mutex<Option<ApiError>>,
    closed: CancellationToken,
    why: Mutex<Option<String>>,
}

/// Whose words come first on a link.
///
/// The node that answered an offer is the client of the association, which is up on the other node first. What reaches an agreed
/// channel of the client together with the last word of that handshake is lost, and breaks the channel. So the other node says
/// nothing before it has heard the client, whose channels are open by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Offered,
    Answered,
}

/// Waits until the link is up and both sides have said who they are.
pub(super) async fn establish(
    link: Link,
    lanes: Lanes,
    own: &Hello,
    manner: Manner,
    part: Part,
) -> Result<(Control, Lanes), NotUp> {
    link.connected(CONNECTING).await.map_err(|_| NotUp::Silent)?;
    let speak = async || {
        let words = serde_json::to_vec(own).unwrap_or_default();
        lanes.calls.send(BytesMut::from(&words[..])).await.map_err(|_| NotUp::Ended)
    };
    let greeting = async {
        lanes.calls.opened().await.map_err(|_| NotUp::Ended)?;
        if part == Part::Answered {
            speak().await?;
        }
        let words = lanes.calls.recv().await.ok_or(NotUp::Ended)?;
        if part == Part::Offered {
            speak().await?;
        }
        serde_json::from_slice::<Hello>(&words)
            .map_err(|_| NotUp::Version("its first words are not understood; update one of the two nodes".to_owned()))
    };
    let other = timeout(HELLO, greeting).await.unwrap_or(Err(NotUp::Ended))?;
    if let Err(sentence) = own.agrees_with(&other) {
        // The other side has to read our words before the link is gone.
        let _ = timeout(GOODBYE, lanes.calls.flushed()).await;
        link.close().await;
        return Err(NotUp::Version(sentence));
    }
    let (heard, closed) = (Arc::new(Heard::default()), CancellationToken::new());
    let path = Mutex::new(link.path().await);
    let control = Control {
        link,
        rpc: Rpc::new(Arc::clone(&heard), closed.clone()),
        other,
        manner,
        heard,
        figures: Mutex::default(),
        path,
        ending: CancellationToken::new(),
        farewell: Mutex::default(),
        closed,
        why: Mutex::default(),
    };
    Ok((control, lanes))
}

impl Control {
    pub(super) fn rpc(&self) -> &Rpc {
        &self.rpc
    }

    /// Cancelled once the link is of no use any more.
    pub(super) fn closed(&self) -> &CancellationToken {
        &self.closed
    }

    /// Why it is closed, as a sentence.
    pub(super) fn why(&self) -> Option<String> {
        lock(&self.why).clone()
    }

    pub(super) fn path(&self) -> Option<Path> {
        lock(&self.path).clone()
    }

    pub(super) fn is_relayed(&self) -> bool {
        lock(&self.path).as_ref().is_some_and(|path| path.kind == LinkPath::Relayed)
    }

    /// In which manner this node offers a further link to the other.
    pub(super) fn manner(&self) -> Manner {
        self.manner
    }

    pub(super) fn figures(&self) -> Read {
        lock(&self.figures).read(Instant::now())
    }

    /// Ends the link; the other side is told why, if there is something to tell.
    pub(super) fn end(&self, why: Option<ApiError>) {
        *lock(&self.farewell) = why;
        self.ending.cancel();
    }

    /// Carries the link until it ends. The bytes of `bulk` are counted with its own.
    pub(super) fn start(
        self: &Arc<Self>,
        lanes: Lanes,
        answers: Arc<dyn Answers>,
        bulk: Arc<Bulk>,
        tasks: &TaskTracker,
    ) {
        let control = Arc::clone(self);
        tasks.spawn(async move {
            let mut state = control.link.state();
            let lost = async {
                state.wait_for(|state| matches!(state, LinkState::Failed | LinkState::Closed)).await.map(drop)
            };
            let why = tokio::select! {
                () = control.rpc.run(&lanes.calls, answers) => match control.rpc.farewell() {
                    Some(error) => error.message,
                    None => "the other node ended the link".to_owned(),
                },
                why = control.watch(&lanes.probes, &bulk) => why.to_owned(),
                _ = lost => "the connection was lost".to_owned(),
                () = control.ending.cancelled() => {
                    let farewell = lock(&control.farewell).take();
                    if let Some(error) = farewell {
                        let told = async {
                            lanes.calls.send(rpc::goodbye(&error)).await?;
                            lanes.calls.flushed().await;
                            Ok::<_, crate::tunnel::ChannelClosed>(())
                        };
                        let _ = timeout(GOODBYE, told).await;
                    }
                    "this node ended the link".to_owned()
                }
            };
            *lock(&control.why) = Some(why);
            control.rpc.close();
            control.link.close().await;
        });
    }

    /// Sends probes and answers them; returns when the other side has been silent for too long, and says so.
    async fn watch(&self, probes: &MeshChannel, bulk: &Bulk) -> &'static str {
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut silence, mut look) = (Silence::default(), 0_u32);
        self.heard.now();
        loop {
            tokio::select! {
                message = probes.recv() => {
                    let Some(mut message) = message else { return "the connection was lost" };
                    if silence.ends_gap() && bulk.retire_for_gap() {
                        return "nothing was heard of it for a second, and what was sent meanwhile is lost";
                    }
                    self.heard.now();
                    let (Ok(kind), Ok(number)) = (message.try_get_u8(), message.try_get_u32()) else { continue };
                    match kind {
                        PROBE => say(probes, ECHO, number).await,
                        ECHO => lock(&self.figures).answered(number, Instant::now()),
                        _ => {}
                    }
                }
                _ = looks.tick() => {
                    if silence.look(&self.heard) {
                        return "nothing was heard of it any more";
                    }
                    if look.is_multiple_of(LOOKS_PER_PROBE) {
                        let (now, own, bulk) = (Instant::now(), self.link.traffic(), bulk.traffic());
                        let number = {
                            let mut figures = lock(&self.figures);
                            figures.traffic(now, own.0 + bulk.0, own.1 + bulk.1);
                            figures.probe(now)
                        };
                        say(probes, PROBE, number).await;
                    }
                    look = look.wrapping_add(1);
                    if look.is_multiple_of(LOOKS_PER_PATH) {
                        let path = self.link.path().await;
                        *lock(&self.path) = path;
                    }
                }
            }
        }
    }
}

async fn say(probes: &MeshChannel, kind: u8, number: u32) {
    let mut message = BytesMut::with_capacity(5);
    message.put_u8(kind);
    message.put_u32(number);
    // A channel that is closed ends the loop that reads it.
    let _ = probes.send(message).await;
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("other", &self.other).field("path", &*lock(&self.path)).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(oldest: u32, newest: u32) -> Hello {
        Hello { oldest, newest, version: format!("0.{newest}"), boot: String::new() }
    }

    #[test]
    fn two_nodes_need_one_version_in_common() {
        hello(1, 1).agrees_with(&hello(1, 3)).unwrap();
        hello(2, 4).agrees_with(&hello(4, 5)).unwrap();
        let (old, new) = (hello(1, 2), hello(3, 3));
        assert!(old.agrees_with(&new).unwrap_err().contains("(0.2) and that one (0.3)"));
        assert!(old.agrees_with(&new).unwrap_err().contains("update this one"));
        assert!(new.agrees_with(&old).unwrap_err().contains("update that one"));
    }
}
