//! The connection to a node, as `subxt` asks for it: one that can be lost.
//!
//! [`Rpc`] holds at most one connection, made when it is first needed to the best endpoint that
//! answers and is of the right chain. A lost one is replaced by the next call. What is ranked,
//! timed, retried or compared between endpoints happens here and is not seen outside.

use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use backon::{ExponentialBuilder, Retryable as _};
use subxt::{
    ext::jsonrpsee::{
        core::client::Client,
        ws_client::{PingConfig, WsClientBuilder},
    },
    rpcs::{
        self,
        client::{RawRpcFuture, RawRpcSubscription, RawValue, RpcClientT, RpcParams},
    },
};
use tokio::{sync::Mutex, time::timeout};
use tracing::{debug, info};

use crate::metrics;

/// Answers are at most this long: a metagraph of some thousand neurons is below it.
const MAX_ANSWER: u32 = 64 << 20;
const PING: Duration = Duration::from_secs(20);
/// A call that found its connection lost is made again this often, on another one.
const RETRIES: usize = 3;

/// Why no connection could be used. Its text is known to [`is_unreachable`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RpcError {
    #[error("no chain endpoint can be reached: {0}")]
    Unreachable(String),
    #[error("no chain endpoint can be reached: {url} has the genesis {found}, not {expected}")]
    WrongGenesis { url: String, expected: String, found: String },
}

/// Whether an error of `subxt`, which only its text is told of, came from here.
pub(crate) fn is_unreachable(text: &str) -> bool {
    text.contains("no chain endpoint can be reached")
}

/// See the module. Clones share the connection.
#[derive(Clone)]
pub(crate) struct Rpc(Arc<Inner>);

struct Inner {
    urls: Vec<String>,
    /// Settled by the configuration, or by the first endpoint that answers.
    genesis: OnceLock<[u8; 32]>,
    request_timeout: Duration,
    connection: Mutex<Option<Arc<Client>>>,
}

impl Rpc {
    pub(crate) fn new(
        urls: Vec<String>,
        genesis: Option<[u8; 32]>,
        request_timeout: Duration,
    ) -> Self {
        let settled = OnceLock::new();
        if let Some(genesis) = genesis {
            settled.get_or_init(|| genesis);
        }
        Self(Arc::new(Inner {
            urls,
            genesis: settled,
            request_timeout,
            connection: Mutex::new(None),
        }))
    }

    /// Makes the connection if there is none.
    pub(crate) async fn connect(&self) -> Result<(), RpcError> {
        self.connection().await.map(|_| ())
    }

    /// Gives up the connection: the next call makes another one.
    pub(crate) async fn disconnect(&self) {
        *self.0.connection.lock().await = None;
    }

    async fn connection(&self) -> Result<Arc<Client>, RpcError> {
        let mut slot = self.0.connection.lock().await;
        if let Some(client) = slot.as_ref().filter(|client| client.is_connected()) {
            return Ok(Arc::clone(client));
        }
        *slot = None;
        let mut failure = None;
        for (rank, url) in self.0.urls.iter().enumerate() {
            match self.open(url).await {
                Ok(client) => {
                    info!(url, rank, "connected to the chain");
                    metrics::connected(rank);
                    let client = Arc::new(client);
                    *slot = Some(Arc::clone(&client));
                    return Ok(client);
                }
                Err(error) => {
                    metrics::rpc_error(match error {
                        RpcError::Unreachable(_) => "unreachable",
                        RpcError::WrongGenesis { .. } => "wrong_genesis",
                    });
                    // Of the wrong chain only when every endpoint is.
                    failure = match (failure, error) {
                        (Some(other @ RpcError::Unreachable(_)), _) => Some(other),
                        (_, error) => Some(error),
                    };
                }
            }
        }
        Err(failure.unwrap_or_else(|| RpcError::Unreachable("none is configured".to_owned())))
    }

    /// Connects to an endpoint and checks that it is of the right chain.
    async fn open(&self, url: &str) -> Result<Client, RpcError> {
        let unreachable = |why: &dyn fmt::Display| RpcError::Unreachable(format!("{url}: {why}"));
        let client = WsClientBuilder::default()
            .connection_timeout(self.0.request_timeout)
            .request_timeout(self.0.request_timeout)
            .max_response_size(MAX_ANSWER)
            .enable_ws_ping(PingConfig::default().ping_interval(PING))
            .build(url)
            .await
            .map_err(|error| unreachable(&error))?;
        let mut params = RpcParams::new();
        params.push(0).map_err(|error| unreachable(&error))?;
        let answer = client
            .request_raw("chain_getBlockHash", params.build())
            .await
            .map_err(|error| unreachable(&error))?;
        let text: String =
            serde_json::from_str(answer.get()).map_err(|error| unreachable(&error))?;
        let mut found = [0; 32];
        hex::decode_to_slice(text.trim_start_matches("0x"), &mut found)
            .map_err(|_| unreachable(&"its genesis hash is not a hash"))?;
        let expected = self.0.genesis.get_or_init(|| found);
        if *expected == found {
            return Ok(client);
        }
        Err(RpcError::WrongGenesis {
            url: url.to_owned(),
            expected: hex::encode(expected),
            found: hex::encode(found),
        })
    }

    /// Forgets a connection that failed, unless it was replaced already.
    async fn forget(&self, client: &Arc<Client>) {
        let mut slot = self.0.connection.lock().await;
        if slot.as_ref().is_some_and(|held| Arc::ptr_eq(held, client)) {
            *slot = None;
        }
    }

    async fn once(
        &self,
        method: &str,
        params: Option<Box<RawValue>>,
    ) -> Result<Box<RawValue>, rpcs::Error> {
        let client = self.connection().await.map_err(lost)?;
        let answer = timeout(self.0.request_timeout, client.request_raw(method, params)).await;
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error @ rpcs::Error::User(_))) => {
                metrics::rpc_error("refused");
                Err(error)
            }
            Ok(Err(error)) => {
                metrics::rpc_error("unreachable");
                self.forget(&client).await;
                Err(lost(RpcError::Unreachable(error.to_string())))
            }
            Err(_) => {
                metrics::rpc_error("timeout");
                self.forget(&client).await;
                Err(lost(RpcError::Unreachable(format!("{method} was not answered in time"))))
            }
        }
    }
}

fn lost(error: RpcError) -> rpcs::Error {
    rpcs::Error::Client(Box::new(error))
}

impl RpcClientT for Rpc {
    fn request_raw<'a>(
        &'a self,
        method: &'a str,
        params: Option<Box<RawValue>>,
    ) -> RawRpcFuture<'a, Box<RawValue>> {
        let backoff = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(50))
            .with_max_times(RETRIES)
            .with_jitter();
        Box::pin(async move {
            (|| self.once(method, params.clone()))
                .retry(backoff)
                .when(|error| !matches!(error, rpcs::Error::User(_)))
                .notify(|error, after| debug!(method, %error, ?after, "chain call is made again"))
                .await
        })
    }

    fn subscribe_raw<'a>(
        &'a self,
        sub: &'a str,
        params: Option<Box<RawValue>>,
        unsub: &'a str,
    ) -> RawRpcFuture<'a, RawRpcSubscription> {
        Box::pin(async move {
            let client = self.connection().await.map_err(lost)?;
            match timeout(self.0.request_timeout, client.subscribe_raw(sub, params, unsub)).await {
                Ok(Err(error @ rpcs::Error::User(_))) => {
                    metrics::rpc_error("refused");
                    Err(error)
                }
                Ok(Err(error)) => {
                    metrics::rpc_error("unreachable");
                    self.forget(&client).await;
                    Err(lost(RpcError::Unreachable(error.to_string())))
                }
                Ok(Ok(subscription)) => Ok(subscription),
                Err(_) => {
                    metrics::rpc_error("timeout");
                    self.forget(&client).await;
                    Err(lost(RpcError::Unreachable(format!("{sub} was not answered in time"))))
                }
            }
        })
    }
}

impl fmt::Debug for Rpc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rpc").field("urls", &self.0.urls).finish_non_exhaustive()
    }
}
