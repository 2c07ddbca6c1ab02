//! Bytes that are compared with their digest on their way.

use std::io::{self, Read};

use flotilla_data::{
    store::{self, Objects},
    stream,
    tree::File,
};
use sha2::{Digest as _, Sha256};

use super::{Digest, Error};

/// What a reader of a blob failed with.
pub(super) fn cause(error: io::Error, digest: &Digest) -> Error {
    match error.downcast::<Mismatch>() {
        Ok(Mismatch) => Error::Damaged { digest: digest.clone() },
        Err(error) => failed(error),
    }
}

/// What a reader of the store failed with.
pub(super) fn failed(error: io::Error) -> Error {
    match error.downcast::<store::Error>() {
        Ok(error) => error.into(),
        Err(error) => match error.downcast::<stream::Error>() {
            Ok(error) => error.into(),
            Err(error) => Error::Read(error),
        },
    }
}

pub(super) struct Hashed<R> {
    bytes: R,
    pub(super) sha: Sha256,
}

impl<R> Hashed<R> {
    pub(super) fn new(bytes: R) -> Self {
        Self { bytes, sha: Sha256::new() }
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.bytes.read(buffer)?;
        self.sha.update(&buffer[..len]);
        Ok(len)
    }
}

/// It was read to its end, and is something else.
#[derive(Debug, thiserror::Error)]
#[error("its digest is another")]
struct Mismatch;

/// Fails at its end where it is not what it is said to be, and before that where it is longer.
pub(super) struct Checked<'a, R> {
    bytes: Hashed<R>,
    digest: &'a Digest,
    /// Bytes that it still has, where that is known.
    left: Option<u64>,
    over: bool,
}

impl<'a, R> Checked<'a, R> {
    pub(super) fn new(bytes: R, digest: &'a Digest) -> Self {
        Self { bytes: Hashed::new(bytes), digest, left: None, over: false }
    }
}

impl<'a> Checked<'a, stream::Reader<'a>> {
    /// Of a file that another machine may have described: all of it is content, and as much as it says.
    pub(super) fn blob(file: &'a File, digest: &'a Digest, objects: &'a dyn Objects) -> Result<Self, Error> {
        if file.len != file.content.len || !file.holes.is_empty() {
            return Err(Error::Damaged { digest: digest.clone() });
        }
        Ok(Self { left: Some(file.len), ..Self::new(file.content.read(objects), digest) })
    }
}

impl<R: Read> Read for Checked<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.bytes.read(buffer)?;
        if let Some(left) = &mut self.left {
            *left = left.checked_sub(len as u64).ok_or_else(|| io::Error::other(Mismatch))?;
        }
        if len == 0 && !buffer.is_empty() && !self.over {
            self.over = true;
            let is_short = self.left.is_some_and(|left| left > 0);
            if is_short || Digest::finish(self.bytes.sha.clone()) != *self.digest {
                return Err(io::Error::other(Mismatch));
            }
        }
        Ok(len)
    }
}
