//! The outbox: what is to be written to the chain, exactly once.
//!
//! An intent is recorded in the store before anything happens. One process, which holds the lease
//! `nonce/<hotkey>`, carries it out: sign, store the signed bytes, send, find it in a block, wait
//! for that block to be final, read the value back. A crash between any two of these loses an
//! answer, never an intent: the next owner finds the record and asks the chain.
//!
//! [`intent`] is the record, [`machine`] the rules, [`worker`] the owner's loop, [`carry`] what it
//! does at a block, and [`Outbox`] what the rest of the service holds.

mod carry;
mod intent;
mod machine;
mod worker;

use std::sync::Arc;

use bytes::Bytes;
use store::Store;
use tokio::sync::{Notify, watch};

pub(crate) use self::{
    intent::{Attempt, Intent, Key, Kind, Outcome, Payload, Slot, State},
    machine::Final,
    worker::Worker,
};
use crate::{chain::Block, error::Error, metrics};

/// Records intents and tells how they stand. Clones are handles to the same outbox.
#[derive(Debug, Clone)]
pub(crate) struct Outbox {
    store: Store,
    wake: Arc<Notify>,
    /// Whether this process carries intents out.
    owner: watch::Sender<bool>,
    head: watch::Receiver<Option<Block>>,
}

impl Outbox {
    pub(crate) fn new(store: Store, head: watch::Receiver<Option<Block>>) -> Self {
        Self { store, wake: Arc::default(), owner: watch::Sender::new(false), head }
    }

    /// Records an intent, or returns it as it stands if it was recorded before.
    pub(crate) async fn submit(&self, key: Key, payload: Payload) -> Result<Intent, Error> {
        if let Some(recorded) = find(&self.store, key).await? {
            return same(recorded, &payload);
        }
        let all = all(&self.store).await?;
        if let Some(by) = machine::superseded_by(key, all.iter().map(|intent| &intent.key)) {
            return Err(Error::Superseded { key: key.to_string(), by: by.to_string() });
        }
        match newest_sent(&self.store, key).await? {
            Some(by) if by > key => {
                return Err(Error::Superseded { key: key.to_string(), by: by.to_string() });
            }
            Some(same) if same == key => return Err(Error::Forgotten(key.to_string())),
            Some(_) | None => {}
        }
        if let Some(own) = machine::guarded(key, &payload, &all) {
            return Err(Error::Guarded { key: key.to_string(), own: own.to_string() });
        }
        let head = *self.head.borrow();
        let head = head.ok_or_else(|| Error::Unreachable("no block was seen yet".to_owned()))?;
        let intent = Intent::new(key, payload.clone(), head.number.0, kit::trace::current());
        let stored = encode(&intent)?;
        if !self.store.put_if_absent(&key.path(), stored, None).await.map_err(store_error)? {
            // Another call of the same moment was first.
            return match find(&self.store, key).await? {
                Some(recorded) => same(recorded, &payload),
                None => Err(Error::Store(format!("intent {key} was there and is not"))),
            };
        }
        metrics::intent(key.kind.as_str(), "recorded");
        self.wake.notify_one();
        Ok(intent)
    }

    /// An intent as it stands.
    pub(crate) async fn get(&self, key: Key) -> Result<Intent, Error> {
        find(&self.store, key).await?.ok_or_else(|| Error::NoSuchIntent(key.to_string()))
    }

    /// Whether this process is the one that sends extrinsics.
    pub(crate) fn is_owner(&self) -> bool {
        *self.owner.borrow()
    }

    /// Every intent that is kept, oldest first.
    pub(crate) async fn list(&self) -> Result<Vec<Intent>, Error> {
        all(&self.store).await
    }
}

fn same(recorded: Intent, payload: &Payload) -> Result<Intent, Error> {
    if recorded.payload == *payload {
        Ok(recorded)
    } else {
        Err(Error::OtherPayload { key: recorded.key.to_string() })
    }
}

/// The newest intent of `key`'s slot that was ever signed for or found carried out: finished intents
/// are forgotten some day, and this is not.
async fn newest_sent(store: &Store, key: Key) -> Result<Option<Key>, Error> {
    let Some(path) = key.kind.slot().mark() else { return Ok(None) };
    let Some(stored) = store.get(path).await.map_err(store_error)? else { return Ok(None) };
    serde_json::from_slice(&stored)
        .map(Some)
        .map_err(|error| Error::StoredIntent { key: path.to_owned(), why: error.to_string() })
}

async fn find(store: &Store, key: Key) -> Result<Option<Intent>, Error> {
    let path = key.path();
    let stored = store.get(&path).await.map_err(store_error)?;
    stored.map(|bytes| decode(&path, &bytes)).transpose()
}

/// Every intent, in the order in which the chain should see them.
async fn all(store: &Store) -> Result<Vec<Intent>, Error> {
    let stored = store.list(intent::PREFIX).await.map_err(store_error)?;
    let mut intents = Vec::with_capacity(stored.len());
    for (path, bytes) in stored {
        match decode(&path, &bytes) {
            Ok(intent) => intents.push(intent),
            // Of another version: its extrinsic can take a nonce away, and that is noticed.
            Err(error) => tracing::warn!(%error, "record of the outbox is left out"),
        }
    }
    // A hash must be there within its phase, weights by the end of the cycle: the order of the keys.
    intents.sort_by_key(|intent| intent.key);
    Ok(intents)
}

fn encode(intent: &Intent) -> Result<Bytes, Error> {
    serde_json::to_vec(intent).map(Bytes::from).map_err(|error| Error::StoredIntent {
        key: intent.key.to_string(),
        why: error.to_string(),
    })
}

fn decode(path: &str, bytes: &[u8]) -> Result<Intent, Error> {
    serde_json::from_slice(bytes)
        .map_err(|error| Error::StoredIntent { key: path.to_owned(), why: error.to_string() })
}

fn store_error(error: store::StoreError) -> Error {
    if error.is_fenced() {
        Error::Fenced(error.to_string())
    } else {
        Error::Store(error.to_string())
    }
}
