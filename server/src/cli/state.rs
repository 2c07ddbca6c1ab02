//! `flotilla state`: copies of the state, and the ways out.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::{Failure, Global, Output, args::State, context, output, time};
use crate::{
    config::{Config, Flags},
    identity::{DataDir, Identity},
    store::{self, Recovered, Restore, Restored},
};

/// What is asked before a machine goes on alone.
const ALONE: &str =
    "This makes the machine the only one that votes, for when most of the voting machines are lost for good.
The others must never run with their old state again. What they agreed on without it is lost.
Go on alone?";

pub(super) async fn run(args: State, global: &Global, output: Output) -> Result<(), Failure> {
    match args {
        State::Backup { file, data_dir: None } => fetch(&file, global, output).await,
        State::Backup { file, data_dir: Some(data_dir) } => back_up(&file, data_dir, output).await,
        State::Restore { file, data_dir, force, recover_alone } => {
            restore(&file, data_dir, force, recover_alone, output).await
        }
        State::Recover { data_dir, yes } => recover(data_dir, yes, output).await,
    }
}

/// From a node that runs.
async fn fetch(file: &Path, global: &Global, output: Output) -> Result<(), Failure> {
    absent(file)?;
    let size = context::client(global)?.back_up(file).await?;
    told(file, size, output)
}

/// From a node that does not run.
async fn back_up(file: &Path, data_dir: PathBuf, output: Output) -> Result<(), Failure> {
    absent(file)?;
    let (directory, identity) = opened(&data_dir)?;
    store::back_up(&directory.state(), &identity.node_id(), file).await.map_err(failed)?;
    let size = std::fs::metadata(file).map_err(Failure::io("look at", file))?.len();
    told(file, size, output)
}

fn told(file: &Path, size: u64, output: Output) -> Result<(), Failure> {
    if output.json {
        return output.value(&json!({ "file": file, "bytes": size, "keys": false }));
    }
    output.line(&format!("Wrote the state to {} ({}).", file.display(), time::size(size)))?;
    output.line("The keys are not in it: copy the directory `keys` of the data directory to a safe place, too.")
}

fn absent(file: &Path) -> Result<(), Failure> {
    if file.exists() {
        return Err(Failure::Usage(format!("`{}` exists already; name another file", file.display())));
    }
    Ok(())
}

async fn restore(
    file: &Path,
    data_dir: Option<PathBuf>,
    force: bool,
    recover_alone: bool,
    output: Output,
) -> Result<(), Failure> {
    let (directory, identity) = opened_at(data_dir)?;
    let (to, node) = (directory.state(), identity.node_id());
    let wanted = Restore { from: file, to: &to, node: &node, force, recover_alone };
    let Restored { applied, replaced, recovered } = store::restore(wanted).await.map_err(failed)?;
    if output.json {
        return output.value(&json!({
            "state": to, "index": applied, "replaced": replaced, "recovered": recovered.as_ref().map(told_of),
        }));
    }
    output.line(&format!("Put the state up to entry {applied} in place."))?;
    if let Some(replaced) = replaced {
        output.line(&format!("What was there before is in {}.", replaced.display()))?;
    }
    if let Some(recovered) = recovered {
        tell(&recovered, output)?;
    }
    output.line("Start the node: flotilla up")
}

async fn recover(data_dir: Option<PathBuf>, yes: bool, output: Output) -> Result<(), Failure> {
    let (directory, identity) = opened_at(data_dir)?;
    if !yes {
        output::confirm(ALONE, "nothing was changed")?;
    }
    let recovered = store::recover(&directory.state(), &identity.node_id()).await.map_err(failed)?;
    if output.json {
        return output.value(&told_of(&recovered));
    }
    tell(&recovered, output)?;
    output.line("Start the node: flotilla up")
}

fn told_of(recovered: &Recovered) -> serde_json::Value {
    let Recovered { voters, learners, agreed, last, was_alone } = recovered;
    json!({ "was_alone": was_alone, "former_voters": voters, "former_learners": learners, "agreed_index": agreed, "last_index": last })
}

fn tell(recovered: &Recovered, output: Output) -> Result<(), Failure> {
    let Recovered { voters, learners, agreed, last, was_alone } = recovered;
    if *was_alone {
        return output.line("This machine was the only one that votes already; nothing was changed.");
    }
    output.line("This machine is now the only one that votes.")?;
    output.line(&format!(
        "Its log goes on from entry {last}; up to {agreed} it was certainly agreed on. What the others agreed on after that is lost, \
         and what they had not agreed on yet is taken to be agreed on."
    ))?;
    let others: Vec<String> = voters.iter().chain(learners).map(ToString::to_string).collect();
    if !others.is_empty() {
        output.line(&format!(
            "Before any of {} runs again, remove it with `flotilla machine rm`, delete `state.db` and `keys` in its data directory, and \
             let it join anew.",
            others.join(", ")
        ))?;
    }
    Ok(())
}

fn opened_at(data_dir: Option<PathBuf>) -> Result<(DataDir, Identity), Failure> {
    let flags = Flags { data_dir, ..Flags::default() };
    opened(&Config::load(&flags).map_err(|error| Failure::Usage(error.to_string()))?.data_dir)
}

/// Takes the lock of the data directory: a node that runs is in the way, and named.
fn opened(data_dir: &Path) -> Result<(DataDir, Identity), Failure> {
    if !data_dir.is_dir() {
        return Err(Failure::Usage(format!(
            "there is no directory `{}`; name the node's with --data-dir",
            data_dir.display()
        )));
    }
    let directory = DataDir::open(data_dir).map_err(|error| Failure::Other(error.to_string()))?;
    let identity = Identity::load(&directory).map_err(|error| {
        Failure::Other(format!("{error}; the keys are not in a copy of the state, put the directory `keys` back first"))
    })?;
    Ok((directory, identity))
}

#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn failed(error: store::Error) -> Failure {
    Failure::Other(error.to_string())
}
