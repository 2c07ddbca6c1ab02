//! Volumes: who has copies of them, and what they were.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Request, State},
};
use flotilla_api::{
    ErrorCode, NodeId, ServiceName, VolumeName,
    rest::{VolumeDetail, VolumeView},
};
use futures::future::join_all;
use http::{HeaderMap, Method};
use tokio::time::timeout;

use crate::http::{
    App,
    answer::{Answer, Failure, Json, Segment, read_json},
    caller::{Caller, Operator},
    copies,
    forward::{self, OnBehalf},
};

/// How long other machines are waited for that may know more.
const ASKING: Duration = Duration::from_secs(3);

/// Bytes of another machine's answer: some hundred generations.
const DETAIL_MAX: usize = 1024 * 1024;

pub(super) async fn list(State(app): State<Arc<App>>, Operator(_): Operator) -> Json<Vec<VolumeView>> {
    Json(copies::views(&app))
}

/// The longest history that any machine has, and the branches of all.
pub(super) async fn detail(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    Segment((service, volume)): Segment<(ServiceName, VolumeName)>,
    request: Request,
) -> Answer<Json<VolumeDetail>> {
    let own = copies::detail(&app, &service, &volume).await?;
    if request.extensions().get::<OnBehalf>().is_some() {
        return Ok(Json(own));
    }
    let connected = app.members.network().map(|network| network.connected().borrow().clone()).unwrap_or_default();
    let asked = connected.iter().map(|machine| timeout(ASKING, ask(&app, &caller, machine, &service, &volume)));
    let mut detail = own;
    for answered in join_all(asked).await {
        let late = || Err(Failure::new(ErrorCode::Timeout, "it did not answer in time"));
        match answered.unwrap_or_else(|_| late()) {
            Ok(other) => {
                detail.branches.extend(other.branches);
                if other.history.len() > detail.history.len() {
                    (detail.history, detail.read_on) = (other.history, other.read_on);
                }
            }
            Err(Failure(error)) => tracing::debug!(%service, %volume, %error, "a machine was not asked"),
        }
    }
    Ok(Json(detail))
}

async fn ask(
    app: &App,
    caller: &Caller,
    machine: &NodeId,
    service: &ServiceName,
    volume: &VolumeName,
) -> Answer<VolumeDetail> {
    let path = format!("/api/v1/volumes/{service}/{volume}");
    let answer = forward::ask(app, machine, caller, Method::GET, &path, &HeaderMap::new()).await?;
    let answer = forward::refusal(answer).await?;
    read_json(Body::new(answer.into_body()), DETAIL_MAX).await
}
