//! TLS links, to the listener of the other node.

use flotilla_api::rest::BulkPath;
use tokio_rustls::rustls::pki_types::ServerName;

use super::*;
use crate::{mesh::nodes::tls as links, tunnel::Channel};

async fn listening(plans: [Plan; 2]) -> [Node; 2] {
    let [one, other] = plans.map(|plan| Plan { takes_tls: true, ..plan });
    let (one, other) = (one.start().await, other.start().await);
    introduce(&[&one, &other]);
    all_linked(&[&one, &other]).await;
    wait_for("the way is measured", || one.link(&other).rtt_ms.is_some() && other.link(&one).rtt_ms.is_some()).await;
    [one, other]
}

async fn says_back(one: &Node, other: &Node, bytes: usize) {
    let mut stream = one.stream(other, "echo").await;
    let sent: Vec<u8> = (0..bytes).map(|n| (n % 251) as u8).collect();
    let (mut read, mut write) = tokio::io::split(&mut stream);
    let writing = async {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let mut received = Vec::new();
    let (_, read) = timeout(PATIENCE, async { tokio::join!(writing, read.read_to_end(&mut received)) }).await.unwrap();
    assert!(read.unwrap() == bytes && received == sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_large_goes_over_tls_between_near_machines_both_ways() {
    let [one, other] = listening([Plan::new(1), Plan::new(2)]).await;
    assert_eq!(one.link(&other).bulk, None);
    says_back(&one, &other, 20_000_000).await;
    assert_eq!(one.link(&other).bulk, Some(BulkPath::Tls));
    // The same connection.
    assert_eq!(other.link(&one).bulk, Some(BulkPath::Tls));
    says_back(&other, &one, 1_000_000).await;
    let beside = timeout(PATIENCE, one.mesh.stream_beside(&other.id(), "echo", 3)).await.unwrap();
    assert!(beside.is_ok(), "a further lane");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_channel_carries_it_where_the_listener_takes_no_tls_link() {
    let [one, other] = [Plan::new(1).start().await, Plan::new(2).start().await];
    introduce(&[&one, &other]);
    all_linked(&[&one, &other]).await;
    wait_for("the way is measured", || one.link(&other).rtt_ms.is_some()).await;
    says_back(&one, &other, 100_000).await;
    assert_eq!(one.link(&other).bulk, Some(BulkPath::Channels));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_a_tls_link_end_with_their_node_and_the_next_one_goes_to_its_next_run() {
    let [one, mut other] = listening([Plan::new(1), Plan::new(2)]).await;
    let mut stream = one.stream(&other, "echo").await;
    stream.write_all(b"x").await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'x');
    // Its end of the connection stays open, as if it had lost power.
    other.die();
    let (read, took) = timed(timeout(PATIENCE, stream.read_u8())).await;
    read.expect("it is noticed").unwrap_err();
    assert!(took < Duration::from_secs(10), "after {took:?}");
    let back = other.plan.start().await;
    introduce(&[&one, &back]);
    wait_for("the next run is linked", || one.sees(&back) && back.sees(&one)).await;
    says_back(&one, &back, 100_000).await;
}

/// Whoever is not who was told that they may come gets nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_is_taken_once_and_only_from_who_offered_it() {
    let [one, other] = listening([Plan::new(1), Plan::new(2)]).await;
    let peer = other.mesh.shared.peer(&one.id()).unwrap();
    let expect = |attempt: &str, certificate: &Certificate| {
        let description = Tls::new(certificate).unwrap().identity.fingerprint().0;
        let (purpose, attempt) = (Purpose::Tls, attempt.to_owned());
        let offer = Offer { purpose, attempt, description, relay: false, shared_port: false, far: false };
        other.mesh.shared.answer_tls(&peer, &offer, "boot")
    };
    let knock = async |attempt: &str, with: &Certificate, expected: &str| -> Result<Option<Bytes>, links::Error> {
        let tcp = links::connect(other.address.parse().unwrap(), attempt).await?;
        let connector = Tls::new(with).unwrap().identity.connector(links::Fingerprint(expected.to_owned()))?;
        let name = ServerName::try_from("flotilla").unwrap();
        let (_line, channel) = links::Line::over(Box::new(connector.connect(name, tcp).await?));
        Ok(timeout(PATIENCE, channel.recv()).await.unwrap())
    };
    let (ours, strange) = (one.plan.config.certificate.clone(), Certificate::generate().unwrap());
    let name = |n: u8| format!("{n:032}");
    let theirs = expect(&name(1), &ours).unwrap();

    let status = |refused: Result<Option<Bytes>, links::Error>| match refused {
        Err(links::Error::Status(status)) => status,
        other => panic!("{other:?}"),
    };
    assert_eq!(status(knock(&name(9), &ours, &theirs).await), http::StatusCode::NOT_FOUND, "nobody offered that");
    assert_eq!(knock(&name(1), &strange, &theirs).await.unwrap_or_default(), None, "another certificate");
    assert_eq!(status(knock(&name(1), &ours, &theirs).await), http::StatusCode::NOT_FOUND, "it is spent");
    expect(&name(2), &ours).unwrap();
    knock(&name(2), &ours, &"0".repeat(64)).await.expect_err("another node answers there");
    expect(&name(3), &ours).unwrap();
    assert!(knock(&name(3), &ours, &theirs).await.unwrap().is_some());

    // As many as are awaited at a time, and no more.
    let refused = (10..100).find_map(|n| expect(&name(n), &ours).err());
    assert_eq!(refused.map(|error| error.code), Some(ErrorCode::RateLimited));
    assert_eq!(expect("short", &ours).unwrap_err().code, ErrorCode::SignalInvalid);
}
