//! An ordinary subxt client, and chains for it to talk to.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use blake2::Digest as _;
use codec::Encode as _;
use devchain::{DevChain, Genesis, GenesisNeuron, Production};
use scale_decode::DecodeAsType;
use serde_json::Value as Json;
use subxt::{
    OnlineClient, OnlineClientAtBlock, SubstrateConfig,
    backend::LegacyBackend,
    config::{DefaultExtrinsicParams, DefaultExtrinsicParamsBuilder},
    dynamic::{self, Value},
    rpcs::{self, RpcClient, rpc_params},
    transactions::DynamicPayload,
};
use subxt_signer::sr25519::Keypair;

pub(crate) const NETUID: u16 = 102;
pub(crate) const TAO: u64 = 1_000_000_000;

pub(crate) type Params = DefaultExtrinsicParams<SubstrateConfig>;

/// A key that anyone can make again from its name. Made once: it takes its time.
pub(crate) fn key(name: &str) -> Keypair {
    static KEYS: Mutex<BTreeMap<String, Keypair>> = Mutex::new(BTreeMap::new());
    let make = || Keypair::from_uri(&format!("//{name}").parse().unwrap()).unwrap();
    KEYS.lock().unwrap().entry(name.to_owned()).or_insert_with(make).clone()
}

pub(crate) fn public(name: &str) -> [u8; 32] {
    key(name).public_key().0
}

/// Alice and Bob are validators, Carol and Dave miners. A block comes with every extrinsic.
pub(crate) fn genesis() -> Genesis {
    Genesis {
        netuid: NETUID,
        production: Production::OnSubmit,
        neurons: vec![
            GenesisNeuron::validator(public("Alice"), 3000 * TAO),
            GenesisNeuron::validator(public("Bob"), 1000 * TAO),
            GenesisNeuron::miner(public("Carol")),
            GenesisNeuron::miner(public("Dave")),
        ],
        ..Genesis::default()
    }
}

pub(crate) async fn start(genesis: Genesis) -> (DevChain, Client) {
    let chain = DevChain::start(genesis, ([127, 0, 0, 1], 0).into()).await.unwrap();
    let client = Client::connect(&chain.url()).await;
    (chain, client)
}

/// The same, with blocks only when they are asked for, and finality `lag` blocks behind.
pub(crate) fn manual(lag: u32) -> Genesis {
    Genesis { production: Production::Manual, finality_lag: lag, ..genesis() }
}

pub(crate) fn anywhere() -> std::net::SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

/// A submission that was refused: the JSON-RPC code, and its message or data.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refused(pub(crate) i32, pub(crate) String);

#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) rpc: RpcClient,
    pub(crate) api: OnlineClient<SubstrateConfig>,
}

impl Client {
    pub(crate) async fn connect(url: &str) -> Self {
        let rpc = RpcClient::from_insecure_url(url).await.unwrap();
        let backend = LegacyBackend::builder().build(rpc.clone());
        let api = OnlineClient::from_backend(Arc::new(backend)).await.unwrap();
        Self { rpc, api }
    }

    pub(crate) async fn at(&self) -> OnlineClientAtBlock<SubstrateConfig> {
        self.api.at_current_block().await.unwrap()
    }

    /// A storage item, decoded, at the newest block.
    pub(crate) async fn item<T: DecodeAsType>(
        &self,
        pallet: &str,
        entry: &str,
        keys: Vec<Value>,
    ) -> T {
        let entry = dynamic::storage::<Vec<Value>, T>(pallet, entry);
        let at = self.at().await;
        let value = at.storage().fetch(entry, keys).await.unwrap();
        value.decode().unwrap()
    }

    /// A signed extrinsic, ready to be sent.
    pub(crate) async fn signed(&self, who: &str, call: &Call, params: Params) -> Vec<u8> {
        let mut client = self.api.tx().await.unwrap();
        client.create_signed(call, &key(who), params).await.unwrap().into_encoded()
    }

    /// Sends bytes to the pool.
    pub(crate) async fn submit(&self, bytes: &[u8]) -> Result<String, Refused> {
        let hex = format!("0x{}", hex::encode(bytes));
        match self.rpc.request("author_submitExtrinsic", rpc_params![hex]).await {
            Ok(hash) => Ok(hash),
            Err(rpcs::Error::User(e)) => {
                let data = e.data.map(|d| serde_json::from_str(d.get()).unwrap());
                Err(Refused(e.code, data.unwrap_or(e.message)))
            }
            Err(e) => panic!("not a refusal: {e}"),
        }
    }

    /// Signs and sends a call.
    pub(crate) async fn send(&self, who: &str, call: &Call) -> Result<String, Refused> {
        let bytes = self.signed(who, call, Params::default()).await;
        self.submit(&bytes).await
    }

    /// Signs and sends a call, follows it to its finalized block, and returns the names of its
    /// events or the text of its error.
    pub(crate) async fn follow(&self, who: &str, call: &Call) -> Result<Vec<String>, String> {
        let mut client = self.api.tx().await.unwrap();
        let progress = client.sign_and_submit_then_watch_default(call, &key(who)).await.unwrap();
        let events = progress.wait_for_finalized_success().await.map_err(|e| e.to_string())?;
        let name = |event: Result<subxt::events::Event<'_, _>, _>| {
            let event = event.unwrap();
            format!("{}.{}", event.pallet_name(), event.event_name())
        };
        Ok(events.iter().map(name).collect())
    }
}

/// What becomes of an extrinsic, word by word.
pub(crate) struct Statuses(rpcs::client::RpcSubscription<Json>);

impl Statuses {
    /// The next word: its name, and the hash with it.
    pub(crate) async fn next(&mut self) -> (String, Option<String>) {
        let status = within(self.0.next()).await.unwrap().unwrap();
        if let Some(name) = status.as_str() {
            return (name.to_owned(), None);
        }
        let (name, hash) = status.as_object().unwrap().iter().next().unwrap();
        (name.clone(), Some(hash.as_str().unwrap().to_owned()))
    }

    /// The names of the next words.
    pub(crate) async fn names(&mut self, n: usize) -> Vec<String> {
        let mut names = Vec::new();
        for _ in 0..n {
            names.push(self.next().await.0);
        }
        names
    }
}

impl Client {
    /// Sends bytes to the pool, and listens.
    pub(crate) async fn watch(&self, bytes: &[u8]) -> Statuses {
        let hex = format!("0x{}", hex::encode(bytes));
        let (watch, unwatch) = ("author_submitAndWatchExtrinsic", "author_unwatchExtrinsic");
        Statuses(self.rpc.subscribe(watch, rpc_params![hex], unwatch).await.unwrap())
    }

    /// Any answer.
    pub(crate) async fn ask(&self, method: &str, params: &[Json]) -> Result<Json, rpcs::Error> {
        let mut list = rpcs::client::RpcParams::new();
        for param in params {
            list.push(param).unwrap();
        }
        within(self.rpc.request(method, list)).await
    }

    /// The number of the newest block or, by `chain_getFinalizedHead`, of the newest final one.
    pub(crate) async fn number(&self, hash: Option<&Json>) -> u64 {
        let params = hash.map(std::slice::from_ref).unwrap_or_default();
        let header = self.ask("chain_getHeader", params).await.unwrap();
        u64::from_str_radix(&header["number"].as_str().unwrap()[2..], 16).unwrap()
    }

    pub(crate) async fn finalized(&self) -> u64 {
        let hash = self.ask("chain_getFinalizedHead", &[]).await.unwrap();
        self.number(Some(&hash)).await
    }

    pub(crate) async fn block_hash(&self, number: u32) -> Json {
        self.ask("chain_getBlockHash", &[number.into()]).await.unwrap()
    }

    /// The headers of the newest blocks, as they come.
    pub(crate) async fn heads(&self, which: &str) -> Heads {
        let (subscribe, end) =
            (format!("chain_subscribe{which}"), format!("chain_unsubscribe{which}"));
        Heads(self.rpc.subscribe(&subscribe, rpc_params![], &end).await.unwrap())
    }
}

/// A stream of headers.
pub(crate) struct Heads(rpcs::client::RpcSubscription<Json>);

impl Heads {
    pub(crate) async fn next(&mut self) -> Header {
        Header::of(&within(self.0.next()).await.unwrap().unwrap())
    }
}

/// A header, with the hash that a client computes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) number: u32,
    pub(crate) parent: String,
    pub(crate) hash: String,
}

impl Header {
    pub(crate) fn of(json: &Json) -> Self {
        let header: subxt::config::substrate::SubstrateHeader<subxt::utils::H256> =
            serde_json::from_value(json.clone()).unwrap();
        let digest: [u8; 32] =
            blake2::Blake2b::<blake2::digest::consts::U32>::digest(header.encode()).into();
        Self {
            number: u32::try_from(header.number).unwrap(),
            parent: json["parentHash"].as_str().unwrap().to_owned(),
            hash: hex(digest),
        }
    }
}

pub(crate) fn hex(bytes: [u8; 32]) -> String {
    format!("0x{}", hex::encode(bytes))
}

pub(crate) type Call = DynamicPayload<Vec<Value>>;

pub(crate) fn immortal(nonce: u64) -> Params {
    DefaultExtrinsicParamsBuilder::new().immortal().nonce(nonce).build()
}

pub(crate) fn tipped(nonce: u64, tip: u128) -> Params {
    DefaultExtrinsicParamsBuilder::new().immortal().nonce(nonce).tip(tip).build()
}

pub(crate) fn mortal(blocks: u64, nonce: u64) -> Params {
    DefaultExtrinsicParamsBuilder::new().mortal(blocks).nonce(nonce).build()
}

fn numbers(values: &[u16]) -> Value {
    Value::unnamed_composite(values.iter().map(|v| Value::u128((*v).into())))
}

fn number(value: impl Into<u128>) -> Value {
    Value::u128(value.into())
}

pub(crate) fn set_weights(dests: &[u16], weights: &[u16], version_key: u64) -> Call {
    set_weights_of(NETUID, dests, weights, version_key)
}

pub(crate) fn set_weights_of(netuid: u16, dests: &[u16], weights: &[u16], key: u64) -> Call {
    let args = vec![number(netuid), numbers(dests), numbers(weights), number(key)];
    dynamic::transaction("SubtensorModule", "set_weights", args)
}

pub(crate) fn set_mechanism_weights(mecid: u8, dests: &[u16], weights: &[u16]) -> Call {
    let args = vec![number(NETUID), number(mecid), numbers(dests), numbers(weights), number(0u8)];
    dynamic::transaction("SubtensorModule", "set_mechanism_weights", args)
}

pub(crate) fn serve_axon(ip: u32, port: u16, ip_type: u8) -> Call {
    let args = vec![
        number(NETUID),
        number(1u8),
        number(ip),
        number(port),
        number(ip_type),
        number(4u8),
        number(0u8),
        number(0u8),
    ];
    dynamic::transaction("SubtensorModule", "serve_axon", args)
}

/// A commitment of `fields`, each a `Raw` of its length.
pub(crate) fn set_commitment(fields: &[&[u8]]) -> Call {
    let raw = |bytes: &&[u8]| {
        Value::unnamed_variant(format!("Raw{}", bytes.len()), [Value::from_bytes(bytes)])
    };
    let fields = Value::unnamed_composite(fields.iter().map(raw));
    let info = Value::named_composite([("fields", fields)]);
    dynamic::transaction("Commitments", "set_commitment", vec![number(NETUID), info])
}

pub(crate) fn remark(text: &[u8]) -> Call {
    dynamic::transaction("System", "remark", vec![Value::from_bytes(text)])
}

/// Waits for something that another task does, and fails when it does not come.
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("it never came")
}
