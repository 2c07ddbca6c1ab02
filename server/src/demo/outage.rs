//! What people see when a machine dies: each service is asked all the while, as by a page that never stops reloading.

use std::{fmt, time::Duration};

use flotilla_api::{
    MachineName, ServiceName,
    rest::{ServiceState, ServiceView},
};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use crate::{
    cli::Failure,
    client::{
        Client,
        tunnel::{Poller, Polling, Seen},
    },
};

/// Good answers that are waited for before anything is done, and for how long.
const BEFORE: u64 = 10;
const BEFORE_LIMIT: Duration = Duration::from_secs(5);

/// How long is watched at least: longer than a question may hang before it counts as failed.
const WATCH_MIN: Duration = Duration::from_secs(6);

/// A service that has answered so long without a gap is back.
const STEADY: Duration = Duration::from_secs(2);

/// A service that is not back by then is not waited for: twice what is promised.
const WATCH_MAX: Duration = Duration::from_secs(60);

const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How long the views of services are asked for again while their node changes.
const VIEWS: Duration = Duration::from_secs(10);

/// What people saw of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Outage {
    pub(super) machine: MachineName,
    pub(super) services: Vec<ServiceOutage>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct ServiceOutage {
    pub(super) service: ServiceName,
    /// Questions since just before, one every 50 ms, and those without a good answer.
    pub(super) polls: u64,
    pub(super) failed: u64,
    /// Absent where nobody could notice anything. Milliseconds.
    pub(super) gap_ms: Option<u64>,
    pub(super) outcome: Outcome,
    /// The machines that it ran on, before and after.
    pub(super) before: Vec<MachineName>,
    pub(super) after: Vec<MachineName>,
    /// Of the first question that has failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) why: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Outcome {
    /// It answers.
    Back,
    /// It did not answer again while it was watched.
    Away,
    /// It did not answer before either.
    NeverThere,
}

/// Asks all services through `front` before, during and after `unplug`, until they are back.
///
/// # Errors
/// The services can't be listed, or `unplug` fails.
pub(super) async fn watch(
    front: &Client,
    machine: MachineName,
    others_run: bool,
    unplug: impl Future<Output = Result<(), Failure>>,
) -> Result<Outage, Failure> {
    let views = views(front).await?;
    let opened: Vec<&ServiceView> = views.iter().filter(|view| view.url.is_some()).collect();
    let pollers: Vec<Poller> = opened
        .iter()
        .map(|view| Poller::start(vec![front.clone()], view.service.clone(), "/", Polling::default()))
        .collect();
    until(BEFORE_LIMIT, || pollers.iter().all(|poller| good_polls(&poller.seen().borrow()) >= BEFORE)).await;
    let was_there: Vec<bool> = pollers.iter().map(|poller| is_well(&poller.seen().borrow(), Instant::now())).collect();

    let moment = Instant::now();
    unplug.await?;
    until(if others_run { WATCH_MAX } else { WATCH_MIN }, || {
        let now = Instant::now();
        let settled = pollers.iter().zip(&was_there).all(|(poller, was_there)| {
            let seen = poller.seen();
            let seen = seen.borrow();
            !was_there || (is_well(&seen, now) && seen.longest_gap(now - STEADY, now) < Polling::default().noticed)
        });
        now - moment >= WATCH_MIN && settled
    })
    .await;
    let now = Instant::now();

    // Nobody is left to ask where it was the last machine.
    let after = if others_run { self::views(front).await.unwrap_or_default() } else { Vec::new() };
    let mut services = Vec::new();
    for ((view, poller), was_there) in opened.iter().zip(pollers).zip(was_there) {
        let seen = poller.stop().await;
        let after = after.iter().find(|one| one.service == view.service);
        services.push(ServiceOutage::of(view, after, &seen, was_there, moment, now));
    }
    Ok(Outage { machine, services })
}

async fn views(front: &Client) -> Result<Vec<ServiceView>, Failure> {
    let deadline = Instant::now() + VIEWS;
    loop {
        match front.services().await {
            Ok(views) => return Ok(views),
            Err(error) if error.is_transient() && Instant::now() < deadline => sleep(LOOK_EVERY).await,
            Err(error) => return Err(error.into()),
        }
    }
}

async fn until(limit: Duration, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + limit;
    while !holds() && Instant::now() < deadline {
        sleep(LOOK_EVERY).await;
    }
}

fn good_polls(seen: &Seen) -> u64 {
    seen.polls - seen.failed
}

/// Its questions are answered at the moment.
fn is_well(seen: &Seen, now: Instant) -> bool {
    seen.failing == 0 && seen.last_good.is_some_and(|at| now.saturating_duration_since(at) < Polling::default().noticed)
}

impl ServiceOutage {
    fn of(
        view: &ServiceView,
        after: Option<&ServiceView>,
        seen: &Seen,
        was_there: bool,
        moment: Instant,
        now: Instant,
    ) -> Self {
        let outcome = match (was_there, is_well(seen, now)) {
            (false, _) => Outcome::NeverThere,
            (true, true) => Outcome::Back,
            (true, false) => Outcome::Away,
        };
        let gap = seen.longest_gap(moment, now);
        let failed = seen.gaps.iter().any(|gap| gap.failed > 0 && gap.began + gap.length >= moment);
        let noticed = was_there && (failed || gap >= Polling::default().noticed);
        let why = seen.gaps.iter().filter(|gap| gap.began + gap.length >= moment).find_map(|gap| gap.why.clone());
        Self {
            service: view.service.clone(),
            polls: seen.polls,
            failed: seen.failed,
            gap_ms: noticed.then(|| u64::try_from(gap.as_millis()).unwrap_or(u64::MAX)),
            outcome,
            before: machines(view),
            after: after.map(machines).unwrap_or_default(),
            why: why.or_else(|| seen.why.clone()),
        }
    }
}

/// Where its instances run.
fn machines(view: &ServiceView) -> Vec<MachineName> {
    let running = view.instances.iter().filter(|instance| instance.state == ServiceState::Running);
    let mut machines: Vec<MachineName> = running.map(|instance| instance.machine.clone()).collect();
    machines.sort();
    machines.dedup();
    machines
}

/// `notes: 3.4 s without an answer; back on boreas`
impl fmt::Display for ServiceOutage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |millis: u64| Duration::from_millis(millis).as_secs_f64();
        let on = list(&self.after).map(|machines| format!(" on {machines}"));
        write!(f, "{}: ", self.service)?;
        match (self.outcome, self.gap_ms) {
            (Outcome::NeverThere, _) => write!(f, "did not answer before either"),
            (Outcome::Back, None) => {
                let runs = on.map(|on| format!("; runs{on}")).unwrap_or_default();
                write!(f, "answered all the time{runs}")
            }
            (Outcome::Back, Some(gap)) => {
                write!(f, "{:.1} s without an answer; back{}", seconds(gap), on.unwrap_or_default())
            }
            (Outcome::Away, gap) => {
                write!(f, "no answer since {:.0} s", seconds(gap.unwrap_or_default()))?;
                match &self.why {
                    Some(why) => write!(f, ": {why}"),
                    None => Ok(()),
                }
            }
        }
    }
}

/// `atlas`, `atlas and boreas`, `atlas, boreas and calypso`
pub(super) fn list(names: &[MachineName]) -> Option<String> {
    let (last, others) = names.split_last()?;
    if others.is_empty() {
        return Some(last.to_string());
    }
    Some(format!("{} and {last}", others.iter().map(MachineName::as_str).collect::<Vec<_>>().join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<MachineName> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn what_people_saw_is_told_in_one_line() {
        let outage = |outcome, gap_ms, after: &[&str]| ServiceOutage {
            service: "notes".parse().unwrap(),
            polls: 200,
            failed: 60,
            gap_ms,
            outcome,
            before: names(&["atlas"]),
            after: names(after),
            why: Some("it answered 503".into()),
        };
        for (outage, told) in [
            (outage(Outcome::Back, Some(3449), &["boreas"]), "notes: 3.4 s without an answer; back on boreas"),
            (
                outage(Outcome::Back, None, &["boreas", "calypso"]),
                "notes: answered all the time; runs on boreas and calypso",
            ),
            (outage(Outcome::Away, Some(60_020), &[]), "notes: no answer since 60 s: it answered 503"),
            (outage(Outcome::NeverThere, None, &[]), "notes: did not answer before either"),
        ] {
            assert_eq!(outage.to_string(), told);
        }
        assert_eq!(list(&names(&["a", "b", "c"])).unwrap(), "a, b and c");
        assert_eq!(list(&[]), None);
    }
}
