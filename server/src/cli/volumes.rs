//! The verbs about volumes.

use comfy_table::{Cell, Color};
use flotilla_api::{
    ServiceName, UnixMillis, VolumeName,
    rest::{
        ChangeKind, ComingView, CopyView, DiffQuery, ExportQuery, RestoreRequest, Restored, VolumeDetail, VolumeDiff,
        VolumeState, VolumeView,
    },
};
use flotilla_core::state::GenerationName;
use serde_json::json;

use super::{
    Failure, Output, Session,
    args::{self, Volume, VolumeArg, VolumeExport, VolumeImport, VolumeRestore},
    output,
    progress::Progress,
    time,
};
use crate::clock;

pub(super) async fn run(verb: Option<Volume>, session: &Session) -> Result<(), Failure> {
    match verb.unwrap_or(Volume::Ls) {
        Volume::Ls => list(session).await,
        Volume::History { volume } => history(&volume, session).await,
        Volume::Restore(args) => restore(args, session).await,
        Volume::Export(args) => export(args, session).await,
        Volume::Import(args) => import(args, session).await,
        Volume::Diff(args) => diff(&args, session).await,
        Volume::Scrub(args) => super::scrub::run(&args, session).await,
        Volume::Branch { service } => branches(service.as_ref(), session).await,
    }
}

async fn list(session: &Session) -> Result<(), Failure> {
    let volumes = session.client.volumes().await?;
    if session.output.json {
        return session.output.value(&volumes);
    }
    let now = clock::now();
    let rows = volumes.iter().map(|volume| row(volume, now, session.output)).collect();
    let header = ["VOLUME", "STATE", "WRITTEN ON", "SIZE", "ENCRYPTED", "COPIES", "COMMITTED", "NOT YET", "MESSAGE"];
    session.output.table(&header, rows, "No service writes a volume.")
}

fn row(volume: &VolumeView, now: UnixMillis, output: Output) -> Vec<Cell> {
    vec![
        Cell::new(format!("{}/{}", volume.service, volume.volume)),
        state(volume.state, output),
        Cell::new(volume.machine.as_ref().map_or("", AsRef::as_ref)),
        Cell::new(volume.bytes.map(time::size).unwrap_or_default()),
        Cell::new(if volume.encrypted { "yes" } else { "" }),
        Cell::new(volume.copies.iter().map(copy).collect::<Vec<_>>().join(", ")),
        Cell::new(
            volume
                .committed
                .as_ref()
                .map_or_else(String::new, |it| format!("{} ({} ago)", it.generation, time::age(now, it.taken_at))),
        ),
        // Since when something is written that could be lost with its machine.
        Cell::new(volume.uncommitted_since.map(|since| time::age(now, since)).unwrap_or_default()),
        Cell::new(volume.message.as_deref().unwrap_or_default()),
    ]
}

fn state(state: VolumeState, output: Output) -> Cell {
    let colour = match state {
        VolumeState::Copied => Color::Green,
        VolumeState::Copying => Color::Yellow,
        VolumeState::Alone => Color::Red,
        VolumeState::Empty => Color::DarkGrey,
    };
    output.coloured(state.as_str(), colour)
}

fn copy(copy: &CopyView) -> String {
    match (copy.lost, copy.holds) {
        (true, _) => format!("{} (lost)", copy.machine),
        (false, true) => copy.machine.to_string(),
        (false, false) => format!("{} ({})", copy.machine, copying(copy)),
    }
}

/// `copying`, `copying: 42% of 1.2 GB, 3.0 MB/s, 4m left`
fn copying(copy: &CopyView) -> String {
    let Some(coming) = copy.coming.as_ref().filter(|coming| coming.of > 0) else { return "copying".to_owned() };
    let ComingView { bytes, of, per_second, .. } = coming;
    let left = coming
        .left_ms()
        .map_or_else(String::new, |left| format!(", {} left", time::age(UnixMillis(left), UnixMillis(0))));
    let percent = bytes.saturating_mul(100) / of;
    format!("copying: {percent}% of {}, {}/s{left}", time::size(*of), time::size(*per_second))
}

async fn history(asked: &VolumeArg, session: &Session) -> Result<(), Failure> {
    let volume = named(asked, session).await?;
    let detail = session.client.volume(&asked.service, &volume).await?;
    if session.output.json {
        return session.output.value(&detail);
    }
    describe(&detail, session.output)
}

async fn restore(args: VolumeRestore, session: &Session) -> Result<(), Failure> {
    let VolumeRestore { service, generation, of, yes } = args;
    if !yes {
        let from = match &of {
            Some(of) => format!("with the volumes of {of}"),
            None => {
                preview(&service, generation, session).await?;
                "with its volumes".to_owned()
            }
        };
        output::confirm(
            &format!("Stop {service} and begin it anew {from} as in generation {generation}?"),
            "nothing was restored",
        )?;
    }
    let request = RestoreRequest { generation: generation.to_string(), of };
    told(&session.client.restore(&service, &request).await?, session.output)
}

fn told(restored: &Restored, output: Output) -> Result<(), Failure> {
    let Restored { service, generation } = restored;
    let text = format!(
        "{service} begins anew with generation {generation}; what it had is kept in `flotilla volume history`."
    );
    output.done(&text, restored)
}

/// What a restore would change, volume by volume.
async fn preview(service: &ServiceName, generation: GenerationName, session: &Session) -> Result<(), Failure> {
    for volume in session.client.volumes().await?.iter().filter(|volume| volume.service == *service) {
        let query = DiffQuery { from: None, to: Some(generation.to_string()) };
        let name = format!("{service}/{}", volume.volume);
        let text = match session.client.diff(service, &volume.volume, &query).await {
            Ok(diff) => format!("{name}: {}", summary(&diff)),
            Err(error) => format!("{name}: what would change can't be told ({error})"),
        };
        session.output.note(&text);
    }
    Ok(())
}

fn summary(diff: &VolumeDiff) -> String {
    let VolumeDiff { added, removed, changed, bytes_from, bytes_to, .. } = diff;
    if added + removed + changed == 0 {
        return "nothing changes".to_owned();
    }
    let sizes = format!("{} become {}", time::size(*bytes_from), time::size(*bytes_to));
    format!("{added} added, {removed} removed, {changed} changed; {sizes}")
}

async fn diff(args: &args::VolumeDiff, session: &Session) -> Result<(), Failure> {
    let volume = named(&args.volume, session).await?;
    let query = DiffQuery { from: Some(args.from.to_string()), to: args.to.map(|to| to.to_string()) };
    let diff = session.client.diff(&args.volume.service, &volume, &query).await?;
    if session.output.json {
        return session.output.value(&diff);
    }
    let size = |bytes: Option<u64>| Cell::new(bytes.map(time::size).unwrap_or_default());
    let rows = diff.changes.iter().map(|change| {
        let (what, colour) = match change.change {
            ChangeKind::Added => ("added", Color::Green),
            ChangeKind::Removed => ("removed", Color::Red),
            ChangeKind::Changed => ("changed", Color::Yellow),
        };
        let path = change.path.escape_debug().to_string();
        vec![session.output.coloured(what, colour), Cell::new(path), size(change.bytes_from), size(change.bytes_to)]
    });
    let header = ["CHANGE", "PATH", &diff.from.generation, &diff.to.generation];
    session.output.table(&header, rows.collect(), "They are the same.")?;
    let all = diff.added + diff.removed + diff.changed;
    let shown = diff.changes.len() as u64;
    if all > shown {
        session.output.note(&format!("… and {} more", all - shown));
    }
    session.output.note(&summary(&diff));
    Ok(())
}

async fn branches(service: Option<&ServiceName>, session: &Session) -> Result<(), Failure> {
    let mut volumes = session.client.volumes().await?;
    volumes.retain(|volume| service.is_none_or(|service| volume.service == *service));
    if let Some(service) = service.filter(|_| volumes.is_empty()) {
        return Err(Failure::NotFound(format!("`{service}` writes no volume; `flotilla volume ls` shows all")));
    }
    let (mut rows, mut values, now) = (Vec::new(), Vec::new(), clock::now());
    for VolumeView { service, volume, .. } in volumes {
        for branch in session.client.volume(&service, &volume).await?.branches {
            rows.push(vec![
                Cell::new(format!("{service}/{volume}")),
                Cell::new(&branch.generation),
                Cell::new(&branch.machine),
                Cell::new(time::stamp(branch.kept_at)),
                Cell::new(time::age(now, branch.kept_at)),
                Cell::new(branch.files),
                Cell::new(time::size(branch.bytes)),
            ]);
            values.push(json!({ "service": service, "volume": volume, "branch": branch }));
        }
    }
    if session.output.json {
        return session.output.value(&values);
    }
    let header = ["VOLUME", "GENERATION", "MACHINE", "KEPT", "AGE", "FILES", "SIZE"];
    session.output.table(&header, rows, "Nothing was put aside: all that was written is committed.")
}

async fn import(args: VolumeImport, session: &Session) -> Result<(), Failure> {
    let VolumeImport { volume: asked, file, yes } = args;
    let volume = named(&asked, session).await?;
    let size = std::fs::metadata(&file)
        .map_err(|error| Failure::Usage(format!("could not read `{}`: {error}", file.display())))?;
    if !yes {
        output::confirm(
            &format!("Stop {0} and begin it anew with {0}/{volume} as in {1}?", asked.service, file.display()),
            "nothing was imported",
        )?;
    }
    let mut sending = Progress::new(session.output, "Sending it to the node", Some(size.len()));
    let reached = move |read| sending.reached(read, size.len());
    told(&session.client.import(&asked.service, &volume, &file, reached).await?, session.output)
}

async fn export(args: VolumeExport, session: &Session) -> Result<(), Failure> {
    let VolumeExport { volume: asked, generation, file } = args;
    if file.exists() {
        return Err(Failure::Usage(format!("`{}` exists already; name another file", file.display())));
    }
    let volume = named(&asked, session).await?;
    let query = ExportQuery { generation: generation.map(|generation| generation.to_string()) };
    let bytes = session.client.export(&asked.service, &volume, &query, &file).await?;
    if session.output.json {
        return session.output.value(&json!({ "file": file, "bytes": bytes }));
    }
    session.output.line(&format!("Wrote {}/{volume} to {} ({}).", asked.service, file.display(), time::size(bytes)))
}

/// The volume that is meant: the one that there is, where only the service was said.
async fn named(asked: &VolumeArg, session: &Session) -> Result<VolumeName, Failure> {
    if let Some(volume) = &asked.volume {
        return Ok(volume.clone());
    }
    let service = &asked.service;
    let mut volumes = session.client.volumes().await?;
    volumes.retain(|volume| volume.service == *service);
    match volumes.as_slice() {
        [one] => Ok(one.volume.clone()),
        [] => Err(Failure::NotFound(format!("`{service}` writes no volume; `flotilla volume ls` shows all"))),
        [first, ..] => {
            let count = volumes.len();
            let why = format!("`{service}` writes {count} volumes; say which: `{service}/{}`", first.volume);
            Err(Failure::NotFound(why))
        }
    }
}

fn describe(detail: &VolumeDetail, output: Output) -> Result<(), Failure> {
    let now = clock::now();
    let moments = detail.history.iter().rev().map(|moment| {
        vec![
            Cell::new(&moment.generation.generation),
            Cell::new(time::stamp(moment.generation.taken_at)),
            Cell::new(time::age(now, moment.generation.taken_at)),
            Cell::new(moment.files),
            Cell::new(time::size(moment.bytes)),
            Cell::new(if moment.committed { "" } else { "not committed" }),
        ]
    });
    let branches = detail.branches.iter().map(|branch| {
        vec![
            Cell::new(&branch.generation),
            Cell::new(time::stamp(branch.kept_at)),
            Cell::new(time::age(now, branch.kept_at)),
            Cell::new(branch.files),
            Cell::new(time::size(branch.bytes)),
            Cell::new(format!("put aside on {}", branch.machine)),
        ]
    });
    output.note(&format!("Kept: {}", detail.view.history));
    let rows = moments.chain(branches).collect();
    output.table(&["GENERATION", "TAKEN", "AGE", "FILES", "SIZE", "NOTE"], rows, "It has no generation yet.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_on_its_way_says_how_far_how_fast_and_how_long_still() {
        let coming = ComingView {
            generation: "3.4".to_owned(),
            bytes: 500_000_000,
            of: 1_200_000_000,
            per_second: 3_000_000,
            observed_at: UnixMillis(0),
        };
        let copy = |coming| CopyView {
            machine: "boreas".parse().unwrap(),
            lost: false,
            holds: false,
            generation: None,
            behind_bytes: None,
            coming,
        };
        assert_eq!(super::copy(&copy(None)), "boreas (copying)");
        let far = super::copy(&copy(Some(coming.clone())));
        assert_eq!(far, "boreas (copying: 41% of 1.2 GB, 3.0 MB/s, 3m left)");
        let stands = ComingView { per_second: 0, ..coming.clone() };
        assert_eq!(super::copy(&copy(Some(stands))), "boreas (copying: 41% of 1.2 GB, 0 B/s)");
        let unknown = ComingView { of: 0, ..coming };
        assert_eq!(super::copy(&copy(Some(unknown))), "boreas (copying)");
    }
}
