//! Reads at named blocks, and the stream of blocks.

use std::time::Duration;

use devchain::{Genesis, GenesisNeuron};
use futures::StreamExt as _;
use kit::Shutdown;
use proto::chain::v1;
use store::Store;
use svc_chain::{Config, Follow};
use tokio::time::timeout;
use tonic::Code;

use crate::rig::{self, PATIENCE, RAO, Running};

#[tokio::test]
async fn the_identity_is_the_wallets_key_on_this_chain() {
    let chain = rig::start(rig::genesis()).await;
    let mut service = Running::start(rig::config(&chain), &Store::in_memory()).await;
    let identity =
        service.client.get_identity(v1::GetIdentityRequest {}).await.unwrap().into_inner();
    assert_eq!(identity.hotkey, "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY");
    assert_eq!(identity.uid, Some(0));
    assert_eq!(identity.netuid, 102);
    assert_eq!(identity.genesis_hash, chain.genesis_hash().to_vec());
    assert_eq!(identity.spec_version, 365);
    service.stop().await;
}

#[tokio::test]
async fn a_chain_with_another_genesis_is_refused_by_name() {
    let chain = rig::start(rig::genesis()).await;
    let genesis_hash = Some(format!("0x{}", "ab".repeat(32)));
    let config = Config { genesis_hash, ..rig::config(&chain) };
    let error = Running::launch(config, &Store::in_memory()).await.ends().await.unwrap_err();
    let error = format!("{error:#}");
    assert!(error.contains(&"ab".repeat(32)), "{error}");
    assert!(error.contains(&hex::encode(chain.genesis_hash())), "{error}");
}

#[tokio::test]
async fn an_endpoint_that_is_down_is_passed_over_and_a_chain_that_is_down_is_waited_for() {
    let chain = rig::start(rig::genesis()).await;
    chain.set_offline(true);
    let dead = format!("ws://{}", testkit::unused_addr().unwrap());
    let config = Config { endpoints: vec![dead, chain.url()], ..rig::config(&chain) };
    let mut service = Running::launch(config, &Store::in_memory()).await;
    let refused = service.client.get_identity(v1::GetIdentityRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    // What needs no chain works all the same.
    let purpose = v1::sign_request::Purpose::RecordDigest(vec![1; 32].into());
    let signed = service.client.sign(v1::SignRequest { purpose: Some(purpose) }).await.unwrap();
    assert_eq!(signed.into_inner().signature.len(), 64);
    chain.set_offline(false);
    let up = async {
        while service.client.get_identity(v1::GetIdentityRequest {}).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, up).await.expect("it connects once the chain is there");
}

#[tokio::test]
async fn the_metagraph_is_the_subnets_at_the_block_that_was_asked() {
    let mut genesis = rig::genesis();
    genesis.neurons[2].axon = Some("8.8.8.8:8091".parse().unwrap());
    genesis.min_allowed_weights = 2;
    genesis.weights_version = 7;
    let chain = rig::start(genesis).await;
    let mut service = Running::start(rig::config(&chain), &Store::in_memory()).await;
    let before = chain.wait_for_block(2).await.unwrap();
    chain.set_stake(1, 77 * RAO).await.unwrap();
    chain.register(GenesisNeuron::miner([9; 32])).await.unwrap();
    let after = chain.wait_for_block(before.number + 3).await.unwrap();

    let old = v1::GetMetagraphRequest { at: rig::at_hash(&before.hash) };
    let old = service.client.get_metagraph(old).await.unwrap().into_inner();
    assert_eq!((old.block, &old.block_hash[..]), (before.number.into(), &before.hash[..]));
    assert_eq!(old.neurons.len(), 3);
    assert_eq!(old.neurons[0].stake, 1000 * RAO);
    assert_eq!(old.neurons[1].stake, 500 * RAO);
    assert!(old.neurons[0].validator_permit && !old.neurons[2].validator_permit);
    assert_eq!(old.neurons[2].hotkey, "5FLSigC9HGRKVhB9FiEo4Y3koPsNmBmLJbpXg2mp1hXcS59Y");
    assert_eq!(old.neurons[2].axon, "8.8.8.8:8091");
    assert_eq!(old.neurons[0].axon, "");
    assert_eq!(old.weights_rate_limit, 100);
    assert_eq!((old.min_allowed_weights, old.weights_version), (2, 7));
    assert!(!old.commit_reveal);

    let new = v1::GetMetagraphRequest { at: rig::at_number(after.number.into()) };
    let new = service.client.get_metagraph(new).await.unwrap().into_inner();
    assert_eq!(new.block_hash, after.hash.to_vec());
    assert_eq!(new.neurons.len(), 4);
    assert_eq!(new.neurons[1].stake, 77 * RAO);
    service.stop().await;
}

#[tokio::test]
async fn a_commitment_is_read_as_of_a_past_block_and_not_as_it_stands_now() {
    let chain = rig::start(rig::genesis()).await;
    let mut service = Running::start(rig::config(&chain), &Store::in_memory()).await;
    let first = rig::commitment(1, "seed", r#"{"h":"aa","s":1}"#);
    let first = rig::carried_out(&mut service.client, first).await;
    let second = rig::commitment(1, "signed_hash", r#"{"m":"bb"}"#);
    let second = rig::carried_out(&mut service.client, second).await;
    assert_eq!(second.state(), v1::IntentState::Done);
    for (block, data) in
        [(first.block, &br#"{"h":"aa","s":1}"#[..]), (second.block, br#"{"m":"bb"}"#)]
    {
        let request = v1::GetCommitmentsRequest { at: rig::at_number(block), agreed: false };
        let answer = service.client.get_commitments(request).await.unwrap().into_inner();
        assert_eq!(answer.commitments.len(), 1);
        assert_eq!(answer.commitments[0].data, data, "as of {block}");
        assert_eq!(answer.commitments[0].block, block);
    }
    let request = v1::GetCommitmentsRequest { at: rig::at_number(first.block - 1), agreed: false };
    let answer = service.client.get_commitments(request).await.unwrap().into_inner();
    assert!(answer.commitments.is_empty());
    service.stop().await;
}

#[tokio::test]
async fn a_block_that_is_not_there_or_no_longer_is_never_replaced_by_the_head() {
    let chain = rig::start(Genesis { keep_states: Some(5), ..rig::genesis() }).await;
    let mut service = Running::start(rig::config(&chain), &Store::in_memory()).await;
    chain.wait_for_block(20).await.unwrap();
    let of = |at| v1::GetMetagraphRequest { at };
    let future = service.client.get_metagraph(of(rig::at_number(100_000))).await.unwrap_err();
    assert_eq!(future.code(), Code::NotFound, "{future:?}");
    let foreign = service.client.get_metagraph(of(rig::at_hash(&[7; 32]))).await.unwrap_err();
    assert_eq!(foreign.code(), Code::NotFound, "{foreign:?}");
    let gone = service.client.get_metagraph(of(rig::at_number(2))).await.unwrap_err();
    assert_eq!(gone.code(), Code::FailedPrecondition, "{gone:?}");
    assert!(gone.message().starts_with("state_discarded"), "{gone:?}");
    let request = v1::GetWeightsRequest { at: rig::at_number(2) };
    let gone = service.client.get_weights(request).await.unwrap_err();
    assert!(gone.message().starts_with("state_discarded"), "{gone:?}");
    let nothing = service.client.get_metagraph(of(None)).await.unwrap_err();
    assert_eq!(nothing.code(), Code::InvalidArgument, "{nothing:?}");
    service.stop().await;
}

/// Takes `count` blocks and checks that they are a chain.
async fn linked_blocks(service: &mut Running, count: usize) -> Vec<v1::Block> {
    let request = v1::WatchBlocksRequest::default();
    let stream = service.client.watch_blocks(request).await.unwrap().into_inner();
    let block = |event: Result<v1::ChainEvent, _>| match event.unwrap().event {
        Some(v1::chain_event::Event::Block(block)) => block,
        other => panic!("{other:?}"),
    };
    let take = stream.take(count).map(block).collect::<Vec<_>>();
    let blocks = timeout(PATIENCE, take).await.unwrap();
    for pair in blocks.windows(2) {
        assert_eq!(pair[1].number, pair[0].number + 1);
        assert_eq!(pair[1].parent_hash, pair[0].hash, "block {}", pair[1].number);
    }
    blocks
}

#[tokio::test]
async fn blocks_come_in_order_and_without_gaps_when_connections_break() {
    let chain = rig::start(rig::genesis()).await;
    let mut service = Running::start(rig::config(&chain), &Store::in_memory()).await;
    let breaking = chain.clone();
    let broken = Shutdown::default();
    let breaker = broken.spawn(async move {
        for round in 0..4 {
            tokio::time::sleep(Duration::from_millis(350)).await;
            breaking.drop_connections();
            if round == 1 {
                breaking.set_offline(true);
                tokio::time::sleep(Duration::from_millis(700)).await;
                breaking.set_offline(false);
            }
        }
    });
    let blocks = linked_blocks(&mut service, 40).await;
    breaker.await.unwrap();
    for block in &blocks {
        let number = u32::try_from(block.number).unwrap();
        assert_eq!(chain.block_hash(number).await.unwrap().unwrap().to_vec(), block.hash);
    }
    service.stop().await;
}

#[tokio::test]
async fn final_blocks_can_be_followed_instead_of_the_best() {
    let chain = rig::start(Genesis { finality_lag: 3, ..rig::genesis() }).await;
    let config = Config { follow: Follow::Finalized, ..rig::config(&chain) };
    let mut service = Running::start(config, &Store::in_memory()).await;
    let blocks = linked_blocks(&mut service, 5).await;
    let finalized = chain.finalized().await.unwrap();
    assert!(blocks[4].number <= finalized.number.into());
    service.stop().await;
}

#[tokio::test]
async fn the_stream_begins_with_the_current_block_and_get_block_agrees() {
    let chain = rig::start(rig::genesis()).await;
    let mut service = Running::start(rig::config(&chain), &Store::in_memory()).await;
    chain.wait_for_block(5).await.unwrap();
    let now = service.client.get_block(v1::GetBlockRequest::default()).await.unwrap();
    let now = now.into_inner().block.unwrap();
    let first = linked_blocks(&mut service, 1).await.remove(0);
    assert!(first.number >= now.number);
    let same = v1::GetBlockRequest { number: Some(now.number), agreed: false };
    let same = service.client.get_block(same).await.unwrap().into_inner();
    assert_eq!(same.block, Some(now));
    let missing = v1::GetBlockRequest { number: Some(1_000_000), agreed: false };
    let missing = service.client.get_block(missing).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
    service.stop().await;
}
