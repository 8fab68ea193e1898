//! A development chain, and services of this crate on it that can be made to die.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use devchain::{DevChain, Genesis, GenesisNeuron, Production};
use domain::Hotkey;
use kit::{Channel, Common, Shutdown, Tls};
use proto::chain::v1::{self, chain_service_client::ChainServiceClient};
use store::Store;
use svc_chain::{Config, Service};
use tokio::time::{sleep, timeout};

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const RAO: u64 = 1_000_000_000;

pub(crate) type Client = ChainServiceClient<Channel>;

pub(crate) fn wallets() -> PathBuf {
    let vectors = std::env::var_os("CONNITO_VECTORS").map_or_else(
        || concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors").into(),
        PathBuf::from,
    );
    vectors.join("wallets")
}

fn key(address: &str) -> [u8; 32] {
    *address.parse::<Hotkey>().unwrap().public_key()
}

/// The hotkey of the wallet `validator`.
pub(crate) fn alice() -> [u8; 32] {
    key("5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY")
}

/// The hotkey of the wallet `validator2`.
pub(crate) fn bob() -> [u8; 32] {
    key("5FHneW46xGXgs5mUiveU4sbTyGBzmstUspZC92UhjJM694ty")
}

/// The hotkey of the wallet `miner`.
pub(crate) fn charlie() -> [u8; 32] {
    key("5FLSigC9HGRKVhB9FiEo4Y3koPsNmBmLJbpXg2mp1hXcS59Y")
}

/// Alice validates, Bob validates, Charlie mines; a block every 100 ms.
pub(crate) fn genesis() -> Genesis {
    Genesis {
        neurons: vec![
            GenesisNeuron::validator(alice(), 1000 * RAO),
            GenesisNeuron::validator(bob(), 500 * RAO),
            GenesisNeuron::miner(charlie()),
        ],
        production: Production::Interval(Duration::from_millis(100)),
        ..Genesis::default()
    }
}

pub(crate) async fn start(genesis: Genesis) -> DevChain {
    kit::install_crypto();
    DevChain::start(genesis, "127.0.0.1:0".parse().unwrap()).await.unwrap()
}

/// The configuration of a service that holds Alice's key.
pub(crate) fn config(chain: &DevChain) -> Config {
    Config {
        grpc_addr: "127.0.0.1:0".parse().unwrap(),
        endpoints: vec![chain.url()],
        wallet_path: wallets(),
        coldkey: "validator".to_owned(),
        lease_ttl: Duration::from_secs(1),
        request_timeout: Duration::from_secs(5),
        ..Config::defaults()
    }
}

/// A service on a runtime of its own, so that it can be stopped as a `kill -9` stops it.
pub(crate) struct Running {
    runtime: Option<tokio::runtime::Runtime>,
    shutdown: Shutdown,
    pub(crate) addr: SocketAddr,
    ended: tokio::task::JoinHandle<anyhow::Result<()>>,
    pub(crate) client: Client,
}

impl Running {
    /// Starts a service, and waits until it answers.
    pub(crate) async fn start(config: Config, store: &Store) -> Self {
        let mut this = Self::launch(config, store).await;
        this.ready().await;
        this
    }

    /// Starts a service.
    pub(crate) async fn launch(config: Config, store: &Store) -> Self {
        Self::launch_with(config, common(), store).await
    }

    /// Starts a service, with what its host's services agree on.
    pub(crate) async fn launch_with(config: Config, common: Common, store: &Store) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (shutdown, store) = (Shutdown::default(), store.clone());
        let (bound, addr) = tokio::sync::oneshot::channel();
        let ended = runtime.spawn({
            let shutdown = shutdown.clone();
            async move {
                let service = Service::start(config, &common, store, shutdown).await?;
                bound.send(service.local_addr()).unwrap();
                service.serve().await
            }
        });
        let addr = timeout(PATIENCE, addr).await.unwrap().unwrap();
        Self { runtime: Some(runtime), shutdown, addr, ended, client: client(addr) }
    }

    /// Whether it says that it is ready.
    pub(crate) fn is_ready(&self) -> bool {
        self.shutdown.is_ready()
    }

    /// Waits until it answers.
    pub(crate) async fn ready(&mut self) {
        let mut last = None;
        let ready = async {
            while let Err(error) = self.client.get_identity(v1::GetIdentityRequest {}).await {
                last = Some(error);
                sleep(Duration::from_millis(20)).await;
            }
        };
        if timeout(PATIENCE, ready).await.is_err() {
            panic!("the service does not get ready: {last:?}");
        }
    }

    /// Stops everything of it where it stands; leases are not given back.
    pub(crate) fn kill(mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }

    /// Waits for the service to end by itself.
    pub(crate) async fn ends(mut self) -> anyhow::Result<()> {
        let result = timeout(PATIENCE, &mut self.ended).await.unwrap().unwrap();
        self.kill();
        result
    }

    /// Stops it as a signal does.
    pub(crate) async fn stop(mut self) {
        self.shutdown.cancel();
        timeout(PATIENCE, &mut self.ended).await.unwrap().unwrap().unwrap();
        assert!(self.shutdown.drain(Duration::from_secs(5)).await, "its tasks end");
        self.kill();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// The secret by which callers of these services are known.
pub(crate) const TOKEN: &str = "0123456789abcdef0123456789abcdef";

pub(crate) fn common() -> Common {
    Common { token: Some(TOKEN.into()), ..Common::default() }
}

/// A client of a service of the same validator.
pub(crate) fn client(addr: SocketAddr) -> Client {
    ChainServiceClient::new(kit::auth::channel(&format!("http://{addr}"), &common()).unwrap())
}

/// A client of somebody else, who can reach the port.
pub(crate) fn stranger(addr: SocketAddr) -> Client {
    ChainServiceClient::new(kit::channel(&format!("http://{addr}"), &Tls::default()).unwrap())
}

pub(crate) fn commitment(round: u64, kind: &str, data: &str) -> v1::SubmitIntentRequest {
    let data = data.as_bytes().to_vec().into();
    let payload = v1::CommitmentPayload { data };
    request(round, kind, v1::submit_intent_request::Payload::Commitment(payload))
}

pub(crate) fn weights(round: u64, shares: &[(u32, f64)]) -> v1::SubmitIntentRequest {
    let weights = shares.iter().map(|(uid, value)| v1::FloatWeight { uid: *uid, value: *value });
    let payload = v1::WeightsPayload { weights: weights.collect(), stale_guard: false };
    request(round, "weights", v1::submit_intent_request::Payload::Weights(payload))
}

pub(crate) fn axon(round: u64, ip: &str, port: u32) -> v1::SubmitIntentRequest {
    let payload = v1::AxonPayload { ip: ip.to_owned(), port };
    request(round, "axon", v1::submit_intent_request::Payload::Axon(payload))
}

fn request(
    round: u64,
    kind: &str,
    payload: v1::submit_intent_request::Payload,
) -> v1::SubmitIntentRequest {
    let key = v1::IntentKey { round, kind: kind.to_owned() };
    v1::SubmitIntentRequest { key: Some(key), payload: Some(payload) }
}

/// Submits, and waits until the intent is finished.
pub(crate) async fn carried_out(
    client: &mut Client,
    request: v1::SubmitIntentRequest,
) -> v1::Intent {
    let key = request.key.clone();
    client.submit_intent(request).await.unwrap();
    finished(client, key).await
}

/// Waits until an intent is finished.
pub(crate) async fn finished(client: &mut Client, key: Option<v1::IntentKey>) -> v1::Intent {
    until(client, key, |intent| {
        matches!(intent.state(), v1::IntentState::Done | v1::IntentState::Failed)
    })
    .await
}

/// Waits until an intent is as asked.
pub(crate) async fn until(
    client: &mut Client,
    key: Option<v1::IntentKey>,
    is: impl Fn(&v1::Intent) -> bool,
) -> v1::Intent {
    let mut last = None;
    let wait = async {
        loop {
            let request = v1::GetIntentRequest { key: key.clone() };
            match client.get_intent(request).await {
                Ok(intent) if is(intent.get_ref()) => return intent.into_inner(),
                answer => last = Some(answer),
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    match timeout(PATIENCE, wait).await {
        Ok(intent) => intent,
        Err(_) => panic!("{key:?} does not get there: {last:?}"),
    }
}

pub(crate) fn at_number(number: u64) -> Option<v1::At> {
    Some(v1::At { block: Some(v1::at::Block::Number(number)) })
}

pub(crate) fn at_hash(hash: &[u8]) -> Option<v1::At> {
    Some(v1::At { block: Some(v1::at::Block::Hash(hash.to_vec().into())) })
}
