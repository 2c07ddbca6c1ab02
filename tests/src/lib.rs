//! The harness: real nodes, real containers, a real browser, and what has to be gone when a test is over.

pub mod beat;
pub mod bed;
pub mod body;
pub mod browser;
pub mod checker;
pub mod cli;
pub mod cluster;
pub mod engine;
pub mod image;
pub mod ledger;
pub mod poller;
pub mod process;
pub mod registry;
pub mod series;
pub mod tap;
pub mod wait;

use std::path::{Path, PathBuf};

/// The root of the repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the repository")
}

/// Where `make setup` puts what tests need and nobody else.
pub fn test_cache() -> PathBuf {
    let set = |name| std::env::var_os(name).map(PathBuf::from);
    set("FLOTILLA_TEST_CACHE").unwrap_or_else(|| {
        let caches = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
        caches.unwrap_or_default().join("flotilla-tests")
    })
}

/// A program that Cargo built beside this one: tests, benches and the programs that they drive are of one profile.
pub fn built(program: &str) -> PathBuf {
    let me = std::env::current_exe().expect("a running program has a path");
    let beside = me.parent().expect("a program lies in a directory");
    let directory = if beside.ends_with("deps") { beside.parent().unwrap_or(beside) } else { beside };
    let path = directory.join(program);
    assert!(path.is_file(), "{} is not built; `make test` and `make bench` build it", path.display());
    path
}

/// Where pictures and logs of a run are left to look at: `target/e2e`.
pub fn artefacts() -> PathBuf {
    let directory = repository().join("target/e2e");
    std::fs::create_dir_all(&directory).expect("target is writable");
    directory
}
