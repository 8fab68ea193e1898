//! A runtime that changes while clients are connected.

use std::path::PathBuf;

use devchain::{METADATA, Taken, UpgradeError, with_spec_version};
use serde_json::json;
use subxt::{
    dynamic::{self, Value},
    rpcs::rpc_params,
    utils::H256,
};

use crate::client::*;

fn raised() -> Vec<u8> {
    with_spec_version(METADATA, 366).unwrap()
}

async fn spec(client: &Client, block: u32) -> serde_json::Value {
    let at = client.block_hash(block).await;
    client.ask("state_getRuntimeVersion", &[at]).await.unwrap()["specVersion"].clone()
}

#[tokio::test]
async fn every_block_keeps_the_runtime_that_it_was_made_by() {
    let (chain, client) = start(genesis()).await;
    let watch = ("state_subscribeRuntimeVersion", "state_unsubscribeRuntimeVersion");
    let mut versions =
        client.rpc.subscribe::<serde_json::Value>(watch.0, rpc_params![], watch.1).await.unwrap();
    let mut version =
        async || within(versions.next()).await.unwrap().unwrap()["specVersion"].clone();
    assert_eq!(version().await, 365);
    client.follow("Carol", &set_commitment(&[b"before"])).await.unwrap();
    chain.upgrade(raised()).await.unwrap();
    assert_eq!(spec(&client, 1).await, 365);
    chain.produce_block().await.unwrap();
    assert_eq!(version().await, 366);
    // The same client goes on: it asks for the version of every block.
    client.follow("Carol", &set_commitment(&[b"after"])).await.unwrap();
    for (block, expected) in [(0, 365), (1, 365), (2, 366), (3, 366)] {
        assert_eq!(spec(&client, block).await, expected, "{block}");
        let hash = H256(chain.block_hash(block).await.unwrap().unwrap());
        let at = client.api.at_block(hash).await.unwrap();
        assert_eq!(at.spec_version(), expected);
        let metadata = client.ask("state_getMetadata", &[json!(hex(hash.0))]).await.unwrap();
        let metadata = hex::decode(&metadata.as_str().unwrap()[2..]).unwrap();
        assert_eq!(metadata == METADATA, expected == 365);
    }
    let upgraded = client.ask("chain_getHeader", &[client.block_hash(2).await]).await.unwrap();
    assert_eq!(upgraded["digest"]["logs"], json!(["0x08"]));
    assert_eq!(json!(Header::of(&upgraded).hash), client.block_hash(2).await);
    assert_eq!(chain.extrinsics().await.unwrap().len(), 2);
}

#[tokio::test]
async fn what_was_signed_for_the_old_runtime_is_refused_by_the_new() {
    let (chain, client) = start(manual(0)).await;
    let in_time = client.signed("Carol", &set_commitment(&[b"in time"]), immortal(0)).await;
    let waiting = client.signed("Carol", &set_commitment(&[b"waiting"]), immortal(2)).await;
    let late = client.signed("Dave", &set_commitment(&[b"late"]), immortal(0)).await;
    let (mut in_time, mut waiting) = (client.watch(&in_time).await, client.watch(&waiting).await);
    chain.upgrade(raised()).await.unwrap();
    chain.produce_block().await.unwrap();
    assert_eq!(in_time.names(3).await, ["ready", "inBlock", "finalized"]);
    assert_eq!(waiting.names(2).await, ["future", "invalid"]);
    let refused = client.submit(&late).await.unwrap_err();
    assert_eq!(refused, Refused(1010, "Transaction has a bad signature".to_owned()));
    client.send("Dave", &set_commitment(&[b"again"])).await.unwrap();
}

#[tokio::test]
async fn an_upgrade_in_an_abandoned_block_is_undone() {
    let (chain, client) = start(manual(10)).await;
    chain.produce_block().await.unwrap();
    chain.upgrade(raised()).await.unwrap();
    let old = chain.produce_block().await.unwrap();
    chain.reorganise(1, Taken::Back).await.unwrap();
    assert_eq!(spec(&client, 3).await, 365);
    let version = client.ask("state_getRuntimeVersion", &[json!(hex(old.hash))]).await.unwrap();
    assert_eq!(version["specVersion"], 366);
}

#[tokio::test]
async fn bytes_that_are_no_metadata_change_nothing() {
    let (chain, client) = start(genesis()).await;
    for garbage in [vec![], vec![0; 100], METADATA[..1000].to_vec(), vec![0xff; 1 << 20]] {
        let error = chain.upgrade(garbage).await.unwrap_err();
        assert!(matches!(error, UpgradeError::Metadata(_)), "{error}");
    }
    client.follow("Carol", &set_commitment(&[b"data"])).await.unwrap();
    assert_eq!(spec(&client, 1).await, 365);
}

#[tokio::test]
async fn the_chain_goes_through_every_saved_runtime_and_forgets_nothing() {
    let Some(folder) = std::env::var_os("CONNITO_METADATA_DIR").map(PathBuf::from) else {
        eprintln!("skipped: CONNITO_METADATA_DIR is not set");
        return;
    };
    let (chain, client) = start(genesis()).await;
    client.follow("Alice", &set_weights(&[2, 3], &[1, 3], 0)).await.unwrap();
    client.follow("Carol", &set_commitment(&[b"of 365"])).await.unwrap();
    client.follow("Carol", &serve_axon(0x0808_0808, 8091, 4)).await.unwrap();
    for spec_version in [393, 424] {
        let name = format!("subtensor_finney_spec{spec_version}_v16.scale");
        chain.set_stake(1, u64::from(spec_version) * TAO).await.unwrap();
        chain.upgrade(std::fs::read(folder.join(name)).unwrap()).await.unwrap();
        chain.produce_block().await.unwrap();
        assert_eq!(client.at().await.spec_version(), spec_version);
        assert_eq!(chain.weights(0).await.unwrap(), [(2, 21845), (3, 65535)]);
        let data = chain.commitment(public("Carol"), None).await.unwrap().unwrap().data;
        assert_eq!(data, b"of 365");
        let axon = chain.axon(public("Carol")).await.unwrap();
        assert_eq!(axon, Some(([8, 8, 8, 8], 8091).into()));
        // Every value decodes in full by the metadata of its block.
        let at = client.at().await;
        for entry in ["Axons", "Weights", "LastUpdate", "ValidatorPermit", "TotalHotkeyAlpha"] {
            let map = dynamic::storage::<Vec<Value>, Value>("SubtensorModule", entry);
            let storage = at.storage();
            let mut values = storage.iter(map, vec![]).await.unwrap();
            let mut count = 0;
            while let Some(value) = values.next().await {
                value.unwrap().value().decode().unwrap();
                count += 1;
            }
            assert!(count > 0, "{entry}");
        }
        let text = format!("of {spec_version}");
        client.follow("Dave", &set_commitment(&[text.as_bytes()])).await.unwrap();
    }
    let (all, first) = (chain.extrinsics().await.unwrap(), chain.block_hash(1).await.unwrap());
    assert!(all.iter().all(|x| x.error.is_none()), "{all:?}");
    let at = client.api.at_block(H256(first.unwrap())).await.unwrap();
    assert_eq!(at.spec_version(), 365);
    assert!(at.extrinsics().fetch().await.unwrap().iter().all(|x| x.is_ok()));
}
