//! Snapshots in the store: one key per block, the newest few are kept.
//!
//! Replicas write the same thing: whoever comes second finds it there. A lease guards the writes, as
//! a reorganisation may put another snapshot in the place of one.

use std::time::Duration;

use bytes::Bytes;
use domain::{BlockHash, BlockNumber, NetUid};
use serde::{Deserialize, Serialize};
use store::{Lease, Store, Write};
use tokio::time::sleep;
use tracing::warn;

use crate::{chain::Block, error::Error, read::Commitments};

/// How long a write may take, how often it waits for another one, and how long each time.
const LEASE: Duration = Duration::from_secs(5);
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(100);
/// A larger snapshot is not kept: some ten thousand commitments.
const MAX_BYTES: usize = 4 << 20;

/// The commitments as of one block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Snapshot {
    pub(crate) number: BlockNumber,
    pub(crate) hash: BlockHash,
    pub(crate) parent: BlockHash,
    /// Endpoints that agreed on it when it was taken.
    pub(crate) agreed_by: u32,
    /// Whether the block is known to be final.
    pub(crate) settled: bool,
    pub(crate) commitments: Commitments,
}

impl Snapshot {
    pub(crate) fn block(&self) -> Block {
        Block { number: self.number, hash: self.hash, parent: self.parent }
    }

    /// Whether another one of its height brings nothing: it says no more of the same block, or it
    /// is of a block that may be taken back while this one's may not.
    fn covers(&self, other: &Self) -> bool {
        let more = other.settled && !self.settled;
        let same = self.hash == other.hash;
        !more
            && if same { self.agreed_by >= other.agreed_by } else { self.settled && !other.settled }
    }
}

/// The snapshots of a subnet.
#[derive(Debug, Clone)]
pub(super) struct Shelf {
    pub(super) store: Store,
    pub(super) netuid: NetUid,
    /// Snapshots that are kept.
    pub(super) keep: usize,
}

impl Shelf {
    fn prefix(&self) -> String {
        format!("snapshot/{}/", self.netuid.0)
    }

    fn key(&self, number: BlockNumber) -> String {
        format!("snapshot/{}/{}", self.netuid.0, number.0)
    }

    /// The snapshot of a height, where one is kept.
    pub(super) async fn get(&self, number: BlockNumber) -> Result<Option<Snapshot>, Error> {
        let key = self.key(number);
        let stored = self.store.get(&key).await.map_err(failed)?;
        Ok(stored.and_then(|bytes| decode(&key, &bytes)))
    }

    /// All of them, ascending by height.
    pub(super) async fn all(&self) -> Result<Vec<Snapshot>, Error> {
        let stored = self.store.list(&self.prefix()).await.map_err(failed)?;
        let mut all: Vec<Snapshot> =
            stored.iter().filter_map(|(key, bytes)| decode(key, bytes)).collect();
        all.sort_by_key(|snapshot| snapshot.number);
        Ok(all)
    }

    /// Puts a snapshot there, unless one that says as much is there, and forgets the oldest.
    pub(super) async fn put(&self, snapshot: &Snapshot) -> Result<(), Error> {
        let bytes =
            serde_json::to_vec(snapshot).map_err(|error| Error::Store(error.to_string()))?;
        if bytes.len() > MAX_BYTES {
            let (number, bytes) = (snapshot.number, bytes.len());
            warn!(%number, bytes, "the snapshot is too large to be kept");
            return Ok(());
        }
        let name = format!("snapshots/{}", self.netuid.0);
        for _ in 0..TRIES {
            if let Some(lease) = self.store.acquire(&name, LEASE).await.map_err(failed)? {
                let written = self.write(&lease, snapshot, bytes.into()).await;
                self.store.release(lease).await.map_err(failed)?;
                return written;
            }
            sleep(PAUSE).await;
        }
        Err(Error::Store("another replica writes its snapshots all the time".to_owned()))
    }

    async fn write(&self, lease: &Lease, snapshot: &Snapshot, bytes: Bytes) -> Result<(), Error> {
        let all = self.all().await?;
        if all.iter().any(|kept| kept.number == snapshot.number && kept.covers(snapshot)) {
            return Ok(());
        }
        let others: Vec<_> =
            all.iter().map(|kept| kept.number).filter(|kept| *kept != snapshot.number).collect();
        let surplus = (others.len() + 1).saturating_sub(self.keep.max(1));
        let mut writes: Vec<Write> =
            others.into_iter().take(surplus).map(|old| Write::Delete(self.key(old))).collect();
        writes.push(Write::Put(self.key(snapshot.number), bytes));
        self.store.write_fenced(lease, writes).await.map_err(failed)
    }
}

/// One that another version wrote and this one cannot read is as good as none.
fn decode(key: &str, bytes: &[u8]) -> Option<Snapshot> {
    match serde_json::from_slice(bytes) {
        Ok(snapshot) => Some(snapshot),
        Err(error) => {
            warn!(%error, key, "a snapshot in the store cannot be read");
            None
        }
    }
}

fn failed(error: store::StoreError) -> Error {
    Error::Store(error.to_string())
}

#[cfg(test)]
mod tests {
    use domain::Hotkey;

    use super::*;
    use crate::read::commitments::Commitment;

    fn shelf(keep: usize) -> Shelf {
        Shelf { store: Store::in_memory(), netuid: NetUid(102), keep }
    }

    fn snapshot(number: u64, fork: u8) -> Snapshot {
        let commitment = Commitment {
            hotkey: Hotkey::from_public_key([fork; 32]),
            block: BlockNumber(number - 1),
            data: vec![0xff, fork],
        };
        Snapshot {
            number: BlockNumber(number),
            hash: BlockHash([fork; 32]),
            parent: BlockHash([0; 32]),
            agreed_by: 1,
            settled: false,
            commitments: Commitments { list: vec![commitment], ..Commitments::default() },
        }
    }

    #[tokio::test]
    async fn the_newest_are_kept_in_the_order_of_heights() {
        let shelf = shelf(3);
        for number in [999, 1000, 98, 1001, 1002] {
            shelf.put(&snapshot(number, 1)).await.unwrap();
        }
        let kept: Vec<_> =
            shelf.all().await.unwrap().iter().map(|snapshot| snapshot.number.0).collect();
        assert_eq!(kept, [1000, 1001, 1002]);
        assert_eq!(shelf.get(BlockNumber(1001)).await.unwrap(), Some(snapshot(1001, 1)));
    }

    #[tokio::test]
    async fn another_block_takes_its_place_and_a_weaker_word_on_the_same_does_not() {
        let shelf = shelf(3);
        let strong = Snapshot { agreed_by: 2, settled: true, ..snapshot(7, 1) };
        shelf.put(&snapshot(7, 1)).await.unwrap();
        shelf.put(&strong).await.unwrap();
        shelf.put(&snapshot(7, 1)).await.unwrap();
        assert_eq!(shelf.get(BlockNumber(7)).await.unwrap(), Some(strong.clone()));
        shelf.put(&snapshot(7, 2)).await.unwrap();
        assert_eq!(
            shelf.get(BlockNumber(7)).await.unwrap(),
            Some(strong),
            "that may be taken back"
        );
        let other = Snapshot { settled: true, ..snapshot(7, 2) };
        shelf.put(&other).await.unwrap();
        assert_eq!(shelf.get(BlockNumber(7)).await.unwrap(), Some(other));
        shelf.put(&snapshot(8, 1)).await.unwrap();
        shelf.put(&snapshot(8, 2)).await.unwrap();
        assert_eq!(shelf.get(BlockNumber(8)).await.unwrap(), Some(snapshot(8, 2)));
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_as_good_as_none() {
        let shelf = shelf(3);
        let garbage = Bytes::from_static(b"{\"number\":7}");
        shelf.store.put_if_absent("snapshot/102/7", garbage, None).await.unwrap();
        assert_eq!(shelf.get(BlockNumber(7)).await.unwrap(), None);
        shelf.put(&snapshot(7, 1)).await.unwrap();
        assert_eq!(shelf.all().await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn replicas_that_write_at_once_do_not_lose_a_snapshot() {
        let shelf = shelf(16);
        let puts = (1..9).map(|number| {
            let (shelf, snapshot) = (shelf.clone(), snapshot(number, 1));
            async move { shelf.put(&snapshot).await }
        });
        for put in futures::future::join_all(puts).await {
            put.unwrap();
        }
        assert_eq!(shelf.all().await.unwrap().len(), 8);
    }
}
