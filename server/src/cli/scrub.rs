//! `flotilla volume scrub`: has machines read all that they keep, and tells how that went.

use std::{collections::BTreeMap, time::Duration};

use comfy_table::Cell;
use flotilla_api::{
    MachineName, UnixMillis,
    rest::{MachineState, ScrubView, ScrubbedView, ScrubbingView},
};
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::{Failure, Session, args::VolumeScrub, time};
use crate::clock;

/// How often it is asked how far they are.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// How often a person is told.
const TELL_EVERY: Duration = Duration::from_secs(5);

pub(super) async fn run(args: &VolumeScrub, session: &Session) -> Result<(), Failure> {
    let (mut begun, mut refused) = (BTreeMap::new(), Vec::new());
    for machine in asked(args, session).await? {
        match session.client.scrub(&machine).await {
            Ok(view) => drop(begun.insert(machine, view)),
            Err(error) if args.machine.is_some() => return Err(error.into()),
            // The others' disks are none the worse for it.
            Err(error) => refused.push(format!("{machine} does not read what it keeps: {error}")),
        }
    }
    let views = if args.wait { until_ended(&begun, args.timeout, session).await? } else { begun };
    refused.iter().for_each(|sentence| session.output.note(sentence));
    let now = clock::now();
    if session.output.json {
        let values: Vec<_> = views.iter().map(|(machine, view)| json!({ "machine": machine, "scrub": view })).collect();
        session.output.value(&values)?;
    } else {
        let rows = views.iter().map(|(machine, view)| vec![Cell::new(machine), Cell::new(words(view, now))]);
        session.output.table(&["MACHINE", "SCRUB"], rows.collect(), "No machine can be asked.")?;
    }
    let lost: u64 =
        views.values().filter_map(|view| view.finished).map(|it| it.damaged.saturating_sub(it.repaired)).sum();
    match (args.wait && lost > 0, refused.is_empty()) {
        (true, _) => Err(Failure::Other(format!(
            "{lost} objects are damaged, and no machine that could be asked has them; look at the disks"
        ))),
        (false, false) => Err(Failure::Other("not all machines could be asked".to_owned())),
        (false, true) => Ok(()),
    }
}

async fn asked(args: &VolumeScrub, session: &Session) -> Result<Vec<MachineName>, Failure> {
    if let Some(machine) = &args.machine {
        return Ok(vec![machine.clone()]);
    }
    let machines = session.client.machines().await?;
    let there = machines.into_iter().filter(|it| it.condition.state != MachineState::Lost);
    Ok(there.map(|machine| machine.name).collect())
}

/// Each ends with what it came to.
async fn until_ended(
    begun: &BTreeMap<MachineName, ScrubView>,
    limit: Duration,
    session: &Session,
) -> Result<BTreeMap<MachineName, ScrubView>, Failure> {
    let (deadline, mut told) = (Instant::now() + limit, Instant::now());
    loop {
        let now: BTreeMap<MachineName, ScrubView> = match session.client.machines().await {
            Ok(machines) => {
                let scrub = machines.into_iter().filter_map(|it| Some((it.name, it.resources?.scrub?)));
                scrub.filter(|(name, _)| begun.contains_key(name)).collect()
            }
            Err(error) if error.is_transient() => BTreeMap::new(),
            Err(error) => return Err(error.into()),
        };
        let ended =
            |(machine, begun): (&MachineName, &ScrubView)| now.get(machine).is_some_and(|now| has_ended(begun, now));
        if begun.iter().all(ended) {
            return Ok(now);
        }
        if told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            for (machine, running) in now.iter().filter_map(|(machine, view)| Some((machine, view.running?))) {
                session.output.note(&format!("{machine}: {}", far(&running)));
            }
        }
        if Instant::now() >= deadline {
            let left: Vec<&str> = begun.iter().filter(|it| !ended(*it)).map(|(machine, _)| machine.as_str()).collect();
            return Err(Failure::NotHealthy {
                sentence: format!(
                    "not all was read within {}: {} goes on; `flotilla machine ls` shows how far it is",
                    humantime::format_duration(limit),
                    left.join(", ")
                ),
                logs: Vec::new(),
            });
        }
        sleep(ASK_EVERY).await;
    }
}

/// Has what was begun then come to its end?
fn has_ended(begun: &ScrubView, now: &ScrubView) -> bool {
    match begun.running {
        Some(running) => now.finished.is_some_and(|finished| finished.began_at >= running.began_at),
        None => now.running.is_none(),
    }
}

/// `3d`, `12%`
pub(super) fn short(view: &ScrubView, now: UnixMillis) -> String {
    let bad = view.finished.filter(|it| it.damaged > it.repaired);
    let running = view.running.filter(|running| running.asked && running.of > 0);
    match (running, bad, view.finished) {
        (Some(running), ..) => format!("{}%", percent(&running)),
        (None, Some(bad), _) => format!("{} damaged", bad.damaged - bad.repaired),
        (None, None, Some(finished)) => time::age(now, finished.finished_at),
        (None, None, None) => String::new(),
    }
}

/// `all of it 3d ago: 5120 objects, nothing damaged; now 12% of 5200 objects`
pub(super) fn words(view: &ScrubView, now: UnixMillis) -> String {
    let finished = view.finished.map(|finished| {
        let ScrubbedView { finished_at, objects, files_bytes, damaged, repaired, .. } = finished;
        let damage = match damaged {
            0 => "nothing damaged".to_owned(),
            _ => format!("{damaged} damaged, {repaired} of them repaired"),
        };
        let files = match files_bytes {
            0 => String::new(),
            _ => format!(" and {} of copies", time::size(files_bytes)),
        };
        format!("all of it {} ago: {objects} objects{files}, {damage}", time::age(now, finished_at))
    });
    let running = view.running.map(|running| format!("now {}", far(&running)));
    let parts: Vec<String> = finished.into_iter().chain(running).collect();
    if parts.is_empty() { "never yet".to_owned() } else { parts.join("; ") }
}

fn far(running: &ScrubbingView) -> String {
    let ScrubbingView { objects, of, files_bytes, files_of_bytes, damaged, repaired, .. } = running;
    let damage = match damaged {
        0 => String::new(),
        _ => format!(", {damaged} damaged, {repaired} of them repaired"),
    };
    match files_of_bytes {
        0 => format!("{}% of {of} objects ({objects}){damage}", percent(running)),
        _ => {
            let (compared, all) = (time::size(*files_bytes), time::size(*files_of_bytes));
            format!("all {objects} objects, {}% of {all} of copies ({compared}){damage}", percent(running))
        }
    }
}

/// Of the objects, and then of the copies' files.
fn percent(running: &ScrubbingView) -> u64 {
    let (done, all) = match running.files_of_bytes {
        0 => (running.objects, running.of),
        all => (running.files_bytes, all),
    };
    done.saturating_mul(100) / all.max(done).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = UnixMillis(1_000_000_000);

    fn finished(began: u64, damaged: u64, repaired: u64) -> Option<ScrubbedView> {
        let (began_at, finished_at) = (UnixMillis(began), UnixMillis(NOW.0 - 300_000));
        Some(ScrubbedView { began_at, finished_at, objects: 5120, files_bytes: 0, damaged, repaired })
    }

    fn running(began: u64, asked: bool) -> Option<ScrubbingView> {
        let began_at = UnixMillis(began);
        Some(ScrubbingView {
            began_at,
            asked,
            objects: 60,
            of: 500,
            damaged: 2,
            repaired: 1,
            ..ScrubbingView::default()
        })
    }

    #[test]
    fn it_has_ended_when_that_or_a_later_one_has() {
        let begun = ScrubView { finished: finished(5, 0, 0), running: running(9, true) };
        assert!(!has_ended(&begun, &begun));
        assert!(!has_ended(&begun, &ScrubView { running: None, ..begun }), "it may not have been told yet");
        for began in [9, 10] {
            assert!(has_ended(&begun, &ScrubView { finished: finished(began, 0, 0), running: None }));
        }
        let at_once = ScrubView { finished: finished(9, 0, 0), running: None };
        assert!(has_ended(&at_once, &at_once));
    }

    #[test]
    fn it_is_told_when_and_with_what_result_all_was_read() {
        let view = |finished, running| ScrubView { finished, running };
        for (view, in_short, in_words) in [
            (view(None, None), "", "never yet"),
            (view(finished(5, 0, 0), None), "5m", "all of it 5m ago: 5120 objects, nothing damaged"),
            (
                view(finished(5, 3, 1), None),
                "2 damaged",
                "all of it 5m ago: 5120 objects, 3 damaged, 1 of them repaired",
            ),
            (view(None, running(9, false)), "", "now 12% of 500 objects (60), 2 damaged, 1 of them repaired"),
            (
                view(None, running(9, true).map(|it| ScrubbingView { files_bytes: 500, files_of_bytes: 2_000, ..it })),
                "25%",
                "now all 60 objects, 25% of 2.0 kB of copies (500 B), 2 damaged, 1 of them repaired",
            ),
            (
                view(finished(5, 0, 0).map(|it| ScrubbedView { files_bytes: 3_400_000, ..it }), None),
                "5m",
                "all of it 5m ago: 5120 objects and 3.4 MB of copies, nothing damaged",
            ),
            (view(None, running(9, true)), "12%", "now 12% of 500 objects (60), 2 damaged, 1 of them repaired"),
        ] {
            assert_eq!((short(&view, NOW).as_str(), words(&view, NOW).as_str()), (in_short, in_words));
        }
    }
}
