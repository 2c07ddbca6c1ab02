//! `flotilla demo`: a cluster of several machines on this computer with sample services, until Ctrl-C.

mod child;
mod control;
mod family;
mod front;
mod image;
mod machine;
mod orders;
mod outage;
pub mod sample;
mod stage;
mod state;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use flotilla_api::MachineName;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    cli::{Failure, Output},
    config::PORT,
};
use control::{Answer, Order};
use machine::Power;
use stage::Stage;
use state::StateDir;

/// The settings of a real node on this machine are not the demo's.
const NO_FILE: &str = "/dev/null";

#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Demo {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    play: Play,
}

/// To be said in another terminal while a demo runs.
#[derive(Debug, Subcommand)]
enum Verb {
    /// Pull a machine's plug: its node and its containers die at once. Tells what the services' users saw
    #[command(after_help = "Example:\n  flotilla demo kill atlas")]
    Kill {
        machine: MachineName,
        #[command(flatten)]
        place: Place,
    },
    /// Put a machine's plug in again
    Start {
        machine: MachineName,
        #[command(flatten)]
        place: Place,
    },
    /// List the demo's machines
    Status {
        #[command(flatten)]
        place: Place,
    },
}

#[derive(Args, Debug)]
struct Place {
    /// Directory that the demo keeps everything in; used again if it is there, deleted when the demo ends
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir().join("flotilla-demo"))]
    state: PathBuf,
}

#[derive(Args, Debug)]
struct Play {
    #[command(flatten)]
    place: Place,
    /// How many machines; an earlier demo in the same directory goes on with those it had
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=10))]
    machines: u8,
    /// Port on this computer, for people; 0 takes a free one
    #[arg(long, default_value_t = PORT)]
    port: u16,
    /// Write one JSON object with all addresses into this file as soon as everything is healthy
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// Container engine, as in DOCKER_HOST
    #[arg(long, value_name = "URL")]
    docker_host: Option<String>,
}

/// Does what was typed.
///
/// # Errors
/// One sentence.
pub async fn run(args: Demo, output: Output) -> Result<(), Failure> {
    match args.verb {
        None => play(args.play, output).await,
        Some(Verb::Kill { machine, place }) => {
            output.note(&format!("Pulling the plug of {machine}, and watching what becomes of the services…"));
            let answer = give(&place, Order::Kill(machine)).await?;
            let told = answer.outage.iter().flat_map(|outage| &outage.services).map(ToString::to_string);
            output.done(&told.collect::<Vec<_>>().join("\n"), &answer)
        }
        Some(Verb::Start { machine, place }) => {
            let sentence = format!("{machine} is on again.");
            let answer = give(&place, Order::Start(machine)).await?;
            output.done(&sentence, &answer)
        }
        Some(Verb::Status { place }) => status(&give(&place, Order::Status {}).await?, output),
    }
}

async fn give(place: &Place, order: Order) -> Result<Answer, Failure> {
    control::give(&place.state, &StateDir::socket_in(&place.state), &order).await
}

fn status(answer: &Answer, output: Output) -> Result<(), Failure> {
    if output.json {
        return output.value(answer);
    }
    let rows = answer.machines.iter().map(|machine| {
        let power = match machine.power {
            Power::On => "on",
            Power::Starting => "starting",
            Power::Off => "off",
        };
        let pid = machine.pid.map(|pid| pid.to_string()).unwrap_or_default();
        [machine.name.as_str(), power, machine.api_url.as_str(), pid.as_str()].map(Into::into).to_vec()
    });
    output.table(&["MACHINE", "POWER", "API", "PID"], rows.collect(), "The demo has no machines.")
}

/// Runs until a signal, then takes everything down.
async fn play(args: Play, output: Output) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let mut stage = Stage::prepare(args, output)?;
    let played = tokio::select! {
        played = stage.play() => played,
        () = signals.next() => Ok(()),
    };
    if stage.has_begun() {
        output.note("\nTaking everything down…");
    }
    let taken_down = tokio::select! {
        done = stage.take_down() => done,
        () = signals.next() => Err(Failure::Other("interrupted; the next demo in the same directory takes over what is left".into())),
    };
    played.and(taken_down)
}

/// The signals by which a person or a program ends the demo.
struct Signals([Signal; 3]);

impl Signals {
    fn new() -> Result<Self, Failure> {
        let listen =
            |kind| signal(kind).map_err(|error| Failure::Other(format!("could not listen for signals: {error}")));
        Ok(Self([listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?, listen(SignalKind::hangup())?]))
    }

    async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
