//! The yardstick of node to node: one QUIC stream over loopback, which encrypts and runs in user space as our links do.

use std::{net::Ipv4Addr, sync::Arc, time::Instant};

use anyhow::{Context, Result};
use quinn::{
    ClientConfig, Endpoint, ServerConfig,
    rustls::{
        RootCertStore,
        pki_types::{CertificateDer, PrivatePkcs8KeyDer},
    },
};
use tokio::runtime::Handle;

use crate::{MESSAGE, megabytes_per_second};

const NAME: &str = "localhost";

/// MB/s from one end to the other, which runs elsewhere.
pub(crate) async fn throughput(bytes: u64, beyond: &Handle) -> Result<f64> {
    let key = rcgen::KeyPair::generate()?;
    let certificate =
        CertificateDer::from(rcgen::CertificateParams::new(vec![NAME.to_owned()])?.self_signed(&key)?.der().to_vec());
    let server = ServerConfig::with_single_cert(
        vec![certificate.clone()],
        PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
    )?;
    let mut roots = RootCertStore::empty();
    roots.add(certificate)?;

    let far = beyond.spawn(async move { Endpoint::server(server, (Ipv4Addr::LOCALHOST, 0).into()) }).await??;
    let mut near = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into())?;
    near.set_default_client_config(ClientConfig::with_root_certificates(Arc::new(roots))?);
    let address = far.local_addr()?;
    let receiving = beyond.spawn(async move {
        let connection = far.accept().await.context("a connection")?.await?;
        let mut stream = connection.accept_uni().await?;
        let mut received = 0;
        while let Some(chunk) = stream.read_chunk(usize::MAX, true).await? {
            received += chunk.bytes.len() as u64;
        }
        let end = Instant::now();
        connection.close(0_u32.into(), b"");
        far.wait_idle().await;
        anyhow::Ok((received, end))
    });
    let sending = tokio::spawn(async move {
        let connection = near.connect(address, NAME)?.await?;
        let mut stream = connection.open_uni().await?;
        let message = vec![0; MESSAGE];
        let start = Instant::now();
        for _ in 0..bytes.div_ceil(MESSAGE as u64) {
            stream.write_all(&message).await?;
        }
        stream.finish()?;
        // Until the other end has all of it.
        connection.closed().await;
        anyhow::Ok(start)
    });
    let (received, end) = receiving.await??;
    Ok(megabytes_per_second(received, end - sending.await??))
}
