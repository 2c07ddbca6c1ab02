//! What the machine's login manager tells before it puts the machine to sleep, and when that is over.
//!
//! A *delay lock* of logind (<https://systemd.io/INHIBITOR_LOCKS/>; elogind has the same) makes it wait, by default for at most five
//! seconds, until what may not run has been frozen. Without such a manager the machine falls asleep unannounced: what runs then goes
//! on for a moment when it wakes.

use std::time::Duration;

use futures::StreamExt as _;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use zbus::{Connection, OwnedFd, fdo::DBusProxy, names::BusName};

/// Pauses before the manager is looked for again. A bus may start after the node; most machines that have none never get one.
const AGAIN_FIRST: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(60);

/// The manager answers within milliseconds.
const CALL_LIMIT: Duration = Duration::from_secs(5);

/// What waits for the guard, which takes it at once.
pub(super) const TELLS_MAX: usize = 4;

const MANAGER: &str = "org.freedesktop.login1";

/// The part of `org.freedesktop.login1(5)` that is needed here.
#[zbus::proxy(
    interface = "org.freedesktop.login1.Manager",
    default_service = "org.freedesktop.login1",
    default_path = "/org/freedesktop/login1"
)]
trait Manager {
    /// The lock is released when its descriptor is closed.
    fn inhibit(&self, what: &str, who: &str, why: &str, mode: &str) -> zbus::Result<OwnedFd>;

    #[zbus(signal)]
    fn prepare_for_sleep(&self, start: bool) -> zbus::Result<()>;
}

#[derive(Debug)]
pub(super) enum Tell {
    /// The machine sleeps as soon as the lock is dropped; in a moment, where none could be had.
    Comes(Option<OwnedFd>),
    /// It is awake, or has not slept after all, or nobody can tell any more.
    Over,
}

/// Never ends before the guard does.
pub(super) async fn listen(tells: mpsc::Sender<Tell>) {
    let mut pause = AGAIN_FIRST;
    loop {
        let since = Instant::now();
        let Err(error) = attend(&tells).await else { return };
        tracing::debug!(%error, "no login manager tells of sleep");
        if tells.send(Tell::Over).await.is_err() {
            return;
        }
        if since.elapsed() > AGAIN_MAX {
            tracing::info!(%error, "lost the login manager, which tells of sleep; looking for it again");
            pause = AGAIN_FIRST;
        }
        sleep(pause).await;
        pause = (pause * 2).min(AGAIN_MAX);
    }
}

/// Fine when the guard wants to hear no more.
async fn attend(tells: &mpsc::Sender<Tell>) -> zbus::Result<()> {
    let connection = timeout(CALL_LIMIT, Connection::system()).await.map_err(|_| late())??;
    let bus = DBusProxy::new(&connection).await?;
    let mut owners = bus.receive_name_owner_changed_with_args(&[(0, MANAGER)]).await?;
    let manager = ManagerProxy::new(&connection).await?;
    // Before the lock is taken, so that no sleep goes unheard between the two.
    let mut nights = manager.receive_prepare_for_sleep().await?;
    // A bus may be able to start it; it is not started for this.
    let name = BusName::try_from(MANAGER)?;
    if !timeout(CALL_LIMIT, bus.name_has_owner(name)).await.map_err(|_| late())?? {
        return Err(zbus::Error::Failure("there is no login manager on this bus".to_owned()));
    }
    let mut lock = Some(lock(&manager).await?);
    tracing::info!("the login manager tells before this machine sleeps");
    loop {
        tokio::select! {
            night = nights.next() => {
                let night = night.ok_or_else(gone)?;
                let tell = if night.args()?.start { Tell::Comes(lock.take()) } else { Tell::Over };
                let over = matches!(tell, Tell::Over);
                if tells.send(tell).await.is_err() {
                    return Ok(());
                }
                if over && lock.is_none() {
                    lock = Some(self::lock(&manager).await?);
                }
            }
            // Another has taken its place, or none: the lock went with it.
            _ = owners.next() => return Err(gone()),
            () = tells.closed() => return Ok(()),
        }
    }
}

async fn lock(manager: &ManagerProxy<'_>) -> zbus::Result<OwnedFd> {
    let inhibit = manager.inhibit(
        "sleep",
        "Flotilla",
        "services whose data another machine may take over stand still first",
        "delay",
    );
    timeout(CALL_LIMIT, inhibit).await.map_err(|_| late())?
}

fn late() -> zbus::Error {
    zbus::Error::Failure(format!("it did not answer within {} s", CALL_LIMIT.as_secs()))
}

fn gone() -> zbus::Error {
    zbus::Error::Failure("it has gone".to_owned())
}
