//! What can be typed, and its help texts.

mod image;
mod value;
mod volume;

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum, builder::styling};
use flotilla_api::{
    JoinToken, MachineName, Scope, ServiceName, StackName, TokenId,
    limit::{InvalidLimit, Rate, Span},
};

pub(super) use image::Image;
pub(super) use value::{Config, Configs, Secret, Secrets, ValueRm, ValueSet};
pub(super) use volume::{
    Volume, VolumeArg, VolumeDiff, VolumeExport, VolumeImport, VolumeRestore, VolumeScrub, Volumes,
};

use crate::{config, demo, fence};

const STYLES: styling::Styles = styling::Styles::styled()
    .header(styling::AnsiColor::Green.on_default().bold())
    .usage(styling::AnsiColor::Green.on_default().bold())
    .literal(styling::AnsiColor::Cyan.on_default().bold())
    .placeholder(styling::AnsiColor::Cyan.on_default());

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed; the reason is on the error output, in one sentence
  2  wrong usage, or a file given to it that is not right
  3  the token is missing, expired, revoked or does not allow it
  4  no node answers, or not in time
  5  there is no such service, revision, image, secret, config, token, machine or context
  6  deployed, but did not get healthy; drained, but not empty in time
  `exec` ends with the exit code of its command.

The node is the one of --api or FLOTILLA_API, else of the saved context, else http://127.0.0.1:7070.
The token is that of --token or FLOTILLA_TOKEN, else of the saved context for that node.";

/// A few ordinary machines as one platform for containers.
#[derive(Debug, Parser)]
#[command(
    name = "flotilla", version, styles = STYLES, after_help = EXIT_CODES,
    max_term_width = 100, subcommand_required = true, arg_required_else_help = true, disable_help_subcommand = true
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Args, Clone, Debug, Default)]
pub struct Global {
    /// Address of a node
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "FLOTILLA_API",
        hide_env_values = true,
        help_heading = "Where"
    )]
    pub api: Option<String>,
    /// Token that allows it; better in the environment or a context, where no process list shows it
    #[arg(
        long,
        global = true,
        value_name = "TOKEN",
        env = "FLOTILLA_TOKEN",
        hide_env_values = true,
        help_heading = "Where"
    )]
    pub token: Option<String>,
    /// Saved context to use instead of the current one
    #[arg(long, global = true, value_name = "NAME", env = "FLOTILLA_CONTEXT", help_heading = "Where")]
    pub context: Option<String>,
    /// Answer in JSON, errors too
    #[arg(long, global = true, help_heading = "Output")]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make a new cluster on this machine
    #[command(after_help = "Examples:\n  flotilla init home\n  flotilla init office --data-dir /srv/flotilla")]
    Init(Init),
    /// Run this machine's node
    #[command(
        after_help = "Examples:\n  flotilla up\n  flotilla up --init home --listen 127.0.0.1:7070\n  flotilla up --join fj1.…"
    )]
    Up(Up),
    /// Make this machine a member of a cluster
    #[command(after_help = "\
Examples:
  flotilla join fj1.…            then `flotilla up`
  flotilla join TOKEN --name attic --listen 0.0.0.0:7070

The token comes from `flotilla token create --scope machine` on a machine of the cluster, and works once. Give the same
--data-dir and --listen to `flotilla up`.")]
    Join(Join),
    /// Deploy the services of a compose file
    #[command(after_help = "\
Examples:
  flotilla deploy                          the compose.yaml of this directory
  flotilla deploy -f notes.compose.yaml --wait
  TAG=1.4 flotilla deploy -f compose.yaml --dry-run

Variables (${NAME}) come from the environment, then from the file .env beside the compose file. Services with
`build:` are built first. Only the variables that the file names are sent to the node.")]
    Deploy(Deploy),
    /// List services
    #[command(visible_alias = "ls", after_help = "Examples:\n  flotilla ps\n  flotilla ps --json | jq '.[].url'")]
    Ps(Ps),
    /// Show a service's output
    #[command(after_help = "Examples:\n  flotilla logs notes -f\n  flotilla logs notes --tail 100 --since 10m")]
    Logs(Logs),
    /// Run a command in a service's container
    #[command(after_help = "Examples:\n  flotilla exec -it notes -- sh\n  flotilla exec db -- pg_dump app > app.sql")]
    Exec(Exec),
    /// Show all about a service: specification, revisions, instances
    Inspect(Service),
    /// Say why a service runs where it runs, and why not elsewhere
    #[command(after_help = "Example:\n  flotilla explain notes")]
    Explain(Service),
    /// Remove services; their volumes stay unless --volumes is given
    #[command(after_help = "Examples:\n  flotilla rm notes\n  flotilla rm notes db --volumes --yes")]
    Rm(Rm),
    /// Replace a service's containers by new ones of the same revision
    Restart(Services),
    /// Go back to an older revision
    #[command(after_help = "Examples:\n  flotilla rollback notes\n  flotilla rollback notes --to 3")]
    Rollback(Rollback),
    /// Set how many instances of a service run; 0 stops it
    #[command(after_help = "Examples:\n  flotilla scale web=3\n  flotilla scale notes=0")]
    Scale(Scale),
    /// List volumes, who has copies of them, and what they were
    #[command(
        visible_alias = "volumes",
        after_help = "Examples:\n  flotilla volume ls\n  flotilla volume history notes/board"
    )]
    Volume(Volumes),
    /// Set secrets, list them, and see who uses them
    #[command(
        visible_alias = "secrets",
        after_help = "Examples:\n  flotilla secret set db-password < password.txt\n  flotilla secret ls"
    )]
    Secret(Secrets),
    /// Set configs, list and print them, and see who uses them
    #[command(
        visible_alias = "configs",
        after_help = "Examples:\n  flotilla config set nginx.conf --file nginx.conf\n  flotilla config cat nginx.conf"
    )]
    Config(Configs),
    /// Push images to the cluster without a registry, list who holds them, and remove them
    #[command(subcommand)]
    Image(Image),
    /// Make, list and revoke tokens
    #[command(subcommand)]
    Token(Token),
    /// Make links that sign a person in
    #[command(subcommand)]
    Invite(Invite),
    /// List the cluster's machines, and look after them
    #[command(
        visible_alias = "machines",
        after_help = "Examples:\n  flotilla machine ls\n  flotilla machine inspect atlas\n  flotilla machine label atlas room=attic power-\n  flotilla machine rm atlas"
    )]
    Machine(MachineArgs),
    /// Move everything away from a machine, and place nothing there
    #[command(after_help = "Example:\n  flotilla drain atlas --wait && ssh atlas sudo reboot")]
    Drain(Drain),
    /// Let a drained machine take instances again
    Undrain { machine: MachineName },
    /// Show the cluster and what the token allows
    #[command(visible_alias = "status")]
    Cluster,
    /// Show what was changed, by whom
    #[command(after_help = "Examples:\n  flotilla events\n  flotilla events -f --tail 0")]
    Events(Events),
    /// Copy the state to a safe place, put a copy back, and go on when most machines are lost
    #[command(subcommand)]
    State(State),
    /// Save nodes and tokens under a name
    #[command(subcommand)]
    Context(Context),
    /// Run a whole cluster with a sample service on this machine, until Ctrl-C
    #[command(after_help = "Example:\n  flotilla demo --state /tmp/flotilla-demo --port 7070")]
    Demo(demo::Demo),
    /// Print the completions of a shell
    #[command(
        after_help = "Example:\n  flotilla completions bash > ~/.local/share/bash-completion/completions/flotilla"
    )]
    Completions { shell: clap_complete::Shell },
    /// Freezes what writes volumes when this machine's lease ends, whatever became of its node, which starts it
    #[command(hide = true)]
    Guard(Guard),
    /// The services that the demo deploys
    #[command(subcommand, hide = true)]
    Sample(demo::sample::Sample),
}

#[derive(Args, Debug)]
pub struct Init {
    /// Name of the cluster; the dashboard will be at app.NAME.localhost
    pub name: StackName,
    #[command(flatten)]
    pub flags: config::Flags,
}

#[derive(Args, Debug)]
pub struct Join {
    /// Join token
    #[arg(id = "join-token", value_name = "TOKEN")]
    pub token: JoinToken,
    /// Name of this machine in the cluster [default: its host name]
    #[arg(long, value_name = "NAME")]
    pub name: Option<MachineName>,
    #[command(flatten)]
    pub flags: config::Flags,
}

#[derive(Args, Debug)]
pub struct Up {
    /// If there is no cluster in the data directory yet, make one of this name
    #[arg(long, value_name = "NAME")]
    pub init: Option<StackName>,
    /// If there is no cluster in the data directory yet, join the one of this token first; also `join` in the file, or FLOTILLA_JOIN
    #[arg(long, value_name = "TOKEN", conflicts_with = "init")]
    pub join: Option<JoinToken>,
    /// Stop when the standard input ends: with the program that started it
    #[arg(long, hide = true)]
    pub stop_with_stdin: bool,
    #[command(flatten)]
    pub flags: config::Flags,
}

#[derive(Args, Debug)]
pub struct Guard {
    /// The node's
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// The node's
    #[arg(long, value_name = "URL")]
    pub docker_host: Option<String>,
}

impl Guard {
    pub fn options(&self) -> fence::guard::Options {
        fence::guard::Options { data_dir: self.data_dir.clone(), docker_host: self.docker_host.clone() }
    }
}

#[derive(Args, Debug)]
pub struct Deploy {
    /// Compose file, `-` for the standard input [default: compose.yaml, compose.yml, docker-compose.yaml or docker-compose.yml in this directory]
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Name of the stack where the file has no `name:` [default: the file's directory]
    #[arg(short = 'p', long, value_name = "NAME")]
    pub stack: Option<StackName>,
    /// Wait until all services are healthy
    #[arg(long)]
    pub wait: bool,
    /// How long to wait
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
    /// Check everything, change nothing
    #[arg(long, conflicts_with = "wait")]
    pub dry_run: bool,
}

#[derive(Args, Debug)]
pub struct Ps {
    /// Only these services
    pub services: Vec<ServiceName>,
}

#[derive(Args, Debug)]
pub struct Service {
    pub service: ServiceName,
}

#[derive(Args, Debug)]
pub struct Services {
    #[arg(required = true, value_name = "SERVICE")]
    pub services: Vec<ServiceName>,
}

#[derive(Args, Debug)]
pub struct Logs {
    pub service: ServiceName,
    /// Go on with new lines
    #[arg(short, long)]
    pub follow: bool,
    /// Begin with at most so many lines of the past
    #[arg(short = 'n', long, value_name = "LINES")]
    pub tail: Option<u32>,
    /// Nothing older: a time as 2026-11-23T10:00:00Z, or how long ago, as 10m or 1h30m
    #[arg(long, value_name = "TIME", value_parser = super::time::parse_past)]
    pub since: Option<super::time::Past>,
    /// Begin each line with its time
    #[arg(short, long)]
    pub timestamps: bool,
}

#[derive(Args, Debug)]
pub struct Exec {
    /// Pass this terminal's input on
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub tty: bool,
    pub service: ServiceName,
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

#[derive(Args, Debug)]
pub struct Rm {
    #[arg(required = true, value_name = "SERVICE")]
    pub services: Vec<ServiceName>,
    /// Delete their volumes too, with all data in them
    #[arg(long)]
    pub volumes: bool,
    /// Don't ask
    #[arg(short, long)]
    pub yes: bool,
}

#[derive(Args, Debug)]
pub struct Rollback {
    pub service: ServiceName,
    /// Revision to go back to [default: the one before the current]
    #[arg(long, value_name = "REVISION")]
    pub to: Option<u64>,
}

#[derive(Args, Debug)]
pub struct Scale {
    #[arg(required = true, value_name = "SERVICE=N", value_parser = parse_scale)]
    pub services: Vec<(ServiceName, u32)>,
}

fn parse_scale(text: &str) -> Result<(ServiceName, u32), String> {
    let (service, replicas) = text.split_once('=').ok_or("write it as SERVICE=N, for example notes=0")?;
    let service = service.parse().map_err(|error: flotilla_api::InvalidName| error.to_string())?;
    let replicas = replicas.parse().map_err(|_| format!("`{replicas}` is no number of instances"))?;
    Ok((service, replicas))
}

#[derive(Args, Debug)]
pub struct GrantArgs {
    /// What it allows
    #[arg(long, value_enum, default_value = "user")]
    pub scope: ScopeArg,
    /// A service that a user may open; may be given several times
    #[arg(long = "service", value_name = "SERVICE")]
    pub services: Vec<ServiceName>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ScopeArg {
    /// Opens the services of --service in a browser
    User,
    /// Deploys, restarts and removes services, and opens all of them
    Operator,
    /// Everything: also tokens, invitations and machines
    Admin,
    /// Lets one machine join the cluster, once
    Machine,
}

impl From<ScopeArg> for Scope {
    fn from(scope: ScopeArg) -> Self {
        match scope {
            ScopeArg::User => Self::User,
            ScopeArg::Operator => Self::Operator,
            ScopeArg::Admin => Self::Admin,
            ScopeArg::Machine => Self::Machine,
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum Token {
    /// Make a token; it is shown once
    #[command(after_help = "\
Examples:
  flotilla token create ci --scope operator --expires 90d
  flotilla token create kiosk --service notes
  export FLOTILLA_TOKEN=$(flotilla token create laptop --scope admin --quiet)
  flotilla token create --scope machine    then `flotilla join TOKEN` on the new machine
  flotilla token create --scope machine --storage-only    for a machine that keeps encrypted copies, and can't read them")]
    Create {
        /// For what or whom it is; not needed for a machine
        name: Option<String>,
        #[command(flatten)]
        grant: GrantArgs,
        /// After which time it ends [default: 30d; for a machine 1d]
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
        expires: Option<Duration>,
        /// The machine only keeps copies of encrypted volumes, which it can't read; for ever
        #[arg(long)]
        storage_only: bool,
        /// Print the token and nothing else
        #[arg(short, long)]
        quiet: bool,
    },
    /// List tokens
    #[command(visible_alias = "ls")]
    List,
    /// End a token at once, everywhere
    Revoke {
        /// As `token list` shows it
        #[arg(value_name = "ID", value_parser = |text: &str| Ok::<_, std::convert::Infallible>(TokenId(text.to_owned())))]
        id: TokenId,
    },
}

#[derive(Debug, Subcommand)]
pub enum Invite {
    /// Make a link (and QR code) that signs one browser in, once
    #[command(
        after_help = "Examples:\n  flotilla invite create ana --service notes\n  flotilla invite create me --scope admin --expires 1h"
    )]
    Create {
        /// For whom it is
        name: String,
        #[command(flatten)]
        grant: GrantArgs,
        /// After which time the link no longer works
        #[arg(long, value_name = "TIME", default_value = "1d", value_parser = humantime::parse_duration)]
        expires: Duration,
    },
}

#[derive(Args, Debug)]
pub struct MachineArgs {
    #[command(subcommand)]
    pub verb: Option<Machine>,
}

#[derive(Debug, Subcommand)]
pub enum Machine {
    /// List the machines (as does `machine` alone)
    #[command(visible_alias = "list")]
    Ls,
    /// Show all about a machine: condition, links, what is placed on it
    Inspect { machine: MachineName },
    /// Give a machine another name
    Rename {
        machine: MachineName,
        #[arg(value_name = "NEW NAME")]
        name: MachineName,
    },
    /// Set labels, or take them away; services can be placed by them
    #[command(
        after_help = "Examples:\n  flotilla machine label atlas room=attic disk=ssd\n  flotilla machine label atlas room-"
    )]
    Label(Label),
    /// Limit what a machine sends of copies of volumes and images, so that a thin line stays free for people
    #[command(after_help = "\
Examples:
  flotilla machine limit atlas 2MB/s                              always, as far as no window says otherwise
  flotilla machine limit atlas 500kB/s --between 07:00-23:00      at these hours of each day, too
  flotilla machine limit atlas 0 --between 18:00-22:00            no copies at all then
  flotilla machine limit atlas off --between 07:00-23:00          takes that window away
  flotilla machine limit atlas off                                takes everything away

Hours are of the machine's own local time. What an instance waits for before it begins is sent at once, whatever the limit.")]
    Limit(Limit),
    /// Remove a machine from the cluster, for good
    Rm(MachineRm),
    /// Move everything away from a machine, and place nothing there
    Drain(Drain),
    /// Let a drained machine take instances again
    Undrain { machine: MachineName },
}

#[derive(Args, Debug)]
pub struct Label {
    pub machine: MachineName,
    /// `KEY=VALUE` sets a label, `KEY-` takes it away
    #[arg(required = true, value_name = "KEY=VALUE", value_parser = parse_label)]
    pub labels: Vec<(String, Option<String>)>,
}

#[derive(Args, Debug)]
pub struct Limit {
    pub machine: MachineName,
    /// As 2MB/s, 500kB/s or 20Mbit/s; 0 for no copies at all, `off` for no limit
    #[arg(value_name = "RATE|off", value_parser = parse_limit)]
    pub rate: LimitRate,
    /// Only at these hours of each day, as 07:00-23:00; may be given several times
    #[arg(long, value_name = "FROM-TO")]
    pub between: Vec<Span>,
}

/// A rate, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitRate(pub Option<Rate>);

fn parse_limit(text: &str) -> Result<LimitRate, InvalidLimit> {
    if text == "off" { Ok(LimitRate(None)) } else { text.parse().map(|rate| LimitRate(Some(rate))) }
}

fn parse_label(text: &str) -> Result<(String, Option<String>), String> {
    match (text.split_once('='), text.strip_suffix('-')) {
        (Some((key, value)), _) if !key.is_empty() => Ok((key.to_owned(), Some(value.to_owned()))),
        (None, Some(key)) if !key.is_empty() => Ok((key.to_owned(), None)),
        _ => Err("write it as KEY=VALUE, for example room=attic, or as KEY- to take the label away".to_owned()),
    }
}

#[derive(Args, Debug)]
pub struct MachineRm {
    pub machine: MachineName,
    /// Also while it is well and services run there; what is only on its disk is lost to the cluster
    #[arg(long)]
    pub force: bool,
    /// Don't ask
    #[arg(short, long)]
    pub yes: bool,
}

#[derive(Args, Debug)]
pub struct Drain {
    pub machine: MachineName,
    /// Also if some of what runs there finds no other place; it is stopped then, until there is one
    #[arg(long)]
    pub force: bool,
    /// Wait until nothing runs there any more
    #[arg(long)]
    pub wait: bool,
    /// How long to wait
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
}

#[derive(Args, Debug)]
pub struct Events {
    /// Go on with what happens
    #[arg(short, long)]
    pub follow: bool,
    /// At most so many of the past
    #[arg(short = 'n', long, value_name = "EVENTS", default_value = "50")]
    pub tail: usize,
}

#[derive(Debug, Subcommand)]
pub enum State {
    /// Write a copy of the state: the log, the snapshot and the audit trail, but no keys and no volumes
    #[command(after_help = "\
Examples:
  flotilla state backup home.db                       of the node that runs
  flotilla state backup home.db --data-dir /srv/f     of one that does not

Keep the directory `keys` of the data directory as well: a copy can't be used without it.")]
    Backup {
        /// Must not exist
        file: PathBuf,
        /// Copy the state of a node that does not run
        #[arg(long, value_name = "DIR")]
        data_dir: Option<PathBuf>,
    },
    /// Put a copy of the state in place; the node must not run
    #[command(after_help = "Example:\n  flotilla state restore home.db --data-dir /srv/f")]
    Restore {
        /// What `state backup` wrote
        file: PathBuf,
        #[arg(long, value_name = "DIR")]
        data_dir: Option<PathBuf>,
        /// Put a state that is there aside
        #[arg(long)]
        force: bool,
        /// Make this machine the only one that votes: for when the others are lost for good
        #[arg(long)]
        recover_alone: bool,
    },
    /// Make this machine the only one that votes, for when most of the voting machines are lost for good; the node must not run
    #[command(after_help = "Example:\n  flotilla state recover --data-dir /srv/f")]
    Recover {
        #[arg(long, value_name = "DIR")]
        data_dir: Option<PathBuf>,
        /// Don't ask
        #[arg(short, long)]
        yes: bool,
    },
}

#[derive(Debug, Subcommand)]
pub enum Context {
    /// Save the node of --api with the token of --token (or FLOTILLA_API, FLOTILLA_TOKEN) under a name, and use it
    #[command(after_help = "Example:\n  flotilla context save home --api http://127.0.0.1:7070 --token \"$TOKEN\"")]
    Save { name: String },
    /// Use a saved context from now on
    Use { name: String },
    /// List saved contexts
    #[command(visible_alias = "ls")]
    List,
    /// Forget a saved context
    Rm { name: String },
}
