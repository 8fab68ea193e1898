//! What clients write, and what the chain remembers of it.

use devchain::{GenesisNeuron, Production};
use subxt::{
    dynamic::{self, Value},
    utils::H256,
};

use crate::client::*;

#[tokio::test]
async fn weights_are_set_once_per_rate_limit() {
    let mut genesis = genesis();
    genesis.rate_limit = 5;
    let (chain, client) = start(genesis).await;
    let call = set_weights(&[2, 3], &[100, 300], 0);
    // What every later call finds made already: the key, and the metadata.
    client.at().await;
    key("Alice");
    let began = tokio::time::Instant::now();
    let events = client.follow("Alice", &call).await.unwrap();
    eprintln!("set_weights in {} ms", began.elapsed().as_millis());
    assert_eq!(events, ["SubtensorModule.WeightsSet", "System.ExtrinsicSuccess"]);
    assert_eq!(chain.weights(0).await.unwrap(), [(2, 21845), (3, 65535)], "scaled up");
    assert_eq!(chain.last_update(0).await.unwrap(), 1);

    let too_soon = Refused(1010, "Custom error: 6".to_owned());
    assert_eq!(client.send("Alice", &call).await.unwrap_err(), too_soon);
    chain.produce_blocks(3).await.unwrap();
    assert_eq!(client.send("Alice", &call).await.unwrap_err(), too_soon);
    chain.produce_block().await.unwrap();
    client.follow("Alice", &call).await.unwrap();
    assert_eq!(chain.last_update(0).await.unwrap(), 6);
}

#[tokio::test]
async fn older_chains_say_the_rate_limit_after_inclusion() {
    let mut genesis = genesis();
    genesis.refuse_early = false;
    let (chain, client) = start(genesis).await;
    let call = set_mechanism_weights(0, &[2], &[1]);
    client.follow("Alice", &call).await.unwrap();
    let error = client.follow("Alice", &call).await.unwrap_err();
    assert!(error.contains("SettingWeightsTooFast"), "{error}");
    let journal = chain.extrinsics().await.unwrap();
    let told: Vec<_> = journal.iter().map(|x| (x.block, x.name(), x.error.as_deref())).collect();
    let name = || "SubtensorModule.set_mechanism_weights".to_owned();
    let too_fast = "SubtensorModule::SettingWeightsTooFast";
    assert_eq!(told, [(1, name(), None), (2, name(), Some(too_fast))]);
    assert_eq!(chain.last_update(0).await.unwrap(), 1, "a failed call changes nothing");
}

#[tokio::test]
async fn a_registration_counts_as_an_update() {
    let mut genesis = genesis();
    genesis.rate_limit = 3;
    let (chain, client) = start(genesis).await;
    let newcomer = GenesisNeuron::validator(public("Eve"), TAO);
    assert_eq!(chain.register(newcomer.clone()).await.unwrap(), 4);
    assert_eq!(chain.register(newcomer).await.unwrap(), 4, "once");
    chain.produce_block().await.unwrap();
    let call = set_weights(&[2], &[1], 0);
    let refused = client.send("Eve", &call).await.unwrap_err();
    assert_eq!(refused, Refused(1010, "Custom error: 6".to_owned()));
    chain.produce_blocks(2).await.unwrap();
    client.follow("Eve", &call).await.unwrap();
    assert_eq!(chain.weights(4).await.unwrap(), [(2, 65535)]);
}

#[tokio::test]
async fn a_slot_that_changes_hands_forgets_its_last_owner() {
    let (chain, client) = start(genesis()).await;
    client.follow("Bob", &set_weights(&[2], &[1], 0)).await.unwrap();
    chain.replace(1, GenesisNeuron::validator(public("Eve"), TAO)).await.unwrap();
    chain.produce_block().await.unwrap();
    assert_eq!(chain.weights(1).await.unwrap(), []);
    let call = set_weights(&[2], &[1], 0);
    let error = client.follow("Bob", &call).await.unwrap_err();
    assert!(error.contains("HotKeyNotRegisteredInSubNet"), "{error}");
}

#[tokio::test]
async fn a_commitment_is_read_back_as_of_every_past_block() {
    let (chain, client) = start(genesis()).await;
    let first: &[u8] = br#"{"m":"first"}"#;
    let second = [b'x'; 128];
    let events = client.follow("Carol", &set_commitment(&[first])).await.unwrap();
    assert_eq!(events, ["Commitments.Commitment", "System.ExtrinsicSuccess"]);
    chain.produce_blocks(2).await.unwrap();
    client.follow("Carol", &set_commitment(&[&second])).await.unwrap();

    let entry = || dynamic::storage::<Vec<Value>, Value>("Commitments", "CommitmentOf");
    let keys = || vec![Value::u128(NETUID.into()), Value::from_bytes(public("Carol"))];
    for (block, expected) in
        [(0, None), (1, Some((1, first))), (3, Some((1, first))), (4, Some((4, &second[..])))]
    {
        let hash = H256(chain.block_hash(block).await.unwrap().unwrap());
        let at = client.api.at_block(hash).await.unwrap();
        let value = at.storage().try_fetch(entry(), keys()).await.unwrap();
        let read = value.map(|v| v.decode().unwrap().to_string());
        match expected {
            None => assert_eq!(read, None),
            Some((made, data)) => {
                let read = read.unwrap();
                assert!(read.contains(&format!("block: {made}")), "{read}");
                assert!(read.contains(&format!("Raw{}", data.len())), "{read}");
            }
        }
        let known = chain.commitment(public("Carol"), Some(block)).await.unwrap();
        let known = known.map(|c| (c.block, c.data));
        assert_eq!(known, expected.map(|(made, data)| (made, data.to_vec())));
    }
}

#[tokio::test]
async fn commitments_have_a_budget_per_epoch_and_a_limit_on_fields() {
    let mut genesis = genesis();
    genesis.commitment_space = 300;
    genesis.tempo = 10;
    let (chain, client) = start(genesis).await;
    let small = set_commitment(&[b"at least 100"]);
    for _ in 0..3 {
        client.follow("Carol", &small).await.unwrap();
    }
    let error = client.follow("Carol", &small).await.unwrap_err();
    assert!(error.contains("SpaceLimitExceeded"), "{error}");
    client.follow("Dave", &small).await.unwrap();
    chain.produce_blocks(5).await.unwrap();
    client.follow("Carol", &small).await.unwrap();

    let fields = set_commitment(&[b"1", b"2", b"3", b"4", b"5"]);
    let error = client.follow("Dave", &fields).await.unwrap_err();
    assert!(error.contains("TooManyFieldsInCommitmentInfo"), "{error}");
    let error = client.follow("Stranger", &small).await.unwrap_err();
    assert!(error.contains("AccountNotAllowedCommit"), "{error}");
}

#[tokio::test]
async fn an_axon_is_served_and_served_again_only_after_its_limit() {
    let mut genesis = genesis();
    genesis.serving_rate_limit = 4;
    let (chain, client) = start(genesis).await;
    let call = serve_axon(0x0102_0304, 8091, 4);
    let events = client.follow("Carol", &call).await.unwrap();
    assert_eq!(events, ["SubtensorModule.AxonServed", "System.ExtrinsicSuccess"]);
    let served = chain.axon(public("Carol")).await.unwrap();
    assert_eq!(served, Some(([1, 2, 3, 4], 8091).into()));
    let refused = client.send("Carol", &call).await.unwrap_err();
    assert_eq!(refused, Refused(1010, "Custom error: 12".to_owned()));
    chain.produce_blocks(3).await.unwrap();
    client.follow("Carol", &call).await.unwrap();
}

#[tokio::test]
async fn loopback_axons_are_refused_unless_the_genesis_allows_them() {
    let loopback = serve_axon(0x7f00_0001, 8091, 4);
    let (_chain, client) = start(genesis()).await;
    let refused = client.send("Carol", &loopback).await.unwrap_err();
    assert_eq!(refused, Refused(1010, "Custom error: 11".to_owned()));
    let mut genesis = genesis();
    genesis.allow_loopback_axons = true;
    let (chain, client) = start(genesis).await;
    client.follow("Carol", &loopback).await.unwrap();
    let served = chain.axon(public("Carol")).await.unwrap();
    assert_eq!(served, Some(([127, 0, 0, 1], 8091).into()));
}

#[tokio::test]
async fn several_extrinsics_of_one_key_enter_one_block_in_order() {
    let mut genesis = genesis();
    genesis.production = Production::Manual;
    let (chain, client) = start(genesis).await;
    for nonce in 0..3u8 {
        let call = set_commitment(&[&[nonce]]);
        let bytes = client.signed("Carol", &call, immortal(nonce.into())).await;
        client.submit(&bytes).await.unwrap();
    }
    let head = chain.produce_block().await.unwrap();
    let journal = chain.extrinsics().await.unwrap();
    let told: Vec<_> = journal.iter().map(|x| (x.block, x.block_hash, x.nonce)).collect();
    assert_eq!(told, [(1, head.hash, 0), (1, head.hash, 1), (1, head.hash, 2)]);
    let data = chain.commitment(public("Carol"), None).await.unwrap().unwrap().data;
    assert_eq!(data, [2]);
    let at = client.at().await;
    let extrinsics = at.extrinsics().fetch().await.unwrap();
    assert_eq!(extrinsics.iter().count(), 4, "the timestamp comes first");
}

#[tokio::test]
async fn an_extrinsic_that_the_block_itself_made_invalid_is_dropped_from_it() {
    let mut genesis = genesis();
    genesis.production = Production::Manual;
    let (chain, client) = start(genesis).await;
    let mut tx = client.api.tx().await.unwrap();
    let call = set_weights(&[2], &[1], 0);
    let first = tx.create_signed(&call, &key("Alice"), immortal(0)).await.unwrap();
    let second = tx.create_signed(&call, &key("Alice"), immortal(1)).await.unwrap();
    first.submit().await.unwrap();
    let progress = second.submit_and_watch().await.unwrap();
    chain.produce_block().await.unwrap();
    let error = within(progress.wait_for_finalized_success()).await.unwrap_err().to_string();
    assert!(error.contains("not valid"), "{error}");
    assert_eq!(chain.extrinsics().await.unwrap().len(), 1);
    let bytes = second.into_encoded();
    let refused = client.submit(&bytes).await.unwrap_err();
    assert_eq!(refused.0, 1012, "{refused:?}");
}

#[tokio::test]
async fn calls_that_the_chain_does_not_carry_out_are_included_and_fail() {
    let (chain, client) = start(genesis()).await;
    let error = client.follow("Alice", &remark(b"hello")).await.unwrap_err();
    assert!(error.contains("CallFiltered"), "{error}");
    assert_eq!(chain.extrinsics().await.unwrap()[0].name(), "System.remark");
}

#[tokio::test]
async fn an_epoch_turns_weights_into_incentives() {
    let mut genesis = genesis();
    genesis.tempo = 10;
    let (chain, client) = start(genesis).await;
    client.follow("Alice", &set_weights(&[2], &[1], 0)).await.unwrap();
    client.follow("Bob", &set_weights(&[2, 3], &[1, 1], 0)).await.unwrap();
    chain.produce_blocks(8).await.unwrap();
    let row = async |entry| {
        let entry = dynamic::storage::<Vec<Value>, Vec<u16>>("SubtensorModule", entry);
        let at = client.at().await;
        let value = at.storage().fetch(entry, vec![Value::u128(NETUID.into())]).await;
        value.unwrap().decode().unwrap()
    };
    // Alice has three quarters of the stake and gives all to Carol; Bob gives half to each.
    assert_eq!(row("Incentive").await, [0, 0, 57343, 8191]);
    assert_eq!(row("Dividends").await, [49151, 16383, 0, 0]);
}
