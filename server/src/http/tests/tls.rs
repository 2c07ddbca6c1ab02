//! HTTPS on the listener.

use std::path::PathBuf;

use super::*;

struct Files {
    directory: tempfile::TempDir,
    certificate: PathBuf,
    key: PathBuf,
}

fn files() -> Files {
    let directory = tempfile::tempdir().unwrap();
    let names = vec!["app.home.localhost".to_owned(), "127.0.0.1".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let (certificate, key) = (directory.path().join("certificate.pem"), directory.path().join("key.pem"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    Files { directory, certificate, key }
}

fn with(files: &Files) -> impl FnOnce(&mut Config) {
    let (certificate, key) = (files.certificate.clone(), files.key.clone());
    move |config| {
        config.docker_host = Some("unix:///nonexistent/docker.sock".to_owned());
        config.tls.certificate = Some(certificate);
        config.tls.key = Some(key);
    }
}

#[tokio::test]
async fn with_a_certificate_the_listener_speaks_https_alone() {
    let files = files();
    let running = Running::start_with(with(&files)).await;
    let certificate = reqwest::Certificate::from_pem(&std::fs::read(&files.certificate).unwrap()).unwrap();
    let http = reqwest::Client::builder().tls_certs_only([certificate]).build().unwrap();
    let cluster = http.get(format!("https://{}/api/v1/cluster", running.address())).bearer_auth(&running.admin);
    let cluster: Value = cluster.send().await.unwrap().error_for_status().unwrap().json().await.unwrap();
    let dashboard = format!("https://app.home.localhost:{}/", running.address().port());
    assert_eq!(cluster["dashboard_url"], dashboard);
    assert!(running.get("/healthz").send().await.is_err(), "plain HTTP was answered");
    running.node.stop().await;
}

#[tokio::test]
async fn a_certificate_that_can_not_be_used_is_named() {
    let (good, other) = (files(), files());
    let empty = good.directory.path().join("empty.pem");
    std::fs::write(&empty, "").unwrap();
    for (certificate, key, expected) in [
        (PathBuf::from("/nonexistent.pem"), good.key.clone(), "`tls.certificate`"),
        (empty.clone(), good.key.clone(), "`tls.certificate`"),
        (good.certificate.clone(), empty, "`tls.key`"),
        (good.certificate.clone(), other.key.clone(), "do not belong together"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let files = Files { directory, certificate, key };
        let (config, _) = initialised(files.directory.path(), with(&files)).await;
        let error = node::start(config).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
