//! Waits until what was deployed is healthy, or says why it is not.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use flotilla_api::{
    ServiceName,
    rest::{Deployed, LogQuery, LogStream, ServiceState, ServiceView},
    spec::ServiceSpec,
};
use futures::StreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

use super::{Failure, Session};
use crate::client::{Client, Error};

/// How often the node is asked. It answers from memory.
const ASK_EVERY: Duration = Duration::from_millis(200);

/// A service that ended so often in this wait will hardly stay up at the next try.
const RESTARTS_MAX: u32 = 3;

/// A service without a health check must run this long: many that can't work end within their first second.
const STEADY: Duration = Duration::from_millis(1500);

/// Lines of output that are shown of a service that failed.
const LOG_LINES: u32 = 10;

/// How long those lines may take to come: they are an extra, and the failure must be told.
const LOG_TIMEOUT: Duration = Duration::from_secs(5);

/// What a look at a service tells.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    Healthy,
    /// Not yet; in what state it is.
    Pending(&'static str),
    /// It will not get there by itself.
    Failed(String),
}

/// What was seen last of a service that is waited for.
struct Pending {
    state: &'static str,
    why: Option<String>,
}

/// `restarts`: those of the instances when the wait began.
fn judge(deployed: &Deployed, view: Option<&ServiceView>, restarts: u32) -> Verdict {
    let Some(view) = view else { return Verdict::Failed("it was removed meanwhile".into()) };
    if view.revision > deployed.revision {
        return Verdict::Failed(format!("revision {} took its place meanwhile", view.revision));
    }
    if view.revision < deployed.revision {
        return Verdict::Pending("waiting");
    }
    let current = || view.instances.iter().filter(|instance| instance.revision == deployed.revision);
    let why = || {
        let of_instance = || current().find_map(|instance| instance.message.clone());
        view.message.clone().or_else(of_instance)
    };
    match view.state {
        ServiceState::Stopped if view.replicas == 0 => Verdict::Healthy,
        ServiceState::Completed => Verdict::Healthy,
        ServiceState::Running => {
            let running = current().filter(|instance| instance.state == ServiceState::Running).count();
            if running >= view.replicas as usize { Verdict::Healthy } else { Verdict::Pending("starting") }
        }
        ServiceState::Failed => Verdict::Failed(why().unwrap_or_else(|| "it could not be started".into())),
        // Of the instance before: the health of a new one is `Starting` first.
        ServiceState::Unhealthy if current().any(|instance| instance.state == ServiceState::Unhealthy) => {
            Verdict::Failed(why().unwrap_or_else(|| "its health check fails".into()))
        }
        ServiceState::Restarting if all_restarts(view) >= restarts + RESTARTS_MAX => {
            Verdict::Failed(why().unwrap_or_else(|| "it ends again and again".into()))
        }
        state => Verdict::Pending(state.as_str()),
    }
}

fn all_restarts(view: &ServiceView) -> u32 {
    view.instances.iter().map(|instance| instance.restarts).sum()
}

/// What is waited for.
#[derive(Clone, Debug)]
pub(crate) struct Awaited {
    deployed: Deployed,
    /// How long it must be well without a break.
    steady: Duration,
}

impl Awaited {
    /// `specs`: those that the file asked for, which tell whether a service has a health check.
    pub(crate) fn all(deployed: &[Deployed], specs: &[ServiceSpec]) -> Vec<Self> {
        let checked = |service: &ServiceName| {
            let spec = specs.iter().find(|spec| spec.name == *service);
            spec.and_then(|spec| spec.health.as_ref()).is_some_and(|health| health.test != ["NONE"])
        };
        let awaited = |one: &Deployed| Self {
            deployed: one.clone(),
            steady: if checked(&one.service) { Duration::ZERO } else { STEADY },
        };
        deployed.iter().map(awaited).collect()
    }
}

/// Returns once all are healthy.
///
/// # Errors
/// [`Failure::NotHealthy`] with the reason and the last lines of output.
pub(crate) async fn until_healthy(session: &Session, awaited: &[Awaited], timeout: Duration) -> Result<(), Failure> {
    let deadline = Instant::now() + timeout;
    let mut progress = Progress::new(session);
    let mut waiting: BTreeMap<&ServiceName, &Awaited> =
        awaited.iter().map(|one| (&one.deployed.service, one)).collect();
    let mut well_since: BTreeMap<&ServiceName, Instant> = BTreeMap::new();
    let mut restarts: BTreeMap<ServiceName, u32> = BTreeMap::new();
    let mut states: BTreeMap<&ServiceName, Pending> = BTreeMap::new();
    loop {
        match tokio::time::timeout_at(deadline, session.client.services()).await {
            Ok(Ok(views)) => {
                for (service, one) in waiting.clone() {
                    let view = views.iter().find(|view| view.service == *service);
                    let before = *restarts.entry(service.clone()).or_insert_with(|| view.map_or(0, all_restarts));
                    match judge(&one.deployed, view, before) {
                        Verdict::Healthy => {
                            if well_since.entry(service).or_insert_with(Instant::now).elapsed() >= one.steady {
                                waiting.remove(service);
                                progress.tell(service, "healthy");
                            }
                        }
                        Verdict::Pending(state) => {
                            well_since.remove(service);
                            let pending = Pending { state, why: view.and_then(|view| view.message.clone()) };
                            if states.insert(service, pending).is_none_or(|before| before.state != state) {
                                progress.tell(service, state);
                            }
                        }
                        Verdict::Failed(why) => {
                            progress.end();
                            let sentence = format!("`{service}` did not get healthy: {}", why.trim_end_matches('.'));
                            let logs = last_lines(&session.client, service).await;
                            return Err(Failure::NotHealthy { sentence, logs });
                        }
                    }
                }
                progress.remaining(waiting.keys().copied());
            }
            // A node that is restarted meanwhile carries on with the deployment.
            Ok(Err(error)) if error.is_transient() => {}
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => {}
        }
        if waiting.is_empty() {
            progress.end();
            return Ok(());
        }
        if tokio::time::timeout_at(deadline, tokio::time::sleep(ASK_EVERY)).await.is_err() {
            progress.end();
            return Err(timed_out(session, &waiting, &states, timeout).await);
        }
    }
}

async fn timed_out(
    session: &Session,
    waiting: &BTreeMap<&ServiceName, &Awaited>,
    states: &BTreeMap<&ServiceName, Pending>,
    timeout: Duration,
) -> Failure {
    let names: BTreeSet<String> = waiting
        .keys()
        .map(|service| match states.get(service) {
            Some(Pending { state, why: Some(why) }) => format!("`{service}` ({state}: {why})"),
            Some(Pending { state, why: None }) => format!("`{service}` ({state})"),
            None => format!("`{service}`"),
        })
        .collect();
    let names: Vec<_> = names.into_iter().collect();
    let sentence = format!(
        "{} did not get healthy within {}; it goes on trying, `flotilla ps` shows how",
        names.join(", "),
        humantime::format_duration(timeout)
    );
    let logs = match waiting.keys().next() {
        Some(service) => last_lines(&session.client, service).await,
        None => Vec::new(),
    };
    Failure::NotHealthy { sentence, logs }
}

async fn last_lines(client: &Client, service: &ServiceName) -> Vec<String> {
    let read = async {
        let query = LogQuery { follow: false, tail: Some(LOG_LINES), since: None };
        let lines: Vec<_> = client.logs(service, query).await?.take(LOG_LINES as usize).collect().await;
        Ok::<_, Error>(lines.into_iter().filter_map(Result::ok).map(|line| match line.stream {
            LogStream::Out => line.text,
            LogStream::Err => format!("! {}", line.text),
        }))
    };
    match tokio::time::timeout(LOG_TIMEOUT, read).await {
        Ok(Ok(lines)) => lines.collect(),
        _ => Vec::new(),
    }
}

/// A line that turns, on a terminal; nothing elsewhere.
struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    fn new(session: &Session) -> Self {
        let bar = session.output.draws_progress().then(|| {
            let style = ProgressStyle::with_template("{spinner:.cyan} {msg} {elapsed:.dim}");
            let bar = ProgressBar::new_spinner().with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self { bar }
    }

    fn tell(&self, service: &ServiceName, state: &str) {
        if let Some(bar) = &self.bar {
            bar.println(format!("{service}: {state}"));
        }
    }

    fn remaining<'s>(&self, services: impl Iterator<Item = &'s ServiceName>) {
        if let Some(bar) = &self.bar {
            let names: Vec<&str> = services.map(ServiceName::as_str).collect();
            bar.set_message(format!("Waiting for {}", names.join(", ")));
        }
    }

    fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use flotilla_api::{InstanceId, Revision, UnixMillis, rest::InstanceView};

    use super::*;

    fn deployed(revision: u64) -> Deployed {
        Deployed { service: "notes".parse().unwrap(), revision: Revision(revision), url: None, changed: true }
    }

    fn view(state: ServiceState, revision: u64, instances: &[(ServiceState, u64, u32)]) -> ServiceView {
        let instance = |&(state, revision, restarts): &(ServiceState, u64, u32)| InstanceView {
            id: InstanceId("notes-1-0-x".into()),
            machine: "here".parse().unwrap(),
            replica: 1,
            epoch: 1,
            revision: Revision(revision),
            state,
            message: None,
            container: None,
            since: UnixMillis(0),
            started_at: None,
            restarts,
            exit_code: None,
            cpu_cores_used: None,
            memory_used_bytes: None,
        };
        ServiceView {
            service: "notes".parse().unwrap(),
            stack: "notes".parse().unwrap(),
            machine: None,
            state,
            message: None,
            revision: Revision(revision),
            url: None,
            image: "notes".into(),
            replicas: 1,
            epoch: Some(1),
            since: UnixMillis(0),
            observed_at: UnixMillis(0),
            instances: instances.iter().map(instance).collect(),
        }
    }

    #[test]
    fn a_service_is_healthy_once_instances_of_its_new_revision_run() {
        use ServiceState::{Completed, Running, Starting, Unhealthy};
        for (view, verdict) in [
            (view(Running, 2, &[(Running, 2, 0)]), Verdict::Healthy),
            (view(Completed, 2, &[]), Verdict::Healthy),
            (view(Running, 2, &[(Running, 1, 0)]), Verdict::Pending("starting")),
            (view(Running, 1, &[(Running, 1, 0)]), Verdict::Pending("waiting")),
            (view(Starting, 2, &[(Starting, 2, 0)]), Verdict::Pending("starting")),
            (view(Unhealthy, 2, &[(Unhealthy, 1, 0)]), Verdict::Pending("unhealthy")),
        ] {
            assert_eq!(judge(&deployed(2), Some(&view), 0), verdict, "{view:?}");
        }
        let mut stopped = view(ServiceState::Stopped, 2, &[]);
        stopped.replicas = 0;
        assert_eq!(judge(&deployed(2), Some(&stopped), 0), Verdict::Healthy);
    }

    #[test]
    fn what_will_not_get_healthy_by_itself_is_not_waited_for() {
        use ServiceState::{Failed, Restarting, Unhealthy};
        let failed =
            |view: Option<&ServiceView>, restarts| matches!(judge(&deployed(2), view, restarts), Verdict::Failed(_));
        assert!(failed(None, 0));
        assert!(failed(Some(&view(Failed, 2, &[])), 0));
        assert!(failed(Some(&view(Unhealthy, 2, &[(Unhealthy, 2, 0)])), 0));
        assert!(failed(Some(&view(ServiceState::Running, 3, &[])), 0));
        let restarting = view(Restarting, 2, &[(Restarting, 2, 4)]);
        assert!(failed(Some(&restarting), 1));
        assert!(!failed(Some(&restarting), 2), "the first few restarts may only wait for a neighbour");
    }
}
