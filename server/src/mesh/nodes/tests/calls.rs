//! Calls over a control link.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_of_every_size_are_answered_and_errors_are_passed_on() {
    let [one, other] = linked::<2>().await;
    for size in [0, 1, outbox::PIECE, outbox::PIECE + 1, 20_000_000] {
        let body = Bytes::from((0..size).map(|n| (n % 251) as u8).collect::<Vec<_>>());
        assert!(one.call(&other, Method::Snapshot, body.clone()).await.unwrap() == body, "{size} bytes");
    }
    let size = crate::peers::BODY_MAX + 1;
    assert_eq!(one.call(&other, Method::Snapshot, vec![0; size]).await, Err(CallError::TooLarge { size }));
    let refused = one.call(&other, Method::Renew, "").await.unwrap_err();
    assert_eq!(refused, CallError::Refused(ApiError::new(ErrorCode::Conflict, "not now")));
    let within = Duration::from_millis(50);
    let late = one.mesh.call(&other.id(), Method::Propose, Bytes::new(), within).await;
    assert_eq!(late, Err(CallError::Timeout { within }));
    wait_for("the other side gave up too", || other.handler.waiting.load(Ordering::SeqCst) == 0).await;
    let CallError::Refused(error) = one.call(&other, Method::Vote, "").await.unwrap_err() else { panic!() };
    assert_eq!(error.code, ErrorCode::Internal);
    assert_eq!(one.call(&other, Method::Ping, "there").await.unwrap(), "there");
    let nobody = one.mesh.call(&NodeId("nobody".to_owned()), Method::Ping, Bytes::new(), PATIENCE).await;
    assert_eq!(nobody, Err(CallError::Unreachable));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_is_dropped_is_given_up_by_who_answers() {
    let [one, other] = linked::<2>().await;
    let call = tokio::spawn(one.mesh.call(&other.id(), Method::Propose, Bytes::new(), PATIENCE));
    wait_for("it is being answered", || other.handler.waiting.load(Ordering::SeqCst) == 1).await;
    call.abort();
    wait_for("it is given up", || other.handler.waiting.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_calls_overtake_large_ones() {
    let [one, other] = linked::<2>().await;
    let large = tokio::spawn(one.mesh.call(&other.id(), Method::Snapshot, vec![1; 60_000_000].into(), PATIENCE));
    wait_for("the large one is on its way", || one.link(&other).sent_per_second > 1_000_000 || large.is_finished())
        .await;
    let mut overtook = 0;
    while !large.is_finished() {
        one.call(&other, Method::Report, "small").await.unwrap();
        overtook += 1;
    }
    assert_eq!(large.await.unwrap().unwrap().len(), 60_000_000);
    assert!(overtook > 5, "{overtook} small calls while a large one was under way");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_does_not_delay_calls() {
    let [one, other] = linked::<2>().await;
    let mut stream = one.stream(&other, "count").await;
    let bytes = 200_000_000_u64;
    let bulk = tokio::spawn(async move {
        let (buffer, mut left) = (vec![3; 1_000_000], bytes);
        while left > 0 {
            let len = left.min(buffer.len() as u64) as usize;
            stream.write_all(&buffer[..len]).await.unwrap();
            left -= len as u64;
        }
        stream.shutdown().await.unwrap();
        stream.read_u64().await.unwrap()
    });
    let (mut times, begun) = (Vec::new(), std::time::Instant::now());
    while !bulk.is_finished() {
        times.push(timed(one.call(&other, Method::Report, "small")).await.1);
    }
    let took = begun.elapsed();
    assert_eq!(bulk.await.unwrap(), bytes);
    times.sort();
    let median = times[times.len() / 2];
    // Behind the bulk each call would wait for what is under way of it, a fiftieth at least.
    assert!(median * 100 < took, "{median:?} for a call in the middle, {took:?} for the bulk");
}
