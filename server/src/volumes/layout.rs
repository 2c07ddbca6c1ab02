//! Where what lies on the disk, and under which name in the store.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use flotilla_api::{ServiceName, VolumeName};
use flotilla_data::{Store, store};
use tempfile::TempDir;

/// All services' directories.
pub(crate) fn root(data_dir: &Path) -> PathBuf {
    data_dir.join("volumes")
}

/// One service's directories, and the record of what they show. No volume's name begins with a dot, so that nothing of ours meets one.
pub(crate) fn of_service(data_dir: &Path, service: &ServiceName) -> PathBuf {
    root(data_dir).join(service.as_str())
}

pub(crate) fn directory(data_dir: &Path, service: &ServiceName, volume: &VolumeName) -> PathBuf {
    of_service(data_dir, service).join(volume.as_str())
}

/// The store of generations.
pub(super) fn objects(data_dir: &Path) -> PathBuf {
    data_dir.join("objects")
}

/// Under which a volume's generations are kept.
pub(super) fn key(service: &ServiceName, volume: &VolumeName) -> String {
    format!("{service}/{volume}")
}

/// Volumes of a service of which there are generations.
pub(super) fn kept(store: &Store, service: &ServiceName) -> Result<Vec<VolumeName>, store::Error> {
    let prefix = format!("{service}/");
    let names = store.volumes(&prefix)?;
    Ok(names.iter().filter_map(|name| name.strip_prefix(&prefix)?.parse().ok()).collect())
}

/// Under which is kept what was written and never committed.
pub(super) fn branch_key(service: &ServiceName, volume: &VolumeName) -> String {
    branch_of(&key(service, volume))
}

/// The same, of the volume whose generations are kept under this name.
pub(super) fn branch_of(key: &str) -> String {
    format!(":branch/{key}")
}

/// Under which is kept what a directory had in it when it was to show something else, until it does.
pub(super) fn passing_key(service: &ServiceName, volume: &VolumeName) -> String {
    format!(":passing/{service}/{volume}")
}

/// Is anything kept of a service's volumes beside generations that were committed, or may be?
pub(super) fn has_uncommitted(store: &Store, service: &ServiceName) -> Result<bool, store::Error> {
    let [_, beside @ ..] = prefixes(service);
    for prefix in beside {
        if !store.volumes(&prefix)?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Under which is kept what was unpacked of an archive, until a generation has it.
pub(super) const IMPORTS: &str = ":import/";

pub(super) fn import_key(service: &ServiceName, volume: &VolumeName) -> String {
    format!("{IMPORTS}{service}/{volume}")
}

/// Where archives are unpacked. No service's name begins with a dot.
const IMPORTING: &str = ".importing-";

pub(super) fn importing(data_dir: &Path) -> io::Result<TempDir> {
    fs::create_dir_all(root(data_dir))?;
    tempfile::Builder::new().prefix(IMPORTING).tempdir_in(root(data_dir))
}

/// Removes what a daemon left that ended meanwhile.
pub(super) fn sweep_importing(data_dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(root(data_dir)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(IMPORTING) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// With which all names of one service's volumes in the store begin.
pub(super) fn prefixes(service: &ServiceName) -> [String; 4] {
    [
        format!("{service}/"),
        format!(":branch/{service}/"),
        format!(":passing/{service}/"),
        format!("{IMPORTS}{service}/"),
    ]
}
