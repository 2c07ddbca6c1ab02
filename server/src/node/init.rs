//! `flotilla init`: makes a cluster of this one machine, without a running daemon.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

use flotilla_api::{Grant, MachineName, NodeId, StackName};
use flotilla_core::{
    Actor, Command, CommandV1, Entry,
    command::{ClusterRecord, MachineRecord},
};
use rand::RngExt;

use super::Error;
use crate::{
    auth::{Authority, Wanted},
    clock,
    http::Domain,
    identity::{self, DataDir, Identity, hexadecimal},
    mesh::Certificate,
    store::Store,
    vault,
};

/// How long the first invitation works: a person makes a cluster and opens the link. Milliseconds.
pub const FIRST_INVITATION_MS: u64 = 24 * 3600 * 1000;

/// Life of the token that `init` hands out where it is asked to. Milliseconds.
pub const ADMIN_TOKEN_MS: u64 = 365 * 24 * 3600 * 1000;

/// What a new cluster shall be.
#[derive(Clone, Debug)]
pub struct Init {
    pub data_dir: PathBuf,
    /// The dashboard will live at `app.<cluster>.localhost`.
    pub cluster: StackName,
    pub machine: MachineName,
    /// Where the node will listen and be found: what the invitation's link names.
    pub listen: SocketAddr,
    pub domain: Option<String>,
    /// The listener will speak HTTPS.
    pub secure: bool,
    /// Issue a bearer token for scripts, too.
    pub with_token: bool,
}

#[derive(Clone, Debug)]
pub struct Initialised {
    pub cluster_id: String,
    pub node: NodeId,
    pub dashboard_url: String,
    /// Works once, and for [`FIRST_INVITATION_MS`].
    pub invitation_url: String,
    /// Shown once and kept nowhere.
    pub admin_token: Option<String>,
}

/// Makes keys, the first entries of the state log, and an invitation for the first administrator.
///
/// # Errors
/// A directory that has a cluster, or that a daemon uses.
pub async fn init(wanted: Init) -> Result<Initialised, Error> {
    let directory = DataDir::open(&wanted.data_dir)?;
    let identity = Identity::create(&directory, webrtc_certificate)?;
    vault::create_key(&directory)?;
    let store = Store::open(&directory.state(), &identity.node_id()).await?;
    let made = begin(&wanted, &directory, &identity, &store).await;
    store.close().await;
    made
}

fn webrtc_certificate() -> Result<String, String> {
    Certificate::generate().and_then(|certificate| certificate.to_pem()).map_err(|error| error.to_string())
}

async fn begin(wanted: &Init, directory: &DataDir, identity: &Identity, store: &Store) -> Result<Initialised, Error> {
    let actor = Actor { name: "init".to_owned(), token: None, from: None };
    let state = store.state();
    let cluster_id = match &state.cluster {
        None => make_cluster(wanted, identity, store, actor.clone()).await?,
        // An `init` that was cut short before anybody was invited is finished; otherwise nobody could ever sign in.
        Some(cluster) if state.tokens.is_empty() && state.invitations.is_empty() && cluster.name == wanted.cluster => {
            cluster.id.clone()
        }
        Some(_) => {
            return Err(identity::Error::AlreadyInitialised { path: directory.path().to_owned() }.into());
        }
    };
    let authority = Authority::new(store.clone(), &cluster_id, &identity.cluster)?;
    let administrator =
        |life_ms| Wanted { name: "administrator".to_owned(), grant: Grant::admin(), life_ms, stores_only: false };
    let invited = authority.invite(actor.clone(), administrator(FIRST_INVITATION_MS)).await?;
    let admin_token =
        if wanted.with_token { Some(authority.issue(actor, administrator(ADMIN_TOKEN_MS)).await?.token) } else { None };
    let domain = Domain::new(wanted.domain.as_deref(), wanted.cluster.as_str(), wanted.listen, wanted.secure);
    Ok(Initialised {
        cluster_id,
        node: identity.node_id(),
        dashboard_url: domain.dashboard_url(),
        invitation_url: domain.invitation_url(&invited.invitation),
        admin_token,
    })
}

async fn make_cluster(wanted: &Init, identity: &Identity, store: &Store, actor: Actor) -> Result<String, Error> {
    let cluster = ClusterRecord {
        id: hexadecimal(&rand::rng().random::<[u8; 16]>()),
        name: wanted.cluster.clone(),
        token_key: identity.cluster_key(),
    };
    let machine = MachineRecord {
        id: identity.node_id(),
        name: wanted.machine.clone(),
        public_key: identity.node_key(),
        labels: BTreeMap::new(),
    };
    let id = cluster.id.clone();
    let command = Command::V1(CommandV1::Init { cluster, machine });
    store.propose(Entry { at: clock::now(), actor, command }).await.map_err(|error| Error::Rejected(error.into()))?;
    Ok(id)
}
