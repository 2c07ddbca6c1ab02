//! The program: reads the command line, runs it, and ends with its exit code.

use std::{io::Write as _, process::ExitCode};

use anyhow::Context as _;
use clap::Parser as _;
use flotilla::{
    cli::{self, Cli},
    fence,
};

fn main() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    let json = cli.global.json;
    fence::is_program();
    if let cli::Verb::Guard(guard) = &cli.verb {
        // Without the runtime and its threads: it shall be small.
        return fence::guard::run(&guard.options()).map(|()| ExitCode::SUCCESS).context("the guard failed");
    }
    let runtime = tokio::runtime::Runtime::new().context("could not start the runtime")?;
    let ended = runtime.block_on(cli::run(cli));
    // A thread may still wait for input from a terminal; nobody waits for it.
    runtime.shutdown_background();
    let Err(failure) = ended else { return Ok(ExitCode::SUCCESS) };
    // If nobody reads the error output either, the exit code is all that is left.
    let _ = std::io::stderr().write_all(failure.text(json).as_bytes());
    Ok(ExitCode::from(failure.exit_code()))
}
