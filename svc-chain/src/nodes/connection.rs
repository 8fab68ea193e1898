//! The connection to one endpoint: made when it is first needed, checked to be of the right chain,
//! and replaced by the next call once it was lost.

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use subxt::{
    ext::jsonrpsee::{
        core::client::Client,
        ws_client::{PingConfig, WsClientBuilder},
    },
    rpcs::{
        self,
        client::{RawRpcSubscription, RawValue, RpcClientT as _, RpcParams},
    },
};
use tokio::{sync::Mutex, time::timeout};

use crate::metrics;

/// Answers are at most this long: a metagraph of some thousand neurons is below it.
const MAX_ANSWER: u32 = 64 << 20;
const PING: Duration = Duration::from_secs(20);

/// Hash of the chain's first block: settled by the configuration, or by the first endpoint that
/// answers. Clones are the same one.
pub(crate) type Genesis = Arc<OnceLock<[u8; 32]>>;

/// Why a call was not answered.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It was answered, with a no.
    Refused(rpcs::UserError),
    /// There was no connection to make it on: nothing was sent.
    NotSent(String),
    /// The endpoint is of another chain: nothing was sent.
    WrongGenesis(String),
    /// The connection was lost, or the answer is late: the call may have been carried out.
    NotAnswered(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(error) => error.fmt(f),
            Self::NotSent(why) | Self::WrongGenesis(why) | Self::NotAnswered(why) => {
                f.write_str(why)
            }
        }
    }
}

/// Something that is asked of an endpoint.
pub(super) trait Request: Sync {
    type Answer: Send;

    /// Asks on one connection, once.
    fn make(
        &self,
        connection: &Connection,
    ) -> impl Future<Output = Result<Self::Answer, Failure>> + Send;
}

/// A call with one answer.
pub(super) struct Call<'a> {
    pub(super) method: &'a str,
    pub(super) params: Option<Box<RawValue>>,
}

impl Request for Call<'_> {
    type Answer = Box<RawValue>;

    async fn make(&self, connection: &Connection) -> Result<Self::Answer, Failure> {
        let client = connection.client().await?;
        let asked = client.request_raw(self.method, self.params.clone());
        let answer = timeout(connection.request_timeout, asked).await;
        connection.heard(&client, self.method, answer).await
    }
}

/// A call for a stream of news.
pub(super) struct Subscribe<'a> {
    pub(super) method: &'a str,
    pub(super) params: Option<Box<RawValue>>,
    pub(super) unsubscribe: &'a str,
}

impl Request for Subscribe<'_> {
    type Answer = RawRpcSubscription;

    async fn make(&self, connection: &Connection) -> Result<Self::Answer, Failure> {
        let client = connection.client().await?;
        let asked = client.subscribe_raw(self.method, self.params.clone(), self.unsubscribe);
        let answer = timeout(connection.request_timeout, asked).await;
        connection.heard(&client, self.method, answer).await
    }
}

/// See the module.
pub(super) struct Connection {
    pub(super) url: String,
    genesis: Genesis,
    request_timeout: Duration,
    client: Mutex<Option<Arc<Client>>>,
    /// A connection was made, and nobody was told of that yet.
    made: AtomicBool,
    /// A lost connection was replaced, and nobody was told of that yet.
    replaced: AtomicBool,
}

impl Connection {
    pub(super) fn new(url: String, genesis: Genesis, request_timeout: Duration) -> Self {
        Self {
            url,
            genesis,
            request_timeout,
            client: Mutex::new(None),
            made: AtomicBool::new(false),
            replaced: AtomicBool::new(false),
        }
    }

    /// Whether a connection was made since this was asked last.
    pub(super) fn was_made(&self) -> bool {
        self.made.swap(false, Ordering::Relaxed)
    }

    /// Whether a lost connection was replaced since this was asked last.
    pub(super) fn was_replaced(&self) -> bool {
        self.replaced.swap(false, Ordering::Relaxed)
    }

    /// Gives up the connection: the next call makes another one.
    pub(super) async fn close(&self) {
        *self.client.lock().await = None;
    }

    async fn heard<T>(
        &self,
        client: &Arc<Client>,
        method: &str,
        answer: Result<Result<T, rpcs::Error>, tokio::time::error::Elapsed>,
    ) -> Result<T, Failure> {
        let why = match answer {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(rpcs::Error::User(error))) => {
                metrics::rpc_error("refused");
                return Err(Failure::Refused(error));
            }
            Ok(Err(error)) => {
                metrics::rpc_error("unreachable");
                format!("{}: {error}", self.url)
            }
            Err(_) => {
                metrics::rpc_error("timeout");
                format!("{}: {method} was not answered in time", self.url)
            }
        };
        let mut held = self.client.lock().await;
        if held.as_ref().is_some_and(|held| Arc::ptr_eq(held, client)) {
            *held = None;
        }
        Err(Failure::NotAnswered(why))
    }

    async fn client(&self) -> Result<Arc<Client>, Failure> {
        let mut held = self.client.lock().await;
        if let Some(client) = held.as_ref().filter(|client| client.is_connected()) {
            return Ok(Arc::clone(client));
        }
        if held.take().is_some() {
            self.replaced.store(true, Ordering::Relaxed);
        }
        let client = match self.open().await {
            Ok(client) => Arc::new(client),
            Err(failure) => {
                let foreign = matches!(failure, Failure::WrongGenesis(_));
                metrics::rpc_error(if foreign { "wrong_genesis" } else { "unreachable" });
                return Err(failure);
            }
        };
        self.made.store(true, Ordering::Relaxed);
        *held = Some(Arc::clone(&client));
        Ok(client)
    }

    /// Connects, and checks that the endpoint is of the right chain.
    async fn open(&self) -> Result<Client, Failure> {
        let url = &self.url;
        let unreachable = |why: &dyn fmt::Display| Failure::NotSent(format!("{url}: {why}"));
        let client = WsClientBuilder::default()
            .connection_timeout(self.request_timeout)
            .request_timeout(self.request_timeout)
            .max_response_size(MAX_ANSWER)
            .enable_ws_ping(PingConfig::default().ping_interval(PING));
        // A server that takes the connection and says nothing would hold this up for ever.
        let client = timeout(self.request_timeout, client.build(url))
            .await
            .map_err(|_| unreachable(&"it takes no connection in time"))?
            .map_err(|error| unreachable(&error))?;
        let mut params = RpcParams::new();
        params.push(0).map_err(|error| unreachable(&error))?;
        let asked = client.request_raw("chain_getBlockHash", params.build());
        let answer = timeout(self.request_timeout, asked)
            .await
            .map_err(|_| unreachable(&"its genesis hash does not come in time"))?
            .map_err(|error| unreachable(&error))?;
        let text: String =
            serde_json::from_str(answer.get()).map_err(|error| unreachable(&error))?;
        let mut found = [0; 32];
        hex::decode_to_slice(text.trim_start_matches("0x"), &mut found)
            .map_err(|_| unreachable(&"its genesis hash is not a hash"))?;
        let expected = self.genesis.get_or_init(|| found);
        if *expected == found {
            return Ok(client);
        }
        let (found, expected) = (hex::encode(found), hex::encode(expected));
        Err(Failure::WrongGenesis(format!("{url} has the genesis {found}, not {expected}")))
    }
}
