//! The verbs that run on this machine's data directory: `init` and `up`.

use std::path::Path;

use flotilla_api::{JoinToken, MachineName, StackName};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::{
    Failure, Output,
    args::{Init, Join, Up},
    context, output,
};
use crate::{
    cluster::join::Joined,
    config::{Config, Flags},
    node,
};

pub(super) async fn init(args: Init, output: Output) -> Result<(), Failure> {
    let config = load(&args.flags)?;
    let made = make_cluster(&args.name, &config).await?;
    let api = api_of(&config, &made);
    let context = made.admin_token.as_ref().map(|token| context::save(args.name.as_str(), &api, token));
    if output.json {
        return output.value(&json!({
            "cluster": args.name,
            "cluster_id": made.cluster_id,
            "node": made.node,
            "dashboard_url": made.dashboard_url,
            "invitation_url": made.invitation_url,
            "api_url": api,
            "admin_token": made.admin_token,
        }));
    }
    output.line(&format!("Made the cluster `{}` in {}.\n", args.name, config.data_dir.display()))?;
    output.line(&format!("Start it:   {}", output.strong(&up_command(&args.flags))))?;
    output.line(&format!("Then open:  {}", output.link(&made.invitation_url)))?;
    if let Some(drawing) = output::qr(&made.invitation_url, output.colours()).filter(|_| output.draws_progress()) {
        output.line(&format!("\n{drawing}"))?;
    }
    output.line("\nThe link signs one browser in as administrator, once, within a day.")?;
    match context {
        Some(Ok(path)) => output.line(&format!("This command line is signed in: the token is in {}.", path.display())),
        // The cluster is made all the same, and `token create` can't help without a token: show it.
        Some(Err(error)) => {
            output.note(&format!("warning: the token could not be saved: {error}"));
            output.line(&format!("FLOTILLA_TOKEN={}", made.admin_token.as_deref().unwrap_or_default()))
        }
        None => Ok(()),
    }
}

/// Makes this machine a member; the daemon is started after that.
pub(super) async fn join(args: Join, output: Output) -> Result<(), Failure> {
    let config = load(&args.flags)?;
    let joined = become_member(args.token, args.name, &config).await?;
    if output.json {
        return output.value(&json!({
            "cluster": joined.cluster.name,
            "cluster_id": joined.cluster.id,
            "node": joined.node,
            "machine": joined.name,
            "storage_only": joined.stores_only,
        }));
    }
    output.line(&format!("This machine is `{}` of the cluster `{}` now.\n", joined.name, joined.cluster.name))?;
    if joined.stores_only {
        output.line("It only stores: it keeps encrypted copies that it can't read, and runs nothing.\n")?;
    }
    output.line(&format!("Start it:   {}", output.strong(&up_command(&args.flags))))
}

async fn become_member(token: JoinToken, name: Option<MachineName>, config: &Config) -> Result<Joined, Failure> {
    let name = name.unwrap_or_else(machine_name);
    node::join(token, name, config).await.map_err(|error| Failure::Other(error.to_string()))
}

pub(super) async fn up(args: Up, output: Output) -> Result<(), Failure> {
    let config = load(&args.flags)?;
    let token = token_to_join_with(args.join, &config)?;
    if args.init.is_some() && token.is_some() {
        return Err(Failure::Usage(
            "`--init` makes a cluster, and `join` in the settings joins one; leave one of them out".to_owned(),
        ));
    }
    node::start_log(&config.log);
    if let Some(name) = &args.init
        && !is_initialised(&config.data_dir)
    {
        let made = make_cluster(name, &config).await?;
        if let Some(token) = &made.admin_token
            && let Err(error) = context::save(name.as_str(), &api_of(&config, &made), token)
        {
            output.note(&format!("warning: the token for this command line could not be saved: {error}"));
        }
        output.note(&format!("Made the cluster `{name}`. Open {}", output.link(&made.invitation_url)));
    }
    if let Some(token) = token {
        let joined = become_member(token, None, &config).await?;
        output.note(&format!("This machine is `{}` of the cluster `{}` now.", joined.name, joined.cluster.name));
    }
    if !is_initialised(&config.data_dir) {
        return Err(Failure::Other(format!(
            "there is no cluster in `{}`; make one with `flotilla init NAME`, or join one with `flotilla join TOKEN`",
            config.data_dir.display()
        )));
    }
    let ended = if args.stop_with_stdin { node::run(config, stopped()?).await } else { node::up(config).await };
    ended.map_err(|error| Failure::Other(error.to_string()))
}

/// The token that was given, or that of the settings. One that is of no use any more is not looked at.
fn token_to_join_with(given: Option<JoinToken>, config: &Config) -> Result<Option<JoinToken>, Failure> {
    if is_initialised(&config.data_dir) {
        return Ok(None);
    }
    if given.is_some() {
        return Ok(given);
    }
    let wrong = |error| Failure::Usage(format!("`join` in the settings: {error}"));
    config.join.as_ref().map(|token| token.parse().map_err(wrong)).transpose()
}

/// Resolves with a signal to stop, or when the program at the other end of the standard input is gone.
fn stopped() -> Result<impl Future<Output = ()>, Failure> {
    let listen = |kind| signal(kind).map_err(|error| Failure::Other(node::Error::Signals(error).to_string()));
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    Ok(async move {
        let mut input = tokio::io::stdin();
        let mut nothing = tokio::io::sink();
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = tokio::io::copy(&mut input, &mut nothing) => {}
        }
    })
}

fn load(flags: &Flags) -> Result<Config, Failure> {
    Config::load(flags).map_err(|error| Failure::Usage(error.to_string()))
}

async fn make_cluster(name: &StackName, config: &Config) -> Result<node::Initialised, Failure> {
    let wanted = node::Init {
        data_dir: config.data_dir.clone(),
        cluster: name.clone(),
        machine: machine_name(),
        listen: config.listen,
        domain: config.domain.clone(),
        secure: config.tls.files().is_some(),
        with_token: true,
    };
    node::init(wanted).await.map_err(|error| Failure::Other(error.to_string()))
}

/// There is a state log, or what a machine that joins was told first.
pub(crate) fn is_initialised(data_dir: &Path) -> bool {
    data_dir.join("state.db").exists() || data_dir.join("joined.json").exists()
}

/// Where this machine's command line finds the node.
fn api_of(config: &Config, made: &node::Initialised) -> String {
    if config.tls.files().is_some() {
        // The certificate is for a name.
        return made.dashboard_url.trim_end_matches('/').to_owned();
    }
    let mut address = config.listen;
    if address.ip().is_unspecified() {
        address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    format!("http://{address}")
}

fn up_command(flags: &Flags) -> String {
    let mut command = "flotilla up".to_owned();
    if let Some(config) = &flags.config {
        command.push_str(&format!(" --config {}", config.display()));
    }
    if let Some(data_dir) = &flags.data_dir {
        command.push_str(&format!(" --data-dir {}", data_dir.display()));
    }
    if let Some(listen) = &flags.listen {
        command.push_str(&format!(" --listen {listen}"));
    }
    if let Some(domain) = &flags.domain {
        command.push_str(&format!(" --domain {domain}"));
    }
    command
}

/// This machine's host name, as far as it is a name; else `machine`.
pub(crate) fn machine_name() -> MachineName {
    let host = sysinfo::System::host_name().unwrap_or_default().to_lowercase();
    let label: String = host
        .split('.')
        .next()
        .unwrap_or_default()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(flotilla_api::id::NAME_MAX)
        .collect();
    label
        .trim_matches('-')
        .parse()
        .or_else(|_| "machine".parse())
        .unwrap_or_else(|error| unreachable!("a constant that is a name: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_in_the_settings_counts_until_this_machine_has_joined() {
        let directory = tempfile::tempdir().unwrap();
        let config = |token: &str| Config {
            data_dir: directory.path().to_owned(),
            join: Some(token.to_owned()),
            ..Config::default()
        };
        let configured = |config: &Config| token_to_join_with(None, config);
        let error = configured(&config("nonsense")).unwrap_err().to_string();
        assert!(error.starts_with("`join` in the settings: "), "{error}");
        assert!(configured(&Config { join: None, ..config("") }).unwrap().is_none());
        std::fs::write(directory.path().join("joined.json"), "{}").unwrap();
        assert!(configured(&config("nonsense")).unwrap().is_none());
    }

    #[test]
    fn a_machine_has_a_name_whatever_its_host_name_is() {
        assert!(!machine_name().as_str().is_empty());
    }

    #[test]
    fn the_command_to_start_says_what_init_was_told() {
        let flags = Flags { data_dir: Some("/srv/f".into()), listen: "127.0.0.1:1".parse().ok(), ..Flags::default() };
        assert_eq!(up_command(&flags), "flotilla up --data-dir /srv/f --listen 127.0.0.1:1");
    }
}
