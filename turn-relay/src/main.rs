//! `flotilla-relay`: the relay as a program of its own, for a machine with a public address.

use std::{
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand};
use flotilla_relay::{Credentials, Network, Relay, RelayConfig};
use tracing_subscriber::EnvFilter;

/// TURN relay for Flotilla.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run the relay until it is stopped.
    Run(Run),
    /// Print credentials for one user, as JSON.
    Credentials {
        #[command(flatten)]
        secret: SecretArgs,
        #[arg(long)]
        user: String,
        /// Seconds.
        #[arg(long, default_value_t = 3600, value_parser = clap::value_parser!(u64).range(1..=30 * 24 * 3600))]
        ttl: u64,
    },
}

#[derive(Args)]
struct Run {
    #[command(flatten)]
    secret: SecretArgs,
    /// UDP address to listen on.
    #[arg(long, env = "FLOTILLA_RELAY_LISTEN", default_value = "0.0.0.0:3478")]
    listen: SocketAddr,
    /// Address of this machine as peers see it.
    #[arg(long, env = "FLOTILLA_RELAY_PUBLIC_IP")]
    public_ip: IpAddr,
    #[arg(long, env = "FLOTILLA_RELAY_REALM", default_value = "flotilla")]
    realm: String,
    /// First and last UDP port for relayed addresses, as in 49152-65535. Without it the kernel chooses.
    #[arg(long, env = "FLOTILLA_RELAY_PORTS", value_parser = parse_ports)]
    ports: Option<RangeInclusive<u16>>,
    /// Private network whose peers may be reached, as in 192.168.1.0/24; can be repeated.
    #[arg(long = "allow-peer", env = "FLOTILLA_RELAY_ALLOW_PEERS", value_delimiter = ',')]
    allowed_peers: Vec<Network>,
}

#[derive(Args)]
struct SecretArgs {
    /// File with the secret that credentials are made of; or set `FLOTILLA_RELAY_SECRET`.
    #[arg(long, env = "FLOTILLA_RELAY_SECRET_FILE")]
    secret_file: Option<PathBuf>,
}

impl SecretArgs {
    // No flag takes the secret itself: a command line can be read by everybody on the machine.
    fn read(&self) -> anyhow::Result<String> {
        if let Some(file) = &self.secret_file {
            let secret = std::fs::read_to_string(file).with_context(|| format!("failed to read {}", file.display()))?;
            return Ok(secret.trim().to_owned());
        }
        match std::env::var("FLOTILLA_RELAY_SECRET") {
            Ok(secret) => Ok(secret),
            Err(_) => bail!("there is no secret; use --secret-file or set FLOTILLA_RELAY_SECRET"),
        }
    }
}

fn parse_ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    let (first, last) = text.split_once('-').ok_or("write the first and the last port with a hyphen between them")?;
    let port = |text: &str| text.trim().parse::<u16>().map_err(|_| format!("`{text}` is no port"));
    let range = port(first)?..=port(last)?;
    if range.is_empty() || *range.start() == 0 { Err("the first port is 1 to the last".to_owned()) } else { Ok(range) }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,turn=off"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match Cli::parse().verb {
        Verb::Credentials { secret, user, ttl } => {
            let made = Credentials::make(&secret.read()?, &user, Duration::from_secs(ttl))?;
            #[allow(clippy::print_stdout)]
            {
                println!(
                    "{}",
                    serde_json::json!({
                        "username": made.username,
                        "credential": made.password,
                        "expires_at": made.expires_at,
                    })
                );
            }
            Ok(())
        }
        Verb::Run(run) => serve(run).await,
    }
}

async fn serve(run: Run) -> anyhow::Result<()> {
    let mut config = RelayConfig::new(run.listen, run.public_ip, run.realm, run.secret.read()?);
    config.ports = run.ports;
    config.allowed_peers = run.allowed_peers;
    let relay = Relay::start(config).await?;
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => {}
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    let counted = relay.snapshot();
    relay.stop().await;
    tracing::info!(?counted, "relay stopped");
    Ok(())
}
