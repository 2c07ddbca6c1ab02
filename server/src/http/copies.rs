//! How volumes do: what the state says, and what the machines told that write them.

use flotilla_api::{
    ErrorCode, MachineName, NodeId, ServiceName, UnixMillis, VolumeName,
    rest::{
        BranchView, ChangeKind, ChangeView, ComingView, CopyView, GenerationView, MomentView, VolumeDetail, VolumeDiff,
        VolumeState, VolumeView,
    },
    spec::VolumeMount,
};
use flotilla_core::{
    State, history,
    report::{Coming, CopyReport, DataReport},
    state::{GenerationName, Service},
};

use super::{
    App,
    answer::{Answer, Failure},
    sight::Moment,
};
use crate::volumes::{Comparison, Difference};

/// A machine tells every few seconds how far it is. Milliseconds.
const COMING_MAX_AGE_MS: u64 = 15_000;

/// Of all services, by name.
pub(super) fn views(app: &App) -> Vec<VolumeView> {
    let moment = Moment::of(app);
    let mut views = Vec::new();
    for service in moment.state.services.values() {
        let mut seen = std::collections::BTreeSet::new();
        let mounts = service.spec().written().filter(|mount| seen.insert(&mount.volume));
        views.extend(mounts.map(|mount| view(app, &moment, service, mount)));
    }
    views
}

/// With what this machine has of its history.
///
/// # Errors
/// There is no such volume, or this machine's store can't be read.
pub(super) async fn detail(app: &App, service: &ServiceName, volume: &VolumeName) -> Answer<VolumeDetail> {
    let moment = Moment::of(app);
    let known = moment.state.services.get(service).ok_or_else(|| {
        let why = format!("there is no service `{service}`; `flotilla volume ls` shows all volumes");
        Failure::new(ErrorCode::ServiceNotFound, why)
    })?;
    let mount = known.spec().written().find(|mount| mount.volume == *volume).ok_or_else(|| {
        let why = format!("`{service}` writes no volume `{volume}`; `flotilla volume ls` shows all volumes");
        Failure::new(ErrorCode::VolumeNotFound, why)
    })?;
    let view = view(app, &moment, known, mount);
    let committed = known.data.committed.as_ref().map(|committed| committed.name);
    let history = app.volumes.history(service, volume).await?;
    let here = name_of(&moment.state, &app.node);
    let aside = |name: GenerationName| history.branches.iter().any(|branch| branch.name == name);
    let moments = history.generations.iter().filter(|it| !aside(it.name)).map(|it| MomentView {
        committed: committed.is_some_and(|committed| it.name <= committed),
        generation: generation(it.name, it.taken_at),
        files: it.files,
        bytes: it.bytes,
    });
    let branches = history.branches.iter().map(|it| BranchView {
        generation: it.name.to_string(),
        machine: here.clone(),
        kept_at: it.taken_at,
        files: it.files,
        bytes: it.bytes,
    });
    let (history, branches) = (moments.collect(), branches.collect());
    Ok(VolumeDetail { view, read_on: here.clone(), history, branches })
}

/// As programs are told of it.
pub(super) fn diff(from: GenerationName, to: GenerationName, comparison: Comparison) -> VolumeDiff {
    let change = |difference: Difference| ChangeView {
        path: difference.path,
        change: match (difference.before, difference.after) {
            (None, _) => ChangeKind::Added,
            (Some(_), None) => ChangeKind::Removed,
            (Some(_), Some(_)) => ChangeKind::Changed,
        },
        bytes_from: difference.before,
        bytes_to: difference.after,
    };
    VolumeDiff {
        from: generation(from, comparison.taken_at.0),
        to: generation(to, comparison.taken_at.1),
        added: comparison.added,
        removed: comparison.removed,
        changed: comparison.changed,
        bytes_from: comparison.bytes.0,
        bytes_to: comparison.bytes.1,
        changes: comparison.told.into_iter().map(change).collect(),
    }
}

fn generation(name: GenerationName, taken_at: UnixMillis) -> GenerationView {
    GenerationView { generation: name.to_string(), taken_at }
}

fn told(report: &CopyReport) -> GenerationView {
    generation(report.name, report.taken_at)
}

fn name_of(state: &State, id: &NodeId) -> MachineName {
    match state.machines.get(id) {
        Some(machine) => machine.name().clone(),
        // Removed a moment ago.
        None => "removed".parse().unwrap_or_else(|_| unreachable!("it is a name")),
    }
}

fn view(app: &App, moment: &Moment, service: &Service, mount: &VolumeMount) -> VolumeView {
    let home = service.home.as_ref();
    let (observed_at, report) = report(app, moment, service);
    let committed = service.data.committed.as_ref();
    let copies = committed.and_then(|committed| committed.volumes.get(&mount.volume));
    let mut machines = service.keepers(&moment.state, mount);
    let others = copies.into_iter().flat_map(|copies| &copies.holders);
    machines.extend(others.filter(|id| Some(*id) != home && !service.data.replicas.contains(id)));
    let copy = |id: &&NodeId| {
        let told_of = report.as_ref().and_then(|report| report.copies.get(*id));
        CopyView {
            machine: name_of(&moment.state, id),
            lost: moment.state.machines.get(*id).is_none_or(|machine| machine.lost_at.is_some()),
            holds: copies.is_some_and(|copies| copies.holders.contains(*id)),
            generation: told_of.map(told),
            behind_bytes: told_of.map(|copy| copy.behind_bytes),
            coming: coming(app, moment, id, &service.name, &mount.volume),
        }
    };
    let views: Vec<CopyView> = machines.iter().map(copy).collect();
    let well = |view: &CopyView| view.holds && !view.lost;
    let state = match committed {
        None => VolumeState::Empty,
        Some(_) if !views.iter().any(well) => VolumeState::Alone,
        Some(_) if views.iter().filter(|view| well(view)).count() < mount.rules.replicas as usize => {
            VolumeState::Copying
        }
        Some(_) => VolumeState::Copied,
    };
    let held = held_back(app, moment, service, state, report.as_ref());
    VolumeView {
        service: service.name.clone(),
        volume: mount.volume.clone(),
        machine: home.map(|home| name_of(&moment.state, home)),
        message: message(&moment.state, service, mount, state, &views, report.as_ref(), held),
        state,
        bytes: copies.map(|copies| copies.bytes),
        replicas: mount.rules.replicas,
        sync: mount.rules.sync,
        encrypted: mount.rules.encrypted,
        history: history::rules(service.spec()),
        committed: committed.map(|committed| generation(committed.name, committed.taken_at)),
        uncommitted_since: report.as_ref().and_then(|report| report.uncommitted_since),
        held_ms: report.as_ref().and_then(|report| report.captured.as_ref().map(|_| report.held_ms)),
        copies: views,
        observed_at,
    }
}

/// What a machine tells of a volume that is on its way there.
fn coming(
    app: &App,
    moment: &Moment,
    machine: &NodeId,
    service: &ServiceName,
    volume: &VolumeName,
) -> Option<ComingView> {
    let view = |coming: &Coming, observed_at| ComingView {
        generation: coming.name.to_string(),
        bytes: coming.bytes,
        of: coming.of,
        per_second: coming.per_second,
        observed_at,
    };
    if *machine == app.node {
        let coming = app.volumes.watch_coming();
        let coming = coming.borrow();
        return coming.get(&(service.clone(), volume.clone())).map(|it| view(it, moment.now));
    }
    let (received, report) = moment.report(machine)?;
    // What was told long ago has come, or has not.
    if moment.now.since(received) > COMING_MAX_AGE_MS {
        return None;
    }
    let found = report.coming.iter().find(|it| it.service == *service && it.volume == *volume);
    found.map(|it| view(it, received))
}

/// What the machine told that writes, and when.
fn report(app: &App, moment: &Moment, service: &Service) -> (Option<UnixMillis>, Option<DataReport>) {
    let Some(home) = &service.home else { return (None, None) };
    if *home == app.node {
        return (Some(moment.now), app.volumes.watch_reports().borrow().get(&service.name).cloned());
    }
    match moment.report(home) {
        Some((received, report)) => (Some(received), report.data.get(&service.name).cloned()),
        None => (None, None),
    }
}

/// Why what was written is not copied now, where its machine's limit says so.
fn held_back(
    app: &App,
    moment: &Moment,
    service: &Service,
    volume: VolumeState,
    report: Option<&DataReport>,
) -> Option<String> {
    let home = service.home.as_ref()?;
    let now = match home == &app.node {
        true => *app.volumes.watch_limit().borrow(),
        false => moment.report(home)?.1.copy_limit?,
    };
    let waits = volume != VolumeState::Copied || report.is_some_and(|report| report.uncommitted_since.is_some());
    (waits && now.holds_back()).then(|| {
        let name = name_of(&moment.state, home);
        match now.until {
            Some(until) => format!("waits until {until}: `{name}` sends no copies before that, by its limit"),
            None => format!("waits: `{name}` sends no copies, by its limit"),
        }
    })
}

fn message(
    state: &State,
    service: &Service,
    mount: &VolumeMount,
    volume: VolumeState,
    views: &[CopyView],
    report: Option<&DataReport>,
    held: Option<String>,
) -> Option<String> {
    if let Some(problem) = report.and_then(|report| report.problem.clone()) {
        return Some(problem);
    }
    let wanted = mount.rules.replicas as usize;
    // Machines that may keep it, the one that writes it among them.
    let machines = state.machines.values().filter(|machine| mount.rules.encrypted || !machine.stores_only).count();
    match volume {
        VolumeState::Alone if wanted == 0 => Some("no copies are asked for".to_owned()),
        VolumeState::Alone if machines == 1 && state.machines.len() > 1 => {
            Some("no other machine may keep it; those that only store keep encrypted volumes alone".to_owned())
        }
        VolumeState::Alone if machines == 1 => {
            Some("this is the only machine; a second one keeps a copy as soon as it joins".to_owned())
        }
        VolumeState::Alone | VolumeState::Copying if views.len() < wanted && machines <= wanted => {
            let missing = wanted + 1 - machines;
            let machines =
                if missing == 1 { "one more machine".to_owned() } else { format!("{missing} more machines") };
            Some(format!("{wanted} copies are asked for; add {machines}, or ask for fewer"))
        }
        VolumeState::Alone | VolumeState::Copying => {
            let lost = views.iter().find(|view| view.lost).map(|view| format!("`{}` is lost", view.machine));
            let copying = || views.iter().find(|view| !view.holds).map(|view| format!("`{}` is copying", view.machine));
            lost.or(held).or_else(copying)
        }
        VolumeState::Empty if service.home.is_none() => Some("nothing has run on it yet".to_owned()),
        VolumeState::Empty => held.or_else(|| {
            let what = if views.iter().any(|view| view.coming.is_some()) { "copied" } else { "made" };
            Some(format!("its first generation is being {what}"))
        }),
        VolumeState::Copied => held,
    }
}
