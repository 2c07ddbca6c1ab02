//! `flotilla secret …` and `flotilla config …`

use std::path::PathBuf;

use clap::{Args, Subcommand};
use flotilla_api::ValueName;

#[derive(Args, Debug)]
pub struct Secrets {
    #[command(subcommand)]
    pub verb: Option<Secret>,
}

#[derive(Args, Debug)]
pub struct Configs {
    #[command(subcommand)]
    pub verb: Option<Config>,
}

#[derive(Debug, Subcommand)]
pub enum Secret {
    /// List the secrets, and which services use them
    Ls,
    /// Set a secret; services that use it are updated, one instance after the other
    #[command(after_help = "\
Examples:
  flotilla secret set db-password                 asks for it
  flotilla secret set db-password < password.txt
  flotilla secret set tls-key --file key.pem

The bytes are kept as they are, a line end at their end included. They are never given as an argument, which other users of the
machine could read.")]
    Set(ValueSet),
    /// Show the versions of a secret and who uses it; never the secret
    Inspect { name: ValueName },
    /// Remove a secret that no service uses
    Rm(ValueRm),
    /// Give the cluster a new key, and seal all secrets and configs with it: for when a machine was removed
    Rekey,
}

#[derive(Debug, Subcommand)]
pub enum Config {
    /// List the configs, and which services use them
    Ls,
    /// Set a config; services that use it are updated, one instance after the other
    #[command(after_help = "\
Examples:
  flotilla config set nginx.conf --file nginx.conf
  generate | flotilla config set routes")]
    Set(ValueSet),
    /// Show the versions of a config and who uses it
    Inspect { name: ValueName },
    /// Print a config
    Cat {
        name: ValueName,
        /// An older one [default: the newest]
        #[arg(long)]
        version: Option<u64>,
    },
    /// Remove a config that no service uses
    Rm(ValueRm),
}

#[derive(Args, Debug)]
pub struct ValueSet {
    pub name: ValueName,
    /// Where the value is [default: the standard input]
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Services that use it get it when they are deployed next
    #[arg(long)]
    pub no_update: bool,
}

#[derive(Args, Debug)]
pub struct ValueRm {
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<ValueName>,
    /// Don't ask
    #[arg(short, long)]
    pub yes: bool,
}
