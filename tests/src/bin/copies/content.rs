//! What is written: nothing that could be compressed, so that every byte has to travel; but for what people really have.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
};

use anyhow::Result;

use crate::real;

/// Bytes of the large file.
pub(crate) const LARGE: u64 = 500_000_000;
/// Of each of many files, and how many there are.
pub(crate) const MANY: (u64, usize) = (50_000, 2_000);
/// What is changed in the middle of the large file. Bytes.
pub(crate) const PATCH: u64 = 1_000_000;

/// A tree to copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tree {
    Large,
    Many,
    /// Which is the same each time.
    Real,
}

impl Tree {
    /// Other bytes each time.
    pub(crate) const RANDOM: [Self; 2] = [Self::Large, Self::Many];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Large => "500 MB in one file",
            Self::Many => "2,000 files of 50 kB",
            Self::Real => "sources, documents and a database",
        }
    }

    /// Writes one into a directory that is made.
    pub(crate) async fn write(self, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory)?;
        match self {
            Self::Large => random(&directory.join("large"), LARGE)?,
            Self::Many => {
                for number in 0..MANY.1 {
                    random(&directory.join(format!("file-{number}")), MANY.0)?;
                }
            }
            Self::Real => real::write(directory).await?,
        }
        // What is copied is on the disk, as what programs wrote a while ago is.
        rustix::fs::syncfs(File::open(directory)?)?;
        Ok(())
    }
}

pub(crate) fn random(path: &Path, bytes: u64) -> io::Result<()> {
    io::copy(&mut File::open("/dev/urandom")?.take(bytes), &mut File::create(path)?).map(drop)
}

/// Changes a piece of a file that is there, as a database does.
pub(crate) fn patch(path: &Path, at: u64, bytes: u64) -> io::Result<()> {
    let mut file = File::options().write(true).open(path)?;
    file.seek(SeekFrom::Start(at))?;
    io::copy(&mut File::open("/dev/urandom")?.take(bytes), &mut file)?;
    file.flush()?;
    file.sync_all()
}

/// Of all files below a directory.
pub(crate) fn size(directory: &Path) -> io::Result<u64> {
    size_of(directory, |_| true)
}

/// Of those files below a directory whose names count.
pub(crate) fn size_of(directory: &Path, counts: fn(&OsStr) -> bool) -> io::Result<u64> {
    let mut size = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        if meta.is_dir() {
            size += size_of(&entry.path(), counts)?;
        } else if counts(&entry.file_name()) {
            size += meta.len();
        }
    }
    Ok(size)
}
