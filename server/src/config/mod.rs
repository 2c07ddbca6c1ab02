//! Settings of the daemon. One precedence: flags, then environment, then the file, then defaults.

mod source;
#[cfg(test)]
mod tests;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use figment::{
    Figment,
    providers::{Format, Serialized, Toml},
};
use serde::{Deserialize, Serialize};

/// The port of the listener where nothing else is said.
pub const PORT: u16 = 7070;

/// Everything that can be set, with its default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where keys, state, volumes and uploads live.
    pub data_dir: PathBuf,
    /// Address and port of the HTTP listener; port 0 takes a free one.
    pub listen: SocketAddr,
    /// UDP port of all connections to browsers and to other machines; 0 takes a free one. Absent: the listener's number.
    pub udp_port: Option<u16>,
    /// Host name (and port) under which a browser finds this node: the dashboard at `app.<domain>`, services at
    /// `<service>.<domain>`. Absent: `<cluster>.localhost` and the listener's port.
    pub domain: Option<String>,
    /// As `DOCKER_HOST`: `unix:///path` or `http://host:port`. Absent: the engine's usual socket.
    pub docker_host: Option<String>,
    /// Token of the cluster that this machine joins when its node starts and its data directory is empty. Of no use after that.
    pub join: Option<String>,
    pub tls: Tls,
    pub log: Log,
    pub relay: Relay,
    pub limits: Limits,
    /// Environment variables that look like settings and are none: most likely a typing error.
    #[serde(skip)]
    pub unknown_environment: Vec<String>,
}

/// HTTPS in place of HTTP on the listener: both, or neither.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// PEM file with the certificate of `*.<domain>` and its chain. A renewed one is taken up within a minute.
    pub certificate: Option<PathBuf>,
    /// PEM file with its key.
    pub key: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// A level (`error`, `warn`, `info`, `debug`, `trace`) or directives of `tracing`, as `info,flotilla=debug`.
    pub level: String,
    pub format: LogFormat,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    #[default]
    Human,
    Json,
}

/// The TURN server in this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Relay {
    pub enabled: bool,
    /// UDP port; 0 takes a free one.
    pub port: u16,
    /// The address that others reach it at; absent: that of the listener.
    pub public_address: Option<IpAddr>,
}

/// What one machine takes upon itself at most.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Open connections of the listener.
    pub connections: u32,
    /// Requests that are answered at one time.
    pub requests: u32,
    /// Log, event and exec streams that are open at one time.
    pub streams: u32,
    /// Browsers that are connected at one time.
    pub sessions: u32,
    /// Bytes of one image archive, and of one build context.
    pub upload_bytes: u64,
    /// Seconds until an ordinary request is given up.
    pub request_seconds: u64,
    /// Seconds that a deployment may take to pull its images.
    pub pull_seconds: u64,
    /// Seconds that the engine may take to build or to load an image.
    pub build_seconds: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: default_data_dir(),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)),
            udp_port: None,
            domain: None,
            docker_host: None,
            join: None,
            tls: Tls::default(),
            log: Log::default(),
            relay: Relay::default(),
            limits: Limits::default(),
            unknown_environment: Vec::new(),
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Human }
    }
}

impl Default for Relay {
    fn default() -> Self {
        // 3478 is the port that RFC 8656 registers for TURN.
        Self { enabled: true, port: 3478, public_address: None }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            requests: 256,
            streams: 256,
            sessions: 64,
            upload_bytes: 20 << 30,
            request_seconds: 30,
            pull_seconds: 900,
            build_seconds: 1800,
        }
    }
}

impl Tls {
    /// Certificate and key, if there is HTTPS.
    pub fn files(&self) -> Option<(&Path, &Path)> {
        Some((self.certificate.as_deref()?, self.key.as_deref()?))
    }
}

impl Limits {
    pub fn request(&self) -> Duration {
        Duration::from_secs(self.request_seconds)
    }

    pub fn pull(&self) -> Duration {
        Duration::from_secs(self.pull_seconds)
    }

    pub fn build(&self) -> Duration {
        Duration::from_secs(self.build_seconds)
    }
}

/// Settings on the command line of `flotilla up` and `flotilla init`.
#[derive(Args, Clone, Debug, Default)]
pub struct Flags {
    /// Configuration file (TOML) [default: <data-dir>/flotilla.toml, then /etc/flotilla/flotilla.toml]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Directory for keys, state and volumes
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Address and port to listen on
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// Host name (and port) under which a browser finds this node [default: <cluster>.localhost:<port>]
    #[arg(long, value_name = "HOST[:PORT]")]
    pub domain: Option<String>,
    /// Container engine, as in DOCKER_HOST
    #[arg(long, value_name = "URL")]
    pub docker_host: Option<String>,
    /// Log level, or directives as `info,flotilla=debug`
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Log format
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the configuration file `{path}` can't be read ({source})", path = path.display())]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// Already a sentence that names the setting and where it was set.
    #[error("{0}")]
    Invalid(String),
}

impl Config {
    /// Reads the settings of this process.
    ///
    /// # Errors
    /// Names the setting, and where it stands.
    pub fn load(flags: &Flags) -> Result<Self, Error> {
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Self::load_from(flags, environment, Path::new("/etc/flotilla/flotilla.toml"))
    }

    fn load_from(flags: &Flags, environment: Vec<(String, String)>, system_file: &Path) -> Result<Self, Error> {
        let environment = source::Environment::new(environment);
        let defaults = Figment::from(Serialized::defaults(Self::default()));
        let above_file = |base: Figment| base.merge(environment.clone()).merge(source::CommandLine(flags.clone()));
        // The file may lie in the data directory, so that this one setting is looked up before the file is read.
        let data_dir: PathBuf =
            above_file(defaults.clone()).extract_inner("data_dir").map_err(|error| source::sentence(&error))?;
        let file = flags.config.clone().or_else(|| environment.config.clone());
        let figment = match find_file(file, &data_dir, system_file)? {
            Some((path, text)) => defaults.merge(source::Named::new(Toml::string(&text), path)),
            None => defaults,
        };
        let mut config: Self = above_file(figment).extract().map_err(|error| source::sentence(&error))?;
        config.unknown_environment = environment.unknown;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), Error> {
        let refuse = |what: String| Err(Error::Invalid(what));
        // A word without `=` would be a target at every level for `Targets`; it is far more likely a level that is mistyped.
        let level = |word: &str| word.trim().parse::<tracing::level_filters::LevelFilter>().is_ok();
        let words = self.log.level.split(',').filter(|word| !word.contains('='));
        if let Some(word) = words.map(str::trim).find(|word| !level(word)) {
            return refuse(format!(
                "`{}` is no log level; use error, warn, info, debug or trace for `log.level`",
                word.escape_debug()
            ));
        }
        if let Err(error) = self.log.level.parse::<tracing_subscriber::filter::Targets>() {
            return refuse(format!(
                "`{}` is no log level ({error}); use error, warn, info, debug or trace for `log.level`",
                self.log.level.escape_debug()
            ));
        }
        if let Some(domain) = &self.domain
            && !is_domain(domain)
        {
            return refuse(format!(
                "`{}` is no host name with an optional port; set `domain` to one as `home.example.org:7070`",
                domain.escape_debug()
            ));
        }
        if self.tls.certificate.is_some() != self.tls.key.is_some() {
            return refuse("`tls.certificate` and `tls.key` belong together; set both, or neither".to_owned());
        }
        let limits = &self.limits;
        for (name, value) in [
            ("connections", u64::from(limits.connections)),
            ("requests", u64::from(limits.requests)),
            ("streams", u64::from(limits.streams)),
            ("sessions", u64::from(limits.sessions)),
            ("upload_bytes", limits.upload_bytes),
            ("request_seconds", limits.request_seconds),
            ("pull_seconds", limits.pull_seconds),
            ("build_seconds", limits.build_seconds),
        ] {
            if value == 0 {
                return refuse(format!("`limits.{name}` is 0; use 1 or more"));
            }
        }
        Ok(())
    }
}

/// A file that was named must be there; of the usual places the first that is there counts.
fn find_file(named: Option<PathBuf>, data_dir: &Path, system_file: &Path) -> Result<Option<(PathBuf, String)>, Error> {
    let read = |path: PathBuf| match std::fs::read_to_string(&path) {
        Ok(text) => Ok((path, text)),
        Err(source) => Err(Error::File { path, source }),
    };
    if let Some(path) = named {
        return read(path).map(Some);
    }
    for path in [data_dir.join("flotilla.toml"), system_file.to_owned()] {
        match read(path) {
            Ok(found) => return Ok(Some(found)),
            Err(Error::File { source, .. })
                if matches!(source.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

fn is_domain(text: &str) -> bool {
    let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
    };
    host.len() <= 200
        && host.split('.').all(label)
        && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

fn default_data_dir() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/var/lib/flotilla");
    }
    let base = std::env::var_os("XDG_DATA_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| std::env::home_dir().map(|home| home.join(".local/share")));
    base.unwrap_or_else(std::env::temp_dir).join("flotilla")
}
