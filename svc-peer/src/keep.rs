//! What a merge must find again when its service is started again: kept in the state store, written
//! by one service at a time.
//!
//! A lease on the merge makes sure that of two services of one validator only one speaks; whoever has
//! lost it can keep nothing more, and so says nothing more.

use std::time::Duration;

use bytes::Bytes;
use domain::RoundId;
use merge::Saved;
use serde::{Deserialize, Serialize};
use store::{Lease, Store, StoreError};
use tracing::warn;

/// Name of the lease.
const LEASE: &str = "peer/merge";

/// Why a merge cannot be kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeepError {
    #[error("the state store failed: {0}")]
    Store(#[from] StoreError),
    #[error("what was kept of the round is unreadable: {0}")]
    Unreadable(#[from] serde_json::Error),
}

impl KeepError {
    /// Whether another service has taken over.
    pub(crate) fn is_lost(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_fenced())
    }
}

/// What is kept of a round.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// Which round.
    pub(crate) round: RoundId,
    /// When the merge began for everybody, in milliseconds since 1970.
    pub(crate) began: u64,
    /// What was said, or about to be.
    pub(crate) saved: Saved,
}

/// Keeps what one merge has to.
#[derive(Debug)]
pub(crate) struct Keeper {
    store: Store,
    lease: Lease,
    ttl: Duration,
}

impl Keeper {
    /// Takes the lease for a merge that may take `deadline`; `None` while another service has it.
    pub(crate) async fn take(store: &Store, deadline: Duration) -> Result<Option<Self>, KeepError> {
        let ttl = (deadline / 20).clamp(Duration::from_secs(1), Duration::from_secs(15));
        let lease = store.acquire(LEASE, ttl).await?;
        Ok(lease.map(|lease| Self { store: store.clone(), lease, ttl }))
    }

    /// Extends the lease again and again; returns when it was lost.
    pub(crate) async fn hold(&self) {
        loop {
            tokio::time::sleep(self.ttl / 3).await;
            match self.store.renew(&self.lease, self.ttl).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => warn!(%error, "the lease on the merge could not be extended yet"),
            }
        }
    }

    fn key(round: RoundId) -> String {
        format!("peer/merge/{round}")
    }

    /// What was kept of a round before.
    pub(crate) async fn find(&self, round: RoundId) -> Result<Option<Kept>, KeepError> {
        let json = self.store.get(&Self::key(round)).await?;
        Ok(json.map(|json| serde_json::from_slice(&json)).transpose()?)
    }

    /// Keeps it, in place of what was kept before.
    pub(crate) async fn keep(&self, kept: &Kept) -> Result<(), KeepError> {
        let json = Bytes::from(serde_json::to_vec(kept)?);
        Ok(self.store.put_fenced(&self.lease, &Self::key(kept.round), json).await?)
    }

    /// Forgets a round, and those before it that were never forgotten.
    pub(crate) async fn forget_before(&self, round: RoundId) -> Result<(), KeepError> {
        for (key, _) in self.store.list("peer/merge/").await? {
            let older = key.rsplit('/').next().and_then(|id| id.parse::<u64>().ok());
            if older.is_some_and(|older| older < round.0) {
                self.store.delete_fenced(&self.lease, &key).await?;
            }
        }
        Ok(())
    }

    /// Gives the lease back.
    pub(crate) async fn release(self) {
        if let Err(error) = self.store.release(self.lease).await {
            warn!(%error, "the lease on the merge could not be given back; it ends by itself");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(600);

    #[tokio::test]
    async fn one_service_at_a_time_speaks_and_the_next_one_finds_what_was_said() {
        let store = Store::in_memory();
        let keeper = Keeper::take(&store, LONG).await.unwrap().unwrap();
        assert!(Keeper::take(&store, LONG).await.unwrap().is_none());
        let kept = Kept { round: RoundId(7), began: 5, saved: Saved::default() };
        keeper.keep(&kept).await.unwrap();
        keeper.release().await;
        let next = Keeper::take(&store, LONG).await.unwrap().unwrap();
        assert_eq!(next.find(RoundId(7)).await.unwrap(), Some(kept));
        assert_eq!(next.find(RoundId(8)).await.unwrap(), None);
        next.forget_before(RoundId(8)).await.unwrap();
        assert_eq!(next.find(RoundId(7)).await.unwrap(), None);
    }

    #[tokio::test]
    async fn who_has_lost_the_lease_keeps_nothing_more() {
        let store = Store::in_memory();
        let first = Keeper::take(&store, Duration::from_millis(1)).await.unwrap().unwrap();
        let second = loop {
            tokio::time::sleep(Duration::from_millis(50)).await;
            if let Some(second) = Keeper::take(&store, LONG).await.unwrap() {
                break second;
            }
        };
        let kept = Kept { round: RoundId(7), began: 5, saved: Saved::default() };
        let error = first.keep(&kept).await.unwrap_err();
        assert!(error.is_lost(), "{error}");
        second.keep(&kept).await.unwrap();
        first.hold().await;
    }
}
