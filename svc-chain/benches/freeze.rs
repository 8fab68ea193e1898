//! How long a freeze waits for the chain: a subnet of 256 neurons with 13 full rows of weights and
//! 256 commitments, read through the service over gRPC on loopback; beside it the same bytes asked
//! of the same node over plain JSON-RPC and not looked at. Then the memory of the service.
//!
//! `make bench-chain` runs it.

#![expect(clippy::print_stdout, reason = "a benchmark is for reading")]

use std::time::Duration;

use anyhow::Context as _;
use devchain::{DevChain, Genesis, GenesisNeuron, Head, Production};
use proto::chain::v1::{self, chain_service_client::ChainServiceClient};
use scale_value::Value;
use subxt::{
    OnlineClient, SubstrateConfig, dynamic,
    rpcs::{RpcClient, rpc_params},
    utils::H256,
};
use testkit::Process;
use tokio::time::{Instant, sleep};

const NETUID: u16 = 102;
const NEURONS: u16 = 256;
const VALIDATORS: u16 = 13;
const RUNS: usize = 20;
const WITHIN: Duration = Duration::from_secs(30);
/// What the service asks of `get_selective_metagraph`.
const FIELDS: [u16; 12] = [24, 26, 27, 46, 52, 53, 55, 57, 59, 62, 66, 69];

type Client = ChainServiceClient<kit::Channel>;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    kit::install_crypto();
    let chain = filled().await?;
    let addr = testkit::unused_addr()?;
    let wallets = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors/wallets");
    let folder = testkit::tempdir()?;
    let mut service = Process::new(env!("CARGO_BIN_EXE_svc-chain"))
        .env("CONNITO_DATA_DIR", folder.path())
        .env("CONNITO_CHAIN_GRPC_ADDR", addr.to_string())
        .env("CONNITO_CHAIN_ENDPOINTS", format!("[\"{}\"]", chain.url()))
        .env("CONNITO_CHAIN_WALLET_PATH", wallets)
        .env("CONNITO_CHAIN_COLDKEY", "validator")
        .spawn()?;
    service.listens(addr, WITHIN).await?;
    service.says("first block", WITHIN).await?;
    let channel = kit::channel(&format!("http://{addr}"), &kit::Tls::default())?;
    let mut client = ChainServiceClient::new(channel);
    while client.get_identity(v1::GetIdentityRequest {}).await.is_err() {
        sleep(Duration::from_millis(20)).await;
    }
    let peer = Peer::new(&chain.url()).await?;

    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let mut bytes = 0;
    for _ in 0..RUNS {
        let head = chain.produce_block().await?;
        let before = chain.block_hash(head.number - 1).await?.context("the block before")?;
        let started = Instant::now();
        ready(&client, &head, &before).await?;
        ours.push(started.elapsed());
        let started = Instant::now();
        bytes = peer.same(&head, &before).await?;
        theirs.push(started.elapsed());
    }
    println!(
        "freeze-ready, {NEURONS} neurons, {VALIDATORS} rows of weights, {NEURONS} commitments"
    );
    println!("  through the service  {}", spread(&mut ours));
    println!("  plain JSON-RPC       {} ({bytes} characters, not decoded)", spread(&mut theirs));
    let ratio = ours[RUNS / 2].as_secs_f64() / theirs[RUNS / 2].as_secs_f64();
    println!("  ratio of the medians {ratio:.2}");
    let pid = service.id().context("the service runs")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    for line in status.lines().filter(|line| line.starts_with("VmRSS") || line.starts_with("VmHWM"))
    {
        println!("  memory of the service {line}");
    }
    service.stops_cleanly(WITHIN).await
}

/// A chain that makes blocks when it is told to, filled as the live subnet is.
async fn filled() -> anyhow::Result<DevChain> {
    let hotkey = |uid: u16| {
        let mut key = [7; 32];
        key[..2].copy_from_slice(&uid.to_le_bytes());
        key
    };
    let neuron = |uid| match uid {
        0..VALIDATORS => GenesisNeuron::validator(hotkey(uid), 1_000_000_000_000),
        _ => GenesisNeuron {
            axon: Some(([8, 8, 8, 8], 8091).into()),
            ..GenesisNeuron::miner(hotkey(uid))
        },
    };
    let genesis = Genesis {
        netuid: NETUID,
        neurons: (0..NEURONS).map(neuron).collect(),
        production: Production::Manual,
        ..Genesis::default()
    };
    let chain = DevChain::start(genesis, ([127, 0, 0, 1], 0).into()).await?;
    for uid in 0..VALIDATORS {
        let row = (0..NEURONS).map(|miner| (miner, u16::MAX - miner)).collect();
        chain.set_weights(uid, row).await?;
    }
    for uid in 0..NEURONS {
        let hash = format!("{uid:048x}");
        let data = format!(r#"{{"b":{uid},"e":1,"h":"{hash}","v":472,"i":100}}"#);
        chain.set_commitment(hotkey(uid), data.into_bytes()).await?;
    }
    chain.produce_blocks(3).await?;
    Ok(chain)
}

/// Everything that a freeze asks for, at once.
async fn ready(client: &Client, head: &Head, before: &[u8; 32]) -> anyhow::Result<()> {
    let at =
        |hash: &[u8; 32]| Some(v1::At { block: Some(v1::at::Block::Hash(hash.to_vec().into())) });
    let clients = || client.clone();
    let (mut a, mut b, mut c, mut d, mut e) =
        (clients(), clients(), clients(), clients(), clients());
    let number = Some(u64::from(head.number));
    let commitments = |hash| v1::GetCommitmentsRequest { at: at(hash), agreed: false };
    let (_, metagraph, weights, first, second) = futures::try_join!(
        a.get_block(v1::GetBlockRequest { number, agreed: false }),
        b.get_metagraph(v1::GetMetagraphRequest { at: at(&head.hash) }),
        c.get_weights(v1::GetWeightsRequest { at: at(&head.hash) }),
        d.get_commitments(commitments(before)),
        e.get_commitments(commitments(&head.hash)),
    )?;
    let rows = weights.get_ref().rows.len();
    let neurons = metagraph.get_ref().neurons.len();
    let committed = (first.get_ref().commitments.len(), second.get_ref().commitments.len());
    anyhow::ensure!(
        (neurons, rows, committed) == (256, 13, (256, 256)),
        "{neurons} neurons, {rows} rows, {committed:?} commitments"
    );
    Ok(())
}

/// Asks the node itself.
struct Peer {
    rpc: RpcClient,
    weights: Vec<u8>,
    commitments: Vec<u8>,
}

impl Peer {
    async fn new(url: &str) -> anyhow::Result<Self> {
        let rpc = RpcClient::from_insecure_url(url).await?;
        let api = OnlineClient::<SubstrateConfig>::from_insecure_url(url).await?;
        let at = api.at_current_block().await?;
        let prefix = |pallet: &str, entry: &str| {
            let map = dynamic::storage::<Vec<Value>, Value>(pallet, entry);
            let key = at.storage().entry(map)?.iter_key(vec![Value::u128(NETUID.into())])?;
            anyhow::Ok(key)
        };
        Ok(Self {
            rpc,
            weights: prefix("SubtensorModule", "Weights")?,
            commitments: prefix("Commitments", "CommitmentOf")?,
        })
    }

    /// Asks for the same bytes, and returns how many characters they came in.
    async fn same(&self, head: &Head, before: &[u8; 32]) -> anyhow::Result<usize> {
        let (head_hash, before) = (H256(head.hash), H256(*before));
        let block = async {
            let hash = self.ask("chain_getBlockHash", rpc_params![head.number]).await?;
            Ok(hash + self.ask("chain_getHeader", rpc_params![head_hash]).await?)
        };
        let mut arguments = NETUID.to_le_bytes().to_vec();
        // A compact length below 64 is one byte.
        arguments.push(u8::try_from(FIELDS.len() << 2)?);
        arguments.extend(FIELDS.iter().flat_map(|field| field.to_le_bytes()));
        let arguments = format!("0x{}", hex::encode(arguments));
        let call = "SubnetInfoRuntimeApi_get_selective_metagraph";
        let all = futures::try_join!(
            block,
            self.ask("state_call", rpc_params![call, arguments, head_hash]),
            self.map(&self.weights, head_hash),
            self.map(&self.commitments, before),
            self.map(&self.commitments, head_hash),
        )?;
        Ok(all.0 + all.1 + all.2 + all.3 + all.4)
    }

    async fn map(&self, prefix: &[u8], at: H256) -> anyhow::Result<usize> {
        let prefix = format!("0x{}", hex::encode(prefix));
        let page = rpc_params![prefix, 512, Option::<String>::None, at];
        let keys: Vec<String> = self.rpc.request("state_getKeysPaged", page).await?;
        self.ask("state_queryStorageAt", rpc_params![keys, at]).await
    }

    async fn ask(
        &self,
        method: &str,
        params: subxt::rpcs::client::RpcParams,
    ) -> anyhow::Result<usize> {
        Ok(self.rpc.request_raw(method, params.build()).await?.get().len())
    }
}

fn spread(times: &mut [Duration]) -> String {
    times.sort_unstable();
    let ms = |time: Option<&Duration>| time.map_or(0.0, |time| time.as_secs_f64() * 1000.0);
    format!(
        "{:6.1} / {:6.1} / {:6.1} ms (min / median / max of {})",
        ms(times.first()),
        ms(times.get(times.len() / 2)),
        ms(times.last()),
        times.len()
    )
}
