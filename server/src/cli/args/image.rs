//! `flotilla image …`

use clap::Subcommand;
use flotilla_api::MachineName;

#[derive(Debug, Subcommand)]
pub enum Image {
    /// Send an image of this machine's engine, or an archive of `docker save`, to the cluster; no registry is needed
    #[command(after_help = "\
Examples:
  flotilla image push notes:1
  flotilla image push ./notes.tar

Only the layers travel that no machine of the cluster has. A push that was broken off goes on where it was.")]
    Push {
        /// Reference of an image, or path of an archive
        #[arg(value_name = "IMAGE|TAR")]
        source: String,
    },
    /// List the images that services use and machines hold, or all that the engine of one machine has
    Ls {
        #[arg(long, value_name = "MACHINE")]
        machine: Option<MachineName>,
        /// Show the layers, too
        #[arg(long, conflicts_with = "machine")]
        layers: bool,
    },
    /// Remove an image from all machines; one that a service needs stays
    Rm {
        /// A reference or an id
        image: String,
        /// Don't ask
        #[arg(short, long)]
        yes: bool,
    },
    /// Remove the images that no service names from all machines; what Flotilla did not bring there stays
    #[command(after_help = "Machines do so by themselves with images that no service has named for a week.")]
    Gc {
        /// Only say what would go
        #[arg(long)]
        dry_run: bool,
    },
}
