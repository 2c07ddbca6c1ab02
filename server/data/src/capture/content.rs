//! The bytes of one file, without its holes.

use std::{
    fs,
    io::{self, Read, Seek, SeekFrom},
    time::Instant,
};

use rustix::{
    fs::{SeekFrom as Where, Stat, seek},
    io::Errno,
};

use super::Error;
use crate::{
    store::Session,
    stream::{Grain, Stream},
    tree::{File, Hole},
};

/// Holes that a file is kept with; in what comes after them zeros are kept as bytes, which compress to nothing.
const HOLES_MAX: usize = 4096;

/// A file that is longer is read by one thread and kept by another. Bytes.
const LONG: u64 = 4 * 1024 * 1024;

/// Bytes of a block, as `st_blocks` counts them.
pub(super) const BLOCK: u64 = 512;

/// How long a file is, and where it takes no room.
pub(super) fn extent(file: &fs::File, stat: &Stat) -> io::Result<(u64, Vec<Hole>)> {
    let len = stat.st_size as u64;
    let holes = if (stat.st_blocks as u64) * BLOCK < len { holes(file, len)? } else { Vec::new() };
    Ok((len, holes))
}

/// What it has beside its holes.
pub(super) fn bytes<'a>(file: &'a fs::File, len: u64, holes: &'a [Hole]) -> impl Read + use<'a> {
    WithoutHoles { file, at: 0, len, holes, next: 0 }
}

/// Keeps what [`bytes`] gives.
pub(super) fn write(bytes: impl Read, len: u64, holes: Vec<Hole>, mut session: &Session) -> Result<File, Error> {
    let write = if len > LONG { Stream::write_beside } else { Stream::write };
    let content = write(bytes, Grain::Content, &mut session)?;
    Ok(File { len, content, holes, has_twins: false })
}

/// Reads until a moment.
pub(super) struct Until<R> {
    pub(super) inner: R,
    pub(super) end: Option<Instant>,
}

impl<R: Read> Read for Until<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.end.is_some_and(|end| Instant::now() > end) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.inner.read(buffer)
    }
}

/// Where a file takes no room. A file system that can't tell says that there are none.
fn holes(file: &fs::File, len: u64) -> io::Result<Vec<Hole>> {
    let mut holes: Vec<Hole> = Vec::new();
    let mut at = 0;
    while at < len && holes.len() < HOLES_MAX {
        let hole = match seek(file, Where::Hole(at)) {
            Ok(hole) => hole.min(len),
            Err(Errno::NXIO | Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
        };
        let data = match seek(file, Where::Data(hole)) {
            Ok(data) => data.min(len),
            // There is no data behind it.
            Err(Errno::NXIO) => len,
            Err(error) => return Err(error.into()),
        };
        if data > hole {
            holes.push(Hole { at: hole, len: data - hole });
        }
        at = data;
    }
    Ok(holes)
}

/// Reads a file up to its length, past its holes.
struct WithoutHoles<'a> {
    file: &'a fs::File,
    at: u64,
    len: u64,
    holes: &'a [Hole],
    next: usize,
}

impl Read for WithoutHoles<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == 0 || self.holes.get(self.next).is_some_and(|hole| hole.at == self.at) {
            while let Some(hole) = self.holes.get(self.next).filter(|hole| hole.at == self.at) {
                self.at += hole.len;
                self.next += 1;
            }
            self.file.seek(SeekFrom::Start(self.at))?;
        }
        let end = self.holes.get(self.next).map_or(self.len, |hole| hole.at);
        let wanted = usize::try_from(end - self.at).unwrap_or(usize::MAX).min(buffer.len());
        // It may have become shorter meanwhile, which shows when it is looked at again.
        let read = self.file.read(&mut buffer[..wanted])?;
        self.at += read as u64;
        Ok(read)
    }
}
