use std::fs;

use super::*;

fn environment(variables: &[(&str, &str)]) -> Vec<(String, String)> {
    variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn load(flags: &Flags, variables: &[(&str, &str)], system_file: &Path) -> Result<Config, Error> {
    Config::load_from(flags, environment(variables), system_file)
}

/// A data directory with this file in it.
fn with_file(text: &str) -> (tempfile::TempDir, Flags) {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("flotilla.toml"), text).unwrap();
    let flags = Flags { data_dir: Some(directory.path().to_owned()), ..Flags::default() };
    (directory, flags)
}

const NOWHERE: &str = "/nonexistent/flotilla.toml";

#[test]
fn without_anything_there_are_defaults() {
    let (_directory, flags) = with_file("");
    let config = load(&flags, &[], Path::new(NOWHERE)).unwrap();
    assert_eq!(config.listen, SocketAddr::from(([127, 0, 0, 1], 7070)));
    assert_eq!(config.log, Log { level: "info".to_owned(), format: LogFormat::Human });
    assert_eq!(config.limits, Limits::default());
}

#[test]
fn flags_go_before_environment_before_file_before_defaults() {
    let file = "listen = '127.0.0.1:1'\ndomain = 'file.example'\ndocker_host = 'unix:///file'\n[log]\nlevel = 'debug'\nformat = 'json'";
    let (_directory, flags) = with_file(file);
    let variables = [
        ("FLOTILLA_LISTEN", "127.0.0.1:2"),
        ("FLOTILLA_DOMAIN", "environment.example"),
        ("FLOTILLA_LOG_LEVEL", "warn"),
        ("FLOTILLA_UDP_PORT", "5000"),
    ];
    let flags = Flags { listen: Some("127.0.0.1:3".parse().unwrap()), ..flags };
    let config = load(&flags, &variables, Path::new(NOWHERE)).unwrap();
    assert_eq!(config.listen.port(), 3, "a flag");
    assert_eq!(config.domain.as_deref(), Some("environment.example"), "the environment");
    assert_eq!(config.udp_port, Some(5000), "the environment, a number");
    assert_eq!(config.log.level, "warn", "the environment, in a table");
    assert_eq!(config.log.format, LogFormat::Json, "the file, in the same table");
    assert_eq!(config.docker_host.as_deref(), Some("unix:///file"), "the file");
    assert_eq!(config.relay, Relay::default(), "a default");
}

#[test]
fn the_file_in_the_data_directory_goes_before_the_system_file_and_after_a_named_one() {
    let (_directory, flags) = with_file("domain = 'data.example'");
    let system = tempfile::NamedTempFile::new().unwrap();
    fs::write(&system, "domain = 'system.example'").unwrap();
    let domain =
        |flags: &Flags, variables: &[(&str, &str)]| load(flags, variables, system.path()).unwrap().domain.unwrap();
    assert_eq!(domain(&flags, &[]), "data.example");
    let empty = tempfile::tempdir().unwrap();
    let elsewhere = Flags { data_dir: Some(empty.path().to_owned()), ..Flags::default() };
    assert_eq!(domain(&elsewhere, &[]), "system.example");
    let named = tempfile::NamedTempFile::new().unwrap();
    fs::write(&named, "domain = 'named.example'").unwrap();
    assert_eq!(domain(&flags, &[("FLOTILLA_CONFIG", named.path().to_str().unwrap())]), "named.example");
    assert_eq!(domain(&Flags { config: Some(named.path().to_owned()), ..flags }, &[]), "named.example");
}

#[test]
fn a_named_file_must_be_there() {
    let flags = Flags { config: Some(NOWHERE.into()), ..Flags::default() };
    let error = load(&flags, &[], Path::new(NOWHERE)).unwrap_err().to_string();
    assert!(error.contains(NOWHERE), "{error}");
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    for (file, variables, expected) in [
        ("listne = 'x'", vec![], vec!["listne", "flotilla.toml"]),
        ("[limits]\nuploads = 1", vec![], vec!["uploads", "flotilla.toml"]),
        ("listen = 'here'", vec![], vec!["listen", "flotilla.toml"]),
        ("listen = ", vec![], vec!["flotilla.toml"]),
        ("", vec![("FLOTILLA_LISTEN", "here")], vec!["FLOTILLA_LISTEN", "environment"]),
        ("", vec![("FLOTILLA_RELAY_PORT", "70000")], vec!["FLOTILLA_RELAY_PORT"]),
        ("log = { format = 'xml' }", vec![], vec!["xml", "log.format"]),
        ("log = { level = 'loud=very' }", vec![], vec!["loud", "log.level"]),
        ("domain = 'no spaces'", vec![], vec!["no spaces", "domain"]),
        ("domain = 'home.example:99999'", vec![], vec!["domain"]),
        ("tls = { key = '/k' }", vec![], vec!["tls.certificate", "tls.key"]),
        ("limits = { requests = 0 }", vec![], vec!["limits.requests"]),
        ("limits = { requests = -1 }", vec![], vec!["limits.requests"]),
    ] {
        let (_directory, flags) = with_file(file);
        let error = load(&flags, &variables, Path::new(NOWHERE)).unwrap_err().to_string();
        for part in expected {
            assert!(error.contains(part), "`{part}` is not in: {error}");
        }
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn a_variable_that_is_no_setting_is_reported_and_those_of_others_are_not() {
    let (_directory, flags) = with_file("");
    let variables = [("FLOTILLA_LISTNE", "x"), ("FLOTILLA_TOKEN", "x"), ("FLOTILLA_API", "x"), ("PATH", "x")];
    let config = load(&flags, &variables, Path::new(NOWHERE)).unwrap();
    assert_eq!(config.unknown_environment, ["FLOTILLA_LISTNE"]);
}

#[test]
fn the_list_of_settings_is_complete() {
    let value = figment::value::Value::serialize(Config {
        domain: Some(String::new()),
        docker_host: Some(String::new()),
        tls: Tls { certificate: Some("/c".into()), key: Some("/k".into()) },
        relay: Relay { public_address: Some(IpAddr::from([127, 0, 0, 1])), ..Relay::default() },
        ..Config::default()
    })
    .unwrap();
    let mut keys = Vec::new();
    for (key, value) in value.as_dict().unwrap() {
        match value.as_dict() {
            Some(table) => keys.extend(table.keys().map(|inner| format!("{key}.{inner}"))),
            None => keys.push(key.clone()),
        }
    }
    keys.sort();
    let mut listed: Vec<_> = source::SETTINGS.iter().map(|setting| setting.key.to_owned()).collect();
    listed.sort();
    assert_eq!(keys, listed);
}

#[test]
fn the_manual_lists_every_setting_with_its_variable() {
    let manual = include_str!("../../../docs/OPERATIONS.md");
    for setting in source::SETTINGS {
        let row = format!("| `{}` | `{}` |", setting.key, setting.variable());
        assert!(manual.contains(&row), "docs/OPERATIONS.md has no row `{row}`");
    }
}
