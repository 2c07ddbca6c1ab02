//! Everything that the finished web app depends upon, and one hash of it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use crate::{Profile, Result, cannot};

/// Relative to the workspace. `Cargo.lock` and `Cargo.toml` pin dependencies and profiles.
const SOURCES: &[&str] = &[
    "web/src",
    "web/static",
    "web/Cargo.toml",
    "server/api/src",
    "server/api/Cargo.toml",
    "server/build",
    "Cargo.lock",
    "Cargo.toml",
];

pub(crate) struct Inputs {
    workspace: PathBuf,
}

impl Inputs {
    pub(crate) fn of(workspace: &Path) -> Result<Self> {
        for source in SOURCES {
            if !workspace.join(source).exists() {
                return Err(format!("{source} is missing; build the node in a clone of the whole repository"));
            }
        }
        Ok(Self { workspace: workspace.to_path_buf() })
    }

    /// Cargo runs the build script again when one of them changes, and for no other reason.
    pub(crate) fn announce(&self) {
        for source in SOURCES {
            println!("cargo::rerun-if-changed={}", self.workspace.join(source).display());
        }
    }

    pub(crate) fn hash(&self, profile: Profile) -> Result<String> {
        let mut files = Vec::new();
        for source in SOURCES {
            collect(&self.workspace.join(source), &mut files)?;
        }
        files.sort();
        let mut hash = Sha256::new();
        hash.update(profile.name());
        for file in files {
            let bytes = fs::read(&file).map_err(|error| cannot("read", &file, &error))?;
            let name = file.strip_prefix(&self.workspace).unwrap_or(&file).to_string_lossy();
            hash.update((name.len() as u64).to_le_bytes());
            hash.update(name.as_bytes());
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(&bytes);
        }
        Ok(short_hex(&hash.finalize()))
    }
}

/// All files under `path`, or the file itself.
pub(crate) fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if path.is_dir() {
        for entry in fs::read_dir(path).map_err(|error| cannot("read", path, &error))? {
            let entry = entry.map_err(|error| cannot("read", path, &error))?;
            // An editor's swap and lock files come and go.
            if !entry.file_name().to_string_lossy().starts_with('.') {
                collect(&entry.path(), files)?;
            }
        }
    } else {
        files.push(path.to_path_buf());
    }
    Ok(())
}

/// 64 bits are enough to tell versions of one file apart.
pub(crate) fn content_hash(bytes: &[u8]) -> String {
    short_hex(&Sha256::digest(bytes))
}

fn short_hex(digest: &[u8]) -> String {
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
