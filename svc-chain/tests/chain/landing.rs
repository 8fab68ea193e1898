//! Extrinsics that are taken away, dropped, outdated or usurped: each intent lands exactly once.

use std::time::Duration;

use devchain::{DevChain, Genesis, Production, Taken};
use proto::chain::v1::{self, IntentState};
use store::Store;
use subxt::{
    OnlineClient, SubstrateConfig, backend::LegacyBackend, config::DefaultExtrinsicParamsBuilder,
    dynamic, rpcs::RpcClient,
};
use subxt_signer::sr25519::dev;
use svc_chain::Config;

use crate::rig::{self, RAO, Running};

const WEIGHTS: &str = "set_mechanism_weights";
const COMMITMENT: &str = "set_commitment";

/// Fast blocks, and some of them that can be taken back.
fn genesis() -> Genesis {
    Genesis {
        production: Production::Interval(Duration::from_millis(60)),
        finality_lag: 8,
        ..rig::genesis()
    }
}

/// A service that takes over at once, and whose extrinsics live for so many blocks.
fn config(chain: &DevChain, mortality: u64) -> Config {
    Config { mortality, lease_ttl: Duration::from_millis(200), ..rig::config(chain) }
}

/// Waits until so many more blocks are made.
async fn blocks(chain: &DevChain, more: u32) {
    let head = chain.head().await.unwrap();
    chain.wait_for_block(head.number + more).await.unwrap();
}

async fn submit(service: &mut Running, request: &v1::SubmitIntentRequest) {
    service.client.submit_intent(request.clone()).await.unwrap();
}

/// Waits until an intent is in a state, and returns it.
async fn is_in(
    service: &mut Running,
    request: &v1::SubmitIntentRequest,
    state: IntentState,
) -> v1::Intent {
    rig::until(&mut service.client, request.key.clone(), |i| i.state() == state).await
}

/// Asserts that the best chain holds these calls once each, without an error, and that they are
/// the extrinsics that their intents name.
async fn landed_once(chain: &DevChain, calls: &[&str], intents: &[&v1::Intent], context: &str) {
    let journal = chain.extrinsics().await.unwrap();
    let mut names: Vec<_> = journal.iter().map(|included| included.call.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, calls, "{context}");
    assert!(journal.iter().all(|included| included.error.is_none()), "{context}: {journal:?}");
    for intent in intents {
        assert_eq!(intent.state(), IntentState::Done, "{context}: {intent:?}");
        let here =
            journal.iter().filter(|included| included.hash.to_vec() == intent.extrinsic_hash);
        let blocks: Vec<_> = here.map(|included| u64::from(included.block)).collect();
        assert_eq!(blocks, [intent.block], "{context}: {intent:?}");
    }
}

#[tokio::test]
async fn an_extrinsic_that_a_reorganisation_takes_away_lands_once_however_it_comes_back() {
    for taken in [Taken::Back, Taken::Later(2), Taken::Later(12), Taken::Lost] {
        for killed in [false, true] {
            let chain = rig::start(genesis()).await;
            let store = Store::in_memory();
            let mut service = Running::start(config(&chain, 32), &store).await;
            let requests = [rig::commitment(7, "seed", "s"), rig::weights(7, &[(2, 1.0)])];
            let mut blocks = Vec::new();
            for request in &requests {
                submit(&mut service, request).await;
                blocks.push(is_in(&mut service, request, IntentState::Included).await.block);
            }
            let context = format!("{taken:?}, killed: {killed}");
            let take_back = async || {
                let head = chain.head().await.unwrap().number;
                let first = u32::try_from(blocks[0]).unwrap();
                chain.reorganise(head - first + 1, taken).await.expect(&context);
            };
            let mut service = if killed {
                service.kill();
                take_back().await;
                Running::start(config(&chain, 32), &store).await
            } else {
                take_back().await;
                service
            };
            let mut done = Vec::new();
            for request in &requests {
                done.push(rig::finished(&mut service.client, request.key.clone()).await);
            }
            // What came back late came in vain.
            self::blocks(&chain, 14).await;
            let done: Vec<_> = done.iter().collect();
            landed_once(&chain, &[COMMITMENT, WEIGHTS], &done, &context).await;
            let mut ever: Vec<_> =
                chain.all_included().await.unwrap().iter().map(|included| included.hash).collect();
            ever.sort_unstable();
            ever.dedup();
            assert_eq!(ever.len(), 2, "{context}: nothing was signed again");
            assert!(done.iter().all(|intent| intent.attempts == 1), "{context}: {done:?}");
            service.stop().await;
        }
    }
}

#[tokio::test]
async fn a_submission_that_is_dropped_in_silence_is_handed_over_again() {
    let chain = rig::start(genesis()).await;
    let mut service = Running::start(config(&chain, 32), &Store::in_memory()).await;
    chain.node().drop_next_submits(2);
    let intent = rig::carried_out(&mut service.client, rig::weights(7, &[(2, 1.0)])).await;
    assert_eq!(intent.attempts, 1, "the same bytes: {intent:?}");
    landed_once(&chain, &[WEIGHTS], &[&intent], "dropped twice").await;
    service.stop().await;
}

#[tokio::test]
async fn an_extrinsic_that_no_block_takes_in_its_life_is_replaced_once_that_is_over() {
    for killed in [false, true] {
        let chain = rig::start(genesis()).await;
        let store = Store::in_memory();
        let mut service = Running::start(config(&chain, 16), &store).await;
        chain.hold_pool(true).await.unwrap();
        let request = rig::weights(7, &[(2, 1.0)]);
        submit(&mut service, &request).await;
        let first = is_in(&mut service, &request, IntentState::Submitted).await;
        if killed {
            service.kill();
            service = Running::start(config(&chain, 16), &store).await;
        }
        let key = request.key.clone();
        let second = rig::until(&mut service.client, key.clone(), |i| i.attempts == 2).await;
        assert_eq!(second.reason, "expired", "{second:?}");
        let birth_of_second = chain.head().await.unwrap().number;
        assert!(u64::from(birth_of_second) >= 16, "not before its life was over");
        chain.hold_pool(false).await.unwrap();
        let intent = rig::finished(&mut service.client, key).await;
        assert_ne!(intent.extrinsic_hash, first.extrinsic_hash);
        landed_once(&chain, &[WEIGHTS], &[&intent], "held").await;
        service.stop().await;
    }
}

#[tokio::test]
async fn a_full_pool_is_tried_again_and_one_that_stays_full_is_named() {
    let chain = rig::start(genesis()).await;
    let mut service = Running::start(config(&chain, 32), &Store::in_memory()).await;
    chain.set_pool_limit(0).await.unwrap();
    let request = rig::weights(7, &[(2, 1.0)]);
    submit(&mut service, &request).await;
    let key = request.key.clone();
    let waits = rig::until(&mut service.client, key.clone(), |i| i.attempts == 2).await;
    assert_eq!(waits.reason, "pool_full", "{waits:?}");
    chain.set_pool_limit(100).await.unwrap();
    let intent = rig::finished(&mut service.client, key).await;
    landed_once(&chain, &[WEIGHTS], &[&intent], "full for a while").await;

    chain.set_pool_limit(0).await.unwrap();
    let never = rig::carried_out(&mut service.client, rig::commitment(8, "seed", "s")).await;
    let found = (never.state(), never.reason.as_str(), never.attempts);
    assert_eq!(found, (IntentState::Failed, "pool_full", 6), "{never:?}");
    chain.set_pool_limit(100).await.unwrap();
    blocks(&chain, 8).await;
    landed_once(&chain, &[WEIGHTS], &[&intent], "full for good").await;
    service.stop().await;
}

#[tokio::test]
async fn an_extrinsic_that_the_pool_threw_out_and_banned_is_replaced_after_its_life() {
    let chain = rig::start(Genesis { stake_threshold: 10 * RAO, ..genesis() }).await;
    let mut service = Running::start(config(&chain, 16), &Store::in_memory()).await;
    chain.hold_pool(true).await.unwrap();
    let request = rig::weights(7, &[(2, 1.0)]);
    submit(&mut service, &request).await;
    let first = is_in(&mut service, &request, IntentState::Submitted).await;
    chain.set_stake(0, 0).await.unwrap();
    blocks(&chain, 2).await;
    chain.set_stake(0, 1000 * RAO).await.unwrap();
    blocks(&chain, 2).await;
    chain.hold_pool(false).await.unwrap();
    let intent = rig::finished(&mut service.client, request.key.clone()).await;
    assert_eq!((intent.attempts, intent.reason.as_str()), (2, "expired"), "{intent:?}");
    assert_ne!(intent.extrinsic_hash, first.extrinsic_hash);
    landed_once(&chain, &[WEIGHTS], &[&intent], "banned").await;
    service.stop().await;
}

/// Signs a remark with Alice's key, and sends it for a nonce and a tip.
async fn outside(chain: &DevChain, nonce: u64, tip: u128) {
    let rpc = RpcClient::from_insecure_url(&chain.url()).await.unwrap();
    let backend = LegacyBackend::builder().build(rpc);
    let api: OnlineClient<SubstrateConfig> =
        OnlineClient::from_backend(std::sync::Arc::new(backend)).await.unwrap();
    let remark = dynamic::transaction("System", "remark", vec![dynamic::Value::from_bytes([1])]);
    let parameters = DefaultExtrinsicParamsBuilder::new().immortal().nonce(nonce).tip(tip).build();
    let mut client = api.tx().await.unwrap();
    client.sign_and_submit(&remark, &dev::alice(), parameters).await.unwrap();
}

#[tokio::test]
async fn an_extrinsic_whose_nonce_another_tool_takes_is_replaced_and_lands_once() {
    for killed in [false, true] {
        let chain = rig::start(genesis()).await;
        let store = Store::in_memory();
        let mut service = Running::start(config(&chain, 32), &store).await;
        chain.hold_pool(true).await.unwrap();
        let request = rig::weights(7, &[(2, 1.0)]);
        submit(&mut service, &request).await;
        let first = is_in(&mut service, &request, IntentState::Submitted).await;
        let usurp = async || {
            outside(&chain, 0, 1_000).await;
            chain.hold_pool(false).await.unwrap();
        };
        let mut service = if killed {
            service.kill();
            usurp().await;
            Running::start(config(&chain, 32), &store).await
        } else {
            usurp().await;
            service
        };
        let intent = rig::finished(&mut service.client, request.key.clone()).await;
        assert_eq!((intent.state(), intent.attempts), (IntentState::Done, 2), "{intent:?}");
        assert_eq!(intent.reason, "usurped");
        assert_ne!(intent.extrinsic_hash, first.extrinsic_hash);
        let journal = chain.extrinsics().await.unwrap();
        let found: Vec<_> = journal.iter().map(|x| (x.nonce, x.call.as_str())).collect();
        assert_eq!(found, [(0, "remark"), (1, WEIGHTS)]);
        service.stop().await;
    }
}

#[tokio::test]
async fn while_finality_stalls_extrinsics_land_and_are_final_later() {
    let chain = rig::start(genesis()).await;
    let mut service = Running::start(config(&chain, 16), &Store::in_memory()).await;
    let before = rig::weights(7, &[(2, 1.0)]);
    submit(&mut service, &before).await;
    is_in(&mut service, &before, IntentState::Included).await;
    chain.set_finality_paused(true).await.unwrap();
    // More blocks than an extrinsic lives.
    blocks(&chain, 24).await;
    let meanwhile = rig::commitment(7, "seed", "s");
    submit(&mut service, &meanwhile).await;
    let included = is_in(&mut service, &meanwhile, IntentState::Included).await;
    assert_eq!((included.attempts, included.reason.as_str()), (1, ""), "{included:?}");
    is_in(&mut service, &before, IntentState::Included).await;
    blocks(&chain, 6).await;
    chain.set_finality_paused(false).await.unwrap();
    let mut done = Vec::new();
    for request in [&before, &meanwhile] {
        done.push(rig::finished(&mut service.client, request.key.clone()).await);
    }
    let done: Vec<_> = done.iter().collect();
    assert!(done.iter().all(|intent| intent.attempts == 1), "{done:?}");
    landed_once(&chain, &[COMMITMENT, WEIGHTS], &done, "stalled").await;
    service.stop().await;
}

#[tokio::test]
async fn what_was_born_in_a_stall_and_is_taken_away_is_void_and_lands_once_in_the_end() {
    let chain = rig::start(genesis()).await;
    let mut service = Running::start(config(&chain, 16), &Store::in_memory()).await;
    blocks(&chain, 10).await;
    chain.set_finality_paused(true).await.unwrap();
    blocks(&chain, 24).await;
    let request = rig::weights(7, &[(2, 1.0)]);
    submit(&mut service, &request).await;
    is_in(&mut service, &request, IntentState::Included).await;
    chain.reorganise(20, Taken::Back).await.unwrap();
    blocks(&chain, 4).await;
    assert!(chain.extrinsics().await.unwrap().is_empty(), "it was bound to the abandoned branch");
    chain.set_finality_paused(false).await.unwrap();
    let intent = rig::finished(&mut service.client, request.key.clone()).await;
    assert_eq!((intent.attempts, intent.reason.as_str()), (2, "expired"), "{intent:?}");
    landed_once(&chain, &[WEIGHTS], &[&intent], "void").await;
    service.stop().await;
}
