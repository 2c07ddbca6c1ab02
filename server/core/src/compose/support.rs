//! Which keys of the Compose specification Flotilla acts upon: the reader goes by this table, and so does `docs/COMPOSE.md`.

use std::fmt::Write as _;

use flotilla_api::{ApiError, ErrorCode};

use super::tree::{Node, Value, shown};

/// One key of a compose file.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Keys from the top; `*` stands for a name of the user's, `[]` for each item of a list.
    pub path: &'static str,
    pub supported: bool,
    pub(super) kind: Kind,
    /// What it means here, or why it is refused and what to do.
    pub note: &'static str,
}

/// How single values at a key are read. Everything but numbers and truth values is text, whatever YAML takes it for: a
/// version `1.10` stays `1.10`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Flag,
    Integer,
}

const fn yes(path: &'static str, note: &'static str) -> Key {
    Key { path, supported: true, kind: Kind::Text, note }
}

const fn flag(path: &'static str, note: &'static str) -> Key {
    Key { path, supported: true, kind: Kind::Flag, note }
}

const fn integer(path: &'static str, note: &'static str) -> Key {
    Key { path, supported: true, kind: Kind::Integer, note }
}

const fn no(path: &'static str, note: &'static str) -> Key {
    Key { path, supported: false, kind: Kind::Text, note }
}

const PRIVILEGE: &str = "Would let the container leave its box; use `cap_add` for the one capability it needs.";
const NETWORK: &str =
    "The services of one stack share one private network and reach each other by name; remove the key.";
const FILES: &str =
    "The node does not see your files; bake them into the image, or use `environment`, a config or a volume.";
const ENGINE: &str = "Left to the engine's default; remove the key.";

/// All keys of the Compose specification, and `x-flotilla`, in the order of the documentation.
pub const SUPPORT: &[Key] = &[
    yes("name", "Name of the stack; without it, the name of the directory."),
    yes("version", "Obsolete; accepted and ignored."),
    yes("services", "At most 200 in a cluster. A name is a host name label, because its page lives under it."),
    yes(
        "services.*",
        "A name of up to 40 of `a-z`, `0-9` and `-`; not `app`, `api`, `www`, `localhost`, `relay` or `flotilla`, which are host names already.",
    ),
    yes("volumes", "Named volumes: directories that Flotilla keeps."),
    yes("volumes.*", "Empty, or with `x-flotilla`. A volume belongs to one service."),
    yes("volumes.*.x-flotilla", "Flotilla's own."),
    yes(
        "volumes.*.x-flotilla.on-loss",
        "What happens when every machine that has the data is lost: `wait` for it (**if absent**), or `start-empty` on \
         another. A service begins anew only if all of its volumes say so.",
    ),
    integer(
        "volumes.*.x-flotilla.replicas",
        "How many other machines keep a copy: 0 to 9, **2 if absent**. What is copied is a consistent state of all volumes that \
         the service writes. A copy whose machine is drained, or lost for ten minutes, \
         is made anew on another one, also while the service is stopped.",
    ),
    flag(
        "volumes.*.x-flotilla.sync",
        "`true`: what is written is copied within a second, however much there is of it. Otherwise reading what has changed takes \
         at most a tenth of the time in the long run.",
    ),
    flag(
        "volumes.*.x-flotilla.encrypted",
        "`true`: what is kept of the volume (its copies and its history, on every machine) can be read with the cluster's key alone, so that a \
         machine that only stores may keep a copy. The directory that the container writes is as it is: encrypt that disk.",
    ),
    yes(
        "volumes.*.x-flotilla.hooks",
        "Commands in the container around each copy, with at most 30 s each: `pre` before it, for programs whose files mean nothing \
         while they run, and `post` after it, whatever came of it. What is copied without is as after a power loss, which databases survive.",
    ),
    yes(
        "volumes.*.x-flotilla.hooks.pre",
        "List, or a text that is split as a shell splits words. If it fails the copy is made, and the failure shown.",
    ),
    yes("volumes.*.x-flotilla.hooks.post", "The same."),
    yes(
        "volumes.*.x-flotilla.history",
        "Which earlier states are kept. A service's volumes go back together: of each kind the most that one of them asks for is kept \
         of all of them.",
    ),
    integer("volumes.*.x-flotilla.history.last", "So many of the newest: 1 to 200, **10 if absent**."),
    integer(
        "volumes.*.x-flotilla.history.hourly",
        "The last of each hour, for so many hours: 0 to 168, **24 if absent**.",
    ),
    integer(
        "volumes.*.x-flotilla.history.daily",
        "The last of each day, for so many days: 0 to 366, **14 if absent**.",
    ),
    integer(
        "volumes.*.x-flotilla.history.weekly",
        "The last of each week, for so many weeks: 0 to 260, **8 if absent**.",
    ),
    no("volumes.*.name", "A volume is named by its key; leave the entry empty."),
    no("volumes.*.driver", "Flotilla keeps volumes itself, so that it can replicate them; leave the entry empty."),
    no("volumes.*.driver_opts", "Flotilla keeps volumes itself; leave the entry empty."),
    no("volumes.*.external", "Volumes of other tools can't be used; copy the data into a volume of the stack."),
    no("volumes.*.labels", "Leave the entry empty."),
    yes("networks", "Only `default`, and empty: the services of one stack share one private network."),
    yes("networks.default", "Empty."),
    no("networks.*", NETWORK),
    no("include", "Put everything into one file."),
    yes(
        "configs",
        "Values that services are given as files or variables. They are kept in the cluster, sealed, in versions.",
    ),
    yes("configs.*", "Empty, or as below. Up to 64 letters, digits, `_`, `.` and hyphens."),
    flag("configs.*.external", "`true`, and an empty entry: `flotilla config set` has made it."),
    yes(
        "configs.*.name",
        "Its name in the cluster. If absent: the key where it is external, else the stack's name, `_` and the key.",
    ),
    yes(
        "configs.*.file",
        "A file beside the compose file, at most 500 KiB, that the command line reads. If it differs from what the cluster has, it \
         becomes the newest version.",
    ),
    yes("configs.*.environment", "As `file`, from a variable of whoever deploys."),
    yes("configs.*.content", "As `file`, written here."),
    no("configs.*.labels", "Leave it out."),
    no("configs.*.template_driver", "Use `content` with `${VARIABLE}`."),
    yes("secrets", "As `configs`, but nobody is shown what is in them: not in the log, nor in any answer of the API."),
    yes("secrets.*", "Empty, or as below. Up to 64 letters, digits, `_`, `.` and hyphens."),
    flag("secrets.*.external", "`true`, and an empty entry: `flotilla secret set` has made it."),
    yes("secrets.*.name", "As `configs.<name>.name`."),
    yes("secrets.*.file", "As `configs.<name>.file`."),
    yes("secrets.*.environment", "As `file`, from a variable of whoever deploys."),
    no(
        "secrets.*.content",
        "A secret does not belong into a file that people pass around; use `file` or `flotilla secret set`.",
    ),
    no("secrets.*.driver", "Flotilla keeps secrets itself."),
    no("secrets.*.driver_opts", "Flotilla keeps secrets itself."),
    no("secrets.*.labels", "Leave it out."),
    no("secrets.*.template_driver", "Write the file as it shall be."),
    no("models", "Run the model server as a service."),
    // What a container is made of.
    yes(
        "services.*.image",
        "As Docker writes it, for example `nginx:1.27`. With `build`, the tag that the result gets.",
    ),
    yes(
        "services.*.build",
        "A directory, or a map. The image is built by the engine, from where the command line runs.",
    ),
    yes("services.*.build.context", "A directory beside the file."),
    yes("services.*.build.dockerfile", "Path within the context; `Dockerfile` if absent."),
    yes("services.*.build.args", "Map or list of `NAME=value`."),
    yes("services.*.build.target", ""),
    no("services.*.build.additional_contexts", ENGINE),
    no("services.*.build.cache_from", ENGINE),
    no("services.*.build.cache_to", ENGINE),
    no("services.*.build.dockerfile_inline", "Write it to a file in the context and name that with `dockerfile`."),
    no("services.*.build.entitlements", PRIVILEGE),
    no("services.*.build.extra_hosts", ENGINE),
    no("services.*.build.isolation", ENGINE),
    no("services.*.build.labels", "Use `LABEL` in the Dockerfile."),
    no("services.*.build.network", ENGINE),
    no("services.*.build.no_cache", ENGINE),
    no("services.*.build.platforms", "The image is built for the machine that builds it."),
    no("services.*.build.privileged", PRIVILEGE),
    no("services.*.build.provenance", ENGINE),
    no("services.*.build.pull", ENGINE),
    no("services.*.build.sbom", ENGINE),
    no("services.*.build.secrets", "Use a build stage that needs none."),
    no("services.*.build.shm_size", ENGINE),
    no("services.*.build.ssh", "Use a build stage that needs none."),
    no("services.*.build.tags", "The tag is what `image` says."),
    no("services.*.build.ulimits", ENGINE),
    yes("services.*.command", "List, or a text that is split as a shell splits words (it is not run by a shell)."),
    yes("services.*.entrypoint", "As `command`."),
    yes(
        "services.*.environment",
        "Map or list of `NAME=value`. A name without a value takes the variable of that name, if it is set.",
    ),
    no("services.*.env_file", "The node does not see your files; use `environment`, and `secrets` for what is secret."),
    yes("services.*.user", ""),
    yes("services.*.working_dir", ""),
    yes("services.*.hostname", ""),
    yes("services.*.labels", "Map or list of `NAME=value`. `flotilla.` at the beginning is reserved."),
    flag("services.*.init", "Runs a small init as process 1."),
    flag("services.*.read_only", "The container's own file system can't be written."),
    yes(
        "services.*.cap_add",
        "With or without `CAP_`. What would let a container out of its box is refused: `ALL`, `SYS_ADMIN`, `SYS_MODULE`, `DAC_READ_SEARCH` and their like.",
    ),
    yes("services.*.cap_drop", "With or without `CAP_`; `ALL` too."),
    yes("services.*.stop_signal", "`SIGTERM` if neither this nor the image says otherwise."),
    yes("services.*.stop_grace_period", "For example `1m30s`, at most an hour; 10 s if absent."),
    yes("services.*.pull_policy", "Only `missing` and `if_not_present`, which is what happens anyway."),
    // How it is reached.
    yes(
        "services.*.ports",
        "The first TCP port is the one that the service's page is opened at: until somebody listens there, the service is \
         *starting*, and after a minute *unhealthy*. Nothing is published on the host: a host part is ignored. All ports \
         are open to the services of the stack.",
    ),
    integer("services.*.ports[].target", "Port in the container."),
    yes("services.*.ports[].published", "Ignored."),
    yes("services.*.ports[].host_ip", "Ignored."),
    yes("services.*.ports[].protocol", "`tcp` or `udp`; only TCP can be a page."),
    yes("services.*.ports[].mode", "Ignored."),
    yes("services.*.ports[].name", "Ignored."),
    yes("services.*.ports[].app_protocol", "Ignored."),
    yes("services.*.expose", "Without effect: all ports are open to the services of the stack, and none to others."),
    yes("services.*.x-flotilla", "Flotilla's own."),
    integer("services.*.x-flotilla.port", "The port that the page is served from, whatever `ports` says."),
    yes(
        "services.*.x-flotilla.environment",
        "Variables whose value is a secret or a config, for images that take nothing else. Docker Engine keeps what is in a variable \
         with the container: whoever may use the machine's engine reads it with `docker inspect`. Prefer files.",
    ),
    yes(
        "services.*.x-flotilla.environment.*",
        "A map with one of the two. One line end at the end of the value is left out.",
    ),
    yes("services.*.x-flotilla.environment.*.secret", "A key under the top-level `secrets`."),
    yes("services.*.x-flotilla.environment.*.config", "A key under the top-level `configs`."),
    yes("services.*.networks", "Only `default`."),
    yes("services.*.networks.default", "Empty."),
    no("services.*.networks.*", NETWORK),
    // What it keeps.
    yes(
        "services.*.volumes",
        "Named volumes, `name:/path[:ro]` or a map; each belongs to one service. No directories of the host.",
    ),
    yes(
        "services.*.volumes[].type",
        "`volume` or `tmpfs`; a bind mount is refused, for a machine that takes over lacks the directory.",
    ),
    yes("services.*.volumes[].source", "Must stand under the top-level `volumes`."),
    yes("services.*.volumes[].target", "Absolute path in the container."),
    flag("services.*.volumes[].read_only", ""),
    yes("services.*.volumes[].tmpfs", ""),
    yes("services.*.volumes[].tmpfs.size", "Bytes, or with a unit: `64m`."),
    no("services.*.volumes[].tmpfs.mode", "Use `tmpfs: /path:mode=1777` on the service."),
    no("services.*.volumes[].bind", "Directories of the host can't be used; take a named volume."),
    no("services.*.volumes[].volume", "A new volume begins with what the image has at its path."),
    no("services.*.volumes[].consistency", ENGINE),
    no("services.*.volumes[].image", "Images can't be mounted."),
    yes(
        "services.*.configs",
        "List of names, or of maps. Each is a file at `/<name>` that is never on a disk of the machine. A new version is a new \
         revision of the service.",
    ),
    yes("services.*.configs[].source", "Its key under the top-level `configs`."),
    yes("services.*.configs[].target", "Absolute path in the container; `/<source>` if absent."),
    yes(
        "services.*.configs[].uid",
        "A number. If absent: root, or the node's own user where the node is not root, which then can set no other.",
    ),
    yes("services.*.configs[].gid", "As `uid`."),
    yes("services.*.configs[].mode", "Permission bits in octal, such as `0440`; `0444` if absent."),
    yes("services.*.secrets", "As `configs`, at `/run/secrets/<name>`."),
    yes("services.*.secrets[].source", "Its key under the top-level `secrets`."),
    yes("services.*.secrets[].target", "Absolute path, or a name in `/run/secrets`; the source's name if absent."),
    yes("services.*.secrets[].uid", "As that of a config."),
    yes("services.*.secrets[].gid", "As that of a config."),
    yes("services.*.secrets[].mode", "As that of a config."),
    yes("services.*.tmpfs", "Path or list of paths, with options: `/run:size=64m`."),
    // How it lives.
    yes(
        "services.*.restart",
        "`always` (also `unless-stopped`), `on-failure[:n]` or `no`. **`always` if absent**, for a service is meant to stay.",
    ),
    yes("services.*.healthcheck", ""),
    yes("services.*.healthcheck.test", "Text (run by a shell) or list that begins with `CMD`, `CMD-SHELL` or `NONE`."),
    yes("services.*.healthcheck.interval", "30 s if absent."),
    yes("services.*.healthcheck.timeout", "30 s if absent."),
    integer("services.*.healthcheck.retries", "3 if absent."),
    yes("services.*.healthcheck.start_period", "0 if absent."),
    no("services.*.healthcheck.start_interval", "Use `interval`."),
    flag("services.*.healthcheck.disable", "Turns the image's own check off."),
    yes(
        "services.*.depends_on",
        "List or map. The first start waits until the others run, listen on their first TCP port (for a minute at most), and \
         are healthy if they have a health check.",
    ),
    yes("services.*.depends_on.*", ""),
    yes("services.*.depends_on.*.condition", "`service_started` or `service_healthy`; both wait as said above."),
    no("services.*.depends_on.*.restart", "A restart of one service restarts no other."),
    no("services.*.depends_on.*.required", "What a service depends on is always required."),
    integer("services.*.scale", "As `deploy.replicas`."),
    yes("services.*.cpus", "As `deploy.resources.limits.cpus`."),
    yes("services.*.mem_limit", "As `deploy.resources.limits.memory`."),
    yes("services.*.deploy", ""),
    integer(
        "services.*.deploy.replicas",
        "0 (stopped) to 32; more than 1 only where no volume is written. 1 if absent.",
    ),
    yes("services.*.deploy.resources", ""),
    yes("services.*.deploy.resources.limits", ""),
    yes("services.*.deploy.resources.limits.cpus", "Cores, for example `1.5`."),
    yes("services.*.deploy.resources.limits.memory", "For example `512m`; at least 6 MiB."),
    no("services.*.deploy.resources.limits.pids", ENGINE),
    no("services.*.deploy.resources.limits.devices", "Devices of the host can't be given to a service."),
    yes(
        "services.*.deploy.resources.reservations",
        "What a machine must have left for an instance to be placed there.",
    ),
    yes(
        "services.*.deploy.resources.reservations.cpus",
        "Cores. Without it, 0.1 is reckoned with, but no machine is ruled out for it.",
    ),
    yes(
        "services.*.deploy.resources.reservations.memory",
        "Without it, 64 MiB is reckoned with, but no machine is ruled out for it. At most nine tenths of a machine's memory \
         can be reserved.",
    ),
    no("services.*.deploy.resources.reservations.devices", "Devices of the host can't be given to a service."),
    no(
        "services.*.deploy.resources.reservations.generic_resources",
        "Label the machines that have it, and use `placement.constraints`.",
    ),
    yes("services.*.deploy.placement", "Without it, Flotilla chooses among all machines."),
    yes(
        "services.*.deploy.placement.constraints",
        "List of `node.labels.<key> == value`, `node.hostname == name` or `node.id == id`, also with `!=`. All must hold; an \
         instance whose machine no longer fits moves.",
    ),
    yes("services.*.deploy.placement.preferences", ""),
    yes(
        "services.*.deploy.placement.preferences[].spread",
        "`node.labels.<key>`: instances go to machines with different values, if they can.",
    ),
    integer("services.*.deploy.placement.max_replicas_per_node", "Instances on one machine, from 1."),
    yes("services.*.deploy.update_config", "How a new revision reaches the instances."),
    yes(
        "services.*.deploy.update_config.order",
        "`start-first` (**if absent**) or `stop-first`. What writes a volume always stops first.",
    ),
    integer("services.*.deploy.update_config.parallelism", "Instances at one time, 0 for all; 1 if absent."),
    yes("services.*.deploy.update_config.delay", "Between one that runs well and the next; 0 if absent."),
    yes(
        "services.*.deploy.update_config.monitor",
        "How long a new instance has to run before it counts as well. If absent: until it is healthy, or 10 s without a \
         health check.",
    ),
    yes(
        "services.*.deploy.update_config.failure_action",
        "`rollback` (**if absent**): the last revision that ran well comes back. `pause`: no further instance is updated.",
    ),
    no("services.*.deploy.update_config.max_failure_ratio", "One instance that fails is enough."),
    no("services.*.deploy.mode", "Use `replicas`."),
    no("services.*.deploy.endpoint_mode", NETWORK),
    no("services.*.deploy.labels", "Use `labels`."),
    no("services.*.deploy.restart_policy", "Use `restart`."),
    no("services.*.deploy.rollback_config", "A roll back goes as `update_config` says."),
    // Refused.
    no("services.*.annotations", "Use `labels`."),
    no("services.*.attach", "Logs are read with `flotilla logs`."),
    no("services.*.blkio_config", ENGINE),
    no("services.*.cgroup", PRIVILEGE),
    no("services.*.cgroup_parent", PRIVILEGE),
    no(
        "services.*.container_name",
        "A service may have several instances, and a new one starts beside the old; use the service's name.",
    ),
    no("services.*.cpu_count", "Use `cpus`."),
    no("services.*.cpu_percent", "Use `cpus`."),
    no("services.*.cpu_period", "Use `cpus`."),
    no("services.*.cpu_quota", "Use `cpus`."),
    no("services.*.cpu_rt_period", "Use `cpus`."),
    no("services.*.cpu_rt_runtime", "Use `cpus`."),
    no("services.*.cpu_shares", "Use `cpus`."),
    no("services.*.cpuset", "Use `cpus`; machines have different processors."),
    no("services.*.credential_spec", "Only Windows has it."),
    no("services.*.develop", "Deploy again to see a change."),
    no("services.*.device_cgroup_rules", "Devices of the host can't be given to a service."),
    no(
        "services.*.devices",
        "Devices of the host can't be given to a service: the machine that takes over may lack them.",
    ),
    no("services.*.dns", ENGINE),
    no("services.*.dns_opt", ENGINE),
    no("services.*.dns_search", ENGINE),
    no("services.*.domainname", "Use `hostname`."),
    no("services.*.driver_opts", ENGINE),
    no("services.*.extends", "Use YAML anchors and `<<`."),
    no("services.*.external_links", NETWORK),
    no("services.*.extra_hosts", NETWORK),
    no("services.*.gpus", "Devices of the host can't be given to a service."),
    no("services.*.group_add", "Use `user: uid:gid`."),
    no("services.*.ipc", PRIVILEGE),
    no("services.*.isolation", "Only Windows has it."),
    no("services.*.label_file", FILES),
    no("services.*.links", NETWORK),
    no("services.*.logging", "Flotilla reads the logs itself; see `flotilla logs`."),
    no("services.*.mac_address", ENGINE),
    no("services.*.mem_reservation", "Use `deploy.resources.reservations.memory`."),
    no("services.*.mem_swappiness", ENGINE),
    no("services.*.memswap_limit", ENGINE),
    no("services.*.models", "Run the model server as a service."),
    no("services.*.network_mode", NETWORK),
    no("services.*.oom_kill_disable", ENGINE),
    no("services.*.oom_score_adj", ENGINE),
    no("services.*.pid", PRIVILEGE),
    no("services.*.pids_limit", ENGINE),
    no("services.*.platform", "The image must fit the machine's own architecture."),
    no("services.*.post_start", "Do it in the image's entrypoint."),
    no("services.*.pre_stop", "Act on the stop signal in the container."),
    no("services.*.privileged", PRIVILEGE),
    no("services.*.profiles", "Every service of the file is deployed; keep others in a file of their own."),
    no("services.*.provider", "Only containers are services."),
    no("services.*.runtime", ENGINE),
    no("services.*.security_opt", PRIVILEGE),
    no("services.*.shm_size", "Use `tmpfs: /dev/shm:size=256m`."),
    no("services.*.stdin_open", "Use `flotilla exec`."),
    no("services.*.storage_opt", ENGINE),
    no("services.*.sysctls", ENGINE),
    no("services.*.tty", "Use `flotilla exec`."),
    no("services.*.ulimits", ENGINE),
    no("services.*.use_api_socket", PRIVILEGE),
    no("services.*.userns_mode", PRIVILEGE),
    no("services.*.uts", PRIVILEGE),
    no("services.*.volumes_from", "A volume belongs to one service."),
];

/// Finds keys that Flotilla would not act upon: nothing is ever silently ignored but what the table says.
pub(super) fn check(root: &Node) -> Result<(), ApiError> {
    check_below(root, "", "")
}

fn check_below(node: &Node, pattern: &str, path: &str) -> Result<(), ApiError> {
    match &node.value {
        Value::Scalar(_) => Ok(()),
        Value::List(items) => {
            let pattern = format!("{pattern}[]");
            items
                .iter()
                .enumerate()
                .try_for_each(|(index, item)| check_below(item, &pattern, &format!("{path}[{index}]")))
        }
        Value::Map(entries) if has_keys(pattern) => {
            for (key, value) in entries {
                let path = join(path, &key.text);
                match find(pattern, &key.text) {
                    Some(known) if known.supported => check_below(value, known.path, &path)?,
                    Some(refused) => {
                        return Err(key.mark.error(
                            ErrorCode::ComposeUnsupported,
                            format!("`{}` is not supported: {}", shown(&path), sentence(refused.note)),
                        ));
                    }
                    None if key.text.starts_with("x-") => {}
                    None => {
                        return Err(key.mark.error(
                            ErrorCode::ComposeUnsupported,
                            format!("`{}` is no key that is known{}", shown(&path), similar(pattern, &key.text)),
                        ));
                    }
                }
            }
            Ok(())
        }
        // Names of the user's own, such as those of labels.
        Value::Map(_) => Ok(()),
    }
}

pub(super) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// The entry for `key` below `pattern`; an own name stands for `*` only where no fixed key has it.
fn find(pattern: &str, key: &str) -> Option<&'static Key> {
    let child = |name: &str| {
        let path = join(pattern, name);
        SUPPORT.iter().find(|known| known.path == path)
    };
    child(key).or_else(|| child("*"))
}

fn has_keys(pattern: &str) -> bool {
    children(pattern).next().is_some()
}

fn children<'a>(pattern: &'a str) -> impl Iterator<Item = &'static str> + 'a {
    SUPPORT.iter().filter_map(move |known| {
        let rest = known.path.strip_prefix(pattern)?;
        let rest = if pattern.is_empty() { rest } else { rest.strip_prefix('.')? };
        (!rest.contains(['.', '[']) && !rest.is_empty()).then_some(rest)
    })
}

pub(super) fn is_known(pattern: &str) -> bool {
    SUPPORT.iter().any(|known| known.path == pattern)
}

/// How a single value at the pattern is read.
pub(super) fn kind(pattern: &str) -> Kind {
    SUPPORT.iter().find(|known| known.path == pattern).map_or(Kind::Text, |known| known.kind)
}

fn similar(pattern: &str, key: &str) -> String {
    // Below this, a suggestion would only puzzle.
    const ALIKE: f64 = 0.8;
    let best = children(pattern)
        .filter(|name| *name != "*")
        .map(|name| (strsim::jaro_winkler(name, key), name))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match best {
        Some((alike, name)) if alike >= ALIKE => format!("; did you mean `{name}`?"),
        _ => "; docs/COMPOSE.md lists those that are".to_owned(),
    }
}

/// A note as the second half of a sentence.
fn sentence(note: &str) -> String {
    let note = note.trim_end_matches('.');
    let mut chars = note.chars();
    match chars.next() {
        // Names stay as they are.
        Some(first) if !note.starts_with("Flotilla") => first.to_lowercase().chain(chars).collect(),
        _ => note.to_owned(),
    }
}

/// The table as a page of the documentation.
pub fn markdown() -> String {
    let mut page = String::from(
        "# Compose files\n\n\
         What Flotilla takes from the [Compose specification](https://github.com/compose-spec/compose-spec), and what not. This \
         page is made from the table that the reader itself goes by (`server/core/src/compose/support.rs`); a test holds the two \
         together.\n\n\
         A key that is not supported is an error that names it and its line, and changes nothing. Keys that begin with `x-` are \
         ignored, except `x-flotilla`. Anchors, aliases and merge keys (`<<`) work. In values, `${NAME}`, `$NAME`, \
         `${NAME:-default}`, `${NAME-default}`, `${NAME:?message}`, `${NAME?message}`, `${NAME:+other}` and `${NAME+other}` stand \
         for variables, and `$$` for a dollar sign; a variable that is not set and has no default is an error.\n",
    );
    for (title, supported) in [("Supported", true), ("Not supported", false)] {
        let _ = write!(
            page,
            "\n## {title}\n\n| key | {} |\n|---|---|\n",
            if supported { "meaning here" } else { "why, or what to do" }
        );
        for key in SUPPORT.iter().filter(|key| key.supported == supported) {
            let path = key.path.replace('*', "<name>");
            let _ = writeln!(page, "| `{path}` | {} |", key.note.replace('|', "\\|"));
        }
    }
    page
}
