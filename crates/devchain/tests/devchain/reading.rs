//! What clients read: the connection, metagraphs, storage, blocks and streams.

use std::time::Duration;

use devchain::{DevChain, Genesis, GenesisNeuron, Production, StartError};
use scale_decode::DecodeAsType;
use subxt::{
    dynamic::{self, Value},
    rpcs::rpc_params,
};

use crate::client::*;

#[derive(Debug, DecodeAsType)]
struct Axon {
    ip: u128,
    port: u16,
    ip_type: u8,
}

/// The fields of section 2 of the chain's description, by name.
#[derive(Debug, DecodeAsType)]
struct Metagraph {
    netuid: u16,
    name: Option<Vec<u8>>,
    block: Option<u64>,
    tempo: Option<u16>,
    min_allowed_weights: Option<u16>,
    max_weights_limit: Option<u16>,
    weights_version: Option<u64>,
    weights_rate_limit: Option<u64>,
    activity_cutoff: Option<u64>,
    num_uids: Option<u16>,
    commit_reveal_weights_enabled: Option<bool>,
    commit_reveal_period: Option<u64>,
    hotkeys: Option<Vec<[u8; 32]>>,
    coldkeys: Option<Vec<[u8; 32]>>,
    axons: Option<Vec<Axon>>,
    active: Option<Vec<bool>>,
    validator_permit: Option<Vec<bool>>,
    last_update: Option<Vec<u64>>,
    emission: Option<Vec<u64>>,
    dividends: Option<Vec<u16>>,
    incentives: Option<Vec<u16>>,
    consensus: Option<Vec<u16>>,
    block_at_registration: Option<Vec<u64>>,
    alpha_stake: Option<Vec<u64>>,
    tao_stake: Option<Vec<u64>>,
    total_stake: Option<Vec<u64>>,
}

const FIELDS: [u16; 25] = [
    7, 8, 24, 25, 26, 27, 28, 30, 46, 47, 52, 53, 55, 56, 57, 59, 60, 61, 62, 63, 66, 67, 68, 69,
    // No field of this number: asked for by a client of a later chain.
    500,
];

async fn metagraph(client: &Client, netuid: u16) -> Option<Metagraph> {
    let fields = Value::unnamed_composite(FIELDS.map(|f| Value::u128(f.into())));
    let arguments = vec![Value::u128(netuid.into()), fields];
    let call = dynamic::runtime_api_call::<Vec<Value>, Option<Metagraph>>(
        "SubnetInfoRuntimeApi",
        "get_selective_metagraph",
        arguments,
    );
    client.at().await.runtime_apis().call(call).await.unwrap()
}

#[tokio::test]
async fn an_ordinary_client_connects_to_the_genesis_and_spec_of_the_chain() {
    let genesis = genesis();
    let chain = DevChain::start(genesis, ([127, 0, 0, 1], 0).into()).await.unwrap();
    let began = tokio::time::Instant::now();
    let client = Client::connect(&chain.url()).await;
    let at = client.at().await;
    eprintln!("connected in {} ms", began.elapsed().as_millis());
    assert_eq!(at.spec_version(), 365);
    assert_eq!(at.block_number(), 0);
    assert_eq!(client.api.genesis_hash().0, chain.genesis_hash());
    assert_eq!(at.block_hash().0, chain.head().await.unwrap().hash);
}

#[tokio::test]
async fn the_selective_metagraph_has_every_field_that_a_validator_asks_for() {
    let mut genesis = genesis();
    genesis.neurons[2].axon = Some(([8, 8, 8, 8], 8091).into());
    genesis.neurons[1].coldkey = public("Bob cold");
    let (chain, client) = start(genesis).await;
    chain.produce_block().await.unwrap();
    let m = metagraph(&client, NETUID).await.unwrap();
    assert_eq!((m.netuid, m.name), (NETUID, None), "what was not asked for is not there");
    assert_eq!((m.block, m.tempo, m.num_uids), (Some(1), Some(360), Some(4)));
    assert_eq!((m.min_allowed_weights, m.max_weights_limit), (Some(1), Some(65535)));
    assert_eq!((m.weights_version, m.weights_rate_limit), (Some(0), Some(100)));
    assert_eq!((m.activity_cutoff, m.commit_reveal_period), (Some(5000), Some(1)));
    assert_eq!(m.commit_reveal_weights_enabled, Some(false));
    let names = ["Alice", "Bob", "Carol", "Dave"];
    assert_eq!(m.hotkeys.unwrap(), names.map(public));
    assert_eq!(m.coldkeys.unwrap()[1], public("Bob cold"));
    let axons = m.axons.unwrap();
    assert_eq!((axons[2].ip, axons[2].port, axons[2].ip_type), (0x0808_0808, 8091, 4));
    assert_eq!((axons.len(), axons[0].ip, axons[0].port), (4, 0, 0));
    assert_eq!(m.active.unwrap(), [true; 4]);
    assert_eq!(m.validator_permit.unwrap(), [true, true, false, false]);
    assert_eq!(m.total_stake.unwrap(), [3000 * TAO, 1000 * TAO, 0, 0]);
    assert_eq!(m.alpha_stake.unwrap(), [3000 * TAO, 1000 * TAO, 0, 0]);
    assert_eq!(m.tao_stake.unwrap(), [0; 4]);
    for row in [m.last_update, m.emission, m.block_at_registration] {
        assert_eq!(row.unwrap(), [0; 4]);
    }
    for row in [m.incentives, m.dividends, m.consensus] {
        assert_eq!(row.unwrap(), [0; 4]);
    }
}

#[tokio::test]
async fn a_subnet_that_does_not_exist_has_no_metagraph() {
    let (_chain, client) = start(genesis()).await;
    assert!(metagraph(&client, NETUID + 1).await.is_none());
}

#[tokio::test]
async fn the_whole_metagraph_and_the_hyperparameters_decode_by_their_types() {
    let (_chain, client) = start(genesis()).await;
    let at = client.at().await;
    for method in ["get_metagraph", "get_subnet_hyperparams", "get_subnet_hyperparams_v2"] {
        let netuid = vec![Value::u128(NETUID.into())];
        let call = dynamic::runtime_api_call::<_, Value>("SubnetInfoRuntimeApi", method, netuid);
        let answer = at.runtime_apis().call(call).await.unwrap();
        assert!(answer.to_string().contains("tempo: 360"), "{method}: {answer}");
    }
}

#[tokio::test]
async fn a_map_is_iterated_page_by_page() {
    let mut genesis = genesis();
    genesis.neurons = (0..70).map(|n| GenesisNeuron::miner([n; 32])).collect();
    let (_chain, client) = start(genesis).await;
    let at = client.at().await;
    let keys = dynamic::storage::<Vec<Value>, [u8; 32]>("SubtensorModule", "Keys");
    let storage = at.storage();
    let mut entries = storage.iter(keys, vec![Value::u128(NETUID.into())]).await.unwrap();
    let mut uids = std::collections::BTreeMap::new();
    while let Some(entry) = entries.next().await {
        let entry = entry.unwrap();
        let uid = entry.key().unwrap().part(1).unwrap().decode_as::<u16>().unwrap().unwrap();
        uids.insert(uid, entry.value().decode().unwrap());
    }
    assert_eq!(uids, (0..70).map(|n| (u16::from(n), [n; 32])).collect());
}

#[tokio::test]
async fn finalized_blocks_stream_without_a_gap() {
    let mut genesis = genesis();
    genesis.production = Production::Interval(Duration::from_millis(50));
    let (chain, client) = start(genesis).await;
    let mut blocks = client.api.stream_blocks().await.unwrap();
    let first = within(blocks.next()).await.unwrap().unwrap();
    let (mut last, mut hash) = (first.number(), first.hash());
    // A listener that fell behind is told of all that it missed, in order.
    chain.wait_for_block(u32::try_from(last).unwrap() + 8).await.unwrap();
    for _ in 0..20 {
        let block = within(blocks.next()).await.unwrap().unwrap();
        assert_eq!(block.number(), last + 1);
        assert_eq!(block.header().parent_hash, hash);
        (last, hash) = (block.number(), block.hash());
    }
}

#[tokio::test]
async fn finalized_heads_keep_their_distance_and_leave_out_none() {
    let mut genesis = genesis();
    genesis.production = Production::Manual;
    genesis.finality_lag = 3;
    let (chain, client) = start(genesis).await;
    let mut blocks = client.api.stream_blocks().await.unwrap();
    assert_eq!(within(blocks.next()).await.unwrap().unwrap().number(), 0);
    chain.produce_blocks(8).await.unwrap();
    for expected in 1..=5 {
        assert_eq!(within(blocks.next()).await.unwrap().unwrap().number(), expected);
    }
    assert_eq!(chain.finalized().await.unwrap().number, 5);
    assert_eq!(chain.head().await.unwrap().number, 8);
    assert_eq!(client.at().await.block_number(), 5);
}

#[tokio::test]
async fn blocks_are_found_by_number_in_every_spelling() {
    let (chain, client) = start(genesis()).await;
    let head = chain.produce_blocks(3).await.unwrap();
    let hash = format!("0x{}", hex::encode(head.hash));
    for spelling in [serde_json::json!(3), serde_json::json!("0x3"), serde_json::json!("3")] {
        let found: String =
            client.rpc.request("chain_getBlockHash", rpc_params![spelling]).await.unwrap();
        assert_eq!(found, hash);
    }
    let newest: String = client.rpc.request("chain_getBlockHash", rpc_params![]).await.unwrap();
    assert_eq!(newest, hash);
    let none: Option<String> =
        client.rpc.request("chain_getBlockHash", rpc_params![4]).await.unwrap();
    assert_eq!(none, None);
}

#[tokio::test]
async fn another_seed_makes_another_chain_and_the_same_seed_the_same() {
    let with = async |seed: u8| {
        let genesis = Genesis { seed: [seed; 32], ..genesis() };
        let chain = DevChain::start(genesis, ([127, 0, 0, 1], 0).into()).await.unwrap();
        let hash = chain.produce_blocks(2).await.unwrap().hash;
        (chain.genesis_hash(), hash)
    };
    let (one, two) = (with(1).await, with(2).await);
    assert_eq!(one, with(1).await);
    assert!(one.0 != two.0 && one.1 != two.1);
}

#[tokio::test]
async fn the_time_of_a_block_is_its_number_of_block_times_after_genesis() {
    let (chain, client) = start(genesis()).await;
    chain.produce_blocks(5).await.unwrap();
    let now = dynamic::storage::<Vec<Value>, u64>("Timestamp", "Now");
    let now = client.at().await.storage().fetch(now, vec![]).await.unwrap().decode().unwrap();
    assert_eq!(now, genesis().genesis_time_ms + 5 * 12_000);
}

#[tokio::test]
async fn a_genesis_that_makes_no_sense_is_refused_by_name() {
    let refused = async |change: fn(&mut Genesis)| {
        let mut genesis = genesis();
        change(&mut genesis);
        DevChain::start(genesis, ([127, 0, 0, 1], 0).into()).await.unwrap_err()
    };
    let fast = refused(|g| g.production = Production::Interval(Duration::from_millis(49))).await;
    assert!(matches!(fast, StartError::BlockTime(_)));
    let crowd = refused(|g| g.neurons = vec![GenesisNeuron::default(); 257]).await;
    assert!(matches!(crowd, StartError::Neurons(257)));
    let twins = refused(|g| g.neurons[3] = g.neurons[0].clone()).await;
    assert!(matches!(twins, StartError::SameHotkey(key) if key == public("Alice")));
    let foreign = refused(|g| g.metadata = Some(vec![1, 2, 3])).await;
    assert!(matches!(foreign, StartError::Metadata(_)));
}

#[tokio::test]
async fn any_other_metadata_of_the_chain_serves_as_well() {
    let Some(folder) = std::env::var_os("CONNITO_METADATA_DIR") else {
        eprintln!("skipped: CONNITO_METADATA_DIR is not set");
        return;
    };
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "scale") {
            continue;
        }
        let metadata = Some(std::fs::read(&path).unwrap());
        let (chain, client) = start(Genesis { metadata, ..genesis() }).await;
        let call = set_weights(&[2, 3], &[65535, 1], 0);
        let events = client.follow("Alice", &call).await.unwrap();
        assert!(events.contains(&"SubtensorModule.WeightsSet".to_owned()), "{}", path.display());
        let commitment = set_commitment(&[b"of another spec"]);
        client.follow("Carol", &commitment).await.unwrap();
        assert_eq!(chain.weights(0).await.unwrap(), [(2, 65535), (3, 1)]);
        let data = chain.commitment(public("Carol"), None).await.unwrap().unwrap().data;
        assert_eq!(data, b"of another spec");
    }
}
