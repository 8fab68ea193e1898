//! What an engine of [`Store`](crate::Store) can do. Names are checked before they come here.

use std::{fmt, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use uuid::Uuid;

use crate::StoreError;

/// The right to do something alone, until it expires.
///
/// It may be lost without its holder noticing (a pause, a partition). So whatever the holder
/// writes is guarded by it, and refused once a newer one was given out.
#[derive(Debug, PartialEq, Eq)]
pub struct Lease {
    pub(crate) name: String,
    pub(crate) holder: Uuid,
    pub(crate) fence: u64,
}

impl Lease {
    /// Returns what the lease is on.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the fencing token: larger than that of every lease of this name before it.
    #[must_use]
    pub fn fence(&self) -> u64 {
        self.fence
    }
}

/// One change of a guarded write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Sets a key.
    Put(String, Bytes),
    /// Removes a key, if it is there.
    Delete(String),
}

impl Write {
    pub(crate) fn key(&self) -> &str {
        match self {
            Self::Put(key, _) | Self::Delete(key) => key,
        }
    }
}

#[async_trait]
pub(crate) trait Backend: fmt::Debug + Send + Sync {
    /// Takes the lease for `holder` and returns its fence, or `None` while another holds it.
    async fn acquire(
        &self,
        name: &str,
        holder: Uuid,
        ttl: Duration,
    ) -> Result<Option<u64>, StoreError>;
    async fn renew(&self, lease: &Lease, ttl: Duration) -> Result<bool, StoreError>;
    async fn release(&self, lease: &Lease) -> Result<bool, StoreError>;
    async fn fence(&self, name: &str) -> Result<u64, StoreError>;
    async fn get(&self, key: &str) -> Result<Option<Bytes>, StoreError>;
    /// Makes all changes, or none and [`StoreError::Fenced`].
    async fn write_fenced(&self, lease: &Lease, writes: &[Write]) -> Result<(), StoreError>;
    async fn put_if_absent(
        &self,
        key: &str,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> Result<bool, StoreError>;
    async fn put_for(&self, key: &str, value: Bytes, ttl: Duration) -> Result<(), StoreError>;
    /// Returns keys in ascending order of bytes.
    async fn list(&self, prefix: &str) -> Result<Vec<(String, Bytes)>, StoreError>;
    async fn ping(&self) -> Result<(), StoreError>;
}
