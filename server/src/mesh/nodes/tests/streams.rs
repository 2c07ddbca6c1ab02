//! Streams over a bulk link.

use std::io::ErrorKind;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_half_closed_and_read_to_its_end() {
    let [one, other] = linked::<2>().await;
    let mut stream = one.stream(&other, "echo").await;
    let sent: Vec<u8> = (0..10_000_000_u32).map(|n| (n % 253) as u8).collect();
    let (mut read, mut write) = tokio::io::split(&mut stream);
    let writing = async {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
        assert_eq!(write.write_all(b"more").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
    };
    let mut received = Vec::new();
    let (_, bytes) = tokio::join!(writing, read.read_to_end(&mut received));
    assert!(bytes.unwrap() == sent.len() && received == sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_nobody_reads_stops_its_writer_and_no_other() {
    let [one, other] = linked::<2>().await;
    let mut deaf = one.stream(&other, "deaf").await;
    let mut written = 0_usize;
    while let Ok(wrote) = timeout(Duration::from_millis(500), deaf.write(&[7; 65536])).await {
        written += wrote.unwrap();
        assert!(written < 64 * 1024 * 1024, "taken for a reader that does not read");
    }
    let mut echo = one.stream(&other, "echo").await;
    echo.write_all(&vec![8; 9_000_000]).now_or_never();
    let mut counted = one.stream(&other, "count").await;
    counted.write_all(&vec![9; 9_000_000]).await.unwrap();
    counted.shutdown().await.unwrap();
    assert_eq!(counted.read_u64().await.unwrap(), 9_000_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_dropped_is_no_stream_that_ended() {
    let [one, other] = linked::<2>().await;
    let mut stream = one.stream(&other, "drop").await;
    let error = stream.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(stream.write_all(b"x").await.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_fail_when_their_node_dies_and_are_opened_again_when_it_is_back() {
    let [one, mut other] = linked::<2>().await;
    let mut stream = one.stream(&other, "echo").await;
    stream.write_all(b"x").await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'x');
    other.die();
    wait_for("the loss is noticed", || !one.sees(&other)).await;
    assert_eq!(one.mesh.stream(&other.id(), "echo").await.err(), Some(CallError::Unreachable));
    let back = other.plan.start().await;
    introduce(&[&one, &back]);
    all_linked(&[&one, &back]).await;
    let read = timeout(NOTICED, stream.read_u8()).await.expect("an end in time");
    assert_eq!(read.unwrap_err().kind(), ErrorKind::ConnectionAborted);
    let mut again = one.stream(&back, "echo").await;
    again.write_all(b"y").await.unwrap();
    assert_eq!(again.read_u8().await.unwrap(), b'y');
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_streams_come_and_go_and_too_many_are_refused() {
    let [one, other] = linked::<2>().await;
    for _ in 0..10 {
        let opened = (0..30).map(|_| async {
            let mut stream = one.stream(&other, "count").await;
            stream.write_all(&[1; 1000]).await.unwrap();
            stream.shutdown().await.unwrap();
            assert_eq!(stream.read_u64().await.unwrap(), 1000);
            assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
        });
        futures::future::join_all(opened).await;
    }
    assert_eq!(other.handler.streams.load(Ordering::SeqCst), 300);
    let mut held = Vec::new();
    let refused = loop {
        match one.mesh.stream(&other.id(), "deaf").await {
            Ok(stream) => held.push(stream),
            Err(error) => break error,
        }
        assert!(held.len() < 1000, "streams without a limit");
    };
    let CallError::Refused(error) = refused else { panic!("{refused:?}") };
    assert_eq!(error.code, ErrorCode::RateLimited);
    held.clear();
    let opens = async { while one.mesh.stream(&other.id(), "echo").await.is_err() {} };
    timeout(PATIENCE, opens).await.expect("places are given back");
    let label = "x".repeat(LABEL_MAX + 1);
    assert!(matches!(one.mesh.stream(&other.id(), &label).await.err(), Some(CallError::TooLarge { .. })));
}
