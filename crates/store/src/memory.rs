//! The engine for one process: everything in memory, with tokio's clock.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;
use uuid::Uuid;

use crate::{Lease, StoreError, Write, backend::Backend};

/// By name and namespace.
type Shared = HashMap<(String, String), Arc<Memory>>;

static SHARED: LazyLock<Mutex<Shared>> = LazyLock::new(Mutex::default);

/// Returns the store that everyone in this process has under `name` and `namespace`.
pub(crate) fn shared(name: &str, namespace: &str) -> Arc<Memory> {
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    Arc::clone(shared.entry((name.to_owned(), namespace.to_owned())).or_default())
}

#[derive(Debug, Default)]
pub(crate) struct Memory(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    leases: HashMap<String, (Uuid, Instant)>,
    fences: HashMap<String, u64>,
    values: BTreeMap<String, (Bytes, Option<Instant>)>,
    /// Number of values after which expired ones are looked for again.
    sweep_at: usize,
}

impl State {
    fn holds(&self, lease: &Lease) -> bool {
        self.leases
            .get(&lease.name)
            .is_some_and(|(holder, end)| *holder == lease.holder && Instant::now() < *end)
    }

    /// Drops what has expired, each time the number of values has doubled.
    fn sweep(&mut self) {
        if self.values.len() > self.sweep_at.max(64) {
            let now = Instant::now();
            self.values.retain(|_, (_, end)| end.is_none_or(|end| now < end));
            self.sweep_at = self.values.len() * 2;
        }
    }
}

fn alive((value, end): &(Bytes, Option<Instant>)) -> Option<&Bytes> {
    end.is_none_or(|end| Instant::now() < end).then_some(value)
}

impl Memory {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Backend for Memory {
    async fn acquire(
        &self,
        name: &str,
        holder: Uuid,
        ttl: Duration,
    ) -> Result<Option<u64>, StoreError> {
        let mut state = self.state();
        let now = Instant::now();
        if state.leases.get(name).is_some_and(|(_, end)| now < *end) {
            return Ok(None);
        }
        state.leases.insert(name.to_owned(), (holder, now + ttl));
        let fence = state.fences.entry(name.to_owned()).or_default();
        *fence += 1;
        Ok(Some(*fence))
    }

    async fn renew(&self, lease: &Lease, ttl: Duration) -> Result<bool, StoreError> {
        let mut state = self.state();
        let held = state.holds(lease);
        if held {
            state.leases.insert(lease.name.clone(), (lease.holder, Instant::now() + ttl));
        }
        Ok(held)
    }

    async fn release(&self, lease: &Lease) -> Result<bool, StoreError> {
        let mut state = self.state();
        let held = state.holds(lease);
        if held {
            state.leases.remove(&lease.name);
        }
        Ok(held)
    }

    async fn fence(&self, name: &str) -> Result<u64, StoreError> {
        Ok(self.state().fences.get(name).copied().unwrap_or_default())
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>, StoreError> {
        Ok(self.state().values.get(key).and_then(alive).cloned())
    }

    async fn write_fenced(&self, lease: &Lease, writes: &[Write]) -> Result<(), StoreError> {
        let mut state = self.state();
        if !state.holds(lease) {
            let newest = state.fences.get(&lease.name).copied().unwrap_or_default();
            return Err(StoreError::Fenced {
                lease: lease.name.clone(),
                held: lease.fence,
                newest,
            });
        }
        for write in writes {
            match write {
                Write::Put(key, value) => {
                    state.values.insert(key.clone(), (value.clone(), None));
                }
                Write::Delete(key) => {
                    state.values.remove(key);
                }
            }
        }
        Ok(())
    }

    async fn put_if_absent(
        &self,
        key: &str,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> Result<bool, StoreError> {
        let mut state = self.state();
        if state.values.get(key).and_then(alive).is_some() {
            return Ok(false);
        }
        state.values.insert(key.to_owned(), (value, ttl.map(|ttl| Instant::now() + ttl)));
        state.sweep();
        Ok(true)
    }

    async fn put_for(&self, key: &str, value: Bytes, ttl: Duration) -> Result<(), StoreError> {
        let mut state = self.state();
        state.values.insert(key.to_owned(), (value, Some(Instant::now() + ttl)));
        state.sweep();
        Ok(())
    }

    async fn list(&self, prefix: &str) -> Result<Vec<(String, Bytes)>, StoreError> {
        let state = self.state();
        Ok(state
            .values
            .range(prefix.to_owned()..)
            .take_while(|(key, _)| key.starts_with(prefix))
            .filter_map(|(key, value)| Some((key.clone(), alive(value)?.clone())))
            .collect())
    }

    async fn ping(&self) -> Result<(), StoreError> {
        Ok(())
    }
}
