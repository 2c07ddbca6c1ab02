//! How often one address may fail to sign in.

use std::{
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU32,
    time::Duration,
};

use flotilla_api::{ApiError, ErrorCode};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

/// Tokens that may be refused at once to one address: a dashboard with a dozen requests and an expired token, several times.
const FAILURES_AT_ONCE: NonZeroU32 = NonZeroU32::new(100).unwrap();

/// Then one in each such period.
const FAILURE_EVERY: Duration = Duration::from_secs(1);

/// Invitations that one address may try at once: an office behind one router, on its first day.
const INVITATIONS_AT_ONCE: NonZeroU32 = NonZeroU32::new(30).unwrap();

const INVITATION_EVERY: Duration = Duration::from_secs(2);

/// Offers of links that one address may send at once: nine nodes behind one router, each by several ways, after a power cut.
const SIGNALS_AT_ONCE: NonZeroU32 = NonZeroU32::new(100).unwrap();

const SIGNAL_EVERY: Duration = Duration::from_millis(100);

/// Addresses that are remembered; those that did nothing for a while are forgotten then.
const ADDRESSES_MAX: usize = 10_000;

#[derive(Debug)]
pub struct Attempts {
    failures: DefaultKeyedRateLimiter<IpAddr>,
    invitations: DefaultKeyedRateLimiter<IpAddr>,
    signals: DefaultKeyedRateLimiter<IpAddr>,
}

impl Default for Attempts {
    fn default() -> Self {
        let limiter = |every: Duration, at_once: NonZeroU32| {
            let quota = Quota::with_period(every).unwrap_or(Quota::per_second(at_once)).allow_burst(at_once);
            RateLimiter::keyed(quota)
        };
        Self {
            failures: limiter(FAILURE_EVERY, FAILURES_AT_ONCE),
            invitations: limiter(INVITATION_EVERY, INVITATIONS_AT_ONCE),
            signals: limiter(SIGNAL_EVERY, SIGNALS_AT_ONCE),
        }
    }
}

impl Attempts {
    /// A token was refused.
    ///
    /// # Errors
    /// That happened too often.
    pub fn failed(&self, address: IpAddr) -> Result<(), ApiError> {
        count(&self.failures, address)
    }

    /// An invitation is tried.
    pub(super) fn redeeming(&self, address: IpAddr) -> Result<(), ApiError> {
        count(&self.invitations, address)
    }

    /// Another node, or who says so, offers a link.
    pub(super) fn signalling(&self, address: IpAddr) -> Result<(), ApiError> {
        count(&self.signals, address)
    }
}

fn count(limiter: &DefaultKeyedRateLimiter<IpAddr>, address: IpAddr) -> Result<(), ApiError> {
    if limiter.len() >= ADDRESSES_MAX {
        limiter.retain_recent();
    }
    limiter.check_key(&one_customer(address)).map_err(|_| {
        ApiError::new(ErrorCode::RateLimited, "too many attempts from this address; wait a minute and try again")
    })
}

/// With IPv6 one customer has a whole /64 to choose addresses from.
fn one_customer(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_fails_too_often_has_to_wait_and_others_need_not() {
        let attempts = Attempts::default();
        let address: IpAddr = "2001:db8::1".parse().unwrap();
        let allowed = (0..1000).take_while(|_| attempts.failed(address).is_ok()).count();
        assert!((100..110).contains(&allowed), "{allowed}");
        assert!(attempts.failed("2001:db8::2".parse().unwrap()).is_err(), "the same customer");
        assert!(attempts.failed("2001:db8:0:1::1".parse().unwrap()).is_ok());
    }
}
