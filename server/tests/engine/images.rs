//! Images that are pulled, built and listed.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::Duration,
};

use bytes::Bytes;
use flotilla::engine::{Engine, take_down};
use flotilla_api::{
    ErrorCode,
    rest::{BuildLine, BuildQuery, ServiceState},
};
use futures::{StreamExt, TryStreamExt, stream};

use crate::playground::{PATIENCE, Playground, entry, name};

/// Debian's registry on loopback, with its files in a directory of its own.
struct Registry {
    process: Child,
    port: u16,
    _files: tempfile::TempDir,
}

impl Registry {
    async fn start() -> Self {
        let files = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = files.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{ level: error }}\nstorage: {{ filesystem: {{ rootdirectory: {} }} }}\nhttp: {{ addr: \"127.0.0.1:{port}\" }}\n",
            files.path().join("data").display()
        );
        std::fs::write(&config, text).unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("these tests need the package docker-registry");
        let registry = Self { process, port, _files: files };
        let listens = async {
            while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, listens).await.expect("the registry listens");
        registry
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn an_image_comes_from_a_registry_on_loopback() {
    let playground = Playground::new().await;
    let registry = Registry::start().await;
    let repository = format!("localhost:{}/{}", registry.port, playground.cluster);
    let image = format!("{repository}:2");
    let tag = bollard::query_parameters::TagImageOptions { repo: Some(repository), tag: Some("2".into()) };
    playground.docker.tag_image(&playground.image, Some(tag)).await.unwrap();
    let push = bollard::query_parameters::PushImageOptions { tag: Some("2".into()), ..Default::default() };
    let name_only = image.rsplit_once(':').unwrap().0;
    playground.docker.push_image(name_only, Some(push), None).try_collect::<Vec<_>>().await.unwrap();
    let engine = playground.start();
    engine.remove_image(&image).await.unwrap();
    engine.remove_image(&playground.image).await.unwrap();

    playground.deploy(&format!("  notes: {{ image: \"{image}\" }}"));
    playground.until_running(&engine, "notes").await;

    let missing = format!("{name_only}:3");
    let error = engine.ensure_image(&missing, |_| {}).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::ImageNotFound, "{error}");
    assert!(error.to_string().contains(&missing), "{error}");
    let unknown = format!("localhost:{}/no/such:1", registry.port);
    let error = engine.ensure_image(&unknown, |_| {}).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::ImageNotFound, "{error}");

    engine.stop().await;
    take_down(None, &playground.cluster, None, playground.data.path(), &[]).await.unwrap();
    let options = bollard::query_parameters::RemoveImageOptions { force: true, ..Default::default() };
    playground.docker.remove_image(&image, Some(options), None).await.unwrap();
}

#[tokio::test]
async fn a_registry_that_does_not_answer_is_told_from_a_missing_image() {
    let playground = Playground::new().await;
    let engine = playground.start();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let image = format!("localhost:{port}/notes:1");
    let error = engine.ensure_image(&image, |_| {}).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::ImagePullFailed, "{error}");
    assert!(error.to_string().contains(&format!("localhost:{port}")), "{error}");

    playground.deploy(&format!("  notes: {{ image: \"{image}\" }}"));
    let condition = playground.until(&engine, "notes", |condition| condition.state == ServiceState::Failed).await;
    assert!(condition.message.unwrap().contains(&image));

    for bad in ["", "../containers/json", "notes?all=1", "Notes"] {
        assert_eq!(engine.ensure_image(bad, |_| {}).await.unwrap_err().code(), ErrorCode::ImageInvalid, "{bad}");
    }
    let id = format!("sha256:{}", "0".repeat(64));
    assert_eq!(engine.ensure_image(&id, |_| {}).await.unwrap_err().code(), ErrorCode::ImageNotFound);
}

#[tokio::test]
async fn images_tell_which_services_use_them() {
    let playground = Playground::new().await;
    playground.deploy("  notes: { image: $IMAGE }");
    let engine = playground.start();
    let images = engine.images(None).await.unwrap();
    let ours = images.iter().find(|image| image.references.contains(&playground.image)).unwrap();
    assert_eq!(ours.used_by, [name("notes")]);
    assert!(ours.size_bytes > 500_000);
    assert!(images.iter().filter(|image| image.id != ours.id).all(|image| image.used_by.is_empty()));
    engine.stop().await;
}

fn context(dockerfile: &str) -> Vec<u8> {
    let mut context = tar::Builder::new(Vec::new());
    entry(&mut context, "Dockerfile.dev", 0o644, 0, dockerfile.as_bytes());
    entry(&mut context, "greeting", 0o644, 0, b"ahoy");
    context.into_inner().unwrap()
}

async fn build(engine: &Engine, query: &BuildQuery, dockerfile: &str) -> Vec<BuildLine> {
    let pieces: Vec<Result<Bytes, String>> =
        context(dockerfile).chunks(1000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    engine.build(query, stream::iter(pieces)).await.unwrap().collect().await
}

#[tokio::test]
async fn an_image_is_built_from_a_dockerfile() {
    let playground = Playground::new().await;
    let engine = playground.start();
    let image = format!("flotilla-test/{}:built", playground.cluster);
    let query = BuildQuery {
        image: image.clone(),
        dockerfile: Some("Dockerfile.dev".into()),
        target: Some("wanted".into()),
        args: Some(r#"{"COLOUR":"blue"}"#.into()),
    };
    let dockerfile = format!(
        "FROM {} AS wanted\nARG COLOUR\nCOPY greeting /greeting\nRUN cat /greeting && echo $COLOUR\nFROM wanted\nRUN false\n",
        playground.image
    );
    let lines = build(&engine, &query, &dockerfile).await;
    let Some(BuildLine::Done { image: id }) = lines.last() else { panic!("{lines:#?}") };
    assert_eq!(*id, engine.ensure_image(&image, |_| {}).await.unwrap());
    let printed =
        |wanted: &str| lines.iter().any(|line| matches!(line, BuildLine::Output { text } if text.contains(wanted)));
    assert!(printed("ahoy") && printed("blue"), "{lines:#?}");
    engine.remove_image(&image).await.unwrap();

    let failing = format!("FROM {}\nRUN echo about to fail && exit 9\n", playground.image);
    let lines = build(&engine, &BuildQuery { target: None, ..query.clone() }, &failing).await;
    let Some(BuildLine::Error { error }) = lines.last() else { panic!("{lines:#?}") };
    assert_eq!(error.code, ErrorCode::BuildFailed);
    assert!(error.message.contains("about to fail") && error.message.contains('9'), "{}", error.message);

    let broken = stream::iter([Err::<Bytes, _>("the line went dead")]);
    let lines: Vec<_> = engine.build(&query, broken).await.unwrap().collect().await;
    let Some(BuildLine::Error { error }) = lines.last() else { panic!("{lines:#?}") };
    assert_eq!(error.code, ErrorCode::BuildFailed);
    assert!(error.message.contains("the line went dead"), "{}", error.message);
}
