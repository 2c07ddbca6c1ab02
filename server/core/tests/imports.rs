//! Who may import whom, as docs/ARCHITECTURE.md says, and what the pure crates may not even mention.
#![expect(clippy::disallowed_methods, reason = "a test reads the repository's own files")]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

/// Our own crates, and which of ours each may depend on.
const OURS: &[(&str, &str, &[&str])] = &[
    ("server/api", "flotilla-api", &[]),
    ("server/core", "flotilla-core", &["flotilla-api"]),
    ("server/data", "flotilla-data", &[]),
    ("server", "flotilla", &["flotilla-api", "flotilla-core", "flotilla-data", "flotilla-relay"]),
    ("web", "flotilla-web", &["flotilla-api"]),
    ("turn-relay", "flotilla-relay", &["flotilla-api"]),
    ("server/patches/base2histogram", "base2histogram", &[]),
    ("tests", "flotilla-tests", &["flotilla", "flotilla-api", "flotilla-core", "flotilla-relay", "flotilla-web"]),
];

/// Other people's crates that `api` may use: it goes everywhere, the browser included.
const API_MAY_USE: &[&str] = &["serde"];

/// Other people's crates that `core` may use: none does IO, reads a clock or rolls dice.
const CORE_MAY_USE: &[&str] =
    &["docker-compose-types", "saphyr", "saphyr-parser", "serde", "serde_json", "shell-words", "strsim", "thiserror"];

/// What would make a decision depend on more than its inputs. Clippy bans the calls (`clippy.toml`); this bans the words.
const IMPURE: &[&str] = &[
    "tokio",
    "futures",
    "async fn",
    ".await",
    "std::fs",
    "std::env",
    "std::process",
    "std::thread",
    "std::net::Tcp",
    "std::net::Udp",
    "std::os",
    "SystemTime",
    "Instant",
    "HashMap",
    "HashSet",
    "rand::",
    "println!",
    "unsafe",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Names under `[dependencies]`, `[build-dependencies]` and their like for a target; with `[dev-dependencies]` if asked.
fn dependencies(manifest: &str, dev: bool) -> BTreeSet<String> {
    let manifest: toml::Table = manifest.parse().unwrap();
    let mut names = BTreeSet::new();
    let mut tables = vec![&manifest];
    if let Some(targets) = manifest.get("target").and_then(toml::Value::as_table) {
        tables.extend(targets.values().filter_map(toml::Value::as_table));
    }
    for table in tables {
        for kind in ["dependencies", "build-dependencies", "dev-dependencies"] {
            if kind == "dev-dependencies" && !dev {
                continue;
            }
            names.extend(
                table.get(kind).and_then(toml::Value::as_table).into_iter().flat_map(|table| table.keys().cloned()),
            );
        }
    }
    names
}

fn manifests() -> BTreeMap<&'static str, String> {
    OURS.iter().map(|(directory, name, _)| (*name, read(&root().join(directory).join("Cargo.toml")))).collect()
}

#[test]
fn the_workspace_has_no_crate_that_this_test_does_not_know() {
    let workspace: toml::Table = read(&root().join("Cargo.toml")).parse().unwrap();
    let members: BTreeSet<&str> =
        workspace["workspace"]["members"].as_array().unwrap().iter().map(|member| member.as_str().unwrap()).collect();
    assert_eq!(members, OURS.iter().map(|(directory, ..)| *directory).collect());
    for (name, manifest) in manifests() {
        let manifest: toml::Table = manifest.parse().unwrap();
        assert_eq!(manifest["package"]["name"].as_str(), Some(name));
    }
}

#[test]
fn each_crate_imports_only_whom_it_may() {
    let manifests = manifests();
    for (_, name, allowed) in OURS {
        for dependency in dependencies(&manifests[name], true) {
            let ours = OURS.iter().any(|(_, ours, _)| *ours == dependency);
            assert!(
                !ours || allowed.contains(&dependency.as_str()),
                "`{name}` may not depend on `{dependency}`: see Crates in docs/ARCHITECTURE.md"
            );
            assert_ne!(dependency, "flotilla-tests", "nobody imports the tests");
        }
    }
}

#[test]
fn the_pure_crates_use_only_pure_crates() {
    let manifests = manifests();
    for (name, allowed) in [("flotilla-api", API_MAY_USE), ("flotilla-core", CORE_MAY_USE)] {
        for dependency in dependencies(&manifests[name], false) {
            assert!(
                dependency.starts_with("flotilla-") || allowed.contains(&dependency.as_str()),
                "`{name}` may not depend on `{dependency}`; if it does no IO, reads no clock and rolls no dice, name it here"
            );
        }
    }
}

#[test]
fn the_pure_crates_mention_nothing_impure() {
    for directory in ["server/api/src", "server/core/src"] {
        let mut sources = Vec::new();
        collect(&root().join(directory), &mut sources);
        assert!(sources.len() > 5, "{directory} has moved");
        for path in sources {
            // Tests may measure time and compare files.
            if path.file_name().is_some_and(|name| name == "tests.rs") {
                continue;
            }
            for (number, line) in read(&path).lines().enumerate() {
                let code = line.split("//").next().unwrap_or_default();
                for word in IMPURE {
                    assert!(!mentions(code, word), "{}:{}: `{word}` in a pure crate", path.display(), number + 1);
                }
            }
        }
    }
}

/// `.awaited` is no `.await`.
fn mentions(code: &str, word: &str) -> bool {
    let goes_on = |rest: &str| rest.starts_with(|next: char| next.is_ascii_lowercase());
    code.match_indices(word).any(|(at, _)| !goes_on(&code[at + word.len()..]))
}

fn collect(directory: &Path, sources: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push(path);
        }
    }
}

/// Files of more than about 600 lines usually hold two rooms.
#[test]
fn no_source_file_of_the_core_is_too_long() {
    let mut sources = Vec::new();
    collect(&root().join("server/core"), &mut sources);
    for path in sources {
        let lines = read(&path).lines().count();
        assert!(lines <= 700, "{} has {lines} lines; look for the wall between its two rooms", path.display());
    }
}
