//! HTTPS on the listener: away from `localhost` a browser runs service workers on nothing else.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use tokio::net::TcpStream;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, ServerConfig,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
    },
    server::TlsStream,
};
use tokio_util::sync::CancellationToken;

/// What a handshake may take: a few round trips, from anywhere.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// How often the files are looked at: whoever renews a certificate need not restart the node.
const CHECK_EVERY: Duration = Duration::from_secs(60);

/// Certificates in a chain; public ones have two or three.
const CHAIN_MAX: usize = 16;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("`{path}` can't be used as `{setting}`: {what}", path = path.display())]
    File { setting: &'static str, path: PathBuf, what: String },
    #[error("the certificate in `{certificate}` and the key in `{key}` do not belong together: {source}", certificate = certificate.display(), key = key.display())]
    Pair {
        certificate: PathBuf,
        key: PathBuf,
        #[source]
        source: rustls::Error,
    },
}

/// The certificate as it is now. Clones see the same.
#[derive(Clone, Debug)]
pub(super) struct Acceptor {
    files: Arc<Files>,
    current: Arc<RwLock<Arc<ServerConfig>>>,
}

#[derive(Debug)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

impl Acceptor {
    pub(super) fn load(certificate: &Path, key: &Path) -> Result<Self, Error> {
        let files = Files { certificate: certificate.to_owned(), key: key.to_owned() };
        let current = Arc::new(RwLock::new(Arc::new(files.load()?)));
        Ok(Self { files: Arc::new(files), current })
    }

    /// `None` if the client does not finish a handshake.
    pub(super) async fn accept(&self, stream: TcpStream) -> Option<TlsStream<TcpStream>> {
        let config = self.current.read().unwrap_or_else(PoisonError::into_inner).clone();
        match tokio::time::timeout(HANDSHAKE, TlsAcceptor::from(config).accept(stream)).await {
            Ok(Ok(stream)) => Some(stream),
            Ok(Err(error)) => {
                tracing::debug!(%error, "no TLS handshake");
                None
            }
            Err(_) => None,
        }
    }

    /// Takes up new files until `stop`. Files that can't be used change nothing: the old certificate may still be good.
    pub(super) async fn watch(self, stop: CancellationToken) {
        let mut seen = self.files.changed_at();
        while stop.run_until_cancelled(tokio::time::sleep(CHECK_EVERY)).await.is_some() {
            let now = self.files.changed_at();
            if now == seen {
                continue;
            }
            match self.files.load() {
                Ok(config) => {
                    *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
                    tracing::info!(certificate = %self.files.certificate.display(), "took up the new certificate");
                    seen = now;
                }
                // Half written, most likely: looked at again.
                Err(error) => tracing::warn!("the new certificate is not used: {error}"),
            }
        }
    }
}

impl Files {
    fn load(&self) -> Result<ServerConfig, Error> {
        let wrong = |setting, path: &Path| {
            let path = path.to_owned();
            move |what: String| Error::File { setting, path, what }
        };
        let of_certificate = wrong("tls.certificate", &self.certificate);
        let chain: Result<Vec<_>, pem::Error> =
            CertificateDer::pem_file_iter(&self.certificate).and_then(|found| found.take(CHAIN_MAX).collect());
        let chain = match chain {
            Ok(chain) if chain.is_empty() => {
                return Err(of_certificate("it holds no certificate in PEM form".to_owned()));
            }
            Ok(chain) => chain,
            Err(error) => return Err(of_certificate(error.to_string())),
        };
        let key =
            PrivateKeyDer::from_pem_file(&self.key).map_err(|error| wrong("tls.key", &self.key)(error.to_string()))?;
        let mismatch = |source| Error::Pair { certificate: self.certificate.clone(), key: self.key.clone(), source };
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(mismatch)?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(mismatch)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }

    fn changed_at(&self) -> [Option<SystemTime>; 2] {
        [&self.certificate, &self.key].map(|path| std::fs::metadata(path).and_then(|file| file.modified()).ok())
    }
}
