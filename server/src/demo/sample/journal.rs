//! A file of one JSON value per line, of which every line that was acknowledged survives a power loss.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead as _, BufReader, Seek as _, SeekFrom, Write as _},
    marker::PhantomData,
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};

/// The longest line: a note of 2000 characters of four bytes, escaped. Bytes.
const LINE_MAX: usize = 64 * 1024;

#[derive(Debug)]
pub(super) struct Journal<T> {
    path: PathBuf,
    file: File,
    /// Bytes of whole lines.
    len: u64,
    value: PhantomData<fn(T)>,
}

impl<T: Serialize + DeserializeOwned> Journal<T> {
    /// Opens or makes the file and reads what is in it. A last line without its end was never acknowledged, and is cut off.
    pub(super) fn open(path: &Path) -> io::Result<(Self, Vec<T>)> {
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        sync_directory(path)?;
        let mut values = Vec::new();
        let mut len = 0;
        let mut reader = BufReader::new(&mut file);
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = io::Read::take(&mut reader, LINE_MAX as u64 + 1).read_until(b'\n', &mut line)?;
            if read == 0 || (line.last() != Some(&b'\n') && read <= LINE_MAX) {
                break;
            }
            let value = serde_json::from_slice(&line).map_err(|error| {
                io::Error::new(io::ErrorKind::InvalidData, format!("byte {len} of `{}`: {error}", path.display()))
            })?;
            values.push(value);
            len += read as u64;
        }
        file.set_len(len)?;
        Ok((Self { path: path.to_owned(), file, len, value: PhantomData }, values))
    }

    /// Returns once the line is on the disk. After an error the file is as it was before.
    pub(super) fn append(&mut self, value: &T) -> io::Result<()> {
        let line = line(value)?;
        self.file.seek(SeekFrom::Start(self.len))?;
        let written = self.file.write_all(&line).and_then(|()| self.file.sync_data());
        match written {
            Ok(()) => self.len += line.len() as u64,
            // Half a line would swallow the beginning of the next one.
            Err(_) => self.file.set_len(self.len)?,
        }
        written
    }

    /// Replaces the file in one step by one that holds only these.
    pub(super) fn replace(&mut self, values: &[T]) -> io::Result<()> {
        let fresh = self.path.with_extension("new");
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&fresh)?;
        let mut len = 0;
        for value in values {
            let line = line(value)?;
            file.write_all(&line)?;
            len += line.len() as u64;
        }
        file.sync_all()?;
        fs::rename(&fresh, &self.path)?;
        sync_directory(&self.path)?;
        (self.file, self.len) = (file, len);
        Ok(())
    }
}

fn line(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    if line.len() > LINE_MAX {
        return Err(io::Error::other(format!("a line has at most {LINE_MAX} bytes")));
    }
    Ok(line)
}

/// A file that was made or renamed is only there for sure once its directory is on the disk.
fn sync_directory(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(path: &Path) -> Vec<String> {
        Journal::open(path).unwrap().1
    }

    #[test]
    fn what_was_appended_is_there_after_opening_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let (mut journal, read) = Journal::<String>::open(&path).unwrap();
        assert!(read.is_empty());
        journal.append(&"one".into()).unwrap();
        journal.append(&"two\nlines".into()).unwrap();
        assert_eq!(values(&path), ["one", "two\nlines"]);
    }

    #[test]
    fn half_a_line_at_the_end_is_cut_off_and_the_next_one_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        fs::write(&path, "\"one\"\n\"tw").unwrap();
        let (mut journal, read) = Journal::<String>::open(&path).unwrap();
        assert_eq!(read, ["one"]);
        journal.append(&"three".into()).unwrap();
        assert_eq!(values(&path), ["one", "three"]);
    }

    #[test]
    fn a_damaged_line_in_the_middle_is_an_error_and_nothing_is_lost() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        fs::write(&path, "\"one\"\nx\n\"two\"\n").unwrap();
        assert!(Journal::<String>::open(&path).unwrap_err().to_string().contains("byte 6"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "\"one\"\nx\n\"two\"\n");
    }

    #[test]
    fn a_replaced_file_goes_on_with_new_lines() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let (mut journal, _) = Journal::<String>::open(&path).unwrap();
        journal.append(&"old".into()).unwrap();
        journal.replace(&["new".into()]).unwrap();
        journal.append(&"newer".into()).unwrap();
        assert_eq!(values(&path), ["new", "newer"]);
    }
}
