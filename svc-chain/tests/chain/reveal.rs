//! Weights on a subnet with commit-reveal on: committed once, known later, and what goes wrong.

use std::time::Duration;

use devchain::{DevChain, Genesis, Production};
use proto::chain::v1::{self, IntentState};
use store::Store;
use svc_chain::{Config, Preference};
use tokio::time::sleep;

use crate::rig::{self, Running};

/// Commit-reveal on, an epoch every ten blocks, no rate limit in the way. Blocks are made by hand:
/// each is twelve seconds of the chain's time, as on the live chain, so that rounds of the beacon
/// are shorter than epochs.
fn genesis() -> Genesis {
    Genesis {
        commit_reveal: true,
        tempo: 10,
        rate_limit: 0,
        finality_lag: 1,
        production: Production::Manual,
        ..rig::genesis()
    }
}

/// A chain that is old enough for its block time to be measured.
async fn start(genesis: Genesis) -> DevChain {
    let chain = rig::start(genesis).await;
    chain.produce_blocks(3).await.unwrap();
    let hand = chain.clone();
    tokio::spawn(async move {
        // Until the chain is stopped, with the test's last handle or before.
        while hand.produce_block().await.is_ok() {
            sleep(Duration::from_millis(100)).await;
        }
    });
    chain
}

fn by_hash(chain: &DevChain) -> Config {
    Config { commit_reveal: Preference::HashCommit, ..rig::config(chain) }
}

fn reveal_of(round: u64) -> Option<v1::IntentKey> {
    Some(v1::IntentKey { round, kind: "reveal".to_owned() })
}

/// The calls of the journal, oldest first; none of them failed.
async fn calls(chain: &DevChain) -> Vec<String> {
    let journal = chain.extrinsics().await.unwrap();
    assert!(journal.iter().all(|included| included.error.is_none()), "{journal:?}");
    journal.into_iter().map(|included| included.call).collect()
}

async fn rows_at(service: &mut Running, block: u64) -> Vec<v1::WeightRow> {
    let request = v1::GetWeightsRequest { at: rig::at_number(block) };
    service.client.get_weights(request).await.unwrap().into_inner().rows
}

#[tokio::test]
async fn weights_committed_by_hash_are_revealed_in_their_epoch_and_once() {
    for refuse_early in [true, false] {
        let chain = start(Genesis { refuse_early, ..genesis() }).await;
        let mut service = Running::start(by_hash(&chain), &Store::in_memory()).await;
        let request = rig::weights(7, &[(1, 0.25), (2, 0.75)]);
        let committed = rig::carried_out(&mut service.client, request).await;
        assert_eq!(committed.state(), IntentState::Done, "{committed:?}");
        assert_eq!(committed.mode, "hash_commit");
        assert!(rows_at(&mut service, committed.block).await.is_empty(), "nobody knows them yet");
        let revealed = rig::finished(&mut service.client, reveal_of(7)).await;
        assert_eq!(revealed.state(), IntentState::Done, "{revealed:?}");
        assert!(revealed.block > committed.block, "{revealed:?}");
        assert_eq!(chain.weights(0).await.unwrap(), [(1, 21845), (2, 65535)]);
        assert_eq!(calls(&chain).await, ["commit_mechanism_weights", "reveal_mechanism_weights"]);
        service.stop().await;
    }
}

#[tokio::test]
async fn timelocked_weights_are_opened_by_the_chain_with_the_beacons_signature() {
    let chain = start(genesis()).await;
    let mut service = Running::start(rig::config(&chain), &Store::in_memory()).await;
    let request = rig::weights(7, &[(1, 0.25), (2, 0.75)]);
    let committed = rig::carried_out(&mut service.client, request).await;
    assert_eq!(committed.state(), IntentState::Done, "{committed:?}");
    assert_eq!(committed.mode, "timelock");
    assert!(rows_at(&mut service, committed.block).await.is_empty(), "nobody knows them yet");
    let known = rig::finished(&mut service.client, reveal_of(7)).await;
    assert_eq!((known.state(), known.attempts), (IntentState::Done, 0), "{known:?}");
    assert_eq!(chain.weights(0).await.unwrap(), [(1, 21845), (2, 65535)]);
    assert_eq!(calls(&chain).await, ["commit_timelocked_mechanism_weights"]);
    service.stop().await;
}

#[tokio::test]
async fn every_round_is_committed_and_revealed_in_its_order() {
    for config in [by_hash as fn(&DevChain) -> Config, rig::config] {
        let chain = start(genesis()).await;
        let mut service = Running::start(config(&chain), &Store::in_memory()).await;
        for (round, uid) in [(1, 1), (2, 2), (3, 1)] {
            let request = rig::weights(round, &[(uid, 1.0)]);
            let committed = rig::carried_out(&mut service.client, request).await;
            assert_eq!(committed.state(), IntentState::Done, "{committed:?}");
            let known = rig::finished(&mut service.client, reveal_of(round)).await;
            assert_eq!(known.state(), IntentState::Done, "{known:?}");
            assert_eq!(chain.weights(0).await.unwrap(), [(u16::try_from(uid).unwrap(), 65535)]);
        }
        service.stop().await;
    }
}

#[tokio::test]
async fn a_version_that_this_service_does_not_make_is_committed_by_hash_or_refused() {
    let chain = start(Genesis { commit_reveal_version: 5, ..genesis() }).await;
    let mut service = Running::start(rig::config(&chain), &Store::in_memory()).await;
    let committed = rig::carried_out(&mut service.client, rig::weights(1, &[(1, 1.0)])).await;
    assert_eq!((committed.state(), committed.mode.as_str()), (IntentState::Done, "hash_commit"));
    service.stop().await;

    let config = Config { commit_reveal: Preference::Timelock, ..rig::config(&chain) };
    let mut service = Running::start(config, &Store::in_memory()).await;
    let refused = rig::carried_out(&mut service.client, rig::weights(2, &[(1, 1.0)])).await;
    assert_eq!(refused.reason, "no_commit_reveal", "{refused:?}");
    assert!(refused.detail.contains("version 5"), "{refused:?}");
    service.stop().await;
}

#[tokio::test]
async fn weights_that_the_beacon_leaves_sealed_are_told_to_be_missed() {
    let chain = start(genesis()).await;
    chain.set_pulses(false).await.unwrap();
    let mut service = Running::start(rig::config(&chain), &Store::in_memory()).await;
    let committed = rig::carried_out(&mut service.client, rig::weights(7, &[(1, 1.0)])).await;
    assert_eq!(committed.state(), IntentState::Done, "{committed:?}");
    let missed = rig::finished(&mut service.client, reveal_of(7)).await;
    let found = (missed.state(), missed.reason.as_str());
    assert_eq!(found, (IntentState::Failed, "reveal_missed"), "{missed:?}");
    assert!(chain.weights(0).await.unwrap().is_empty());
    let status = service.client.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner();
    let told: Vec<_> = status.degradations.iter().map(|told| told.kind.as_str()).collect();
    assert_eq!(told, ["reveal_skipped"], "{status:?}");
    assert!(status.nonce_owner && status.open_intents == 0, "{status:?}");
    assert_eq!(status.weights_mode, "timelock");
    service.stop().await;
}

#[tokio::test]
async fn a_reveal_that_nobody_was_there_for_is_told_to_be_missed() {
    let chain = start(genesis()).await;
    let store = Store::in_memory();
    let mut service = Running::start(by_hash(&chain), &store).await;
    let committed = rig::carried_out(&mut service.client, rig::weights(7, &[(1, 1.0)])).await;
    service.stop().await;
    chain.wait_for_block(u32::try_from(committed.block).unwrap() + 40).await.unwrap();
    let mut service = Running::start(by_hash(&chain), &store).await;
    let missed = rig::finished(&mut service.client, reveal_of(7)).await;
    let found = (missed.state(), missed.reason.as_str());
    assert_eq!(found, (IntentState::Failed, "reveal_missed"), "{missed:?}");
    assert_eq!(calls(&chain).await, ["commit_mechanism_weights"]);
    service.stop().await;
}

#[tokio::test]
async fn weights_follow_the_setting_when_commit_reveal_is_switched() {
    let chain = start(genesis()).await;
    let mut service = Running::start(by_hash(&chain), &Store::in_memory()).await;
    let committed = rig::carried_out(&mut service.client, rig::weights(1, &[(1, 1.0)])).await;
    assert_eq!(committed.mode, "hash_commit");
    chain.set_commit_reveal(false).await.unwrap();
    let head = chain.head().await.unwrap();
    chain.wait_for_block(head.number + 2).await.unwrap();
    let plain = rig::carried_out(&mut service.client, rig::weights(2, &[(2, 1.0)])).await;
    assert_eq!((plain.state(), plain.mode.as_str()), (IntentState::Done, "plain"), "{plain:?}");
    let old = rig::finished(&mut service.client, reveal_of(1)).await;
    assert_eq!(old.state(), IntentState::Failed, "{old:?}");
    assert_eq!(chain.weights(0).await.unwrap(), [(2, 65535)], "the newer ones stay");
    chain.set_commit_reveal(true).await.unwrap();
    let head = chain.head().await.unwrap();
    chain.wait_for_block(head.number + 2).await.unwrap();
    let again = rig::carried_out(&mut service.client, rig::weights(3, &[(1, 1.0)])).await;
    assert_eq!((again.state(), again.mode.as_str()), (IntentState::Done, "hash_commit"));
    service.stop().await;
}

#[tokio::test]
async fn a_service_that_dies_again_and_again_commits_once_and_reveals_once() {
    let chain = start(genesis()).await;
    let store = Store::in_memory();
    let config = || Config { lease_ttl: Duration::from_millis(200), ..by_hash(&chain) };
    let request = rig::weights(7, &[(1, 1.0)]);
    let mut service = Running::start(config(), &store).await;
    service.client.submit_intent(request).await.unwrap();
    for delay in [230, 290, 340, 410, 470, 330, 520] {
        sleep(Duration::from_millis(delay)).await;
        service.kill();
        service = Running::start(config(), &store).await;
    }
    let key = Some(v1::IntentKey { round: 7, kind: "weights".to_owned() });
    let committed = rig::finished(&mut service.client, key).await;
    assert_eq!(committed.state(), IntentState::Done, "{committed:?}");
    let revealed = rig::finished(&mut service.client, reveal_of(7)).await;
    assert_eq!(revealed.state(), IntentState::Done, "{revealed:?}");
    assert_eq!(calls(&chain).await, ["commit_mechanism_weights", "reveal_mechanism_weights"]);
    service.stop().await;
}

#[tokio::test]
async fn the_stale_guard_is_told_apart_and_never_overtakes_a_rounds_own_weights() {
    let chain = start(Genesis { commit_reveal: false, rate_limit: 25, ..genesis() }).await;
    let mut service = Running::start(rig::config(&chain), &Store::in_memory()).await;
    let guard = |round, uid| {
        let mut request = rig::weights(round, &[(uid, 1.0)]);
        if let Some(v1::submit_intent_request::Payload::Weights(weights)) = &mut request.payload {
            weights.stale_guard = true;
        }
        request
    };
    let first = rig::carried_out(&mut service.client, guard(1, 1)).await;
    assert!(first.stale_guard && first.state() == IntentState::Done, "{first:?}");
    // Its own weights wait for the rate limit.
    let own = rig::weights(2, &[(2, 1.0)]);
    let recorded = service.client.submit_intent(own.clone()).await.unwrap().into_inner();
    assert!(!recorded.stale_guard);
    let refused = service.client.submit_intent(guard(3, 1)).await.unwrap_err();
    assert!(refused.message().starts_with("guarded"), "{refused:?}");
    let own = rig::finished(&mut service.client, own.key).await;
    assert_eq!(own.state(), IntentState::Done, "{own:?}");
    assert_eq!(chain.weights(0).await.unwrap(), [(2, 65535)]);
    service.stop().await;
}
