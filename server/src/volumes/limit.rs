//! How much of its line this machine takes for copies: one budget for all streams of objects, by the time of day. What holds when is
//! decided by `flotilla_core::limit`; what something waits for is sent at once.

use std::{
    fmt,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use flotilla_api::limit::{LimitNow, Rate, TimeOfDay};
use flotilla_core::limit;
use governor::{
    Quota, RateLimiter,
    clock::Clock,
    middleware::NoOpMiddleware,
    state::{InMemoryState, NotKeyed},
};
use tokio::{
    sync::{Mutex, watch},
    time::{Instant, sleep},
};

use super::Shared;
use crate::clock;

/// A window begins and ends so late at most. The clock may be set meanwhile, too.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What is let through at once, so that streams take turns and a slow line is not filled in bursts. Bytes.
pub(super) const PIECE: usize = 16 * 1024;

/// What the budget is counted in: a byte would be less than a nanosecond at high rates, which is what time is counted in. Bytes.
const CELL: u64 = 256;

/// After a pause so much of a second's bytes may go at once: a timer is no finer than some milliseconds.
const BURST: u64 = 10;

/// Keeps the limit at what the state and the time of day say.
pub(super) async fn keep(shared: Arc<Shared>) {
    let mut states = shared.parts.state.clone();
    loop {
        let state = states.borrow_and_update().clone();
        let set = state.machines.get(&shared.parts.node).map(|machine| &machine.copy_limit);
        shared.limiter.set(set.map_or_else(LimitNow::default, |set| limit::at(set, clock::time_of_day())));
        tokio::select! {
            () = shared.stop.cancelled() => return,
            changed = states.changed() => if changed.is_err() { return },
            () = sleep(LOOK_EVERY) => {}
        }
    }
}

/// The budget. Streams wait for their turn in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Limiter {
    now: watch::Sender<LimitNow>,
    bucket: Mutex<Option<Bucket>>,
    sent: AtomicU64,
    sent_at_once: AtomicU64,
}

/// Nothing is sent of what can wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Held {
    /// By the local time of the machine that sends nothing; absent where no other time is set.
    pub until: Option<TimeOfDay>,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.until {
            Some(until) => write!(f, "its limit holds copies back until {until}"),
            None => f.write_str("its limit holds copies back"),
        }
    }
}

/// Bytes that were sent of objects, since the node started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Of what could wait.
    pub in_advance: u64,
    /// Of what something waited for.
    pub at_once: u64,
}

struct Bucket {
    rate: Rate,
    limiter: RateLimiter<NotKeyed, InMemoryState, Ticks, NoOpMiddleware<Duration>>,
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bucket").field("rate", &self.rate).finish_non_exhaustive()
    }
}

/// Time as the runtime tells it.
#[derive(Clone, Copy, Debug)]
struct Ticks(Instant);

impl Clock for Ticks {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

impl Bucket {
    fn new(rate: Rate) -> Self {
        Self { rate, limiter: RateLimiter::direct_with_clock(Self::quota(rate), Ticks(Instant::now())) }
    }

    fn quota(rate: Rate) -> Quota {
        let each = Duration::from_nanos((CELL * 1_000_000_000 / rate.per_second().max(1)).max(1));
        let burst = cells((rate.per_second() / BURST).max(PIECE as u64));
        // That is never no time at all.
        Quota::with_period(each).unwrap_or(Quota::per_second(burst)).allow_burst(burst)
    }

    /// Takes so many bytes out of the budget, or says how long they have to wait for that.
    fn take(&self, bytes: u64) -> Result<(), Duration> {
        match self.limiter.check_n(cells(bytes)) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(wait)) => Err(wait.wait_time_from(self.limiter.clock().now()).max(Duration::from_millis(1))),
            // No piece is larger than a burst.
            Err(_) => Ok(()),
        }
    }
}

fn cells(bytes: u64) -> NonZeroU32 {
    let count = u32::try_from(bytes.div_ceil(CELL)).unwrap_or(u32::MAX);
    NonZeroU32::new(count).unwrap_or(NonZeroU32::MIN)
}

impl Limiter {
    /// Takes effect on streams that run.
    pub(super) fn set(&self, now: LimitNow) {
        self.now.send_if_modified(|known| std::mem::replace(known, now) != now);
    }

    pub(super) fn watch(&self) -> watch::Receiver<LimitNow> {
        self.now.subscribe()
    }

    pub(super) fn sent(&self) -> Sent {
        Sent { in_advance: self.sent.load(Relaxed), at_once: self.sent_at_once.load(Relaxed) }
    }

    /// Until so many bytes may go, at most a [`PIECE`]. `can_wait` may change meanwhile.
    ///
    /// # Errors
    /// Nothing may go for now.
    pub(super) async fn pass(&self, bytes: usize, can_wait: &mut watch::Receiver<bool>) -> Result<(), Held> {
        let bytes = bytes as u64;
        let mut now = self.now.subscribe();
        loop {
            if !*can_wait.borrow_and_update() {
                self.sent_at_once.fetch_add(bytes, Relaxed);
                return Ok(());
            }
            let LimitNow { rate, until } = *now.borrow_and_update();
            let taken = match rate {
                None => true,
                Some(Rate::ZERO) => return Err(Held { until }),
                Some(rate) => tokio::select! {
                    () = self.take(rate, bytes) => true,
                    _ = now.changed() => false,
                    Ok(()) = can_wait.changed() => false,
                },
            };
            if taken {
                self.sent.fetch_add(bytes, Relaxed);
                return Ok(());
            }
        }
    }

    /// Whoever waits holds the bucket: the next one comes after it.
    async fn take(&self, rate: Rate, bytes: u64) {
        let mut held = self.bucket.lock().await;
        loop {
            let bucket = match held.take() {
                Some(bucket) if bucket.rate == rate => bucket,
                _ => Bucket::new(rate),
            };
            let wait = bucket.take(bytes);
            *held = Some(bucket);
            match wait {
                Ok(()) => return,
                Err(wait) => sleep(wait).await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(text: &str) -> LimitNow {
        LimitNow { rate: Some(text.parse().unwrap()), until: None }
    }

    /// Streams that send for ever.
    fn streams(limiter: &Arc<Limiter>, count: usize) -> Vec<(watch::Sender<bool>, tokio::task::JoinHandle<Held>)> {
        let one = |_| {
            let (limiter, (sender, mut can_wait)) = (Arc::clone(limiter), watch::channel(true));
            let task = tokio::spawn(async move {
                for number in 1_u64.. {
                    if let Err(held) = limiter.pass(PIECE, &mut can_wait).await {
                        return held;
                    }
                    // No line is faster than a gigabyte a second.
                    if number.is_multiple_of(64) {
                        sleep(Duration::from_millis(1)).await;
                    }
                }
                unreachable!("it sends for ever")
            });
            (sender, task)
        };
        (0..count).map(one).collect()
    }

    async fn sent_within(limiter: &Limiter, seconds: u64) -> f64 {
        let before = limiter.sent().in_advance;
        sleep(Duration::from_secs(seconds)).await;
        (limiter.sent().in_advance - before) as f64 / seconds as f64
    }

    fn assert_about(found: f64, rate: f64) {
        assert!((found / rate - 1.0).abs() < 0.03, "{found} is not about {rate}");
    }

    #[tokio::test(start_paused = true)]
    async fn all_streams_together_keep_to_the_rate_and_to_each_new_one() {
        for count in [1, 7] {
            let limiter = Arc::new(Limiter::default());
            limiter.set(rate("2MB/s"));
            let running = streams(&limiter, count);
            sleep(Duration::from_secs(1)).await;
            assert_about(sent_within(&limiter, 30).await, 2e6);
            limiter.set(rate("50kB/s"));
            assert_about(sent_within(&limiter, 60).await, 50e3);
            limiter.set(rate("20MB/s"));
            sleep(Duration::from_secs(1)).await;
            assert_about(sent_within(&limiter, 30).await, 20e6);
            limiter.set(LimitNow::default());
            assert!(sent_within(&limiter, 1).await > 40e6, "there is no limit any more");
            running.iter().for_each(|(_, task)| task.abort());
        }
    }

    #[test]
    fn every_rate_that_can_be_set_is_counted_about_right() {
        for rate in [10_000, 33_333, 1_500_000, 12_500_000, 300_000_000, 4_000_000_000_u64] {
            let quota = Bucket::quota(Rate::try_from(rate).unwrap());
            let counted = CELL as f64 / quota.replenish_interval().as_secs_f64();
            assert!((counted / rate as f64 - 1.0).abs() < 0.02, "{rate}: {counted}");
            assert!(u64::from(quota.burst_size().get()) * CELL >= PIECE as u64);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_stream_gets_its_share() {
        let limiter = Arc::new(Limiter::default());
        limiter.set(rate("160kB/s"));
        let counts: Vec<Arc<AtomicU64>> = (0..5).map(|_| Arc::default()).collect();
        for count in &counts {
            let (limiter, count) = (Arc::clone(&limiter), Arc::clone(count));
            tokio::spawn(async move {
                let (_sender, mut can_wait) = watch::channel(true);
                while limiter.pass(PIECE, &mut can_wait).await.is_ok() {
                    count.fetch_add(1, Relaxed);
                }
            });
        }
        sleep(Duration::from_secs(60)).await;
        let counts: Vec<u64> = counts.iter().map(|count| count.load(Relaxed)).collect();
        assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 2, "{counts:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_goes_where_nothing_may_and_all_goes_again_after_that() {
        let limiter = Arc::new(Limiter::default());
        limiter.set(rate("100kB/s"));
        let running = streams(&limiter, 3);
        sleep(Duration::from_secs(5)).await;
        let held = Held { until: Some("23:00".parse().unwrap()) };
        limiter.set(LimitNow { rate: Some(Rate::ZERO), until: held.until });
        for (_, task) in running {
            assert_eq!(task.await.unwrap(), held);
        }
        assert_eq!(held.to_string(), "its limit holds copies back until 23:00");
        assert_eq!(sent_within(&limiter, 60).await, 0.0);
        limiter.set(rate("100kB/s"));
        let _running = streams(&limiter, 3);
        sleep(Duration::from_secs(1)).await;
        assert_about(sent_within(&limiter, 60).await, 100e3);
    }

    #[tokio::test(start_paused = true)]
    async fn what_something_waits_for_goes_at_once_from_then_on() {
        let limiter = Arc::new(Limiter::default());
        limiter.set(rate("10kB/s"));
        let running = streams(&limiter, 2);
        sleep(Duration::from_secs(10)).await;
        assert_eq!(limiter.sent().at_once, 0);
        running[0].0.send_replace(false);
        let before = Instant::now();
        while limiter.sent().at_once < 1_000_000 {
            sleep(Duration::from_millis(1)).await;
        }
        assert!(before.elapsed() < Duration::from_secs(1), "{:?}", before.elapsed());
        running[0].1.abort();
        assert_about(sent_within(&limiter, 600).await, 10e3);

        limiter.set(rate("0"));
        let (_sender, mut can_wait) = watch::channel(false);
        limiter.pass(PIECE, &mut can_wait).await.expect("not even nothing holds it back");
    }
}
