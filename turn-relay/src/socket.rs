//! The relay's sockets: the one that clients speak to, and one for each allocation, which hold the rules.

use std::{
    any::Any,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use async_trait::async_trait;
use tokio::net::UdpSocket;
use turn::{Error as TurnError, relay::RelayAddressGenerator};
use webrtc_util::{Conn, Error as ConnError};

use crate::{acl::Acl, limits::Limits};

/// Fixed ports that are tried before an allocation is refused.
const PORT_ATTEMPTS: u16 = 64;

/// STUN header (RFC 8489, 5): type, length, magic cookie, transaction. Bytes.
const STUN_HEADER: usize = 20;
const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
const BINDING_REQUEST: u16 = 0x0001;
const MESSAGE_INTEGRITY: u16 = 0x0008;

/// The socket that clients speak to. What is no TURN is dropped here, and so are floods of requests without credentials.
pub(crate) struct Front {
    socket: UdpSocket,
    limits: Arc<Limits>,
}

impl Front {
    pub(crate) fn new(socket: UdpSocket, limits: Arc<Limits>) -> Self {
        Self { socket, limits }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Datagram {
    /// Channel data, indications, binding requests, and requests with credentials.
    Pass,
    /// Will be answered with a nonce.
    Challenge,
    Garbage,
}

fn classify(datagram: &[u8]) -> Datagram {
    match datagram {
        // Channel numbers (RFC 8656, 12).
        [0x40..=0x4f, _, _, _, ..] => Datagram::Pass,
        [0x00..=0x3f, ..] if datagram.len() >= STUN_HEADER && datagram[4..8] == MAGIC_COOKIE => {
            let kind = u16::from_be_bytes([datagram[0], datagram[1]]);
            let is_request = kind & 0x0110 == 0;
            if !is_request || kind == BINDING_REQUEST || has_attribute(&datagram[STUN_HEADER..], MESSAGE_INTEGRITY) {
                Datagram::Pass
            } else {
                Datagram::Challenge
            }
        }
        _ => Datagram::Garbage,
    }
}

fn has_attribute(mut attributes: &[u8], wanted: u16) -> bool {
    while let [a, b, c, d, rest @ ..] = attributes {
        if u16::from_be_bytes([*a, *b]) == wanted {
            return true;
        }
        let padded = usize::from(u16::from_be_bytes([*c, *d])).next_multiple_of(4);
        let Some(next) = rest.get(padded..) else { return false };
        attributes = next;
    }
    false
}

#[async_trait]
impl Conn for Front {
    async fn connect(&self, address: SocketAddr) -> Result<(), ConnError> {
        Ok(self.socket.connect(address).await?)
    }

    async fn recv(&self, buffer: &mut [u8]) -> Result<usize, ConnError> {
        Ok(self.recv_from(buffer).await?.0)
    }

    async fn recv_from(&self, buffer: &mut [u8]) -> Result<(usize, SocketAddr), ConnError> {
        loop {
            let (length, source) = match self.socket.recv_from(buffer).await {
                Ok(received) => received,
                // An earlier datagram of ours was refused by its receiver; that is no reason to stop listening.
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => continue,
                Err(error) => return Err(error.into()),
            };
            match classify(&buffer[..length]) {
                Datagram::Pass => return Ok((length, source)),
                Datagram::Challenge if self.limits.challenge(source.ip()) => return Ok((length, source)),
                Datagram::Challenge | Datagram::Garbage => {}
            }
        }
    }

    async fn send(&self, buffer: &[u8]) -> Result<usize, ConnError> {
        Ok(self.socket.send(buffer).await?)
    }

    async fn send_to(&self, buffer: &[u8], target: SocketAddr) -> Result<usize, ConnError> {
        Ok(self.socket.send_to(buffer, target).await?)
    }

    fn local_addr(&self) -> Result<SocketAddr, ConnError> {
        Ok(self.socket.local_addr()?)
    }

    fn remote_addr(&self) -> Option<SocketAddr> {
        None
    }

    async fn close(&self) -> Result<(), ConnError> {
        Ok(())
    }

    fn as_any(&self) -> &(dyn Any + Send + Sync) {
        self
    }
}

/// Makes the socket of each allocation.
pub(crate) struct RelaySockets {
    bind: IpAddr,
    public_ip: IpAddr,
    ports: Option<RangeInclusive<u16>>,
    acl: Arc<Acl>,
    limits: Arc<Limits>,
}

impl RelaySockets {
    pub(crate) fn new(
        bind: IpAddr,
        public_ip: IpAddr,
        ports: Option<RangeInclusive<u16>>,
        acl: Arc<Acl>,
        limits: Arc<Limits>,
    ) -> Self {
        Self { bind, public_ip, ports, acl, limits }
    }

    async fn bind(&self, requested_port: u16) -> Result<UdpSocket, std::io::Error> {
        let Some(ports) = &self.ports else { return UdpSocket::bind((self.bind, requested_port)).await };
        let mut refused = std::io::ErrorKind::AddrInUse.into();
        for _ in 0..PORT_ATTEMPTS {
            match UdpSocket::bind((self.bind, rand::random_range(ports.clone()))).await {
                Ok(socket) => return Ok(socket),
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }
}

#[async_trait]
impl RelayAddressGenerator for RelaySockets {
    fn validate(&self) -> Result<(), TurnError> {
        Ok(())
    }

    async fn allocate_conn(
        &self,
        use_ipv4: bool,
        requested_port: u16,
    ) -> Result<(Arc<dyn Conn + Send + Sync>, SocketAddr), TurnError> {
        if use_ipv4 != self.public_ip.is_ipv4() {
            return Err(TurnError::Other("this relay has no address of that family".to_owned()));
        }
        let user = self.limits.allocate().ok_or_else(|| TurnError::Other("there is no allocation left".to_owned()))?;
        let socket = match self.bind(requested_port).await {
            Ok(socket) => socket,
            Err(error) => {
                self.limits.release(&user);
                return Err(TurnError::Other(error.to_string()));
            }
        };
        let allocation = Allocation::new(socket, user, Arc::clone(&self.acl), Arc::clone(&self.limits));
        let relayed = SocketAddr::new(self.public_ip, allocation.port);
        Ok((Arc::new(allocation), relayed))
    }
}

/// The socket that peers see.
struct Allocation {
    socket: UdpSocket,
    user: String,
    port: u16,
    acl: Arc<Acl>,
    limits: Arc<Limits>,
}

impl Allocation {
    fn new(socket: UdpSocket, user: String, acl: Arc<Acl>, limits: Arc<Limits>) -> Self {
        let port = socket.local_addr().map_or(0, |address| address.port());
        acl.add_relayed(port);
        Self { socket, user, port, acl, limits }
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        self.acl.remove_relayed(self.port);
        self.limits.release(&self.user);
    }
}

#[async_trait]
impl Conn for Allocation {
    async fn connect(&self, _address: SocketAddr) -> Result<(), ConnError> {
        Err(ConnError::Other("a relayed address has many peers".to_owned()))
    }

    async fn recv(&self, buffer: &mut [u8]) -> Result<usize, ConnError> {
        Ok(self.recv_from(buffer).await?.0)
    }

    async fn recv_from(&self, buffer: &mut [u8]) -> Result<(usize, SocketAddr), ConnError> {
        // The server passes on what comes from peers that the client permitted.
        let (length, peer) = self.socket.recv_from(buffer).await?;
        self.limits.counters.bytes_from_peers.fetch_add(length as u64, Relaxed);
        Ok((length, peer))
    }

    async fn send(&self, _buffer: &[u8]) -> Result<usize, ConnError> {
        Err(ConnError::Other("a relayed address has many peers".to_owned()))
    }

    async fn send_to(&self, buffer: &[u8], peer: SocketAddr) -> Result<usize, ConnError> {
        if !self.acl.may_reach(peer) {
            self.limits.counters.peers_denied.fetch_add(1, Relaxed);
            return Err(ConnError::Other(format!("{} is no address that a relay may reach", peer.ip())));
        }
        let sent = self.socket.send_to(buffer, peer).await?;
        self.limits.counters.bytes_to_peers.fetch_add(sent as u64, Relaxed);
        Ok(sent)
    }

    fn local_addr(&self) -> Result<SocketAddr, ConnError> {
        Ok(self.socket.local_addr()?)
    }

    fn remote_addr(&self) -> Option<SocketAddr> {
        None
    }

    async fn close(&self) -> Result<(), ConnError> {
        Ok(())
    }

    fn as_any(&self) -> &(dyn Any + Send + Sync) {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stun(kind: u16, attributes: &[u8]) -> Vec<u8> {
        let length = u16::try_from(attributes.len()).unwrap().to_be_bytes();
        [&kind.to_be_bytes()[..], &length, &MAGIC_COOKIE, &[0; 12], attributes].concat()
    }

    #[test]
    fn only_requests_without_credentials_are_counted_as_such() {
        const ALLOCATE: u16 = 0x0003;
        assert_eq!(classify(&stun(BINDING_REQUEST, &[])), Datagram::Pass);
        assert_eq!(classify(&stun(ALLOCATE, &[])), Datagram::Challenge);
        assert_eq!(classify(&stun(ALLOCATE, &[0, 6, 0, 3, b'a', b'd', b'a', 0])), Datagram::Challenge);
        assert_eq!(classify(&stun(ALLOCATE, &[0, 6, 0, 3, b'a', b'd', b'a', 0, 0, 8, 0, 20])), Datagram::Pass);
        assert_eq!(classify(&stun(0x0016, &[])), Datagram::Pass, "a send indication");
        assert_eq!(classify(&[0x40, 1, 0, 2, 9, 9]), Datagram::Pass);
        for garbage in [&b""[..], b"hello", &[0xff; 40], &[0; 40], &stun(ALLOCATE, &[])[..19]] {
            assert_eq!(classify(garbage), Datagram::Garbage);
        }
    }

    #[test]
    fn attributes_that_lie_about_their_length_end_the_search() {
        assert!(!has_attribute(&[0, 6, 0xff, 0xff, 0, 8, 0, 0], MESSAGE_INTEGRITY));
    }
}
