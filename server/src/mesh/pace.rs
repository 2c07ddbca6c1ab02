//! How much may be under way at once.
//!
//! A browser reads its socket rarely and gives it about 110 KiB for packets of this size (212,992 bytes with the kernel's own);
//! a burst that is larger is lost in part, and each loss halves what is sent. So towards a near browser little is under way,
//! and it still moves faster: measured on loopback, 20 MB/s with 256 KiB and 40-60 MB/s with 48 KiB. Over a long path as much
//! has to be under way as fits into it, and the path itself keeps bursts apart.
//!
//! Between nodes it is the other way round. On a short path what is under way waits in front of this machine's own network card: over loopback 370 to
//! 390 MB/s with 2 MiB, 300 to 340 with 1 MiB, 230 to 280 with half of it. On a long path it waits where the line is slow, whose queue is short.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use rtc::statistics::StatsSelector;
use tokio::{sync::Notify, time::timeout};
use webrtc::{data_channel::DataChannel, peer_connection::PeerConnection};

use crate::tunnel::ChannelClosed;

/// Under way to a browser that is near. A frame of 64 KiB comes on top. Bytes.
const NEAR: usize = 48 * 1024;

/// Under way to any browser: 16 MB/s over an eighth of a second. Bytes.
const FAR: usize = 2 * 1024 * 1024;

/// Under way to a node that is near: 17 ms of a line of 1 Gbit/s. Bytes.
const NODE_NEAR: usize = 2 * 1024 * 1024;

/// Under way to any other node: 13 MB/s over 40 ms. A link that begins sends twice as much in each round trip until something is lost, so that with
/// more it overruns a line of 100 Mbit/s. Bytes.
const NODE_FAR: usize = 512 * 1024;

/// There and back within one network. Seconds.
const NODE_IS_NEAR: f64 = 0.002;

/// What a path from a home may carry: 128 Mbit/s. More would let a near browser whose answers are late, because its machine is
/// busy, pass for a far one. Bytes per second.
const RATE: f64 = 16e6;

/// How often the round trip is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// There is an event when enough has been acknowledged. It comes by the channel's reader, who may be busy.
const CHECK_EVERY: Duration = Duration::from_millis(5);

/// Who is at the other end.
#[derive(Clone, Copy, Debug)]
pub(super) enum Towards {
    Browser,
    Node,
}

/// For all channels of one connection.
pub(super) struct Pace {
    connection: Arc<dyn PeerConnection>,
    towards: Towards,
    window: AtomicUsize,
    path: Mutex<Path>,
    room: Notify,
}

/// The round trip without what waits in queues is the shortest that was seen.
#[derive(Default)]
struct Path {
    looked_at: Option<Instant>,
    round_trip: Option<f64>,
}

impl Pace {
    pub(super) fn new(connection: Arc<dyn PeerConnection>, towards: Towards) -> Arc<Self> {
        let window = AtomicUsize::new(towards.window(None));
        Arc::new(Self { connection, towards, window, path: Mutex::default(), room: Notify::new() })
    }

    /// The path may be another one: its round trip is measured anew.
    pub(super) fn forget(&self) {
        *self.path() = Path::default();
    }

    /// Waits until another message may be sent on this channel.
    pub(super) async fn wait(&self, channel: &dyn DataChannel) -> Result<(), ChannelClosed> {
        self.look().await;
        loop {
            let window = self.window.load(Ordering::Relaxed);
            if window >= self.towards.limit() {
                return Ok(());
            }
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            if channel.outstanding_bytes().await.map_err(|_| ChannelClosed)? < window {
                return Ok(());
            }
            // Bounded by `FAR`.
            let threshold = u32::try_from(window).unwrap_or(u32::MAX);
            if channel.buffered_amount_low_threshold().await.map_err(|_| ChannelClosed)? != threshold {
                channel.set_buffered_amount_low_threshold(threshold).await.map_err(|_| ChannelClosed)?;
            }
            let _ = timeout(CHECK_EVERY, room).await;
        }
    }

    /// Enough was acknowledged on some channel.
    pub(super) fn acknowledged(&self) {
        self.room.notify_waiters();
    }

    async fn look(&self) {
        {
            let mut path = self.path();
            if path.looked_at.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
                return;
            }
            path.looked_at = Some(Instant::now());
        }
        let report = self.connection.get_stats(Instant::now(), StatsSelector::None).await;
        let measured = report.candidate_pairs().filter(|pair| pair.nominated).map(|pair| pair.current_round_trip_time);
        let shortest = measured.filter(|seconds| *seconds > 0.0).reduce(f64::min);
        let mut path = self.path();
        path.round_trip = path.round_trip.into_iter().chain(shortest).reduce(f64::min);
        self.window.store(self.towards.window(path.round_trip), Ordering::Relaxed);
    }

    fn path(&self) -> std::sync::MutexGuard<'_, Path> {
        self.path.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Towards {
    /// The most that may be under way, to which the library keeps by itself. Bytes.
    pub(super) fn limit(self) -> usize {
        match self {
            Self::Browser => FAR,
            Self::Node => NODE_NEAR,
        }
    }

    /// What may be under way on a path with this round trip, in seconds.
    fn window(self, round_trip: Option<f64>) -> usize {
        match self {
            Self::Browser => {
                let fits = round_trip.unwrap_or_default() * RATE;
                // Between the two bounds, which are exact.
                (fits as usize).clamp(NEAR, FAR)
            }
            Self::Node if round_trip.is_some_and(|seconds| seconds < NODE_IS_NEAR) => NODE_NEAR,
            Self::Node => NODE_FAR,
        }
    }
}

impl fmt::Debug for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pace").field("window", &self.window).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_much_is_under_way_to_a_browser_as_fits_into_the_path() {
        let window = |round_trip| Towards::Browser.window(round_trip);
        assert_eq!(window(None), NEAR);
        assert_eq!(window(Some(0.0003)), NEAR);
        assert_eq!(window(Some(0.02)), 320_000);
        assert_eq!(window(Some(3.0)), FAR);
    }

    #[test]
    fn more_is_under_way_to_a_node_that_is_known_to_be_near() {
        let window = |round_trip| Towards::Node.window(round_trip);
        assert_eq!(window(None), NODE_FAR);
        assert_eq!(window(Some(0.0003)), NODE_NEAR);
        assert_eq!(window(Some(0.04)), NODE_FAR);
    }
}
