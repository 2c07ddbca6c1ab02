//! Tokens and invitations.

use std::sync::Arc;

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use flotilla_api::{
    TokenId,
    rest::{
        BindToken, CreateInvitation, CreateToken, CreatedInvitation, CreatedToken, IssuedToken, RedeemInvitation,
        TokenView,
    },
};
use http::StatusCode;

use crate::{
    auth::{Issued, Wanted},
    http::{
        App,
        answer::{Answer, Json, Segment},
        caller::{Admin, Caller},
        gate::Asker,
    },
};

pub(super) async fn list(State(app): State<Arc<App>>, Admin(_): Admin) -> Json<Vec<TokenView>> {
    let state = app.store.state();
    let mut tokens: Vec<_> = state
        .tokens
        .values()
        .map(|token| TokenView {
            id: token.id.clone(),
            name: token.name.clone(),
            grant: token.grant.clone(),
            created_at: token.created_at,
            expires_at: token.expires_at,
            revoked_at: token.revoked_at,
            bound_to: token.bound_to.clone(),
        })
        .collect();
    // Newest first: ids are random and say nothing.
    tokens.sort_by(|a, b| b.created_at.cmp(&a.created_at).then_with(|| a.id.cmp(&b.id)));
    Json(tokens)
}

pub(super) async fn create(
    State(app): State<Arc<App>>,
    Admin(caller): Admin,
    Json(request): Json<CreateToken>,
) -> Answer<Response> {
    let wanted = Wanted { name: request.name, grant: request.grant, life_ms: request.ttl_seconds.saturating_mul(1000) };
    let Issued { token, principal } = app.authority.issue(caller.actor(), wanted).await?;
    let created = CreatedToken { id: principal.token, token, expires_at: principal.expires_at };
    Ok((StatusCode::CREATED, Json(created)).into_response())
}

pub(super) async fn revoke(
    State(app): State<Arc<App>>,
    Admin(caller): Admin,
    Segment(id): Segment<TokenId>,
) -> Answer<StatusCode> {
    app.authority.revoke(caller.actor(), id).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn renew(State(app): State<Arc<App>>, caller: Caller) -> Answer<Json<IssuedToken>> {
    app.authority.renew(caller.from(), &caller.principal).await.map(issued).map_err(Into::into)
}

pub(super) async fn bind(
    State(app): State<Arc<App>>,
    caller: Caller,
    Json(request): Json<BindToken>,
) -> Answer<Json<IssuedToken>> {
    let bound = app.authority.bind(caller.from(), &caller.principal, &request.key, &request.device).await?;
    Ok(issued(bound))
}

pub(super) async fn invite(
    State(app): State<Arc<App>>,
    Admin(caller): Admin,
    Json(request): Json<CreateInvitation>,
) -> Answer<Response> {
    let wanted = Wanted { name: request.name, grant: request.grant, life_ms: request.ttl_seconds.saturating_mul(1000) };
    let invited = app.authority.invite(caller.actor(), wanted).await?;
    let created = CreatedInvitation {
        url: app.domain.invitation_url(&invited.invitation),
        id: invited.id,
        expires_at: invited.expires_at,
    };
    Ok((StatusCode::CREATED, Json(created)).into_response())
}

/// The one route that takes no token: the invitation stands for it.
pub(super) async fn redeem(
    State(app): State<Arc<App>>,
    asker: Asker,
    Json(request): Json<RedeemInvitation>,
) -> Answer<Json<IssuedToken>> {
    let address = asker.peer.ip();
    app.attempts.redeeming(address)?;
    let redeemed =
        app.authority.redeem(Some(address.to_string()), &request.invitation, &request.key, &request.device).await?;
    Ok(issued(redeemed))
}

fn issued(Issued { token, principal }: Issued) -> Json<IssuedToken> {
    Json(IssuedToken { token, principal })
}
