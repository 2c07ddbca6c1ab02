//! Wakes one loop, however often it is rung.

use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
};

use futures::task::AtomicWaker;

/// Rings while nobody listens count as one: the loop asks for the newest state anyway. A channel would queue them.
#[derive(Clone, Debug)]
pub(crate) struct Bell(Arc<Rope>);

/// The loop's side of a [`Bell`].
#[derive(Debug)]
pub(crate) struct Sleeper(Arc<Rope>);

#[derive(Debug, Default)]
struct Rope {
    pulled: AtomicBool,
    waker: AtomicWaker,
}

pub(crate) fn bell() -> (Bell, Sleeper) {
    let rope = Arc::new(Rope::default());
    (Bell(rope.clone()), Sleeper(rope))
}

impl Bell {
    pub(crate) fn ring(&self) {
        self.0.pulled.store(true, Ordering::SeqCst);
        self.0.waker.wake();
    }
}

impl Sleeper {
    /// Until the bell rings; at once if it rang since this last returned.
    pub(crate) async fn rest(&mut self) {
        poll_fn(|context| {
            self.0.waker.register(context.waker());
            if self.0.pulled.swap(false, Ordering::SeqCst) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, executor::block_on, future::join};

    use super::*;

    #[test]
    fn many_rings_wake_once() {
        let (bell, mut sleeper) = bell();
        assert!(sleeper.rest().now_or_never().is_none());
        for _ in 0..1000 {
            bell.ring();
        }
        assert!(sleeper.rest().now_or_never().is_some());
        assert!(sleeper.rest().now_or_never().is_none());
    }

    #[test]
    fn a_ring_wakes_one_who_already_sleeps() {
        let (bell, mut sleeper) = bell();
        block_on(join(sleeper.rest(), async { bell.ring() }));
    }
}
