//! `flotilla volume …`

use std::{path::PathBuf, str::FromStr, time::Duration};

use clap::{Args, Subcommand};
use flotilla_api::{InvalidName, MachineName, ServiceName, VolumeName};
use flotilla_core::state::GenerationName;

#[derive(Args, Debug)]
pub struct Volumes {
    #[command(subcommand)]
    pub verb: Option<Volume>,
}

#[derive(Debug, Subcommand)]
pub enum Volume {
    /// List the volumes that services write, and who has copies
    Ls,
    /// Show the generations of a volume that are kept, and what was put aside of it
    History {
        /// The service, a slash and the volume; the service alone where it has one volume
        #[arg(value_name = "SERVICE/VOLUME")]
        volume: VolumeArg,
    },
    /// Show what changes between two generations of a volume
    #[command(after_help = "\
Examples:
  flotilla volume diff notes/board 17.3
  flotilla volume diff notes/board 17.3 17.9")]
    Diff(VolumeDiff),
    /// List what was written on a machine before it was lost, and never committed
    Branch {
        /// A service [default: all]
        service: Option<ServiceName>,
    },
    /// Begin a service anew with its volumes as they were; what it has now is kept
    #[command(after_help = "\
Examples:
  flotilla volume restore notes 17.3
  flotilla volume restore notes-copy 17.3 --of notes")]
    Restore(VolumeRestore),
    /// Write a volume, as it is committed or as it was, into a tar archive
    #[command(after_help = "\
Examples:
  flotilla volume export notes/board board.tar
  flotilla volume export notes/board lost.tar --generation 17.4")]
    Export(VolumeExport),
    /// Read all that machines keep of volumes and images, and repair from other machines what a disk damaged
    #[command(after_help = "\
Examples:
  flotilla volume scrub --wait
  flotilla volume scrub --machine atlas

Machines do so by themselves, a little at a time; `flotilla machine ls` says when each was done last.")]
    Scrub(VolumeScrub),
    /// Make a volume what a tar archive has, and begin its service anew with that; what it has now is kept
    #[command(after_help = "Example:\n  flotilla volume import notes/board board.tar")]
    Import(VolumeImport),
}

#[derive(Args, Debug)]
pub struct VolumeScrub {
    /// Only what this machine keeps [default: all machines that can be reached]
    #[arg(long, value_name = "NAME")]
    pub machine: Option<MachineName>,
    /// Wait until all of it was read
    #[arg(long)]
    pub wait: bool,
    /// How long to wait
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
}

#[derive(Args, Debug)]
pub struct VolumeDiff {
    /// The service, a slash and the volume; the service alone where it has one volume
    #[arg(value_name = "SERVICE/VOLUME")]
    pub volume: VolumeArg,
    /// Epoch and sequence, as `flotilla volume history` shows them
    pub from: GenerationName,
    /// The same [default: the newest that is committed]
    pub to: Option<GenerationName>,
}

#[derive(Args, Debug)]
pub struct VolumeImport {
    /// The service, a slash and the volume; the service alone where it has one volume
    #[arg(value_name = "SERVICE/VOLUME")]
    pub volume: VolumeArg,
    #[arg(value_name = "TAR")]
    pub file: PathBuf,
    /// Don't ask
    #[arg(short, long)]
    pub yes: bool,
}

#[derive(Args, Debug)]
pub struct VolumeRestore {
    pub service: ServiceName,
    /// Epoch and sequence, as `flotilla volume history` shows them
    pub generation: GenerationName,
    /// The service whose generation it is, where that is another one
    #[arg(long, value_name = "SERVICE")]
    pub of: Option<ServiceName>,
    /// Don't ask
    #[arg(short, long)]
    pub yes: bool,
}

#[derive(Args, Debug)]
pub struct VolumeExport {
    /// The service, a slash and the volume; the service alone where it has one volume
    #[arg(value_name = "SERVICE/VOLUME")]
    pub volume: VolumeArg,
    /// Where to
    #[arg(value_name = "TAR")]
    pub file: PathBuf,
    /// Epoch and sequence [default: the newest that is committed]
    #[arg(long)]
    pub generation: Option<GenerationName>,
}

/// `notes/board`, or `notes`.
#[derive(Clone, Debug)]
pub struct VolumeArg {
    pub service: ServiceName,
    pub volume: Option<VolumeName>,
}

impl FromStr for VolumeArg {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (service, volume) = text.split_once('/').map_or((text, None), |(service, volume)| (service, Some(volume)));
        Ok(Self { service: service.parse()?, volume: volume.map(str::parse).transpose()? })
    }
}
