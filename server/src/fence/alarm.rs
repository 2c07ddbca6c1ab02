//! A timer on the clock that also runs while the machine sleeps: one that is past due rings as soon as the machine wakes, where
//! tokio's would first wait out what was left when it fell asleep.

use std::{io, os::fd::OwnedFd};

use flotilla_core::lease::Mono;
use rustix::{
    io::Errno,
    time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime},
};
use tokio::io::unix::AsyncFd;

#[derive(Debug)]
pub(super) struct Alarm(AsyncFd<OwnedFd>);

impl Alarm {
    pub(super) fn new() -> io::Result<Self> {
        let timer = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        #[expect(
            deprecated,
            reason = "what replaces it is unsafe; the descriptor is owned by this value alone, and never replaced"
        )]
        let timer = AsyncFd::new(timer)?;
        Ok(Self(timer))
    }

    /// Rings at that time, at once if it is past, or never.
    pub(super) fn set(&self, at: Option<Mono>) -> io::Result<()> {
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        // Zero would mean never.
        let value = at.map_or(zero, |Mono(millis)| Timespec {
            tv_sec: i64::try_from(millis / 1000).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(millis % 1000 * 1_000_000).unwrap_or(0).max(1),
        });
        let timer = Itimerspec { it_interval: zero, it_value: value };
        timerfd_settime(self.0.get_ref(), TimerfdTimerFlags::ABSTIME, &timer)?;
        Ok(())
    }

    pub(super) async fn rings(&self) -> io::Result<()> {
        loop {
            let mut ready = self.0.readable().await?;
            let mut times = [0; 8];
            match rustix::io::read(self.0.get_ref(), &mut times) {
                Ok(_) => return Ok(()),
                Err(Errno::AGAIN | Errno::INTR) => ready.clear_ready(),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock;

    #[tokio::test]
    async fn it_rings_in_time_and_can_be_put_off() {
        let alarm = Alarm::new().unwrap();
        let patience = Duration::from_secs(10);
        alarm.set(Some(Mono(0))).unwrap();
        tokio::time::timeout(patience, alarm.rings()).await.expect("what is past rings at once").unwrap();

        let at = clock::since_boot().plus(80);
        alarm.set(Some(at)).unwrap();
        tokio::time::timeout(patience, alarm.rings()).await.unwrap().unwrap();
        assert!(clock::since_boot() >= at);

        alarm.set(Some(clock::since_boot().plus(50))).unwrap();
        alarm.set(None).unwrap();
        let silence = tokio::time::timeout(Duration::from_millis(150), alarm.rings()).await;
        assert!(silence.is_err(), "it was put off");
    }
}
