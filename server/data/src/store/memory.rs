//! Objects in memory, for tests that need no disk.

use std::collections::{BTreeSet, HashMap};

use super::{Error, Objects, Sink};
use crate::{Hash, seal::Reference};

#[derive(Debug, Default)]
pub(crate) struct Memory {
    objects: HashMap<Hash, Vec<u8>>,
}

impl Memory {
    /// Of all objects.
    pub(crate) fn bytes(&self) -> usize {
        self.objects.values().map(Vec::len).sum()
    }

    pub(crate) fn names(&self) -> BTreeSet<Hash> {
        self.objects.keys().copied().collect()
    }

    pub(crate) fn forget(&mut self, name: &Hash) {
        self.objects.remove(name);
    }
}

impl Objects for Memory {
    fn get(&self, name: &Hash) -> Result<Vec<u8>, Error> {
        self.objects.get(name).cloned().ok_or(Error::Missing { name: *name })
    }
}

impl Sink for Memory {
    fn put_with(&mut self, bytes: &[u8], _: &[Reference]) -> Result<Hash, Error> {
        let name = Hash::of(bytes);
        self.objects.insert(name, bytes.to_vec());
        Ok(name)
    }
}
