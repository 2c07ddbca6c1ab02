//! TLS between two nodes, each of which knows the other's certificate by its fingerprint, and nothing else of it counts.

use std::sync::Arc;

use sha2::{Digest, Sha256};
use tokio_rustls::{
    TlsAcceptor, TlsConnector,
    rustls::{
        CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
        client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime},
        server::danger::{ClientCertVerified, ClientCertVerifier},
        version::TLS13,
    },
};

use crate::{
    identity,
    mesh::{self, Certificate},
};

/// SHA-256 of a certificate, in hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::mesh::nodes) struct Fingerprint(pub(in crate::mesh::nodes) String);

impl Fingerprint {
    fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(identity::hexadecimal(&Sha256::digest(certificate)))
    }
}

/// What this node proves with who it is.
pub(in crate::mesh::nodes) struct Identity {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl Identity {
    pub(super) fn new(certificate: &Certificate) -> Result<Self, mesh::Error> {
        let (certificate, key) = certificate.for_tls()?;
        // AWS-LC gathers entropy of its own for each thread that needs some, which takes 25 ms of its processor.
        Ok(Self { certificate, key, provider: Arc::new(ring::default_provider()) })
    }

    pub(in crate::mesh::nodes) fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }

    /// To a node with that certificate.
    pub(in crate::mesh::nodes) fn connector(&self, other: Fingerprint) -> Result<TlsConnector, Error> {
        let config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(self.pinned(other))
            .with_client_auth_cert(vec![self.certificate.clone()], self.key.clone_key())?;
        Ok(TlsConnector::from(Arc::new(config)))
    }

    /// For a node with that certificate.
    pub(super) fn acceptor(&self, other: Fingerprint) -> Result<TlsAcceptor, Error> {
        let config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(self.pinned(other))
            .with_single_cert(vec![self.certificate.clone()], self.key.clone_key())?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    fn pinned(&self, other: Fingerprint) -> Arc<Pinned> {
        Arc::new(Pinned { other, provider: Arc::clone(&self.provider) })
    }
}

/// Takes one certificate.
#[derive(Debug)]
struct Pinned {
    other: Fingerprint,
    provider: Arc<CryptoProvider>,
}

impl Pinned {
    fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let is_it = Fingerprint::of(certificate) == self.other;
        is_it.then_some(()).ok_or(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
    }
}

/// That the other end has the certificate's key, as the library asks it of either side.
macro_rules! proven {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.provider.signature_verification_algorithms.supported_schemes()
        }
    };
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(certificate).map(|()| ServerCertVerified::assertion())
    }

    proven!();
}

impl ClientCertVerifier for Pinned {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(certificate).map(|()| ClientCertVerified::assertion())
    }

    proven!();
}
