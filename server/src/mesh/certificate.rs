//! The certificate of this node's DTLS connections: kept in the data directory, so that its fingerprint stays.

use std::{fmt, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rtc::{
    crypto::{RTCCryptoProvider, SignatureScheme, default_provider},
    peer_connection::certificate::{CertificateParams, RTCCertificate},
};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::Error;

/// A certificate with its private key.
#[derive(Clone)]
pub struct Certificate {
    pub(super) inner: RTCCertificate,
    pub(super) provider: Arc<dyn RTCCryptoProvider>,
}

impl Certificate {
    /// A fresh P-256 certificate, which every browser accepts.
    ///
    /// # Errors
    /// [`Error::Certificate`] if the system's random source fails.
    pub fn generate() -> Result<Self, Error> {
        let provider = default_provider().map_err(|error| Error::Certificate(error.to_string()))?;
        let params = CertificateParams::new(vec!["flotilla".to_owned()])
            .map_err(|error| Error::Certificate(error.to_string()))?;
        let inner = RTCCertificate::generate(provider.crypto(), SignatureScheme::EcdsaP256Sha256, params)
            .map_err(|error| Error::Certificate(error.to_string()))?;
        Ok(Self { inner, provider })
    }

    /// Reads what [`Self::to_pem`] wrote.
    ///
    /// # Errors
    /// [`Error::Certificate`] for anything else.
    pub fn from_pem(pem: &str) -> Result<Self, Error> {
        if !has_expiry(pem) {
            return Err(Error::Certificate("it does not begin with its expiry".to_owned()));
        }
        let provider = default_provider().map_err(|error| Error::Certificate(error.to_string()))?;
        let inner =
            RTCCertificate::from_pem(pem, provider.crypto()).map_err(|error| Error::Certificate(error.to_string()))?;
        Ok(Self { inner, provider })
    }

    /// Certificate and private key; to be kept in a file of mode 0600.
    ///
    /// # Errors
    /// [`Error::Certificate`] if the key can't be exported.
    pub fn to_pem(&self) -> Result<String, Error> {
        self.inner.serialize_pem().map_err(|error| Error::Certificate(error.to_string()))
    }

    /// The same for TLS: certificate and private key, as they are encoded (X.509, PKCS #8).
    pub(super) fn for_tls(&self) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), Error> {
        // The library writes a tag of its own.
        let pem = self.to_pem()?.replace("PRIVATE_KEY", "PRIVATE KEY");
        let read = |error| Error::Certificate(format!("{error}"));
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(read)?;
        Ok((certificate, PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(read)?))
    }

    /// SHA-256 of the certificate, as a session description writes it (RFC 8122, 5).
    ///
    /// # Errors
    /// [`Error::Certificate`] if it can't be computed.
    pub fn fingerprint(&self) -> Result<String, Error> {
        let fingerprints = self
            .inner
            .get_fingerprints(self.provider.crypto())
            .map_err(|error| Error::Certificate(error.to_string()))?;
        let first =
            fingerprints.into_iter().next().ok_or_else(|| Error::Certificate("it has no fingerprint".to_owned()))?;
        Ok(first.value)
    }
}

/// The library panics on an expiry of fewer than eight bytes.
fn has_expiry(pem: &str) -> bool {
    let block = pem
        .trim_start()
        .strip_prefix("-----BEGIN EXPIRES-----")
        .and_then(|rest| rest.split_once("-----END EXPIRES-----"));
    let bytes = block.and_then(|(body, _)| STANDARD.decode(body.split_whitespace().collect::<String>()).ok());
    bytes.is_some_and(|bytes| bytes.len() == 8)
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").field("fingerprint", &self.fingerprint().ok()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_certificate_keeps_its_fingerprint() {
        let made = Certificate::generate().unwrap();
        let read = Certificate::from_pem(&made.to_pem().unwrap()).unwrap();
        assert_eq!(made.fingerprint().unwrap(), read.fingerprint().unwrap());
    }

    #[test]
    fn a_damaged_certificate_is_refused() {
        for bad in ["", "-----BEGIN EXPIRES-----\n-----END EXPIRES-----", "no PEM"] {
            assert!(Certificate::from_pem(bad).is_err(), "{bad:?} was taken for a certificate");
        }
    }
}
