//! A node to hold the contract on, a coldkey that pays, and hotkeys that nobody had before.

use std::{sync::Arc, time::Duration};

use devchain::{DevChain, Genesis, GenesisNeuron, Production};
use proto::chain::v1;
use scale_decode::DecodeAsType;
use schnorrkel::{ExpansionMode, MiniSecretKey};
use store::Store;
use subxt::{
    OnlineClient, SubstrateConfig,
    backend::LegacyBackend,
    dynamic::{self, Value},
    rpcs::{RpcClient, rpc_params},
    utils::H256,
};
use subxt_signer::sr25519::Keypair;
use svc_chain::{Config, Preference};
use tokio::time::{sleep, timeout};

use super::number;
use crate::rig::{self, RAO, Running};

const PALLET: &str = "SubtensorModule";
/// Longest time that one rule of the chain is waited for.
const LONGEST: Duration = Duration::from_secs(240);
/// Blocks in which anything that is sent is final and read back, and then some.
const PATIENT_BLOCKS: u32 = 40;

const TEMPO: u16 = 16;

/// Everything that a stranger has to get by: stake, permits, a version, and limits.
pub(super) fn genesis() -> Genesis {
    let coldkey: Keypair = subxt_signer::sr25519::dev::alice();
    Genesis {
        neurons: vec![
            GenesisNeuron::validator(rig::bob(), 500 * RAO),
            GenesisNeuron::miner(rig::charlie()),
        ],
        production: Production::Interval(Duration::from_millis(60)),
        balances: vec![(coldkey.public_key().0, 100_000 * RAO)],
        burn: RAO,
        finality_lag: 2,
        rate_limit: 12,
        serving_rate_limit: 6,
        tempo: TEMPO,
        permits_by_stake: true,
        stake_threshold: 100 * RAO,
        min_allowed_weights: 2,
        max_weight_limit: 60_000,
        weights_version: 10,
        ..Genesis::default()
    }
}

/// See the module.
pub(super) struct Node {
    pub(super) url: String,
    pub(super) netuid: u16,
    pub(super) rpc: RpcClient,
    pub(super) api: OnlineClient<SubstrateConfig>,
    pub(super) block_time: Duration,
    coldkey: Keypair,
    /// Held until the test is over; none where the node is somebody else's.
    own: Option<DevChain>,
}

/// A hotkey that nobody had before, and the service that holds it.
pub(super) struct Neuron {
    pub(super) hotkey: [u8; 32],
    pub(super) address: String,
    pub(super) service: Running,
    config: Config,
    store: Store,
    patience: Duration,
    /// The newest round that something was written for.
    round: u64,
    _wallet: testkit::TempDir,
}

impl Node {
    pub(super) async fn own(genesis: Genesis) -> Self {
        let chain = rig::start(genesis).await;
        Self::at(chain.url(), 102, "//Alice".to_owned(), Some(chain)).await
    }

    /// The node that the environment names.
    pub(super) async fn foreign() -> Option<Self> {
        kit::install_crypto();
        let url = std::env::var("CONNITO_SUBTENSOR_WS").ok()?;
        let netuid = std::env::var("CONNITO_SUBTENSOR_NETUID").map_or(102, |n| n.parse().unwrap());
        let uri = std::env::var("CONNITO_SUBTENSOR_COLDKEY_URI");
        Some(Self::at(url, netuid, uri.unwrap_or_else(|_| "//Alice".to_owned()), None).await)
    }

    async fn at(url: String, netuid: u16, coldkey: String, own: Option<DevChain>) -> Self {
        let coldkey = Keypair::from_uri(&coldkey.parse().unwrap()).unwrap();
        let rpc = RpcClient::from_insecure_url(&url).await.unwrap();
        let backend = LegacyBackend::builder().build(rpc.clone());
        let api = OnlineClient::from_backend(Arc::new(backend)).await.unwrap();
        let mut node = Self { url, netuid, rpc, api, block_time: Duration::ZERO, coldkey, own };
        node.block_time = node.measured().await;
        node
    }

    /// The time between two blocks.
    async fn measured(&self) -> Duration {
        let first = self.height().await;
        self.reaches(first + 1).await;
        let begun = tokio::time::Instant::now();
        self.reaches(first + 3).await;
        begun.elapsed() / 2
    }

    pub(super) fn coldkey(&self) -> String {
        self.coldkey.public_key().to_account_id().to_string()
    }

    /// Height of the best block.
    pub(super) async fn height(&self) -> u64 {
        let header: serde_json::Value =
            self.rpc.request("chain_getHeader", rpc_params![]).await.unwrap();
        u64::from_str_radix(&header["number"].as_str().unwrap()[2..], 16).unwrap()
    }

    async fn reaches(&self, height: u64) {
        while self.height().await < height {
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Stops the epochs of an own chain, and lets them go on, so that none comes where it would hide
    /// something. Epochs of somebody else's chain come when they come.
    pub(super) async fn hold_epochs(&self, hold: bool) {
        let Some(chain) = &self.own else { return };
        chain.set_tempo(if hold { 0 } else { TEMPO }).await.unwrap();
        self.reaches(self.height().await + 2).await;
    }

    /// Whether so many blocks can be waited for.
    pub(super) fn affords(&self, blocks: u64) -> bool {
        self.block_time * u32::try_from(blocks).unwrap_or(u32::MAX) <= LONGEST
    }

    /// A number or a switch of the subnet, as of the best block.
    pub(super) async fn of_subnet<V: DecodeAsType>(&self, entry: &str) -> V {
        let found = self.item(entry, vec![number(self.netuid)]).await;
        found.unwrap_or_else(|| panic!("this runtime has no {entry}"))
    }

    /// The stake that setting weights takes; older runtimes ask for none.
    pub(super) async fn stake_threshold(&self) -> u64 {
        self.item("StakeThreshold", Vec::new()).await.unwrap_or(0)
    }

    /// `None` where the runtime has no such entry.
    async fn item<V: DecodeAsType>(&self, entry: &str, keys: Vec<Value>) -> Option<V> {
        let best: H256 = self.rpc.request("chain_getBlockHash", rpc_params![]).await.unwrap();
        let at = self.api.at_block(best).await.unwrap();
        let pallet = at.metadata_ref().pallet_by_name(PALLET).unwrap();
        pallet.storage().unwrap().entry_by_name(entry)?;
        let address = dynamic::storage::<Vec<Value>, V>(PALLET, entry);
        Some(at.storage().fetch(address, keys).await.unwrap().decode().unwrap())
    }

    /// Carries out a call of the coldkey, to its final block. Others may use the coldkey as well,
    /// and blocks may have no room for it: it is tried some times.
    pub(super) async fn pays(&self, call: &str, arguments: Vec<Value>) {
        let call = dynamic::transaction(PALLET, call, arguments);
        let mut last = String::new();
        for _ in 0..5 {
            let mut client = self.api.tx().await.unwrap();
            let sent = client.sign_and_submit_then_watch_default(&call, &self.coldkey).await;
            let carried_out = match sent {
                Ok(progress) => progress.wait_for_finalized_success().await.map(|_| ()),
                Err(error) => {
                    last = error.to_string();
                    sleep(self.block_time).await;
                    continue;
                }
            };
            match carried_out {
                Ok(()) => return,
                Err(error) => last = error.to_string(),
            }
            sleep(self.block_time).await;
        }
        panic!("the coldkey's call is not carried out: {last}");
    }

    /// A service that holds a key which the chain has never seen.
    pub(super) async fn newcomer(&self) -> Neuron {
        let wallet = testkit::tempdir().unwrap();
        let seed = MiniSecretKey::from_bytes(&rand::random::<[u8; 32]>()).unwrap();
        let pair = seed.expand_to_keypair(ExpansionMode::Ed25519);
        devchain::write_wallet(wallet.path(), "contract", "default", &pair).unwrap();
        let hotkey = pair.public.to_bytes();
        let config = Config {
            grpc_addr: "127.0.0.1:0".parse().unwrap(),
            endpoints: vec![self.url.clone()],
            netuid: self.netuid,
            wallet_path: wallet.path().to_owned(),
            coldkey: "contract".to_owned(),
            commit_reveal: Preference::HashCommit,
            lease_ttl: Duration::from_secs(1),
            ..Config::defaults()
        };
        let store = Store::in_memory();
        let service = Running::start(config.clone(), &store).await;
        Neuron {
            hotkey,
            address: domain::Hotkey::from_public_key(hotkey).to_string(),
            service,
            config,
            store,
            patience: rig::PATIENCE + self.block_time * PATIENT_BLOCKS,
            round: 0,
            _wallet: wallet,
        }
    }

    /// The call that registers a hotkey, paid by the coldkey.
    pub(super) async fn registers(&self, hotkey: [u8; 32]) {
        let arguments = vec![number(self.netuid), Value::from_bytes(hotkey)];
        self.pays("burned_register", arguments).await;
    }

    /// Registers a hotkey that does nothing.
    pub(super) async fn registers_another(&self) {
        let seed = MiniSecretKey::from_bytes(&rand::random::<[u8; 32]>()).unwrap();
        let pair = seed.expand_to_keypair(ExpansionMode::Ed25519);
        self.registers(pair.public.to_bytes()).await;
    }
}

impl Neuron {
    /// A round after all that were written for.
    pub(super) fn next_round(&mut self) -> u64 {
        self.round += 1;
        self.round
    }

    pub(super) async fn carried_out(&mut self, request: v1::SubmitIntentRequest) -> v1::Intent {
        let key = request.key.clone();
        self.service.client.submit_intent(request).await.unwrap();
        self.finished(key).await
    }

    pub(super) async fn finished(&mut self, key: Option<v1::IntentKey>) -> v1::Intent {
        let over = [v1::IntentState::Done, v1::IntentState::Failed];
        self.until(key, |intent| over.contains(&intent.state()), 0).await
    }

    /// Waits until an intent is as asked, which can take so many blocks.
    pub(super) async fn until(
        &mut self,
        key: Option<v1::IntentKey>,
        is: impl Fn(&v1::Intent) -> bool,
        blocks: u64,
    ) -> v1::Intent {
        let mut last = None;
        let wait = async {
            loop {
                let request = v1::GetIntentRequest { key: key.clone() };
                match self.service.client.get_intent(request).await {
                    Ok(intent) if is(intent.get_ref()) => return intent.into_inner(),
                    answer => last = Some(answer),
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        let patience = if blocks > 0 { self.patience + LONGEST } else { self.patience };
        match timeout(patience, wait).await {
            Ok(intent) => intent,
            Err(_) => panic!("{key:?} does not get there: {last:?}"),
        }
    }

    /// The neuron as the metagraph has it at a block.
    pub(super) async fn seen_at(&mut self, block: u64) -> Option<v1::Neuron> {
        let metagraph = self.metagraph(block).await;
        metagraph.neurons.into_iter().find(|neuron| neuron.hotkey == self.address)
    }

    pub(super) async fn metagraph(&mut self, block: u64) -> v1::Metagraph {
        let request = v1::GetMetagraphRequest { at: rig::at_number(block) };
        self.service.client.get_metagraph(request).await.unwrap().into_inner()
    }

    /// The newest final block, as the service tells it.
    pub(super) async fn finalized(&mut self) -> u64 {
        let status = self.service.client.get_status(v1::GetStatusRequest {}).await.unwrap();
        status.into_inner().finalized.unwrap().number
    }

    /// What the weights of the neuron are at a block.
    pub(super) async fn row_at(&mut self, block: u64) -> Vec<(u32, u32)> {
        let uid = self.seen_at(block).await.map(|neuron| neuron.uid);
        let request = v1::GetWeightsRequest { at: rig::at_number(block) };
        let rows = self.service.client.get_weights(request).await.unwrap().into_inner().rows;
        let own = rows.into_iter().find(|row| Some(row.uid) == uid);
        own.map_or(Vec::new(), |row| row.weights.iter().map(|w| (w.uid, w.value)).collect())
    }

    /// The same service with another version key.
    pub(super) async fn restarts(&mut self, version_key: u64) {
        let config = Config { version_key, ..self.config.clone() };
        let service = Running::start(config, &self.store).await;
        std::mem::replace(&mut self.service, service).stop().await;
    }
}
