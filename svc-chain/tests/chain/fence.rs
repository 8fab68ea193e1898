//! Intents that would be written over each other: the newest stays, whoever sends and whatever was
//! forgotten.

use std::{collections::BTreeMap, time::Duration};

use devchain::{DevChain, Genesis, Production};
use proto::chain::v1::{self, IntentState};
use store::Store;
use svc_chain::Config;
use tonic::Code;

use crate::rig::{self, Client, Running};

fn genesis() -> Genesis {
    Genesis {
        production: Production::Interval(Duration::from_millis(60)),
        finality_lag: 2,
        rate_limit: 0,
        serving_rate_limit: 0,
        ..rig::genesis()
    }
}

/// The rounds of a kind whose extrinsics the chain holds, in the order of the chain.
async fn rounds_on(chain: &DevChain, client: &mut Client, kind: &str) -> Vec<u64> {
    let listed = client.list_intents(v1::ListIntentsRequest::default()).await.unwrap().into_inner();
    let mut round_of = BTreeMap::new();
    for intent in listed.intents {
        let key = intent.key.unwrap();
        if key.kind == kind {
            round_of.insert(intent.extrinsic_hash.to_vec(), key.round);
        }
    }
    let journal = chain.extrinsics().await.unwrap();
    journal.iter().filter_map(|x| round_of.get(x.hash.as_slice()).copied()).collect()
}

/// An older round's record as another process might still write it after its own look around.
/// Of a time to come, so that it is not forgotten before it is looked at.
fn late(round: u64, kind: &str, payload: &str) -> (String, String) {
    let record = format!(
        r#"{{"key":{{"round":{round},"kind":"{kind}"}},"payload":{payload},
            "recorded_at":{},
            "trace":null,"state":{{"state":"recorded","not_before":0}},
            "extrinsic":null,"attempts":0,"last":null}}"#,
        1_000_000 + round,
    );
    (format!("outbox/{round}/{kind}"), record)
}

#[tokio::test]
async fn an_older_round_is_refused_although_the_newer_one_was_forgotten() {
    let chain = rig::start(genesis()).await;
    let store = Store::in_memory();
    let config = Config { keep_intents: 1, ..rig::config(&chain) };
    let mut service = Running::start(config, &store).await;
    let client = &mut service.client;
    // The last one changes nothing, and counts as carried out.
    let newer = [
        rig::weights(8, &[(2, 1.0)]),
        rig::commitment(8, "seed", "new"),
        rig::axon(7, "8.8.8.8", 8091),
        rig::axon(8, "8.8.8.8", 8091),
    ];
    for request in newer.clone() {
        let intent = rig::carried_out(client, request).await;
        assert_eq!(intent.state(), IntentState::Done, "{intent:?}");
    }
    for round in [9, 10] {
        rig::carried_out(client, rig::commitment(round, "model_hash", &round.to_string())).await;
    }
    for request in newer {
        let key = request.key.unwrap();
        let forgotten = async || {
            let request = v1::GetIntentRequest { key: Some(key.clone()) };
            client.clone().get_intent(request).await.is_err().then_some(())
        };
        crate::net::until(&format!("{key:?} is forgotten"), forgotten).await;
    }
    // The newest of a slot is not taken for a new one either, though nobody remembers it.
    let again = client.submit_intent(rig::weights(8, &[(2, 1.0)])).await.unwrap_err();
    assert_eq!(again.code(), Code::FailedPrecondition, "{again:?}");
    assert!(again.message().starts_with("forgotten"), "{again:?}");
    for older in [
        rig::weights(7, &[(1, 1.0)]),
        rig::commitment(7, "seed", "old"),
        rig::axon(6, "8.8.4.4", 8091),
        rig::axon(7, "8.8.4.4", 8091),
    ] {
        let refused = client.submit_intent(older).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
        assert!(refused.message().starts_with("superseded"), "{refused:?}");
    }
    let sent = chain.extrinsics().await.unwrap().len();
    for (round, kind, payload) in [
        (5, "weights", r#"{"what":"weights","weights":[[1,65535]]}"#),
        (6, "seed", r#"{"what":"commitment","data":"00"}"#),
        (7, "axon", r#"{"what":"axon","ip":"8.8.4.4","port":1}"#),
    ] {
        let (path, record) = late(round, kind, payload);
        assert!(store.put_if_absent(&path, record.into(), None).await.unwrap());
        let failed = async || {
            let key = Some(v1::IntentKey { round, kind: kind.to_owned() });
            let intent = client.clone().get_intent(v1::GetIntentRequest { key }).await.ok()?;
            (intent.get_ref().state() == IntentState::Failed).then(|| intent.into_inner())
        };
        let intent = crate::net::until("it is given up", failed).await;
        assert_eq!((intent.reason.as_str(), intent.attempts), ("superseded", 0), "{intent:?}");
    }
    assert_eq!(chain.extrinsics().await.unwrap().len(), sent);
    assert_eq!(chain.weights(0).await.unwrap(), [(2, 65535)]);
    assert_eq!(chain.axon(rig::alice()).await.unwrap(), Some("8.8.8.8:8091".parse().unwrap()));
    service.stop().await;
}

#[tokio::test]
async fn of_two_rounds_that_two_replicas_get_at_once_the_newer_ones_weights_stay() {
    let chain = rig::start(genesis()).await;
    let store = Store::in_memory();
    let mut first = Running::start(rig::config(&chain), &store).await;
    let mut second = Running::start(rig::config(&chain), &store).await;
    for turn in 0..6 {
        let (older, newer) = (10 * turn + 1, 10 * turn + 2);
        let old = rig::weights(older, &[(1, 1.0)]);
        let new = rig::weights(newer, &[(2, 1.0)]);
        let key = old.key.clone();
        let (one, other) = if turn % 2 == 0 {
            tokio::join!(first.client.submit_intent(old), second.client.submit_intent(new.clone()))
        } else {
            let (other, one) = tokio::join!(
                first.client.submit_intent(new.clone()),
                second.client.submit_intent(old)
            );
            (one, other)
        };
        other.unwrap();
        let done = rig::finished(&mut first.client, new.key).await;
        assert_eq!(done.state(), IntentState::Done, "{done:?}");
        assert_eq!(chain.weights(0).await.unwrap(), [(2, 65535)], "turn {turn}");
        match one {
            Err(refused) => assert!(refused.message().starts_with("superseded"), "{refused:?}"),
            Ok(_) => {
                let old = rig::finished(&mut second.client, key).await;
                let first = old.state() == IntentState::Done && old.block < done.block;
                assert!(first || old.reason == "superseded", "{old:?} {done:?}");
            }
        }
    }
    let rounds = rounds_on(&chain, &mut first.client, "weights").await;
    assert!(rounds.is_sorted() && rounds.last() == Some(&52), "{rounds:?}");
    assert_eq!(rounds.len(), chain.extrinsics().await.unwrap().len());
    first.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn weights_of_two_services_on_one_store_never_alternate() {
    let chain = rig::start(genesis()).await;
    let store = Store::in_memory();
    let mut services = Vec::new();
    for _ in 0..2 {
        services.push(Running::start(rig::config(&chain), &store).await);
    }
    let mut feeds = Vec::new();
    for (n, service) in services.iter().enumerate() {
        let (mut client, chain) = (service.client.clone(), chain.clone());
        feeds.push(tokio::spawn(async move {
            for round in 0..12 {
                let round = 2 * round + n as u64;
                let request = rig::weights(round, &[(1, 1.0), (2, round as f64 / 50.0)]);
                match client.submit_intent(request).await {
                    Ok(_) => {}
                    Err(refused) => assert!(refused.message().starts_with("superseded")),
                }
                let head = chain.head().await.unwrap();
                chain.wait_for_block(head.number + 1).await.unwrap();
            }
        }));
    }
    for feed in feeds {
        feed.await.unwrap();
    }
    let mut client = services[0].client.clone();
    let key = Some(v1::IntentKey { round: 23, kind: "weights".to_owned() });
    let last = rig::finished(&mut client, key).await;
    assert_eq!(last.state(), IntentState::Done, "{last:?}");
    let rounds = rounds_on(&chain, &mut client, "weights").await;
    assert!(rounds.is_sorted() && rounds.last() == Some(&23), "{rounds:?}");
    assert_eq!(rounds.len(), chain.extrinsics().await.unwrap().len(), "all of them are known");
    assert_eq!(chain.weights(0).await.unwrap(), [(1, 65535), (2, 30146)]);
    for service in services {
        service.stop().await;
    }
}
