//! openraft's own suite for stores, against the real file.

use openraft::{
    StorageError,
    testing::log::{StoreBuilder, Suite},
};

use super::*;
use crate::consensus::Types;

struct Builder;

type Guard = tempfile::TempDir;

impl StoreBuilder<Types, Log, Machine, Guard> for Builder {
    async fn build(&self) -> Result<(Guard, Log, Machine), StorageError<Types>> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        let (disk, opened) = Disk::open(&path, &NodeId::from(0), Limits::default()).await.unwrap();
        let (publish, _) = watch::channel(Arc::new(State::default()));
        let (events, _) = broadcast::channel(1);
        Ok((directory, Log(disk.clone()), Machine::new(disk, &opened, publish, events)))
    }
}

#[tokio::test]
async fn the_store_does_what_openraft_asks_of_one() {
    Suite::<Types, Log, Machine, _, _>::test_all(Builder).await.unwrap();
}
