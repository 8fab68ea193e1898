//! How far each upload has come, so that its miner can ask, at any gateway.
//!
//! Told, never relied upon: what decides about uploads is a lease in the store. What arrives here is known
//! at once; a gateway tells the others every few seconds, and what it told has its end.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use domain::{Hotkey, RoundId};
use kit::Shutdown;
use serde::{Deserialize, Serialize};
use store::{Store, StoreError};
use tokio::time::{MissedTickBehavior, interval};
use tracing::debug;

/// How often the other gateways are told.
const EVERY: Duration = Duration::from_secs(2);
/// How long they believe it.
const TTL: Duration = Duration::from_secs(10);

type Name = (RoundId, Hotkey);

/// How much of a file has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// Bytes that have come.
    pub(crate) bytes: u64,
    /// Bytes that were announced: of the file, or of the whole form.
    pub(crate) of: Option<u64>,
}

/// The uploads that arrive at this gateway.
#[derive(Debug, Clone, Default)]
pub(crate) struct Arriving(Arc<Mutex<Uploads>>);

#[derive(Debug, Default)]
struct Uploads {
    /// Those of one request each.
    requests: BTreeMap<Name, Arc<Counter>>,
    /// Those that can be gone on with, whether a request does now or not.
    resumable: BTreeMap<Name, Progress>,
}

impl Uploads {
    fn all(&self) -> BTreeMap<Name, Progress> {
        let requests = self.requests.iter().map(|(name, counter)| (name.clone(), counter.read()));
        self.resumable.clone().into_iter().chain(requests).collect()
    }
}

#[derive(Debug)]
struct Counter {
    bytes: AtomicU64,
    of: Option<u64>,
}

/// One of them; dropped, it is over.
#[derive(Debug)]
pub(crate) struct Arrival {
    all: Arriving,
    name: Name,
    counter: Arc<Counter>,
}

impl Arriving {
    /// Begins to count a miner's upload, of which so many bytes are here already.
    pub(crate) fn begin(
        &self,
        round: RoundId,
        hotkey: &Hotkey,
        bytes: u64,
        of: Option<u64>,
    ) -> Arrival {
        let name = (round, hotkey.clone());
        let counter = Arc::new(Counter { bytes: AtomicU64::new(bytes), of });
        self.lock().requests.insert(name.clone(), Arc::clone(&counter));
        Arrival { all: self.clone(), name, counter }
    }

    /// How far the miner's upload to this gateway has come.
    pub(crate) fn of(&self, round: RoundId, hotkey: &Hotkey) -> Option<Progress> {
        let (name, all) = ((round, hotkey.clone()), self.lock());
        let request = all.requests.get(&name).map(|counter| counter.read());
        request.or_else(|| all.resumable.get(&name).copied())
    }

    /// These are the unfinished uploads that can be gone on with, and no others.
    pub(crate) fn resumable(&self, all: impl Iterator<Item = (RoundId, Hotkey, Progress)>) {
        self.lock().resumable = all.map(|(round, hotkey, come)| ((round, hotkey), come)).collect();
    }

    /// The same, of an upload to any gateway.
    pub(crate) async fn anywhere(
        &self,
        store: &Store,
        round: RoundId,
        hotkey: &Hotkey,
    ) -> Result<Option<Progress>, StoreError> {
        if let Some(here) = self.of(round, hotkey) {
            return Ok(Some(here));
        }
        let told = store.get(&key(round, hotkey)).await?;
        Ok(told.and_then(|json| serde_json::from_slice(&json).ok()))
    }

    /// Tells the other gateways, until `shutdown`.
    pub(crate) async fn tell(self, store: Store, shutdown: Shutdown) {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told = BTreeSet::new();
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = shutdown.cancelled() => return,
            }
            tokio::select! {
                () = self.tell_once(&store, &mut told) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    async fn tell_once(&self, store: &Store, told: &mut BTreeSet<Name>) {
        let now = self.lock().all();
        let over = told.iter().filter(|name| !now.contains_key(*name));
        // Nothing, in place of how far it had come.
        let mut words: Vec<(Name, Bytes)> = over.map(|name| (name.clone(), Bytes::new())).collect();
        *told = now.keys().cloned().collect();
        words.extend(now.into_iter().filter_map(|(name, progress)| {
            Some((name, Bytes::from(serde_json::to_vec(&progress).ok()?)))
        }));
        for ((round, hotkey), word) in words {
            if let Err(error) = store.put_for(&key(round, &hotkey), word, TTL).await {
                // The next turn says it again.
                return debug!(%error, "the other gateways were not told of uploads");
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Uploads> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counter {
    fn read(&self) -> Progress {
        Progress { bytes: self.bytes.load(Ordering::Relaxed), of: self.of }
    }
}

impl Arrival {
    /// So many bytes more have come.
    pub(crate) fn add(&self, bytes: u64) {
        self.counter.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        let requests = &mut self.all.lock().requests;
        // A later upload of the same miner may have taken its place.
        if requests.get(&self.name).is_some_and(|counter| Arc::ptr_eq(counter, &self.counter)) {
            requests.remove(&self.name);
        }
    }
}

fn key(round: RoundId, hotkey: &Hotkey) -> String {
    format!("arriving/{round}/{hotkey}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUND: RoundId = RoundId(336);

    #[tokio::test]
    async fn another_gateway_knows_of_an_upload_until_it_is_over() {
        let (store, miner) = (Store::in_memory(), Hotkey::from_public_key([1; 32]));
        let (here, there) = (Arriving::default(), Arriving::default());
        let mut told = BTreeSet::new();
        let arrival = here.begin(ROUND, &miner, 0, Some(100));
        arrival.add(40);
        here.tell_once(&store, &mut told).await;
        let known = there.anywhere(&store, ROUND, &miner).await.unwrap();
        assert_eq!(known, Some(Progress { bytes: 40, of: Some(100) }));
        drop(arrival);
        assert_eq!(here.of(ROUND, &miner), None);
        here.tell_once(&store, &mut told).await;
        assert_eq!(there.anywhere(&store, ROUND, &miner).await.unwrap(), None);
    }

    #[test]
    fn an_upload_that_can_be_gone_on_with_is_on_its_way_while_nobody_sends() {
        let (all, miner) = (Arriving::default(), Hotkey::from_public_key([1; 32]));
        let come = Progress { bytes: 5, of: Some(10) };
        all.resumable([(ROUND, miner.clone(), come)].into_iter());
        assert_eq!(all.of(ROUND, &miner), Some(come));
        assert_eq!(all.of(RoundId(808), &miner), None);
        all.resumable(std::iter::empty());
        assert_eq!(all.of(ROUND, &miner), None);
    }

    #[test]
    fn the_end_of_an_upload_is_not_the_end_of_the_next_one() {
        let (all, miner) = (Arriving::default(), Hotkey::from_public_key([1; 32]));
        let first = all.begin(ROUND, &miner, 0, None);
        let second = all.begin(ROUND, &miner, 7, None);
        drop(first);
        assert_eq!(all.of(ROUND, &miner), Some(Progress { bytes: 7, of: None }));
        drop(second);
        assert_eq!(all.of(ROUND, &miner), None);
    }
}
