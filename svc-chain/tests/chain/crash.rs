//! What a crash costs: nothing but time.

use std::time::Duration;

use devchain::{Genesis, Production};
use proto::chain::v1::{self, IntentState};
use store::Store;
use tokio::time::sleep;

use crate::rig::{self, Running};

/// Asserts that the journal holds exactly one successful extrinsic of each call.
async fn exactly_one_each(chain: &devchain::DevChain, calls: &[&str], context: &str) {
    let journal = chain.extrinsics().await.unwrap();
    let mut names: Vec<_> = journal.iter().map(|included| included.call.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, calls, "{context}");
    assert!(journal.iter().all(|included| included.error.is_none()), "{context}: {journal:?}");
}

#[tokio::test]
async fn a_crash_between_any_two_states_doubles_nothing_and_loses_nothing() {
    for (case, delay) in [0_u64, 15, 40, 80, 120, 170, 230, 300].into_iter().enumerate() {
        let chain = rig::start(Genesis { finality_lag: 2, ..rig::genesis() }).await;
        let store = Store::in_memory();
        let mut service = Running::start(rig::config(&chain), &store).await;
        let requests = [rig::commitment(7, "seed", "{\"h\":1}"), rig::weights(7, &[(2, 1.0)])];
        for request in requests.clone() {
            service.client.submit_intent(request).await.unwrap();
        }
        sleep(Duration::from_millis(delay)).await;
        service.kill();

        let mut service = Running::start(rig::config(&chain), &store).await;
        for request in requests {
            let intent = rig::carried_out(&mut service.client, request).await;
            assert_eq!(intent.state(), IntentState::Done, "case {case}: {intent:?}");
        }
        let context = format!("killed after {delay} ms");
        exactly_one_each(&chain, &["set_commitment", "set_mechanism_weights"], &context).await;
        service.stop().await;
    }
}

#[tokio::test]
async fn a_service_that_dies_again_and_again_gets_its_intents_done_once() {
    let chain = rig::start(Genesis { finality_lag: 3, ..rig::genesis() }).await;
    let store = Store::in_memory();
    let config =
        || svc_chain::Config { lease_ttl: Duration::from_millis(200), ..rig::config(&chain) };
    let requests = [rig::commitment(7, "seed", "x"), rig::weights(7, &[(1, 1.0)])];
    let mut service = Running::start(config(), &store).await;
    for request in requests.clone() {
        service.client.submit_intent(request).await.unwrap();
    }
    for delay in [210, 260, 330, 400, 470] {
        service.kill();
        service = Running::start(config(), &store).await;
        sleep(Duration::from_millis(delay)).await;
    }
    for request in requests {
        let intent = rig::carried_out(&mut service.client, request).await;
        assert_eq!(intent.state(), IntentState::Done, "{intent:?}");
    }
    exactly_one_each(&chain, &["set_commitment", "set_mechanism_weights"], "killed often").await;
    service.stop().await;
}

#[tokio::test]
async fn of_two_replicas_one_owns_the_nonce_and_the_other_takes_over_when_it_dies() {
    let chain = rig::start(rig::genesis()).await;
    let store = Store::in_memory();
    let first = Running::start(rig::config(&chain), &store).await;
    let mut second = Running::start(rig::config(&chain), &store).await;
    // Recorded by the one that does not own the nonce, carried out by the other.
    let seed = rig::carried_out(&mut second.client, rig::commitment(7, "seed", "a")).await;
    assert_eq!(seed.state(), IntentState::Done, "{seed:?}");
    let mut request_to_the_dying = first.client.clone();
    request_to_the_dying.submit_intent(rig::weights(7, &[(1, 1.0)])).await.unwrap();
    first.kill();
    let key = Some(v1::IntentKey { round: 7, kind: "weights".to_owned() });
    let weights = rig::finished(&mut second.client, key).await;
    assert_eq!(weights.state(), IntentState::Done, "{weights:?}");
    exactly_one_each(&chain, &["set_commitment", "set_mechanism_weights"], "two replicas").await;
    second.stop().await;
}

#[tokio::test]
async fn an_extrinsic_that_landed_while_nobody_looked_is_found_and_not_sent_again() {
    let chain = rig::start(rig::genesis()).await;
    let store = Store::in_memory();
    let mut service = Running::start(rig::config(&chain), &store).await;
    let request = rig::commitment(7, "seed", "{\"h\":1}");
    let key = request.key.clone();
    service.client.submit_intent(request).await.unwrap();
    rig::until(&mut service.client, key.clone(), |i| i.state() != IntentState::Recorded).await;
    service.kill();
    let head = chain.head().await.unwrap();
    chain.wait_for_block(head.number + 40).await.unwrap();
    let mut service = Running::start(rig::config(&chain), &store).await;
    let intent = rig::finished(&mut service.client, key).await;
    assert_eq!((intent.state(), intent.attempts), (IntentState::Done, 1), "{intent:?}");
    exactly_one_each(&chain, &["set_commitment"], "killed once submitted").await;
    service.stop().await;
}

/// A record as an earlier process left it: an extrinsic that no node has.
fn left_behind(nonce: u64, birth: u64) -> String {
    let hash = "ab".repeat(32);
    format!(
        r#"{{"key":{{"round":7,"kind":"seed"}},
            "payload":{{"what":"commitment","data":"7b7d"}},
            "recorded_at":{birth},"trace":null,"extrinsic":"{hash}","attempts":1,"last":null,
            "state":{{"state":"submitted","attempt":{{
                "hash":"{hash}","nonce":{nonce},"birth":{birth},"period":8,"spec":365,
                "bytes":"0400"}}}}}}"#
    )
}

#[tokio::test]
async fn an_extrinsic_that_no_node_has_is_replaced_only_after_its_life() {
    let chain = rig::start(rig::genesis()).await;
    let store = Store::in_memory();
    let head = chain.wait_for_block(2).await.unwrap();
    let record = left_behind(0, head.number.into());
    assert!(store.put_if_absent("outbox/7/seed", record.into(), None).await.unwrap());
    let mut service = Running::start(rig::config(&chain), &store).await;
    let key = Some(v1::IntentKey { round: 7, kind: "seed".to_owned() });
    let intent = rig::finished(&mut service.client, key).await;
    assert_eq!((intent.state(), intent.attempts), (IntentState::Done, 2), "{intent:?}");
    assert_eq!(intent.reason, "expired");
    assert!(intent.block > u64::from(head.number) + 7, "{intent:?}");
    exactly_one_each(&chain, &["set_commitment"], "the first one was never sent").await;
    service.stop().await;
}

#[tokio::test]
async fn an_extrinsic_whose_nonce_another_one_took_is_replaced_at_once() {
    let chain = rig::start(rig::genesis()).await;
    let store = Store::in_memory();
    let mut service = Running::start(rig::config(&chain), &store).await;
    let other = rig::carried_out(&mut service.client, rig::commitment(6, "seed", "other")).await;
    service.stop().await;
    let record = left_behind(0, other.block - 1);
    assert!(store.put_if_absent("outbox/7/seed", record.into(), None).await.unwrap());
    let mut service = Running::start(rig::config(&chain), &store).await;
    let key = Some(v1::IntentKey { round: 7, kind: "seed".to_owned() });
    let intent = rig::finished(&mut service.client, key).await;
    assert_eq!((intent.state(), intent.attempts), (IntentState::Done, 2), "{intent:?}");
    assert_eq!(intent.reason, "usurped");
    let journal = chain.extrinsics().await.unwrap();
    assert_eq!(journal.iter().map(|included| included.nonce).collect::<Vec<_>>(), [0, 1]);
    service.stop().await;
}

#[tokio::test]
async fn an_extrinsic_that_waits_in_the_pool_is_followed_by_the_next_owner() {
    let chain = rig::start(Genesis { production: Production::Manual, ..rig::genesis() }).await;
    let store = Store::in_memory();
    let mut service = Running::start(rig::config(&chain), &store).await;
    let request = rig::weights(7, &[(1, 1.0)]);
    let key = request.key.clone();
    service.client.submit_intent(request).await.unwrap();
    let sent = rig::until(&mut service.client, key.clone(), |i| i.attempts == 1).await;
    service.kill();
    let mut service = Running::start(rig::config(&chain), &store).await;
    chain.produce_blocks(2).await.unwrap();
    let intent = rig::finished(&mut service.client, key).await;
    assert_eq!((intent.state(), intent.attempts), (IntentState::Done, 1), "{intent:?}");
    assert_eq!(intent.extrinsic_hash, sent.extrinsic_hash);
    exactly_one_each(&chain, &["set_mechanism_weights"], "killed while it was in the pool").await;
    service.stop().await;
}

#[tokio::test]
async fn a_chain_that_is_away_while_an_intent_is_under_way_costs_time_only() {
    let chain = rig::start(rig::genesis()).await;
    let mut service = Running::start(rig::config(&chain), &Store::in_memory()).await;
    for (round, delay) in [(1, 0), (2, 30), (3, 90)] {
        let request = rig::commitment(round, "seed", &format!("{round}"));
        service.client.submit_intent(request.clone()).await.unwrap();
        sleep(Duration::from_millis(delay)).await;
        chain.set_offline(true);
        sleep(Duration::from_millis(400)).await;
        chain.set_offline(false);
        let intent = rig::finished(&mut service.client, request.key).await;
        assert_eq!(intent.state(), IntentState::Done, "{intent:?}");
    }
    exactly_one_each(&chain, &["set_commitment"; 3], "offline in between").await;
    service.stop().await;
}
