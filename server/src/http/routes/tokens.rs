//! Tokens and invitations.

use std::sync::Arc;

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use flotilla_api::{
    ErrorCode, JoinToken, Scope, TokenId,
    join::JOIN_ADDRESSES_MAX,
    rest::{
        BindToken, CreateInvitation, CreateToken, CreatedInvitation, CreatedToken, IssuedToken, JoinHint,
        RedeemInvitation, TokenView,
    },
};
use flotilla_core::state::MACHINES_MAX;
use http::StatusCode;

use crate::{
    auth::{Issued, Wanted},
    cluster::{facts, join},
    http::{
        App,
        answer::{Answer, Failure, Json, Segment},
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
            unused: false,
        })
        .collect();
    let open = state.invitations.values().filter(|invitation| invitation.used_at.is_none());
    tokens.extend(open.map(|invitation| TokenView {
        id: invitation.id.clone(),
        name: invitation.name.clone(),
        grant: invitation.grant.clone(),
        created_at: invitation.created_at,
        expires_at: invitation.expires_at,
        revoked_at: None,
        bound_to: None,
        unused: true,
    }));
    // Newest first: ids are random and say nothing.
    tokens.sort_by(|a, b| b.created_at.cmp(&a.created_at).then_with(|| a.id.cmp(&b.id)));
    Json(tokens)
}

pub(super) async fn create(
    State(app): State<Arc<App>>,
    Admin(caller): Admin,
    Json(request): Json<CreateToken>,
) -> Answer<Response> {
    let wanted = Wanted {
        name: request.name,
        grant: request.grant,
        life_ms: request.ttl_seconds.saturating_mul(1000),
        stores_only: request.storage_only,
    };
    if wanted.stores_only && wanted.grant.scope != Scope::Machine {
        let message =
            "only a machine can be one that only stores; leave `storage_only` out, or ask for the scope `machine`";
        return Err(Failure::new(ErrorCode::InvalidRequest, message));
    }
    if wanted.grant.scope == Scope::Machine {
        return create_join_token(&app, &caller, wanted).await;
    }
    let Issued { token, principal } = app.authority.issue(caller.actor(), wanted).await?;
    let created = CreatedToken { id: principal.token, token, expires_at: principal.expires_at, join: None };
    Ok((StatusCode::CREATED, Json(created)).into_response())
}

/// A machine has a key of its own and needs no bearer token: it is invited, once.
async fn create_join_token(app: &App, caller: &Caller, wanted: Wanted) -> Answer<Response> {
    let state = app.store.state();
    if state.machines.len() >= MACHINES_MAX {
        return Err(Failure::new(
            ErrorCode::Conflict,
            format!("a cluster has at most {MACHINES_MAX} machines; remove one with `flotilla machine rm` first"),
        ));
    }
    let missing = || Failure::new(ErrorCode::Internal, "the node has no cluster; make one with `flotilla init`");
    let cluster = state.cluster.as_ref().ok_or_else(missing)?;
    let fingerprint = join::fingerprint(cluster).ok_or_else(missing)?;
    let addresses = addresses(app, &state);
    let invited = app.authority.invite(caller.actor(), wanted).await?;
    let secret = invited.invitation.split_once('.').map_or("", |(_, secret)| secret);
    let token = JoinToken {
        cluster: cluster.id.clone(),
        name: cluster.name.clone(),
        fingerprint,
        addresses: addresses.clone(),
        invitation: invited.id.clone(),
        secret: secret.to_owned(),
        expires_at: invited.expires_at,
    };
    let token = token.to_string();
    let warning = addresses.iter().all(|address| facts::is_local(address)).then(|| {
        "Only this machine reaches the address in the token; start its node with `--listen 0.0.0.0:7070` to let others join.".to_owned()
    });
    let join = Some(JoinHint { command: format!("sudo flotilla join {token}"), addresses, warning });
    let created = CreatedToken { id: invited.id, token, expires_at: invited.expires_at, join };
    Ok((StatusCode::CREATED, Json(created)).into_response())
}

/// Where a new machine may find the cluster: this machine first, then the others. Those that lead nowhere from another machine are
/// left out, unless there are no others.
fn addresses(app: &App, state: &flotilla_core::State) -> Vec<String> {
    let others = state.machines.iter().filter(|(id, machine)| **id != app.node && machine.lost_at.is_none());
    let mut addresses = facts::reachable(app.listening);
    for address in others.flat_map(|(_, machine)| &machine.facts.addresses) {
        if !addresses.contains(address) {
            addresses.push(address.clone());
        }
    }
    if !addresses.iter().all(|address| facts::is_local(address)) {
        addresses.retain(|address| !facts::is_local(address));
    }
    addresses.truncate(JOIN_ADDRESSES_MAX);
    addresses
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
    if request.grant.scope == Scope::Machine {
        let message =
            "a machine joins with a join token, not with a link; make one with `flotilla token create --scope machine`";
        return Err(Failure::new(ErrorCode::InvalidRequest, message));
    }
    let wanted = Wanted {
        name: request.name,
        grant: request.grant,
        life_ms: request.ttl_seconds.saturating_mul(1000),
        stores_only: false,
    };
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
