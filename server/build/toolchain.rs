//! Which compiler can make WASM: the one that builds the node if its target is installed, else another one on the
//! machine that has it, else one that has the standard library's source and can build it (Debian's `rustc-web`).

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use crate::Result;

pub(crate) const TARGET: &str = "wasm32-unknown-unknown";

const NONE_FOUND: &str = "the web app needs Rust's WASM target: run `rustup target add wasm32-unknown-unknown` (on Debian without rustup: \
    `apt-get install rustc-web cargo-web rust-web-src lld`), or set FLOTILLA_WEB_DIST to a web app that was built elsewhere";

pub(crate) struct Toolchain {
    pub(crate) cargo: PathBuf,
    pub(crate) rustc: PathBuf,
    pub(crate) std: Std,
}

pub(crate) enum Std {
    Installed,
    /// Built from its source, by `-Zbuild-std`, linked with this.
    FromSource {
        linker: PathBuf,
    },
}

pub(crate) fn find() -> Result<Toolchain> {
    let candidates = candidates();
    if let Some((cargo, rustc)) = candidates.iter().find(|(_, rustc)| has_target(rustc)) {
        return Ok(Toolchain { cargo: cargo.clone(), rustc: rustc.clone(), std: Std::Installed });
    }
    let linker = candidates.iter().find_map(|(_, rustc)| rust_lld(rustc)).or_else(wasm_ld);
    for (cargo, rustc) in &candidates {
        if let (true, Some(linker)) = (has_source(rustc), &linker) {
            let std = Std::FromSource { linker: linker.clone() };
            return Ok(Toolchain { cargo: cargo.clone(), rustc: rustc.clone(), std });
        }
    }
    Err(NONE_FOUND.to_owned())
}

/// Pairs of cargo and rustc: first the ones that build the node, then those beside each other on the path.
fn candidates() -> Vec<(PathBuf, PathBuf)> {
    let outer = |name: &str, default: &str| PathBuf::from(env::var_os(name).unwrap_or_else(|| OsString::from(default)));
    let mut found = vec![(outer("CARGO", "cargo"), outer("RUSTC", "rustc"))];
    let path = env::var_os("PATH").unwrap_or_default();
    for dir in env::split_paths(&path).chain([PathBuf::from("/usr/bin")]) {
        let pair = (dir.join("cargo"), dir.join("rustc"));
        if pair.0.is_file() && pair.1.is_file() && !found.contains(&pair) {
            found.push(pair);
        }
    }
    found
}

fn has_target(rustc: &Path) -> bool {
    let Some(libraries) = printed(rustc, &["--print", "target-libdir", "--target", TARGET]) else { return false };
    let Ok(entries) = Path::new(&libraries).read_dir() else { return false };
    entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("libstd-"))
}

fn has_source(rustc: &Path) -> bool {
    printed(rustc, &["--print", "sysroot"])
        .is_some_and(|sysroot| Path::new(&sysroot).join("lib/rustlib/src/rust/library/Cargo.lock").is_file())
}

/// The linker that comes with rustup's toolchains.
fn rust_lld(rustc: &Path) -> Option<PathBuf> {
    let sysroot = printed(rustc, &["--print", "sysroot"])?;
    let host = env::var("HOST").ok()?;
    Some(Path::new(&sysroot).join("lib/rustlib").join(host).join("bin/rust-lld")).filter(|linker| linker.is_file())
}

/// The distribution's linker, if it is not older than what today's compilers emit.
fn wasm_ld() -> Option<PathBuf> {
    (19..=30).rev().map(|version| PathBuf::from(format!("/usr/bin/wasm-ld-{version}"))).find(|linker| linker.is_file())
}

fn printed(rustc: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new(rustc).args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
