//! Image archives that arrive in pieces.

use bytes::Bytes;
use flotilla::engine::uploads::{Limits, Uploads};
use flotilla_api::{ErrorCode, rest::BeginUpload};
use futures::{Stream, stream};

use crate::playground::{Playground, archive, digest, entry};

fn pieces(bytes: &[u8]) -> impl Stream<Item = Result<Bytes, String>> + use<> {
    let pieces: Vec<_> = bytes.chunks(100_000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    stream::iter(pieces)
}

fn small(max: u64) -> Limits {
    Limits { size_max: max, disk_reserve: 0 }
}

#[tokio::test]
async fn an_upload_goes_on_where_it_stopped_and_becomes_an_image() {
    let playground = Playground::new().await;
    let engine = playground.start();
    let image = format!("flotilla-test/{}:pushed", playground.cluster);
    let archive = archive(&image, "pushed");
    let begin = BeginUpload { digest: digest(&archive), size: archive.len() as u64 };
    let uploads = Uploads::open(playground.data.path(), Limits::default()).unwrap();
    assert_eq!(uploads.begin(&begin).unwrap().offset, 0);

    // The sender goes away in the middle; what came is kept.
    let (first, rest) = archive.split_at(250_000);
    let broken = futures::StreamExt::chain(pieces(first), stream::iter([Err("connection reset".to_owned())]));
    let error = uploads.append(&begin.digest, 0, broken).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::InvalidRequest, "{error}");
    assert_eq!(uploads.view(&begin.digest).unwrap().offset, 250_000);
    let error = engine.load_upload(&uploads, &begin.digest).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::UploadOffset, "{error}");

    // So does the node.
    drop(uploads);
    let uploads = Uploads::open(playground.data.path(), Limits::default()).unwrap();
    assert_eq!(uploads.begin(&begin).unwrap().offset, 250_000);
    let view = uploads.append(&begin.digest, 250_000, pieces(rest)).await.unwrap();
    assert_eq!(view.offset, view.size);
    let loaded = engine.load_upload(&uploads, &begin.digest).await.unwrap();
    assert_eq!(loaded.images, std::slice::from_ref(&image));
    assert_eq!(uploads.view(&begin.digest).unwrap_err().code(), ErrorCode::UploadNotFound);
    assert_eq!(std::fs::read_dir(playground.data.path().join("uploads")).unwrap().count(), 0);
    engine.remove_image(&image).await.unwrap();
}

#[tokio::test]
async fn a_wrong_offset_changes_nothing() {
    let data = tempfile::tempdir().unwrap();
    let uploads = Uploads::open(data.path(), small(100)).unwrap();
    let begin = BeginUpload { digest: digest(b"hello"), size: 5 };
    uploads.begin(&begin).unwrap();
    uploads.append(&begin.digest, 0, pieces(b"he")).await.unwrap();
    for offset in [0, 1, 3, 5] {
        let error = uploads.append(&begin.digest, offset, pieces(b"x")).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::UploadOffset, "{error}");
    }
    assert_eq!(uploads.append(&begin.digest, 2, pieces(b"llo!")).await.unwrap_err().code(), ErrorCode::RequestTooLarge);
    assert_eq!(uploads.view(&begin.digest).unwrap().offset, 2);
    uploads.append(&begin.digest, 2, pieces(b"llo")).await.unwrap();
    uploads.verify(&begin.digest).await.unwrap();
}

#[tokio::test]
async fn a_damaged_archive_is_refused_and_forgotten() {
    let playground = Playground::new().await;
    let engine = playground.start();
    let uploads = Uploads::open(playground.data.path(), small(100)).unwrap();
    let begin = BeginUpload { digest: digest(b"hello"), size: 5 };
    uploads.begin(&begin).unwrap();
    uploads.append(&begin.digest, 0, pieces(b"hellO")).await.unwrap();
    let error = engine.load_upload(&uploads, &begin.digest).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::UploadDigest, "{error}");
    assert_eq!(uploads.view(&begin.digest).unwrap_err().code(), ErrorCode::UploadNotFound);
}

#[tokio::test]
async fn what_is_no_image_is_refused() {
    let playground = Playground::new().await;
    let engine = playground.start();
    let uploads = Uploads::open(playground.data.path(), small(1_000_000)).unwrap();
    let mut tar = tar::Builder::new(Vec::new());
    entry(&mut tar, "readme", 0o644, 0, b"hello");
    for archive in [b"this is no archive".repeat(100), tar.into_inner().unwrap(), vec![0; 10_240]] {
        let begin = BeginUpload { digest: digest(&archive), size: archive.len() as u64 };
        uploads.begin(&begin).unwrap();
        uploads.append(&begin.digest, 0, pieces(&archive)).await.unwrap();
        let error = engine.load_upload(&uploads, &begin.digest).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::ImageInvalid, "{error}");
    }
}

#[tokio::test]
async fn limits_hold_before_a_byte_is_written() {
    let data = tempfile::tempdir().unwrap();
    let uploads = Uploads::open(data.path(), small(100)).unwrap();
    let begin = |digest: &str, size| BeginUpload { digest: digest.to_owned(), size };
    let good = digest(b"x");
    assert_eq!(uploads.begin(&begin(&good, 101)).unwrap_err().code(), ErrorCode::RequestTooLarge);
    for bad in ["", "../../etc/passwd", &good.to_uppercase(), &good[1..]] {
        assert_eq!(uploads.begin(&begin(bad, 1)).unwrap_err().code(), ErrorCode::InvalidRequest, "{bad}");
        assert!(uploads.append(bad, 0, pieces(b"x")).await.is_err());
    }
    assert_eq!(uploads.append(&good, 0, pieces(b"x")).await.unwrap_err().code(), ErrorCode::UploadNotFound);

    let full = Uploads::open(data.path(), Limits { size_max: u64::MAX, disk_reserve: u64::MAX / 2 }).unwrap();
    let error = full.begin(&begin(&good, 1)).unwrap_err();
    assert_eq!(error.code(), ErrorCode::DiskFull, "{error}");
    assert_eq!(std::fs::read_dir(data.path().join("uploads")).unwrap().count(), 0);
}

#[tokio::test]
async fn one_archive_has_one_sender() {
    let data = tempfile::tempdir().unwrap();
    let uploads = Uploads::open(data.path(), small(100)).unwrap();
    let begin = BeginUpload { digest: digest(b"hello"), size: 5 };
    uploads.begin(&begin).unwrap();
    let (sender, body) = tokio::sync::mpsc::channel::<Result<Bytes, String>>(1);
    let body = stream::unfold(body, |mut body| async move { Some((body.recv().await?, body)) });
    let slow = tokio::spawn({
        let (uploads, digest) = (uploads.clone(), begin.digest.clone());
        async move { uploads.append(&digest, 0, body).await }
    });
    // Once the second piece finds room in the queue, the first was taken.
    sender.send(Ok(Bytes::from_static(b"h"))).await.unwrap();
    sender.send(Ok(Bytes::from_static(b"e"))).await.unwrap();
    let error = uploads.append(&begin.digest, 0, pieces(b"hello")).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Conflict, "{error}");
    slow.abort();
    let _ = slow.await;
    uploads.append(&begin.digest, 0, pieces(b"hello")).await.unwrap();
}

#[tokio::test]
async fn what_nobody_went_on_with_is_removed_after_a_day() {
    let data = tempfile::tempdir().unwrap();
    let uploads = Uploads::open(data.path(), small(100)).unwrap();
    let (old, young) = (digest(b"old"), digest(b"young"));
    for (digest, size) in [(&old, 3), (&young, 5)] {
        uploads.begin(&BeginUpload { digest: digest.clone(), size }).unwrap();
    }
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(25 * 60 * 60);
    for file in [old.clone(), format!("{old}.size")] {
        let file = std::fs::File::options().write(true).open(data.path().join("uploads").join(file)).unwrap();
        file.set_modified(long_ago).unwrap();
    }
    uploads.remove_stale();
    assert_eq!(uploads.view(&old).unwrap_err().code(), ErrorCode::UploadNotFound);
    assert!(uploads.view(&young).is_ok());
}
