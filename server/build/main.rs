//! Builds the web app and lays it into the node's binary, so that a plain `cargo build` yields a node that serves it.
//!
//! `web/` is compiled to WASM by a second cargo with a target directory of its own (`target/web`): one that shared the
//! outer cargo's directory would wait for its lock for ever. What comes out is kept in `target/web/dist/<hash of all
//! inputs>`, so that `cargo check`, `clippy` and test builds, which each run this script, do the work once.
//!
//! `FLOTILLA_WEB_DIST=<directory>` takes a web app that was built before (a copy of such a `dist` directory).

#![allow(clippy::print_stdout, reason = "a build script speaks with cargo over its output")]

mod bundle;
mod compile;
mod inputs;
mod pages;
mod split;
mod table;
mod toolchain;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

/// A sentence for the person who builds.
type Result<T> = std::result::Result<T, String>;

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            println!("cargo::error={}", sentence.replace('\n', " "));
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<()> {
    let outer = Outer::from_environment()?;
    println!("cargo::rerun-if-env-changed=FLOTILLA_WEB_DIST");
    let dist = match env::var_os("FLOTILLA_WEB_DIST").filter(|dir| !dir.is_empty()) {
        Some(dir) => {
            let dir = PathBuf::from(dir);
            println!("cargo::rerun-if-changed={}", dir.display());
            dir
        }
        None => built(&outer)?,
    };
    table::write(&dist, &outer.out_dir)
}

/// The directory with the finished web app for these sources, built now unless it was before.
fn built(outer: &Outer) -> Result<PathBuf> {
    let inputs = inputs::Inputs::of(&outer.workspace)?;
    inputs.announce();
    let hash = inputs.hash(outer.profile)?;
    let dist = outer.web_target.join("dist").join(&hash);
    if dist.is_dir() {
        return Ok(dist);
    }
    let toolchain = toolchain::find()?;
    let modules = compile::modules(outer, &toolchain)?;

    // Another build (an editor's, say) may be at the same work: whoever is first to rename has done it for both.
    let parent = outer.web_target.join("dist");
    let unfinished = parent.join(format!("unfinished-{}", std::process::id()));
    remove(&unfinished)?;
    bundle::write(outer, &modules, &hash, &unfinished)?;
    if fs::rename(&unfinished, &dist).is_err() {
        remove(&unfinished)?;
        if !dist.is_dir() {
            return Err(format!("the web app could not be put at {}; is the disk full?", dist.display()));
        }
    }
    keep_newest(&parent);
    Ok(dist)
}

/// How many finished web apps are kept, so that changing branches to and fro builds nothing anew.
const DISTS_KEPT: usize = 8;

/// Tidying up: what can't be read or removed now is left for the next time.
fn keep_newest(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    let mut dists: Vec<_> =
        entries.flatten().filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path()))).collect();
    dists.sort();
    for (_, path) in dists.iter().rev().skip(DISTS_KEPT) {
        let _ = fs::remove_dir_all(path);
    }
}

fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(cannot("remove", dir, &error)),
        _ => Ok(()),
    }
}

fn cannot(verb: &str, path: &Path, error: &dyn std::fmt::Display) -> String {
    format!("cannot {verb} {}: {error}", path.display())
}

/// What the outer cargo tells a build script.
struct Outer {
    workspace: PathBuf,
    out_dir: PathBuf,
    /// Where the second cargo builds.
    web_target: PathBuf,
    profile: Profile,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Profile {
    /// Compiles quickly.
    Dev,
    /// Downloads quickly.
    Release,
}

impl Profile {
    /// Its name in the workspace's Cargo.toml.
    fn name(self) -> &'static str {
        match self {
            Self::Dev => "wasm-dev",
            Self::Release => "wasm-release",
        }
    }
}

impl Outer {
    fn from_environment() -> Result<Self> {
        let path = |name| env::var_os(name).map(PathBuf::from).ok_or(format!("cargo sets {name}; run `cargo build`"));
        let out_dir = path("OUT_DIR")?;
        // <target>/<profile>/build/flotilla-<hash>/out
        let target = out_dir
            .ancestors()
            .find(|dir| dir.file_name().is_some_and(|name| name == "build"))
            .and_then(|build| build.parent()?.parent())
            .ok_or(format!("{} lies in no target directory", out_dir.display()))?;
        let manifest = path("CARGO_MANIFEST_DIR")?;
        let workspace = manifest.parent().ok_or("the server package lies in a workspace")?.to_path_buf();
        let profile =
            if env::var("PROFILE").is_ok_and(|name| name == "release") { Profile::Release } else { Profile::Dev };
        Ok(Self { web_target: target.join("web"), workspace, out_dir, profile })
    }
}
