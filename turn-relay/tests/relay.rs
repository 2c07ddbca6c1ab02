//! The relay, driven by the `turn` crate's client.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use flotilla_relay::{Credentials, Relay, RelayConfig};
use tokio::{net::UdpSocket, time::timeout};
use turn::client::{Client, ClientConfig};
use webrtc_util::Conn;

const LOOPBACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
const PATIENCE: Duration = Duration::from_secs(20);
const SECRET: &str = "a-secret-of-many-bytes";

fn config() -> RelayConfig {
    RelayConfig::new((LOOPBACK, 0).into(), LOOPBACK, "test", SECRET)
}

async fn client(relay: &Relay, credentials: Credentials) -> Client {
    let socket = UdpSocket::bind((LOOPBACK, 0)).await.unwrap();
    let client = Client::new(ClientConfig {
        stun_serv_addr: relay.address().to_string(),
        turn_serv_addr: relay.address().to_string(),
        username: credentials.username,
        password: credentials.password,
        realm: "test".to_owned(),
        software: String::new(),
        rto_in_ms: 0,
        conn: Arc::new(socket),
        vnet: None,
    });
    let client = client.await.unwrap();
    client.listen().await.unwrap();
    client
}

fn hour(relay: &Relay, user: &str) -> Credentials {
    relay.credentials(user, Duration::from_secs(3600))
}

async fn receive(conn: &impl Conn) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [0; 1500];
    let (length, from) = timeout(PATIENCE, conn.recv_from(&mut buffer)).await.expect("data in time").unwrap();
    (buffer[..length].to_vec(), from)
}

#[tokio::test]
async fn two_clients_reach_each_other_through_their_relayed_addresses() {
    let relay = Relay::start(config()).await.unwrap();
    let (ada, bob) = (client(&relay, hour(&relay, "ada")).await, client(&relay, hour(&relay, "bob")).await);
    let (a, b) = (ada.allocate().await.unwrap(), bob.allocate().await.unwrap());
    let (a_address, b_address) = (a.local_addr().unwrap(), b.local_addr().unwrap());
    // Each must permit the other before anything comes through (RFC 8656, 9).
    b.send_to(b"knock", a_address).await.unwrap();
    a.send_to(b"hello bob", b_address).await.unwrap();
    let (data, from) = receive(&b).await;
    assert_eq!((&data[..], from), (&b"hello bob"[..], a_address));
    b.send_to(b"hello ada", a_address).await.unwrap();
    loop {
        let (data, from) = receive(&a).await;
        assert_eq!(from, b_address);
        if data == b"hello ada" {
            break;
        }
    }
    let counted = relay.snapshot();
    assert_eq!((counted.allocations_open, counted.allocations_total, counted.peers_denied), (2, 2, 0));
    assert!(counted.bytes_to_peers >= 18 && counted.bytes_from_peers >= 18);
    ada.close().await.unwrap();
    relay.stop().await;
}

#[tokio::test]
async fn loopback_is_no_peer() {
    let relay = Relay::start(config()).await.unwrap();
    let victim = UdpSocket::bind((LOOPBACK, 0)).await.unwrap();
    let ada = client(&relay, hour(&relay, "ada")).await;
    let conn = ada.allocate().await.unwrap();
    for _ in 0..3 {
        conn.send_to(b"let me in", victim.local_addr().unwrap()).await.unwrap();
    }
    let denied = async {
        while relay.snapshot().peers_denied < 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, denied).await.expect("the relay refuses");
    assert!(victim.try_recv(&mut [0; 64]).is_err(), "nothing reached the machine itself");
    assert_eq!(relay.snapshot().bytes_to_peers, 0);
}

#[tokio::test]
async fn an_allowed_network_may_be_reached() {
    let mut config = config();
    config.public_ip = "127.0.0.9".parse().unwrap();
    config.allowed_peers = vec!["127.0.0.3".parse().unwrap()];
    config.listen = "127.0.0.2:0".parse().unwrap();
    let relay = Relay::start(config).await.unwrap();
    let peer = UdpSocket::bind("127.0.0.3:0").await.unwrap();
    let ada = client(&relay, hour(&relay, "ada")).await;
    let conn = ada.allocate().await.unwrap();
    conn.send_to(b"hello", peer.local_addr().unwrap()).await.unwrap();
    let mut buffer = [0; 64];
    let (length, _) = timeout(PATIENCE, peer.recv_from(&mut buffer)).await.unwrap().unwrap();
    assert_eq!(&buffer[..length], b"hello");
}

#[tokio::test]
async fn expired_forged_and_foreign_credentials_are_refused() {
    let relay = Relay::start(config()).await.unwrap();
    let mut forged = hour(&relay, "ada");
    forged.password.push('x');
    let mut another = hour(&relay, "ada");
    another.username = another.username.replace("ada", "bob");
    let foreign = Credentials::make("another-secret-of-many-bytes", "ada", Duration::from_secs(60)).unwrap();
    for credentials in [relay.credentials("ada", Duration::ZERO), forged, another, foreign] {
        let client = client(&relay, credentials).await;
        assert!(timeout(PATIENCE, client.allocate()).await.unwrap().is_err());
    }
    assert_eq!(relay.snapshot().allocations_total, 0);
}

#[tokio::test]
async fn a_user_has_only_so_many_allocations() {
    let mut config = config();
    config.allocations_per_user_max = 2;
    let relay = Relay::start(config).await.unwrap();
    let mut clients = Vec::new();
    let mut held = Vec::new();
    for (user, fits) in [("ada", true), ("ada", true), ("ada", false), ("bob", true)] {
        let client = client(&relay, hour(&relay, user)).await;
        let allocated = timeout(PATIENCE, client.allocate()).await.unwrap();
        assert_eq!(allocated.is_ok(), fits, "{user}");
        held.extend(allocated);
        clients.push(client);
    }
    assert_eq!(relay.snapshot().allocations_open, 3);
}

#[tokio::test]
async fn a_relay_that_stops_frees_its_port_and_allocations() {
    let relay = Relay::start(config()).await.unwrap();
    let address = relay.address();
    let ada = client(&relay, hour(&relay, "ada")).await;
    let _conn = ada.allocate().await.unwrap();
    relay.stop().await;
    let again = async {
        while UdpSocket::bind(address).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, again).await.expect("the port is free");
}

#[tokio::test]
async fn a_port_in_use_is_an_error_in_words() {
    let relay = Relay::start(config()).await.unwrap();
    let mut second = config();
    second.listen = relay.address();
    let error = Relay::start(second).await.unwrap_err().to_string();
    assert!(error.contains(&relay.address().to_string()), "{error}");
    let mut weak = config();
    weak.secret = "short".to_owned();
    assert!(Relay::start(weak).await.is_err());
}
