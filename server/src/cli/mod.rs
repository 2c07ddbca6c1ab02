//! The command line: verbs that speak with a node, and those that run one.

mod access;
mod args;
mod cluster;
mod context;
mod deploy;
mod dotenv;
mod exec;
mod explain;
mod failure;
mod image;
pub(crate) mod local;
mod machines;
mod output;
mod progress;
mod prompt;
mod scrub;
mod services;
mod state;
mod time;
mod values;
mod volumes;
pub(crate) mod wait;

#[cfg(test)]
mod tests;

use clap::CommandFactory as _;

use crate::{client::Client, demo};
pub use args::{Cli, Global, Verb};
pub use failure::{ExitCode, Failure};
pub use output::{Output, qr};

/// What every verb that speaks with a node is given.
pub(crate) struct Session {
    pub(crate) client: Client,
    pub(crate) output: Output,
}

/// Does what was typed.
///
/// # Errors
/// [`Failure::text`] is for the error output, [`Failure::exit_code`] for the process.
pub async fn run(cli: Cli) -> Result<(), Failure> {
    let Cli { global, verb } = cli;
    let output = Output::new(global.json);
    match verb {
        Verb::Init(args) => return local::init(args, output).await,
        Verb::Join(args) => return local::join(args, output).await,
        Verb::Up(args) => return local::up(args, output).await,
        Verb::Demo(args) => return demo::run(args, output).await,
        Verb::Sample(sample) => return Ok(demo::sample::run(sample).await?),
        Verb::Context(args) => return context::run(args, &global, output).await,
        Verb::State(args) => return state::run(args, &global, output).await,
        Verb::Completions { shell } => return completions(shell),
        _ => {}
    }
    let session = Session { client: context::client(&global)?, output };
    match verb {
        Verb::Deploy(args) => deploy::run(args, &session).await,
        Verb::Ps(args) => services::ps(&args, &session).await,
        Verb::Logs(args) => services::logs(&args, &session).await,
        Verb::Exec(args) => exec::run(args, &session).await,
        Verb::Inspect(args) => services::inspect(&args.service, &session).await,
        Verb::Explain(args) => explain::run(&args.service, &session).await,
        Verb::Rm(args) => services::rm(args, &session).await,
        Verb::Restart(args) => services::restart(&args.services, &session).await,
        Verb::Rollback(args) => services::roll_back(&args, &session).await,
        Verb::Scale(args) => services::scale(&args.services, &session).await,
        Verb::Volume(args) => volumes::run(args.verb, &session).await,
        Verb::Secret(args) => values::secrets(args.verb, &session).await,
        Verb::Config(args) => values::configs(args.verb, &session).await,
        Verb::Image(args) => image::run(args, &session).await,
        Verb::Token(args) => access::tokens(args, &session).await,
        Verb::Invite(args) => access::invite(args, &session).await,
        Verb::Machine(args) => machines::run(args.verb, &session).await,
        Verb::Drain(args) => machines::drain(&args, &session).await,
        Verb::Undrain { machine } => machines::undrain(&machine, &session).await,
        Verb::Cluster => cluster::status(&session).await,
        Verb::Events(args) => cluster::events(&args, &session).await,
        // Done above; the guard by `main` already.
        Verb::Init(_)
        | Verb::Join(_)
        | Verb::Up(_)
        | Verb::Demo(_)
        | Verb::Guard(_)
        | Verb::Sample(_)
        | Verb::Context(_)
        | Verb::State(_)
        | Verb::Completions { .. } => Ok(()),
    }
}

fn completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "flotilla", &mut script);
    output::write(&String::from_utf8_lossy(&script))
}
