//! Sends a build context: a directory as a tar stream, without what its `.dockerignore` leaves out.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use flotilla_api::rest::{BuildLine, BuildQuery};
use futures::stream;
use reqwest::{Body, Method, header};
use tokio::sync::mpsc;

use super::{Client, Error, Lines, dockerignore::Patterns};

/// The stream is cut into blocks of this size. Bytes.
const BLOCK_LEN: usize = 128 * 1024;

/// Blocks that wait for a slow node.
const BLOCKS_WAITING_MAX: usize = 8;

/// A directory to build an image from.
#[derive(Clone, Debug)]
pub struct BuildContext {
    directory: PathBuf,
    /// Relative to the directory, with slashes.
    dockerfile: String,
    patterns: Patterns,
}

impl BuildContext {
    /// # Errors
    /// If the directory or the Dockerfile in it isn't there.
    pub fn open(directory: &Path, dockerfile: Option<&str>) -> Result<Self, Error> {
        let refuse = |why: String| Error::Context { path: directory.to_owned(), why };
        if !directory.is_dir() {
            return Err(refuse("it is no directory".into()));
        }
        let dockerfile = dockerfile.unwrap_or("Dockerfile").trim_start_matches("./").to_owned();
        if !directory.join(&dockerfile).is_file() {
            return Err(refuse(format!("it has no file `{dockerfile}`")));
        }
        // A file of its own for each Dockerfile goes before the common one, as in Docker.
        let candidates = [format!("{dockerfile}.dockerignore"), ".dockerignore".to_owned()];
        let mut patterns = Patterns::default();
        for candidate in candidates.map(|name| directory.join(name)) {
            match fs::read_to_string(&candidate) {
                Ok(text) => {
                    patterns = Patterns::parse(&text);
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(Error::File { path: candidate, source }),
            }
        }
        Ok(Self { directory: directory.to_owned(), dockerfile, patterns })
    }

    /// Writes the archive. Blocking.
    ///
    /// # Errors
    /// The first file that can't be read, or the writer's own.
    pub fn write(&self, to: impl Write) -> Result<(), Error> {
        let mut tar = tar::Builder::new(to);
        tar.follow_symlinks(false);
        self.append_below(&mut tar, "")?;
        tar.finish().map_err(|source| self.failed(&self.directory, &source))
    }

    fn append_below(&self, tar: &mut tar::Builder<impl Write>, below: &str) -> Result<(), Error> {
        let directory = self.directory.join(below);
        let mut entries = fs::read_dir(&directory)
            .and_then(Iterator::collect::<io::Result<Vec<_>>>)
            .map_err(|source| Error::File { path: directory, source })?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let Ok(name) = entry.file_name().into_string() else {
                return Err(Error::Context { path: entry.path(), why: "its name is not UTF-8".into() });
            };
            let path = if below.is_empty() { name } else { format!("{below}/{name}") };
            let left_out = self.patterns.leaves_out(&path) && !self.always_sent(&path);
            let kind = entry.file_type().map_err(|source| Error::File { path: entry.path(), source })?;
            if kind.is_dir() {
                if !left_out {
                    self.append(tar, &path)?;
                }
                if !left_out || self.patterns.may_take_back() || self.dockerfile.starts_with(&format!("{path}/")) {
                    self.append_below(tar, &path)?;
                }
            } else if !left_out && (kind.is_file() || kind.is_symlink()) {
                self.append(tar, &path)?;
            }
        }
        Ok(())
    }

    /// The engine needs them, even where the patterns say otherwise.
    fn always_sent(&self, path: &str) -> bool {
        path == self.dockerfile || path == ".dockerignore"
    }

    fn append(&self, tar: &mut tar::Builder<impl Write>, path: &str) -> Result<(), Error> {
        let file = self.directory.join(path);
        tar.append_path_with_name(&file, path).map_err(|source| self.failed(&file, &source))
    }

    fn failed(&self, file: &Path, source: &io::Error) -> Error {
        let why = format!("`{}`: {source}", file.strip_prefix(&self.directory).unwrap_or(file).display());
        Error::Context { path: self.directory.clone(), why }
    }
}

impl Client {
    /// Has the engine build an image; the lines are its output, and last [`BuildLine::Done`] or [`BuildLine::Error`].
    pub async fn build(&self, query: &BuildQuery, context: BuildContext) -> Result<Lines<BuildLine>, Error> {
        let mut url = self.url("builds");
        {
            let mut pairs = url.query_pairs_mut();
            pairs.append_pair("image", &query.image);
            let optional = [("dockerfile", &query.dockerfile), ("target", &query.target), ("args", &query.args)];
            for (name, value) in optional {
                if let Some(value) = value {
                    pairs.append_pair(name, value);
                }
            }
        }
        let (sender, blocks) = mpsc::channel(BLOCKS_WAITING_MAX);
        let writing = tokio::task::spawn_blocking(move || {
            let mut writer = io::BufWriter::with_capacity(BLOCK_LEN, ChannelWriter(sender.clone()));
            let written = context.write(&mut writer);
            if let Err(error) = &written {
                // Without its end the archive would be taken for a whole one. Nobody listens if the node hung up: also fine.
                let _ = sender.blocking_send(Err(io::Error::other(error.to_string())));
            }
            written
        });
        let body = stream::unfold(blocks, |mut blocks| async move { Some((blocks.recv().await?, blocks)) });
        let request = self
            .authorised(self.http.request(Method::POST, url))
            .header(header::CONTENT_TYPE, "application/x-tar")
            .body(Body::wrap_stream(body));
        // No deadline for the beginning of the answer: the node may read the whole context first.
        let sent = request.send().await;
        match sent {
            Ok(response) => Ok(Lines::new(self.accepted(response).await?, "building")),
            Err(error) => match writing.await {
                Ok(Err(unreadable @ Error::File { .. })) => Err(unreadable),
                Ok(Err(unreadable @ Error::Context { .. })) if !error.is_connect() => Err(unreadable),
                _ => Err(self.sending(error)),
            },
        }
    }
}

/// The writing end of the body; fails once the request is over, which ends the walk.
struct ChannelWriter(mpsc::Sender<io::Result<Bytes>>);

impl Write for ChannelWriter {
    fn write(&mut self, block: &[u8]) -> io::Result<usize> {
        self.0.blocking_send(Ok(Bytes::copy_from_slice(block))).map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(block.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(context: &BuildContext) -> Vec<String> {
        let mut archive = Vec::new();
        context.write(&mut archive).unwrap();
        let mut archive = tar::Archive::new(archive.as_slice());
        archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect()
    }

    fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        directory
    }

    #[test]
    fn what_the_ignore_file_names_is_not_sent_but_the_dockerfile_always_is() {
        let files = [
            ("Dockerfile", "FROM scratch"),
            (".dockerignore", "*\n!src\nsrc/*.o"),
            ("src/main.c", ""),
            ("src/main.o", ""),
            ("secret.env", ""),
        ];
        let directory = directory(&files);
        let context = BuildContext::open(directory.path(), None).unwrap();
        assert_eq!(names(&context), [".dockerignore", "Dockerfile", "src", "src/main.c"]);
    }

    #[test]
    fn a_directory_without_a_dockerfile_is_refused() {
        let directory = directory(&[]);
        let error = BuildContext::open(directory.path(), None).unwrap_err().to_string();
        assert!(error.contains("no file `Dockerfile`"), "{error}");
        let missing = BuildContext::open(&directory.path().join("x"), None).unwrap_err().to_string();
        assert!(missing.contains("no directory"), "{missing}");
    }

    #[test]
    fn links_are_sent_as_links() {
        let directory = directory(&[("Dockerfile", "")]);
        std::os::unix::fs::symlink("/nowhere", directory.path().join("link")).unwrap();
        let mut archive = Vec::new();
        BuildContext::open(directory.path(), None).unwrap().write(&mut archive).unwrap();
        let mut archive = tar::Archive::new(archive.as_slice());
        let link = archive.entries().unwrap().map(Result::unwrap).find(|entry| entry.path().unwrap().ends_with("link"));
        assert_eq!(link.unwrap().link_name().unwrap().unwrap(), Path::new("/nowhere"));
    }
}
