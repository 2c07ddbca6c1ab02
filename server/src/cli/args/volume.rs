//! `flotilla volume …`

use std::{path::PathBuf, str::FromStr};

use clap::{Args, Subcommand};
use flotilla_api::{InvalidName, ServiceName, VolumeName};
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
    /// Begin a service anew with its volumes as they were; what it has now is kept
    #[command(after_help = "Example:\n  flotilla volume restore notes 17.3")]
    Restore(VolumeRestore),
    /// Write a volume, as it is committed or as it was, into a tar archive
    #[command(after_help = "\
Examples:
  flotilla volume export notes/board board.tar
  flotilla volume export notes/board lost.tar --generation 17.4")]
    Export(VolumeExport),
}

#[derive(Args, Debug)]
pub struct VolumeRestore {
    pub service: ServiceName,
    /// Epoch and sequence, as `flotilla volume history` shows them
    pub generation: GenerationName,
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
