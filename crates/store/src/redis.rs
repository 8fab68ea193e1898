//! The engine for several processes: Redis, with a script for every step that must not be torn.
//!
//! All keys of a namespace carry the same hash tag (`{namespace}:…`), so that they are in one slot
//! of a cluster and a script may touch several. Fences and state live as long as Redis keeps its
//! data: it must be persistent (append-only file) to keep its promises over a restart.

use std::{fmt, sync::LazyLock, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use redis::{
    Client, Cmd, FromRedisValue, RedisError, Script, ScriptInvocation,
    aio::{ConnectionManager, ConnectionManagerConfig},
};
use uuid::Uuid;

use crate::{Lease, StoreError, Write, backend::Backend};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);

static ACQUIRE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/acquire.lua")));
static RENEW: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/renew.lua")));
static RELEASE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/release.lua")));
static WRITE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/write.lua")));
static PUT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/put.lua")));
static LIST: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/list.lua")));

pub(crate) struct Redis {
    connection: ConnectionManager,
    namespace: String,
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl Redis {
    /// Connects when the first command is sent, and again after every loss.
    pub(crate) fn open(url: &str, namespace: &str) -> Result<Self, StoreError> {
        let refused = |error: RedisError| StoreError::Url { reason: error.to_string() };
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(RESPONSE_TIMEOUT))
            .set_number_of_retries(2)
            .set_max_delay(Duration::from_millis(500));
        let client = Client::open(url).map_err(refused)?;
        let connection =
            ConnectionManager::new_lazy_with_config(client, config).map_err(refused)?;
        Ok(Self { connection, namespace: namespace.to_owned() })
    }

    fn key(&self, kind: &str, name: &str) -> String {
        format!("{{{}}}:{kind}:{name}", self.namespace)
    }

    /// Runs a script that may run twice: once more when the connection turns out to be gone, as it
    /// is after a restart of Redis.
    async fn invoke<T: FromRedisValue>(
        &self,
        script: &ScriptInvocation<'_>,
    ) -> Result<T, StoreError> {
        let connection = &mut self.connection.clone();
        match script.invoke_async(connection).await {
            Err(error) if error.is_connection_dropped() => script.invoke_async(connection).await,
            result => result,
        }
        .map_err(failed)
    }

    /// As [`Self::invoke`], for a command.
    async fn query<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, StoreError> {
        let connection = &mut self.connection.clone();
        match command.query_async(connection).await {
            Err(error) if error.is_connection_dropped() => command.query_async(connection).await,
            result => result,
        }
        .map_err(failed)
    }

    fn lease_key(&self, name: &str) -> String {
        self.key("lease", name)
    }

    fn fence_key(&self, name: &str) -> String {
        self.key("fence", name)
    }

    fn value_key(&self, name: &str) -> String {
        self.key("value", name)
    }

    /// Sorted set of all names that have values, by name.
    fn index_key(&self) -> String {
        self.key("index", "names")
    }

    /// Sorted set of the names that expire, by the time of their end.
    fn expiring_key(&self) -> String {
        self.key("index", "expiring")
    }

    /// Sets a value over `absent` or over `any`.
    fn put(
        &self,
        key: &str,
        value: &[u8],
        ttl: Option<Duration>,
        over: &str,
    ) -> ScriptInvocation<'static> {
        let mut script = PUT.prepare_invoke();
        script
            .key(self.value_key(key))
            .key(self.index_key())
            .key(self.expiring_key())
            .arg(self.value_key(""))
            .arg(key)
            .arg(value)
            .arg(ttl.map(millis).map(|ttl| ttl.to_string()).unwrap_or_default())
            .arg(over);
        script
    }
}

fn failed(error: RedisError) -> StoreError {
    let reason = error.to_string();
    let gone = error.is_io_error()
        || error.is_timeout()
        || error.is_connection_dropped()
        || error.is_connection_refusal()
        || error.is_unrecoverable_error()
        || matches!(error.code(), Some("LOADING" | "MASTERDOWN" | "TRYAGAIN" | "READONLY"));
    if gone { StoreError::Unavailable { reason } } else { StoreError::Engine { reason } }
}

/// Redis takes no time to live of zero.
fn millis(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).clamp(1, 1 << 52)
}

#[async_trait]
impl Backend for Redis {
    async fn acquire(
        &self,
        name: &str,
        holder: Uuid,
        ttl: Duration,
    ) -> Result<Option<u64>, StoreError> {
        let mut script = ACQUIRE.prepare_invoke();
        script
            .key(self.lease_key(name))
            .key(self.fence_key(name))
            .arg(holder.to_string())
            .arg(millis(ttl));
        let fence: u64 = self.invoke(&script).await?;
        Ok((fence > 0).then_some(fence))
    }

    async fn renew(&self, lease: &Lease, ttl: Duration) -> Result<bool, StoreError> {
        let mut script = RENEW.prepare_invoke();
        script.key(self.lease_key(&lease.name)).arg(lease.holder.to_string()).arg(millis(ttl));
        self.invoke(&script).await
    }

    async fn release(&self, lease: &Lease) -> Result<bool, StoreError> {
        RELEASE
            .key(self.lease_key(&lease.name))
            .arg(lease.holder.to_string())
            .invoke_async(&mut self.connection.clone())
            .await
            .map_err(failed)
    }

    async fn fence(&self, name: &str) -> Result<u64, StoreError> {
        let fence: Option<u64> = self.query(redis::cmd("GET").arg(self.fence_key(name))).await?;
        Ok(fence.unwrap_or_default())
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>, StoreError> {
        let value: Option<Vec<u8>> = self.query(redis::cmd("GET").arg(self.value_key(key))).await?;
        Ok(value.map(Bytes::from))
    }

    async fn write_fenced(&self, lease: &Lease, writes: &[Write]) -> Result<(), StoreError> {
        let mut script = WRITE.prepare_invoke();
        script
            .key(self.lease_key(&lease.name))
            .key(self.fence_key(&lease.name))
            .key(self.index_key())
            .arg(lease.holder.to_string())
            .arg(lease.fence);
        for write in writes {
            let (change, value) = match write {
                Write::Put(_, value) => ("put", value.as_ref()),
                Write::Delete(_) => ("del", [].as_slice()),
            };
            script.key(self.value_key(write.key())).arg(change).arg(write.key()).arg(value);
        }
        let (done, newest): (bool, u64) = self.invoke(&script).await?;
        if done {
            Ok(())
        } else {
            Err(StoreError::Fenced { lease: lease.name.clone(), held: lease.fence, newest })
        }
    }

    async fn put_if_absent(
        &self,
        key: &str,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> Result<bool, StoreError> {
        // Not run twice: the second would find what the first has put.
        self.put(key, &value, ttl, "absent")
            .invoke_async(&mut self.connection.clone())
            .await
            .map_err(failed)
    }

    async fn put_for(&self, key: &str, value: Bytes, ttl: Duration) -> Result<(), StoreError> {
        let _put: bool = self.invoke(&self.put(key, &value, Some(ttl), "any")).await?;
        Ok(())
    }

    async fn list(&self, prefix: &str) -> Result<Vec<(String, Bytes)>, StoreError> {
        // Names are ASCII, so 0xff is above them all.
        let (from, to) = match prefix {
            "" => (b"-".to_vec(), b"+".to_vec()),
            prefix => {
                let from = [b"[", prefix.as_bytes()].concat();
                let to = [&from, [0xff].as_slice()].concat();
                (from, to)
            }
        };
        let mut script = LIST.prepare_invoke();
        script.key(self.index_key()).arg(self.value_key("")).arg(from).arg(to);
        let found: Vec<(String, Vec<u8>)> = self.invoke(&script).await?;
        Ok(found.into_iter().map(|(name, value)| (name, Bytes::from(value))).collect())
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.query(&redis::cmd("PING")).await
    }
}
