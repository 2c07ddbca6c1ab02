//! The verbs about volumes.

use comfy_table::{Cell, Color};
use flotilla_api::{
    UnixMillis, VolumeName,
    rest::{CopyView, ExportQuery, RestoreRequest, VolumeDetail, VolumeState, VolumeView},
};
use serde_json::json;

use super::{
    Failure, Output, Session,
    args::{Volume, VolumeArg, VolumeExport, VolumeRestore},
    output, time,
};
use crate::clock;

pub(super) async fn run(verb: Option<Volume>, session: &Session) -> Result<(), Failure> {
    match verb.unwrap_or(Volume::Ls) {
        Volume::Ls => list(session).await,
        Volume::History { volume } => history(&volume, session).await,
        Volume::Restore(args) => restore(args, session).await,
        Volume::Export(args) => export(args, session).await,
    }
}

async fn list(session: &Session) -> Result<(), Failure> {
    let volumes = session.client.volumes().await?;
    if session.output.json {
        return session.output.value(&volumes);
    }
    let now = clock::now();
    let rows = volumes.iter().map(|volume| row(volume, now, session.output)).collect();
    let header = ["VOLUME", "STATE", "WRITTEN ON", "SIZE", "COPIES", "COMMITTED", "NOT YET", "MESSAGE"];
    session.output.table(&header, rows, "No service writes a volume.")
}

fn row(volume: &VolumeView, now: UnixMillis, output: Output) -> Vec<Cell> {
    vec![
        Cell::new(format!("{}/{}", volume.service, volume.volume)),
        state(volume.state, output),
        Cell::new(volume.machine.as_ref().map_or("", AsRef::as_ref)),
        Cell::new(volume.bytes.map(time::size).unwrap_or_default()),
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
        (false, false) => format!("{} (copying)", copy.machine),
    }
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
    let VolumeRestore { service, generation, yes } = args;
    if !yes {
        output::confirm(
            &format!("Stop {service} and begin it anew with its volumes as in generation {generation}?"),
            "nothing was restored",
        )?;
    }
    let request = RestoreRequest { generation: generation.to_string() };
    session.client.restore(&service, &request).await?;
    if session.output.json {
        return session.output.value(&json!({ "service": service, "generation": generation.to_string() }));
    }
    let text = format!(
        "{service} begins anew with generation {generation}; what it had is kept in `flotilla volume history`."
    );
    session.output.line(&text)
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
    let rows = moments.chain(branches).collect();
    output.table(&["GENERATION", "TAKEN", "AGE", "FILES", "SIZE", "NOTE"], rows, "It has no generation yet.")
}
