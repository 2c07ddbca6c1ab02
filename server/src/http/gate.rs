//! What every request passes: the host says which site, the origin is checked, bytes are counted, answers get their headers.

use std::{net::SocketAddr, panic::AssertUnwindSafe, sync::Arc, time::Instant};

use axum::{
    Router,
    extract::Request,
    response::{IntoResponse, Redirect, Response},
};
use flotilla_api::{ApiError, ErrorCode};
use futures::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header, uri::Authority};
use tower::ServiceExt;

use super::{
    App,
    answer::Failure,
    meter::{self, Meter},
    site::{self, Site},
};
use crate::{
    assets,
    mesh::nodes::{BULK_PATH, SIGNAL_PATH},
    metrics::Traffic,
};

/// Says up to which entry of the state log an answer is.
const APPLIED_INDEX: HeaderName = HeaderName::from_static("flotilla-applied-index");

/// Who asks, before any token is looked at.
#[derive(Clone, Debug)]
pub(super) struct Asker {
    pub(super) peer: SocketAddr,
    /// As the client wrote it, without the query: what a proof of possession names.
    pub(super) url: String,
}

pub(super) async fn answer(
    app: Arc<App>,
    router: Router,
    peer: SocketAddr,
    meter: Arc<Meter>,
    request: Request,
) -> Response {
    let begun = Instant::now();
    let (traffic, admitted) = match admit(&app, &request) {
        Ok((traffic, site, authority)) => (traffic, Ok((site, authority))),
        Err(error) => (Traffic::Refused, Err(error)),
    };
    meter.begin(traffic);
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let mut response = match admitted {
        Ok((site, authority)) => {
            let reached = reach(&app, router, peer, site, authority, request);
            // A bug in one answer ends that answer alone.
            AssertUnwindSafe(reached).catch_unwind().await.unwrap_or_else(|_| {
                Failure::new(ErrorCode::Internal, "the node failed on this request; its log says where").into_response()
            })
        }
        Err(error) => Failure(error).into_response(),
    };
    finish(&app, traffic, &mut response);
    let status = response.status();
    app.metrics.request(traffic, status.as_u16(), begun.elapsed().as_secs_f64());
    tracing::debug!(%peer, %method, path, status = status.as_u16(), took = ?begun.elapsed(), "answered");
    meter::until_sent(response, meter)
}

/// What other nodes ask for: by whatever name they know this one, as each message and each connection proves itself.
fn of_nodes(path: &str) -> Option<Traffic> {
    match path {
        SIGNAL_PATH => Some(Traffic::Signal),
        BULK_PATH => Some(Traffic::Bulk),
        _ => None,
    }
}

fn admit(app: &App, request: &Request) -> Result<(Traffic, Site, Authority), ApiError> {
    let authority = site::authority_of(request.uri(), request.headers())?;
    if let Some(traffic) = of_nodes(request.uri().path()) {
        return Ok((traffic, Site::Direct, authority));
    }
    let site = app.domain.site(&authority)?;
    let path = request.uri().path();
    let traffic = match site {
        Site::Service(_) => Traffic::Bootstrap,
        Site::App | Site::Direct if is_under(path, "/api") => Traffic::Api,
        Site::App | Site::Direct => match path {
            "/signal" => Traffic::Signal,
            "/healthz" | "/readyz" | "/metrics" => Traffic::Probe,
            _ => Traffic::Bootstrap,
        },
    };
    if matches!(traffic, Traffic::Api | Traffic::Signal | Traffic::Probe) {
        site::check_origin(request.headers(), &authority)?;
    }
    Ok((traffic, site, authority))
}

fn is_under(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

async fn reach(
    app: &App,
    router: Router,
    peer: SocketAddr,
    site: Site,
    authority: Authority,
    mut request: Request,
) -> Response {
    let path = request.uri().path();
    let of_every_node = of_nodes(path).is_some() || matches!(path, "/healthz" | "/readyz" | "/metrics");
    let routed = of_every_node || is_under(path, "/api") || path == "/signal";
    if app.stores_only && !of_every_node {
        return Failure(stores_only()).into_response();
    }
    match site {
        Site::Service(_) => assets::service(request.method(), path, request.headers()),
        Site::App if !routed => assets::app(request.method(), path, request.headers()),
        Site::Direct if !routed => to_dashboard(app, &request),
        Site::App | Site::Direct => {
            let Ok(_busy) = app.requests.try_acquire() else {
                return Failure::new(ErrorCode::RateLimited, "the node answers too many requests just now; try again")
                    .into_response();
            };
            let url = format!("{}://{authority}{path}", app.domain.scheme());
            request.extensions_mut().insert(Asker { peer, url });
            router.oneshot(request).await.unwrap_or_else(|never| match never {})
        }
    }
}

/// All that a machine that only stores says to anybody but the other machines and a collector.
pub(super) fn stores_only() -> ApiError {
    ApiError::new(
        ErrorCode::StorageOnly,
        "this machine only keeps encrypted copies for its cluster and answers nothing else; ask another of its machines",
    )
}

/// Pages have one address, so that what a browser keeps for them (keys, service workers) is in one place.
fn to_dashboard(app: &App, request: &Request) -> Response {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Failure::new(ErrorCode::NotFound, "there is nothing here; the API is under /api/v1").into_response();
    }
    let path = request.uri().path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    Redirect::temporary(&format!("{}{}", app.domain.dashboard_url().trim_end_matches('/'), path)).into_response()
}

/// What the answer itself did not say: assets bring their own policy.
fn finish(app: &App, traffic: Traffic, response: &mut Response) {
    let headers = response.headers_mut();
    if traffic == Traffic::Api {
        headers.insert(APPLIED_INDEX, HeaderValue::from(app.store.state().applied));
    }
    guard(traffic, headers);
}

/// Headers of an answer that did not say otherwise.
pub(super) fn guard(traffic: Traffic, headers: &mut HeaderMap) {
    const NOTHING_LOADS: HeaderValue = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'");
    if traffic != Traffic::Bootstrap {
        default(headers, header::CONTENT_SECURITY_POLICY, NOTHING_LOADS);
        default(headers, header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    default(headers, header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    default(headers, header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
}

fn default(headers: &mut HeaderMap, name: HeaderName, value: HeaderValue) {
    headers.entry(name).or_insert(value);
}
