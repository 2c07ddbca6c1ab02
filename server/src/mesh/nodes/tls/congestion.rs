//! How TCP takes a lost packet.
//!
//! What most machines come with takes each for a sign of a full line, and sends half as much: on a line of 100 Mbit/s and 40 ms on which one packet of a thousand
//! is lost, 13 Mbit/s go through. BBR goes by what arrives and how long it takes, and fills it (Cardwell et al., "BBR: Congestion-Based Congestion Control", ACM
//! Queue 14(5), 2016; draft-ietf-ccwg-bbr). Linux has it as a module, which it loads for whoever may administrate networks.

use std::{io, os::fd::AsFd, sync::LazyLock};

use rustix::net::sockopt::set_tcp_congestion;
use socket2::{Domain, Socket, Type};

/// As Linux calls it (tcp(7), `TCP_CONGESTION`).
const BBR: &str = "bbr";

/// Lets BBR decide what this machine sends over a connection.
///
/// # Errors
/// The kernel does not have it, or does not let this process use it.
pub(super) fn take_bbr(tcp: impl AsFd) -> io::Result<()> {
    Ok(set_tcp_congestion(tcp, BBR)?)
}

/// Whether [`take_bbr`] works here.
pub(super) fn has_bbr() -> bool {
    static HAS: LazyLock<bool> = LazyLock::new(|| {
        let tried = Socket::new(Domain::IPV4, Type::STREAM, None).and_then(take_bbr);
        if let Err(error) = &tried {
            tracing::info!(%error, "TCP has no BBR here: what is large goes to far machines over data channels");
        }
        tried.is_ok()
    });
    *HAS
}

#[cfg(test)]
mod tests {
    use rustix::net::sockopt::tcp_congestion;

    use super::*;

    #[test]
    fn bbr_is_of_one_connection_alone() {
        let socket = || Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let (one, other) = (socket(), socket());
        let before = tcp_congestion(&other).unwrap();
        assert_eq!(take_bbr(&one).is_ok(), has_bbr());
        if has_bbr() {
            assert_eq!(tcp_congestion(&one).unwrap(), BBR);
        }
        assert_eq!(tcp_congestion(&other).unwrap(), before);
    }
}
