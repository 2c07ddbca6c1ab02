//! `flotilla join`: makes this machine a member, without a running daemon.

use std::{net::SocketAddr, time::Duration};

use flotilla_api::{ApiError, ErrorCode, JoinToken, MachineName};

use super::{Error, candidates};
use crate::{
    cluster::{
        facts,
        join::{self, Joined, Wanted},
    },
    config::Config,
    mesh::{
        Certificate,
        nodes::{NodeConfig, contact},
    },
};

/// The cluster agrees on a new machine within a second; one that is just electing a leader takes a few.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// # Errors
/// One sentence for the person at this machine.
pub async fn join(token: JoinToken, name: MachineName, config: &Config) -> Result<Joined, Error> {
    let listening: SocketAddr = config.listen;
    let wanted = Wanted { data_dir: config.data_dir.clone(), token, name, facts: facts::facts(listening, None) };
    let addresses = candidates(config);
    let joined = join::join(wanted, async |contacting, request| {
        let refused = |error: String| ApiError::new(ErrorCode::ConnectionFailed, error);
        let certificate = Certificate::from_pem(&contacting.webrtc_pem).map_err(|error| refused(error.to_string()))?;
        let config = NodeConfig::new(contacting.key.clone(), certificate, addresses);
        let contact = contact(&config, &contacting.addresses, &contacting.fingerprint)
            .await
            .map_err(|error| refused(error.to_string()))?;
        let answer = contact.call(request, ANSWER_WITHIN).await.map_err(|error| match error {
            crate::peers::CallError::Refused(error) => error,
            other => refused(other.to_string()),
        });
        contact.close().await;
        answer
    });
    Ok(joined.await?)
}
