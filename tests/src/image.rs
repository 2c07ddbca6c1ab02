//! Container images without a registry: Debian roots from `tests/images`, and our own programs packed with their libraries.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use tokio::process::Command;

use crate::{body::sha256, built, process::run, repository};

/// A cold build downloads packages.
const BUILD_LIMIT: Duration = Duration::from_secs(600);
const ENGINE_LIMIT: Duration = Duration::from_secs(120);

/// nginx with a few pages and a file of 200 MB, on port 80.
pub async fn nginx() -> Result<String> {
    debian("nginx").await
}

/// JupyterLab without a password, on port 8888.
pub async fn jupyter() -> Result<String> {
    debian("jupyter").await
}

/// What `flotilla-ledger` does, on port 8080, with PostgreSQL and with a mapped file: `/usr/local/bin/postgres-ledger` and
/// `mapped-ledger` are its commands.
pub async fn databases() -> Result<String> {
    debian("databases").await
}

/// `flotilla-echo`, on port 8080; `/data` is a directory that anyone may write to.
pub async fn echo() -> Result<String> {
    let archive = root("flotilla-echo", "echo").await?;
    let key = sha256([&archive]);
    let reference = format!("flotilla-tests/echo:{}", &key[..12]);
    if present(&reference).await {
        return Ok(reference);
    }
    let file = tempfile::NamedTempFile::new()?;
    tokio::fs::write(file.path(), archive).await?;
    let mut import = Command::new("docker");
    import.arg("import").args(["--change", r#"ENTRYPOINT ["/echo"]"#, "--change", "EXPOSE 8080"]);
    run(import.arg(file.path()).arg(&reference), ENGINE_LIMIT).await?;
    Ok(reference)
}

/// An archive as `docker save` writes it, of an image that is in no engine yet.
#[derive(Debug)]
pub struct Archive {
    pub reference: String,
    bytes: Vec<u8>,
}

impl Archive {
    pub fn write(&self, to: &Path) -> Result<()> {
        std::fs::write(to, &self.bytes).with_context(|| format!("write {}", to.display()))
    }
}

/// `flotilla-beat`, on port 8080; `/data` is a directory that anyone may write to.
pub async fn beat() -> Result<Archive> {
    archive("beat").await
}

/// `flotilla-ledger`, on port 8080.
pub async fn ledger() -> Result<Archive> {
    archive("ledger").await
}

/// One program is one image: same id everywhere.
async fn archive(name: &str) -> Result<Archive> {
    let layer = root(&format!("flotilla-{name}"), name).await?;
    let digest = sha256([&layer]);
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": { "Entrypoint": [format!("/{name}")], "ExposedPorts": { "8080/tcp": {} } },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
    });
    let config = serde_json::to_vec(&config)?;
    let id = sha256([&config]);
    let reference = format!("flotilla-tests/{name}:{}", &digest[..12]);
    let manifest = serde_json::json!([{
        "Config": format!("{id}.json"),
        "RepoTags": [reference],
        "Layers": [format!("{digest}/layer.tar")],
    }]);
    let mut archive = tar::Builder::new(Vec::new());
    let mut file = |path: &str, bytes: &[u8]| {
        let mut header = plain_header(tar::EntryType::Regular, bytes.len() as u64, 0o644);
        archive.append_data(&mut header, path, bytes)
    };
    file(&format!("{id}.json"), &config)?;
    file(&format!("{digest}/layer.tar"), &layer)?;
    file("manifest.json", &serde_json::to_vec(&manifest)?)?;
    Ok(Archive { reference, bytes: archive.into_inner()? })
}

/// `docker save` of an image that the engine holds.
pub async fn save(reference: &str, to: &Path) -> Result<()> {
    run(Command::new("docker").args(["save", "-o"]).arg(to).arg(reference), ENGINE_LIMIT).await?;
    Ok(())
}

pub async fn tag(reference: &str, other: &str) -> Result<()> {
    run(Command::new("docker").args(["tag", reference, other]), ENGINE_LIMIT).await?;
    Ok(())
}

/// Takes a name from an image, and the image with its last name.
pub async fn forget(reference: &str) -> Result<()> {
    run(Command::new("docker").args(["image", "rm", reference]), ENGINE_LIMIT).await?;
    Ok(())
}

pub async fn present(reference: &str) -> bool {
    run(Command::new("docker").args(["image", "inspect", "-f", "{{.Id}}", reference]), ENGINE_LIMIT).await.is_ok()
}

async fn debian(name: &str) -> Result<String> {
    let output = run(Command::new(repository().join("tests/images/build")).arg(name), BUILD_LIMIT).await?;
    Ok(output.trim().to_owned())
}

/// A root file system with a program of ours, the libraries that it links and an empty `/data`.
async fn root(program: &str, name: &str) -> Result<Vec<u8>> {
    let program = built(program);
    let mut archive = tar::Builder::new(Vec::new());
    append(&mut archive, stripped(&program).await?.path(), Path::new(name), 0o755)?;
    for library in libraries(&program).await? {
        append(&mut archive, &library, library.strip_prefix("/")?, 0o755)?;
    }
    for (directory, mode) in [("data", 0o777), ("journal", 0o777), ("tmp", 0o1777)] {
        let mut header = plain_header(tar::EntryType::Directory, 0, mode);
        archive.append_data(&mut header, directory, std::io::empty())?;
    }
    Ok(archive.into_inner()?)
}

/// What the dynamic linker would load, itself included.
async fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let listing = run(Command::new("ldd").arg(program), ENGINE_LIMIT).await?;
    let paths: Vec<PathBuf> = listing
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .collect();
    if paths.is_empty() {
        bail!("ldd names no library of {}", program.display());
    }
    Ok(paths)
}

/// Without what only a debugger reads, which is nine tenths of a program and would be sent from machine to machine.
async fn stripped(program: &Path) -> Result<tempfile::NamedTempFile> {
    let file = tempfile::NamedTempFile::new()?;
    run(Command::new("strip").arg("-o").arg(file.path()).arg(program), ENGINE_LIMIT).await?;
    Ok(file)
}

/// Times and owners are left out, so that one program is one image.
fn append(archive: &mut tar::Builder<Vec<u8>>, from: &Path, to: &Path, mode: u32) -> Result<()> {
    let bytes = std::fs::read(from).with_context(|| format!("read {}", from.display()))?;
    let mut header = plain_header(tar::EntryType::Regular, bytes.len() as u64, mode);
    archive.append_data(&mut header, to, bytes.as_slice())?;
    Ok(())
}

fn plain_header(kind: tar::EntryType, size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header
}
