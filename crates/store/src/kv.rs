//! Leases and small state.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use uuid::Uuid;

use crate::{
    Lease, StoreError, Write,
    backend::Backend,
    memory::{self, Memory},
    redis::Redis,
};

/// Leases, guarded writes and marks that expire, in one namespace. Cheap to clone.
///
/// Keys and names are 1 to 512 visible ASCII characters without braces. Values should be small:
/// they are read whole, and Redis keeps them in memory.
#[derive(Debug, Clone)]
pub struct Store(Arc<dyn Backend>);

impl Store {
    /// Opens `memory://`, `memory://name` or `redis://[user:password@]host[:port][/db]`.
    ///
    /// In memory, everything in this process that opens the same name and namespace shares one
    /// store. Redis is not asked yet (see [`Self::ping`]): it may come up later than its clients.
    /// Must be called in a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`StoreError::Url`] and [`StoreError::Name`].
    pub fn open(url: &str, namespace: &str) -> Result<Self, StoreError> {
        checked(namespace)?;
        match url.split_once("://") {
            Some(("memory", name)) => Ok(Self(memory::shared(name, namespace))),
            Some(("redis", _)) => Ok(Self(Arc::new(Redis::open(url, namespace)?))),
            _ => Err(StoreError::Url {
                reason: "it must begin with memory:// or redis://".to_owned(),
            }),
        }
    }

    /// Returns a new store in memory that is shared with nobody but its clones.
    #[must_use]
    pub fn in_memory() -> Self {
        Self(Arc::new(Memory::default()))
    }

    /// Takes the lease on `name` for `ttl`, or returns `None` while another holds it.
    ///
    /// # Errors
    ///
    /// [`StoreError::Name`], and what the engine fails with.
    pub async fn acquire(&self, name: &str, ttl: Duration) -> Result<Option<Lease>, StoreError> {
        let name = checked(name)?.to_owned();
        let holder = Uuid::new_v4();
        let fence = self.0.acquire(&name, holder, ttl).await?;
        Ok(fence.map(|fence| Lease { name, holder, fence }))
    }

    /// Extends `lease` to end `ttl` from now. Returns false if it was lost.
    ///
    /// # Errors
    ///
    /// What the engine fails with; the lease then ends by itself.
    pub async fn renew(&self, lease: &Lease, ttl: Duration) -> Result<bool, StoreError> {
        self.0.renew(lease, ttl).await
    }

    /// Gives `lease` back. Returns false if it was lost before.
    ///
    /// # Errors
    ///
    /// What the engine fails with; the lease then ends by itself.
    pub async fn release(&self, lease: Lease) -> Result<bool, StoreError> {
        self.0.release(&lease).await
    }

    /// Returns the newest fence given out for `name`, 0 if none ever was.
    ///
    /// # Errors
    ///
    /// [`StoreError::Name`], and what the engine fails with.
    pub async fn fence(&self, name: &str) -> Result<u64, StoreError> {
        self.0.fence(checked(name)?).await
    }

    /// Returns the value of `key`.
    ///
    /// # Errors
    ///
    /// [`StoreError::Name`], and what the engine fails with.
    pub async fn get(&self, key: &str) -> Result<Option<Bytes>, StoreError> {
        self.0.get(checked(key)?).await
    }

    /// Sets `key`, if `lease` still holds.
    ///
    /// # Errors
    ///
    /// [`StoreError::Fenced`] if it does not, even when nobody else took it;
    /// [`StoreError::Name`], and what the engine fails with.
    pub async fn put_fenced(
        &self,
        lease: &Lease,
        key: &str,
        value: Bytes,
    ) -> Result<(), StoreError> {
        self.write_fenced(lease, vec![Write::Put(key.to_owned(), value)]).await
    }

    /// Removes `key`, if `lease` still holds.
    ///
    /// # Errors
    ///
    /// As [`Self::put_fenced`].
    pub async fn delete_fenced(&self, lease: &Lease, key: &str) -> Result<(), StoreError> {
        self.write_fenced(lease, vec![Write::Delete(key.to_owned())]).await
    }

    /// Makes all of `writes` at once, if `lease` still holds; else none.
    ///
    /// # Errors
    ///
    /// As [`Self::put_fenced`].
    pub async fn write_fenced(&self, lease: &Lease, writes: Vec<Write>) -> Result<(), StoreError> {
        for write in &writes {
            checked(write.key())?;
        }
        self.0.write_fenced(lease, &writes).await
    }

    /// Sets `key` if it is not there, for `ttl` or for good. Returns whether it was not there.
    ///
    /// Of several callers at once, exactly one gets true: this is how a nonce is used up.
    ///
    /// # Errors
    ///
    /// [`StoreError::Name`], and what the engine fails with.
    pub async fn put_if_absent(
        &self,
        key: &str,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> Result<bool, StoreError> {
        self.0.put_if_absent(checked(key)?, value, ttl).await
    }

    /// Sets `key` for `ttl`, whoever set it before: the last word counts.
    ///
    /// For what is only told, such as how far something has come; what decides takes a lease.
    ///
    /// # Errors
    ///
    /// [`StoreError::Name`], and what the engine fails with.
    pub async fn put_for(&self, key: &str, value: Bytes, ttl: Duration) -> Result<(), StoreError> {
        self.0.put_for(checked(key)?, value, ttl).await
    }

    /// Returns the keys that begin with `prefix` (all, if it is empty) and their values, as they
    /// are at one moment, in ascending order of bytes.
    ///
    /// # Errors
    ///
    /// [`StoreError::Name`], and what the engine fails with.
    pub async fn list(&self, prefix: &str) -> Result<Vec<(String, Bytes)>, StoreError> {
        if !prefix.is_empty() {
            checked(prefix)?;
        }
        self.0.list(prefix).await
    }

    /// Asks the engine whether it is there: for readiness.
    ///
    /// # Errors
    ///
    /// What the engine fails with.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.0.ping().await
    }
}

/// Braces mark the hash slot of a Redis key, so a name must not have any.
fn checked(name: &str) -> Result<&str, StoreError> {
    let fine = (1..=512).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'{' | b'}'));
    if fine { Ok(name) } else { Err(StoreError::Name { name: name.chars().take(64).collect() }) }
}
