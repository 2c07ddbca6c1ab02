//! Whoever sent a request, as an argument of the route that answers it: a route can't forget to ask.

use std::{net::IpAddr, sync::Arc};

use axum::extract::FromRequestParts;
use flotilla_api::{ErrorCode, rest::Principal};
use flotilla_core::Actor;
use http::request::Parts;

use super::{
    App,
    answer::{Answer, Failure},
    forward::OnBehalf,
    gate::Asker,
};
use crate::auth::{self, Presented};

/// The holder of any valid token.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub(super) principal: Principal,
    pub(super) peer: IpAddr,
}

/// The holder of a token that sees and changes services.
#[derive(Clone, Debug)]
pub(super) struct Operator(pub(super) Caller);

/// The holder of a token that makes and revokes tokens.
#[derive(Clone, Debug)]
pub(super) struct Admin(pub(super) Caller);

impl Caller {
    pub(super) fn from(&self) -> Option<String> {
        Some(self.peer.to_string())
    }

    pub(super) fn actor(&self) -> Actor {
        auth::actor_of(&self.principal, self.from())
    }

    /// Resolves when the token is revoked or expires: what takes long ends then, too.
    pub(super) async fn allowed_until(&self, app: &App) {
        app.authority.ended(&self.principal).await;
    }

    async fn authenticate(parts: &Parts, app: &App) -> Answer<Self> {
        // Set on a stream of another member alone, which verified the caller.
        if let Some(OnBehalf { principal, peer }) = parts.extensions.get() {
            return Ok(Self { principal: principal.clone(), peer: *peer });
        }
        let asker = asker(parts)?;
        let peer = asker.peer.ip();
        let verify = |presented| app.authority.verify(presented, parts.method.as_str(), &asker.url);
        let verified = match Presented::in_headers(&parts.headers) {
            Err(error) => Err(error),
            Ok(presented) => match verify(presented) {
                Err(auth::Error::Rejected(_)) if app.authority.learns(presented.token()).await => verify(presented),
                verified => verified,
            },
        };
        match verified {
            Ok(principal) => Ok(Self { principal, peer }),
            Err(error) => {
                app.attempts.failed(peer)?;
                Err(error.into())
            }
        }
    }

    fn insufficient(&self, needed: &str) -> Failure {
        Failure::new(
            ErrorCode::ScopeInsufficient,
            format!(
                "this needs a token with the scope {needed}, and this one has the scope {}; ask an administrator",
                self.principal.grant.scope
            ),
        )
    }
}

pub(super) fn asker(parts: &Parts) -> Answer<&Asker> {
    parts
        .extensions
        .get::<Asker>()
        .ok_or_else(|| Failure::new(ErrorCode::Internal, "the request did not come through the listener"))
}

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Answer<Self> {
        Self::authenticate(parts, app).await
    }
}

impl FromRequestParts<Arc<App>> for Operator {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Answer<Self> {
        let caller = Caller::authenticate(parts, app).await?;
        if !caller.principal.grant.operates() {
            return Err(caller.insufficient("operator or admin"));
        }
        Ok(Self(caller))
    }
}

impl FromRequestParts<Arc<App>> for Admin {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Answer<Self> {
        let caller = Caller::authenticate(parts, app).await?;
        if !caller.principal.grant.administers() {
            return Err(caller.insufficient("admin"));
        }
        Ok(Self(caller))
    }
}

impl<S: Sync> FromRequestParts<S> for Asker {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Answer<Self> {
        asker(parts).cloned()
    }
}
