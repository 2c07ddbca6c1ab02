//! `POST /deployments`: a compose file becomes services. Its images are here before anything changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use axum::extract::{Request, State};
use flotilla_api::{
    ErrorCode,
    rest::{COMPOSE_MAX, DEPLOYED_VALUES_MAX, DeployRequest, DeployResponse, Deployed},
    spec::ServiceSpec,
};
use flotilla_core::{
    Actor, Command, CommandV1, Entry, Outcome,
    compose::{self, DeclaredValue, ValueSource},
};
use futures::{StreamExt, TryStreamExt, stream};

use super::{images, values};
use crate::{
    clock,
    http::{
        App,
        answer::{Answer, Failure, Json, check_is_json, read_json},
        caller::{Caller, Operator},
    },
    vault::{Opened, Vault},
};

/// A compose file as a JSON string may have each byte escaped (`\u0000`), and variables and values besides.
const DEPLOYMENT_MAX: usize = 6 * COMPOSE_MAX + 256 * 1024 + DEPLOYED_VALUES_MAX.div_ceil(3) * 4;

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
    let brought = brought(&request, &composition.values)?;
    let compose::Composition { stack, mut services, .. } = composition;
    let deploy = |services: &[ServiceSpec]| CommandV1::Deploy { stack: stack.clone(), services: services.to_vec() };

    // What the state would refuse is told before an image is pulled.
    check(&app, caller.actor(), &brought, deploy(&services)).await?;
    let named = services.iter().map(|service| service.image.clone()).collect();
    let ids = find_images(&app, &caller, named, request.dry_run).await?;
    // A tag means what it means now: when it moves, that is another revision.
    for service in &mut services {
        service.image_id = ids.get(&service.image).cloned().flatten();
    }
    let command = deploy(&services);
    let outcome = if request.dry_run {
        check(&app, caller.actor(), &brought, command).await?
    } else {
        // The deployment takes the newest of each; what else uses them is no part of it.
        for (declared, plain) in &brought {
            app.vault.set(&caller.actor(), (declared.kind, &declared.name), plain, false).await?;
        }
        if services.iter().any(ServiceSpec::needs_key) {
            app.vault.need_key(&caller.actor()).await?;
        }
        app.propose(caller.actor(), command).await?
    };
    let Outcome::Deployed(services) = outcome else {
        return Err(Failure::new(ErrorCode::Internal, "the state answered a deployment with something else"));
    };
    let with_url = |deployed: Deployed| Deployed { url: app.url_of(&deployed.service), ..deployed };
    Ok(Json(DeployResponse { stack, services: services.into_iter().map(with_url).collect() }))
}

/// What the state would say to the values, and then to the deployment.
async fn check(app: &App, actor: Actor, brought: &[Brought<'_>], command: CommandV1) -> Answer<Outcome> {
    let entry = |command| Entry { at: clock::now(), actor: actor.clone(), command: Command::V1(command) };
    let mut state = flotilla_core::State::clone(&app.store.state());
    let needs_key =
        matches!(&command, CommandV1::Deploy { services, .. } if services.iter().any(ServiceSpec::needs_key));
    if let Some(command) = Vault::draft_key(&state).filter(|_| needs_key) {
        state.apply(&entry(command)).map_err(|rejected| rejected.0)?;
    }
    for (declared, plain) in brought {
        if let Some(command) = app.vault.draft(&state, (declared.kind, &declared.name), plain).await? {
            state.apply(&entry(command)).map_err(|rejected| rejected.0)?;
        }
    }
    Ok(state.apply(&entry(command)).map_err(|rejected| rejected.0)?.outcome)
}

/// A value that comes with the deployment.
type Brought<'a> = (&'a DeclaredValue, Opened);

/// The values that the file declares and the request brings. One that it does not bring has to be there already.
fn brought<'a>(request: &DeployRequest, declared: &'a [DeclaredValue]) -> Answer<Vec<Brought<'a>>> {
    let mut brought = Vec::new();
    for it in declared {
        let sent = request.values.iter().find(|sent| sent.kind == it.kind && sent.key == it.key);
        match (&it.source, sent) {
            (ValueSource::Content(text), _) => brought.push((it, Opened::new(text.clone().into_bytes()))),
            (_, Some(sent)) => brought.push((it, values::decode(&sent.value)?)),
            (_, None) => {}
        }
    }
    Ok(brought)
}

/// The engine's id of each image: of the cluster's machines, or from its registry. A dry run asks there whether it has it, as that is most of
/// what can be wrong, and leaves the rest to the deployment.
async fn find_images(
    app: &App,
    caller: &Caller,
    named: BTreeSet<String>,
    dry_run: bool,
) -> Answer<BTreeMap<String, Option<String>>> {
    let limit = app.config.limits.pull();
    let find = async |image: String| {
        if let Some(known) = images::meaning(app, caller, &image).await {
            return Ok((image, Some(known.id)));
        }
        if dry_run {
            let found = app.engine.find_image(&image).await?;
            return Ok((image, found));
        }
        let pulled = app.engine.ensure_image(&image, |progress| tracing::debug!("{}", progress.sentence(&image))).await;
        pulled.map(|id| (image, Some(id))).map_err(Failure::from)
    };
    let all = stream::iter(named).map(find).buffer_unordered(IMAGES_AT_ONCE).try_collect();
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
