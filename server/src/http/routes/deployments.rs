//! `POST /deployments`: a compose file becomes services. Its images are here before anything changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use axum::extract::{Request, State};
use flotilla_api::{
    ErrorCode,
    rest::{COMPOSE_MAX, DeployRequest, DeployResponse, Deployed},
    spec::ServiceSpec,
};
use flotilla_core::{Actor, Command, CommandV1, Entry, Outcome, compose};
use futures::{StreamExt, TryStreamExt, stream};

use super::images;
use crate::{
    clock,
    http::{
        App,
        answer::{Answer, Failure, Json, check_is_json, read_json},
        caller::{Caller, Operator},
    },
};

/// A compose file as a JSON string may have each byte escaped (`\u0000`), and variables besides.
const DEPLOYMENT_MAX: usize = 6 * COMPOSE_MAX + 256 * 1024;

/// Images of one deployment that are looked for at once.
const IMAGES_AT_ONCE: usize = 3;

pub(super) async fn deploy(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    request: Request,
) -> Answer<Json<DeployResponse>> {
    check_is_json(&request)?;
    let arriving = read_json::<DeployRequest>(request.into_body(), DEPLOYMENT_MAX);
    let request = tokio::time::timeout(app.request_timeout(), arriving)
        .await
        .map_err(|_| Failure::new(ErrorCode::Timeout, "the compose file did not arrive in time; send it again"))??;
    let composition = compose::read(&request.compose, request.stack.as_deref(), &request.variables)?;
    let compose::Composition { stack, mut services, .. } = composition;
    let deploy = |services: &[ServiceSpec]| CommandV1::Deploy { stack: stack.clone(), services: services.to_vec() };

    // What the state would refuse is told before an image is pulled.
    check(&app, caller.actor(), deploy(&services))?;
    let named = services.iter().map(|service| service.image.clone()).collect();
    let ids = find_images(&app, &caller, named).await?;
    // A tag means what it means now: when it moves, that is another revision.
    for service in &mut services {
        service.image_id = ids.get(&service.image).cloned();
    }
    let command = deploy(&services);
    let outcome = if request.dry_run {
        check(&app, caller.actor(), command)?
    } else {
        app.propose(caller.actor(), command).await?
    };
    let Outcome::Deployed(services) = outcome else {
        return Err(Failure::new(ErrorCode::Internal, "the state answered a deployment with something else"));
    };
    let with_url = |deployed: Deployed| Deployed { url: app.url_of(&deployed.service), ..deployed };
    Ok(Json(DeployResponse { stack, services: services.into_iter().map(with_url).collect() }))
}

fn check(app: &App, actor: Actor, command: CommandV1) -> Answer<Outcome> {
    let entry = Entry { at: clock::now(), actor, command: Command::V1(command) };
    Ok(app.store.state().check(&entry).map_err(|rejected| rejected.0)?.outcome)
}

/// The engine's id of each image: of the cluster's machines, or from its registry. A dry run looks, too: that an image exists is
/// most of what can be wrong.
async fn find_images(app: &App, caller: &Caller, named: BTreeSet<String>) -> Answer<BTreeMap<String, String>> {
    let limit = app.config.limits.pull();
    let find = async |image: String| {
        if let Some(known) = images::meaning(app, caller, &image).await {
            return Ok((image, known.id));
        }
        let pulled = app.engine.ensure_image(&image, |progress| tracing::debug!("{}", progress.sentence(&image))).await;
        pulled.map(|id| (image, id)).map_err(Failure::from)
    };
    let all = stream::iter(named).map(find).buffer_unordered(IMAGES_AT_ONCE).try_collect::<BTreeMap<String, String>>();
    // Dropping it ends the pulls: the engine stops when nobody reads their progress.
    tokio::time::timeout(limit, all).await.map_err(|_| {
        Failure::new(
            ErrorCode::Timeout,
            format!(
                "the images were not here within {} s, and nothing was changed; deploy again to go on, or raise limits.pull_seconds",
                limit.as_secs()
            ),
        )
    })?
}
