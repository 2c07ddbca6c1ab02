//! The TURN server in this node.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::Arc,
};

use flotilla_relay::{Relay, RelayConfig};
use sha2::{Digest, Sha256};

use crate::{
    config::Config,
    identity::{Identity, hexadecimal},
};

/// `None` where there shall be none, or there can be none: browsers that reach this node directly need no relay.
pub(super) async fn start(config: &Config, realm: String, identity: &Identity) -> Option<Arc<Relay>> {
    if !config.relay.enabled {
        return None;
    }
    let listen = config.listen.ip();
    let public = match config.relay.public_address {
        Some(address) => address,
        None if listen.is_loopback() => {
            tracing::debug!("no relay: only this machine reaches the listener");
            return None;
        }
        None if listen.is_unspecified() => outward(listen)?,
        None => listen,
    };
    let relay = RelayConfig::new(SocketAddr::new(listen, config.relay.port), public, realm, secret(identity)?);
    match Relay::start(relay).await {
        Ok(relay) => Some(Arc::new(relay)),
        Err(error) => {
            tracing::warn!("no relay in this node: {error}; set relay.port to another, or relay.enabled to false");
            None
        }
    }
}

/// The same on every node that has the cluster's key, and says nothing about it. One that only stores has none.
pub(super) fn secret(identity: &Identity) -> Option<String> {
    let key = identity.cluster.private()?;
    let digest = Sha256::new().chain_update("flotilla relay 1\0").chain_update(key.as_bytes()).finalize();
    Some(hexadecimal(&digest))
}

/// The address that this machine's packets to the world carry. Asking the kernel sends nothing.
fn outward(listen: IpAddr) -> Option<IpAddr> {
    // Of the networks for documentation (RFC 5737, RFC 3849): nobody is there, only the route counts.
    let somewhere: IpAddr = match listen {
        IpAddr::V4(_) => Ipv4Addr::new(192, 0, 2, 1).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
    };
    let asked = UdpSocket::bind(SocketAddr::new(listen, 0)).and_then(|socket| {
        socket.connect((somewhere, 9))?;
        socket.local_addr()
    });
    match asked {
        Ok(address) => Some(address.ip()),
        Err(error) => {
            tracing::warn!(%error, "no relay in this node: no route leads out; set relay.public_address");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::DataDir;

    fn identity() -> Identity {
        let directory = tempfile::tempdir().unwrap();
        Identity::create(&DataDir::open(directory.path()).unwrap(), || Ok("pem".to_owned())).unwrap()
    }

    fn config(listen: &str, port: u16) -> Config {
        let mut config = Config { listen: listen.parse().unwrap(), ..Config::default() };
        config.relay.port = port;
        config
    }

    #[tokio::test]
    async fn a_relay_that_nobody_could_reach_is_not_started() {
        assert!(start(&config("127.0.0.1:0", 0), "home".to_owned(), &identity()).await.is_none());
    }

    #[tokio::test]
    async fn a_relay_whose_port_is_taken_does_not_keep_the_node_from_starting() {
        let identity = identity();
        let with_address = |port| {
            let mut config = config("127.0.0.1:0", port);
            config.relay.public_address = Some("192.0.2.7".parse().unwrap());
            config
        };
        let first = start(&with_address(0), "home".to_owned(), &identity).await.expect("no relay");
        let taken = with_address(first.address().port());
        assert!(start(&taken, "home".to_owned(), &identity).await.is_none());
        assert!(
            start(
                &Config { relay: crate::config::Relay { enabled: false, ..taken.relay }, ..taken },
                "home".to_owned(),
                &identity
            )
            .await
            .is_none()
        );
    }

    #[test]
    fn the_secret_is_the_clusters_own() {
        let (one, other) = (identity(), identity());
        assert_eq!(secret(&one), secret(&one));
        assert_ne!(secret(&one), secret(&other));
        let key = one.cluster.private().unwrap();
        assert_ne!(secret(&one), Some(hexadecimal(key.as_bytes())));
        let stores = Identity { cluster: crate::identity::ClusterKey::Public(key.verifying_key()), ..identity() };
        assert_eq!(secret(&stores), None, "a machine that only stores makes no credentials");
    }
}
