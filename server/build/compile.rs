//! `web/` to WASM, by a second cargo.

use std::{env, ffi::OsStr, fs, path::PathBuf, process::Command};

use crate::{
    Outer, Result, cannot,
    toolchain::{Std, TARGET, Toolchain},
};

/// The programs of `web/src/bin`; each is built with the feature of its name alone, so that the connector, which is part of
/// every service's cold start, knows nothing of the dashboard's libraries.
const PROGRAMS: &[Program] =
    &[Program { name: "connector", in_parts: false }, Program { name: "dashboard", in_parts: true }];

struct Program {
    name: &'static str,
    in_parts: bool,
}

pub(crate) struct Module {
    pub(crate) name: &'static str,
    /// Not all of it is loaded at once.
    pub(crate) in_parts: bool,
    pub(crate) wasm: Vec<u8>,
}

pub(crate) fn modules(outer: &Outer, toolchain: &Toolchain) -> Result<Vec<Module>> {
    PROGRAMS.iter().map(|program| module(outer, toolchain, program)).collect()
}

fn module(outer: &Outer, toolchain: &Toolchain, program: &Program) -> Result<Module> {
    let &Program { name, in_parts } = program;
    let mut cargo = Command::new(&toolchain.cargo);
    // The outer build's flags, wrappers (clippy's, coverage's) and paths are for the node, not for WASM.
    for (variable, _) in env::vars_os().filter(|(variable, _)| belongs_to_outer_build(variable)) {
        cargo.env_remove(variable);
    }
    cargo
        .current_dir(&outer.workspace)
        .env("RUSTC", &toolchain.rustc)
        .env("CARGO_TERM_COLOR", "never")
        // Leptos then boxes views in place of a type for each page: 14 % off the dashboard's download, and off its compile time.
        // The connector does not know Leptos, but builds its other libraries with the same flags, once for both.
        .env("RUSTFLAGS", "--cfg erase_components")
        .args(["rustc", "--locked", "--quiet", "--package", "flotilla-web", "--bin", name])
        .args(["--no-default-features", "--features", name])
        .args(["--target", TARGET, "--profile", outer.profile.name()])
        .arg("--target-dir")
        .arg(&outer.web_target);
    if let Std::FromSource { linker } = &toolchain.std {
        cargo
            .arg("-Zbuild-std=std,panic_abort")
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker);
    }
    if in_parts {
        // Who calls whom, for the cut. For the program alone, so that the libraries are built once for both.
        cargo.args(["--", "-Clink-arg=--emit-relocs"]);
    }
    let output = cargo.output().map_err(|error| cannot("run", &toolchain.cargo, &error))?;
    if !output.status.success() {
        eprintln!("{}", String::from_utf8_lossy(&output.stderr));
        return Err(format!("the web app's `{name}` does not compile; the compiler's messages are above"));
    }
    let path: PathBuf = outer.web_target.join(TARGET).join(outer.profile.name()).join(format!("{name}.wasm"));
    let wasm = fs::read(&path).map_err(|error| cannot("read", &path, &error))?;
    Ok(Module { name, in_parts, wasm })
}

fn belongs_to_outer_build(variable: &OsStr) -> bool {
    /// How cargo reaches registries, and the job server that keeps two cargos from using more cores than one.
    const KEPT: &[&str] =
        &["CARGO_HOME", "CARGO_HTTP_", "CARGO_MAKEFLAGS", "CARGO_NET_", "CARGO_REGISTRIES_", "CARGO_REGISTRY_"];
    const DROPPED: &[&str] = &[
        "CARGO",
        "CLIPPY_",
        "DEBUG",
        "DEP_",
        "HOST",
        "LD_LIBRARY_PATH",
        "LLVM_PROFILE_FILE",
        "NUM_JOBS",
        "OPT_LEVEL",
        "OUT_DIR",
        "PROFILE",
        "RUSTC",
        "RUSTDOC",
        "RUSTFLAGS",
        "TARGET",
    ];
    let name = variable.to_string_lossy();
    DROPPED.iter().any(|prefix| name.starts_with(prefix)) && !KEPT.iter().any(|prefix| name.starts_with(prefix))
}
