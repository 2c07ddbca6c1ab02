//! One browser's tunnel: which channels it has, and on whose behalf.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError, RwLock, Weak},
    time::Duration,
};

use flotilla_api::{
    ApiError, ErrorCode, ServiceName,
    frame::{self, Carries, Channel as Label, FRAME_VERSION, Hello, Kind},
    rest::Principal,
};
use tokio::time::timeout;

use super::{
    Channel, Shared,
    lane::Lane,
    mux::{Carried, Mux},
};
use crate::mesh::Client;

/// A channel that was refused is closed once the browser had time to read why.
const REFUSED: Duration = Duration::from_secs(5);

/// The tunnel of one browser session, made by [`super::Tunnel::session`].
pub struct Session {
    pub(super) shared: Arc<Shared>,
    pub(super) client: Client,
    principal: RwLock<Principal>,
    /// One for each service, held by the channels that it has.
    muxes: Mutex<HashMap<ServiceName, Weak<Mux>>>,
    lanes: Mutex<Vec<Weak<Lane>>>,
}

impl Session {
    pub(super) fn new(shared: Arc<Shared>, principal: Principal, client: Client) -> Self {
        let principal = RwLock::new(principal);
        Self { shared, client, principal, muxes: Mutex::default(), lanes: Mutex::default() }
    }

    /// The token was renewed; its grant may be another. Channels that are open stay.
    pub fn renew(&self, principal: Principal) {
        *self.principal.write().unwrap_or_else(PoisonError::into_inner) = principal;
    }

    pub(super) fn principal(&self) -> Principal {
        self.principal.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Serves one data channel until it is closed. The label says for which service and what it carries; the grant is checked.
    ///
    /// Dropping the future ends the channel's streams.
    pub async fn serve(self: &Arc<Self>, channel: Arc<dyn Channel>, label: &str) {
        let (lane, control) = Lane::new(channel);
        self.remember(&lane);
        let refused = match self.admit(label) {
            Ok(label) => {
                let hello = Hello { version: FRAME_VERSION };
                if lane.send_json(Kind::Hello, 0, &hello).await.is_err() {
                    return;
                }
                let carried = async {
                    match label.carries {
                        Carries::Http(kind) => self.mux(&label.service).serve(&lane, kind).await,
                        Carries::WebSocket => {
                            let mux = Mux::new(self, label.service, Carried::WebSocket);
                            Arc::new(mux).serve(&lane, frame::Lane::Interactive).await
                        }
                    }
                };
                tokio::select! {
                    ended = carried => ended,
                    () = lane.carry_control(control) => Ok(()),
                }
            }
            Err(error) => Err(error),
        };
        if let Err(error) = refused {
            tracing::debug!(code = error.code.as_str(), label, "channel refused: {error}");
            self.shared.counters.reset(error.code);
            if lane.send_json(Kind::GoAway, 0, &error).await.is_ok() {
                // Closing discards what is unsent.
                let _ = timeout(REFUSED, async { while lane.recv().await.is_some() {} }).await;
            }
        }
        lane.close().await;
    }

    /// Tells every channel that nothing more is answered, and closes it.
    pub async fn go_away(&self, error: &ApiError) {
        let lanes: Vec<_> = self.lock_lanes().iter().filter_map(Weak::upgrade).collect();
        futures::future::join_all(lanes.iter().map(|lane| lane.go_away(error))).await;
    }

    fn admit(&self, label: &str) -> Result<Label, ApiError> {
        let label: Label = label.parse().map_err(|why: String| ApiError::new(ErrorCode::FrameInvalid, why))?;
        let principal = self.principal();
        if !principal.grant.opens(&label.service) {
            return Err(ApiError::new(
                ErrorCode::ScopeInsufficient,
                format!("your token does not open `{}`; ask an administrator for access", label.service),
            ));
        }
        // Names of services that do not exist must not become labels of metrics, nor cost a table.
        self.shared.backends.check(&label.service).map(|()| label)
    }

    fn mux(self: &Arc<Self>, service: &ServiceName) -> Arc<Mux> {
        let mut muxes = self.muxes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mux) = muxes.get(service).and_then(Weak::upgrade) {
            return mux;
        }
        muxes.retain(|_, mux| mux.strong_count() > 0);
        let mux = Arc::new(Mux::new(self, service.clone(), Carried::Http));
        muxes.insert(service.clone(), Arc::downgrade(&mux));
        mux
    }

    fn remember(&self, lane: &Arc<Lane>) {
        let mut lanes = self.lock_lanes();
        lanes.retain(|lane| lane.strong_count() > 0);
        lanes.push(Arc::downgrade(lane));
    }

    fn lock_lanes(&self) -> std::sync::MutexGuard<'_, Vec<Weak<Lane>>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("principal", &self.principal().name).finish_non_exhaustive()
    }
}
