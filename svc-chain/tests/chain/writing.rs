//! Intents: carried out, refused for each reason, idempotent.

use devchain::{Genesis, GenesisNeuron};
use proto::chain::v1::{self, IntentState};
use store::Store;
use svc_chain::Config;
use tonic::Code;

use crate::rig::{self, RAO, Running};

const SHARES: &[(u32, f64)] = &[(1, 0.25), (2, 0.75)];

#[tokio::test]
async fn weights_are_set_once_and_read_back_from_a_final_block() {
    let chain = rig::start(Genesis { finality_lag: 2, ..rig::genesis() }).await;
    let mut service = Running::start(rig::config(&chain), &Store::in_memory()).await;
    let intent = rig::carried_out(&mut service.client, rig::weights(7, SHARES)).await;
    assert_eq!(intent.state(), IntentState::Done, "{intent:?}");
    assert_eq!((intent.attempts, intent.reason.as_str()), (1, ""));
    assert!(intent.detail.contains(&intent.block.to_string()), "{intent:?}");
    assert!(u64::from(chain.finalized().await.unwrap().number) >= intent.block);

    assert_eq!(chain.weights(0).await.unwrap(), [(1, 21845), (2, 65535)]);
    assert_eq!(chain.last_update(0).await.unwrap(), intent.block);
    let journal = chain.extrinsics().await.unwrap();
    assert_eq!(journal.len(), 1);
    assert_eq!(journal[0].name(), "SubtensorModule.set_mechanism_weights");
    assert_eq!(journal[0].hash.to_vec(), intent.extrinsic_hash);

    let request = v1::GetWeightsRequest { at: rig::at_number(intent.block) };
    let rows = service.client.get_weights(request).await.unwrap().into_inner().rows;
    assert_eq!(rows.len(), 1);
    assert_eq!((rows[0].uid, rows[0].weights.len()), (0, 2));
    assert_eq!((rows[0].weights[1].uid, rows[0].weights[1].value), (2, 65535));
    service.stop().await;
}

#[tokio::test]
async fn a_key_and_payload_again_is_the_same_intent_and_another_payload_is_refused() {
    let chain = rig::start(rig::genesis()).await;
    let mut service = Running::start(rig::config(&chain), &Store::in_memory()).await;
    for _ in 0..3 {
        service.client.submit_intent(rig::commitment(7, "seed", "{}")).await.unwrap();
    }
    let intent = rig::carried_out(&mut service.client, rig::commitment(7, "seed", "{}")).await;
    assert_eq!(intent.state(), IntentState::Done);
    let again = service.client.submit_intent(rig::commitment(7, "seed", "{}")).await.unwrap();
    assert_eq!(again.into_inner(), intent);
    let other = service.client.submit_intent(rig::commitment(7, "seed", "{ }")).await.unwrap_err();
    assert_eq!(other.code(), Code::AlreadyExists, "{other:?}");
    assert_eq!(chain.extrinsics().await.unwrap().len(), 1);

    let key = Some(v1::IntentKey { round: 8, kind: "seed".to_owned() });
    let never = service.client.get_intent(v1::GetIntentRequest { key }).await.unwrap_err();
    assert_eq!(never.code(), Code::NotFound);
    let odd = service.client.submit_intent(rig::commitment(8, "poem", "{}")).await.unwrap_err();
    assert_eq!(odd.code(), Code::InvalidArgument);
    let long = rig::commitment(8, "seed", &"x".repeat(129));
    let long = service.client.submit_intent(long).await.unwrap_err();
    assert_eq!(long.code(), Code::InvalidArgument);
    service.stop().await;
}

#[tokio::test]
async fn the_three_commitments_of_a_round_land_in_order_beside_the_weights() {
    let chain = rig::start(Genesis { finality_lag: 2, ..rig::genesis() }).await;
    let mut service = Running::start(rig::config(&chain), &Store::in_memory()).await;
    for (kind, data) in [("seed", "s"), ("signed_hash", "m"), ("model_hash", "h")] {
        let intent = rig::carried_out(&mut service.client, rig::commitment(7, kind, data)).await;
        assert_eq!(intent.state(), IntentState::Done, "{intent:?}");
    }
    let intent = rig::carried_out(&mut service.client, rig::weights(7, SHARES)).await;
    assert_eq!(intent.state(), IntentState::Done, "{intent:?}");
    let slot = chain.commitment(rig::alice(), None).await.unwrap().unwrap();
    assert_eq!(slot.data, b"h");
    let journal = chain.extrinsics().await.unwrap();
    let nonces: Vec<_> = journal.iter().map(|included| included.nonce).collect();
    assert_eq!(nonces, [0, 1, 2, 3]);
    service.stop().await;
}

#[tokio::test]
async fn an_older_rounds_weights_after_a_newer_ones_are_refused() {
    let chain = rig::start(rig::genesis()).await;
    let mut service = Running::start(rig::config(&chain), &Store::in_memory()).await;
    let newer = rig::carried_out(&mut service.client, rig::weights(8, SHARES)).await;
    assert_eq!(newer.state(), IntentState::Done);
    let older = service.client.submit_intent(rig::weights(7, &[(1, 1.0)])).await.unwrap_err();
    assert_eq!(older.code(), Code::FailedPrecondition, "{older:?}");
    assert!(older.message().starts_with("superseded"), "{older:?}");
    // Another slot is another matter.
    let seed = rig::carried_out(&mut service.client, rig::commitment(7, "seed", "x")).await;
    assert_eq!(seed.state(), IntentState::Done);
    service.stop().await;
}

#[tokio::test]
async fn weights_that_wait_are_given_up_when_a_newer_round_has_some() {
    let chain = rig::start(Genesis { rate_limit: 15, ..rig::genesis() }).await;
    let mut service = Running::start(rig::config(&chain), &Store::in_memory()).await;
    let first = rig::carried_out(&mut service.client, rig::weights(1, SHARES)).await;
    assert_eq!(first.state(), IntentState::Done);
    let waiting = rig::weights(2, &[(1, 1.0)]);
    let key = waiting.key.clone();
    service.client.submit_intent(waiting).await.unwrap();
    let noted = rig::until(&mut service.client, key.clone(), |i| !i.reason.is_empty()).await;
    assert_eq!((noted.state(), noted.reason.as_str()), (IntentState::Recorded, "rate_limited"));
    let newest = rig::carried_out(&mut service.client, rig::weights(3, &[(2, 1.0)])).await;
    assert_eq!(newest.state(), IntentState::Done, "{newest:?}");
    assert!(newest.block >= first.block + 15, "{newest:?}");
    let old = rig::finished(&mut service.client, key).await;
    assert_eq!((old.state(), old.reason.as_str()), (IntentState::Failed, "superseded"));
    assert_eq!(old.attempts, 0);
    assert_eq!(chain.weights(0).await.unwrap(), [(2, 65535)]);
    assert_eq!(chain.extrinsics().await.unwrap().len(), 2);
    service.stop().await;
}

#[tokio::test]
async fn a_rate_limit_puts_weights_off_to_the_block_where_they_are_allowed() {
    for refuse_early in [true, false] {
        let chain = rig::start(Genesis { rate_limit: 12, refuse_early, ..rig::genesis() }).await;
        let mut service = Running::start(rig::config(&chain), &Store::in_memory()).await;
        let first = rig::carried_out(&mut service.client, rig::weights(1, SHARES)).await;
        let second = rig::carried_out(&mut service.client, rig::weights(2, &[(2, 1.0)])).await;
        assert_eq!(second.state(), IntentState::Done, "{second:?}");
        assert!(
            (first.block + 12..first.block + 20).contains(&second.block),
            "{first:?} {second:?}"
        );
        assert_eq!(second.attempts, 1, "nothing was sent in vain");
        service.stop().await;
    }
}

/// A chain on which Alice's weights are refused for one reason.
struct Refusing {
    genesis: Genesis,
    config: fn(Config) -> Config,
    weights: &'static [(u32, f64)],
    reason: &'static str,
}

fn refusing(change: impl FnOnce(&mut Genesis), reason: &'static str) -> Refusing {
    let mut genesis = rig::genesis();
    change(&mut genesis);
    Refusing { genesis, config: |config| config, weights: SHARES, reason }
}

#[tokio::test]
async fn weights_are_refused_for_each_reason_by_its_name_and_by_both_roads() {
    for refuse_early in [true, false] {
        let cases = [
            refusing(|genesis| genesis.neurons[0].validator_permit = false, "no_permit"),
            refusing(|genesis| genesis.stake_threshold = 5000 * RAO, "stake_too_low"),
            refusing(|genesis| genesis.min_allowed_weights = 3, "too_few_weights"),
            refusing(|genesis| genesis.max_weight_limit = 40_000, "max_weight"),
            refusing(|genesis| genesis.weights_version = 20_000_000, "version_key"),
            refusing(|genesis| genesis.neurons[0].hotkey = [5; 32], "not_registered"),
            Refusing { weights: &[(1, 0.5), (9, 0.5)], ..refusing(|_| {}, "no_such_uid") },
            Refusing {
                config: |config| Config { netuid: 7, ..config },
                ..refusing(|_| {}, "no_such_subnet")
            },
        ];
        for case in cases {
            let chain = rig::start(Genesis { refuse_early, ..case.genesis }).await;
            let config = (case.config)(rig::config(&chain));
            let mut service = Running::start(config, &Store::in_memory()).await;
            let request = rig::weights(1, case.weights);
            let intent = rig::carried_out(&mut service.client, request).await;
            let found = (intent.state(), intent.reason.as_str());
            assert_eq!(found, (IntentState::Failed, case.reason), "{intent:?}");
            assert!(!intent.detail.is_empty());
            assert!(chain.weights(0).await.unwrap().is_empty());
            service.stop().await;
        }
    }
}

#[tokio::test]
async fn weights_that_were_refused_are_accepted_once_the_reason_is_gone() {
    let mut genesis = rig::genesis();
    genesis.neurons[0].validator_permit = false;
    genesis.stake_threshold = 2000 * RAO;
    let chain = rig::start(genesis).await;
    let mut service = Running::start(rig::config(&chain), &Store::in_memory()).await;
    let poor = rig::carried_out(&mut service.client, rig::weights(1, SHARES)).await;
    assert_eq!(poor.reason, "stake_too_low");
    chain.set_stake(0, 3000 * RAO).await.unwrap();
    let head = chain.head().await.unwrap();
    chain.wait_for_block(head.number + 2).await.unwrap();
    let forbidden = rig::carried_out(&mut service.client, rig::weights(2, SHARES)).await;
    assert_eq!(forbidden.reason, "no_permit");
    chain.set_validator_permit(0, true).await.unwrap();
    let head = chain.head().await.unwrap();
    chain.wait_for_block(head.number + 2).await.unwrap();
    let accepted = rig::carried_out(&mut service.client, rig::weights(3, SHARES)).await;
    assert_eq!(accepted.state(), IntentState::Done, "{accepted:?}");
    service.stop().await;
}

#[tokio::test]
async fn an_axon_is_served_when_it_changed_and_only_then() {
    let chain = rig::start(Genesis { serving_rate_limit: 10, ..rig::genesis() }).await;
    let mut service = Running::start(rig::config(&chain), &Store::in_memory()).await;
    let served = rig::carried_out(&mut service.client, rig::axon(1, "8.8.8.8", 8091)).await;
    assert_eq!(served.state(), IntentState::Done, "{served:?}");
    let announced = chain.axon(rig::alice()).await.unwrap();
    assert_eq!(announced, Some("8.8.8.8:8091".parse().unwrap()));
    let same = rig::carried_out(&mut service.client, rig::axon(2, "8.8.8.8", 8091)).await;
    assert_eq!((same.state(), same.attempts), (IntentState::Done, 0), "{same:?}");
    let moved = rig::carried_out(&mut service.client, rig::axon(3, "8.8.4.4", 8091)).await;
    assert_eq!(moved.state(), IntentState::Done, "{moved:?}");
    assert!(moved.block >= served.block + 10, "{moved:?}");
    let home = rig::carried_out(&mut service.client, rig::axon(4, "127.0.0.1", 8091)).await;
    assert_eq!((home.state(), home.reason.as_str()), (IntentState::Failed, "bad_address"));
    assert_eq!(chain.axon(rig::alice()).await.unwrap(), Some("8.8.4.4:8091".parse().unwrap()));
    service.stop().await;
}

#[tokio::test]
async fn a_pool_that_does_not_want_it_or_never_answers_gets_one_extrinsic_in_the_end() {
    let chain = rig::start(rig::genesis()).await;
    let mut service = Running::start(rig::config(&chain), &Store::in_memory()).await;
    chain.refuse_submits(2);
    let refused = rig::carried_out(&mut service.client, rig::commitment(1, "seed", "a")).await;
    assert_eq!(refused.state(), IntentState::Done, "{refused:?}");
    assert_eq!((refused.attempts, refused.reason.as_str()), (3, "pool_full"));
    assert_eq!(chain.extrinsics().await.unwrap().len(), 1);
    chain.lose_answers(1);
    let unheard = rig::carried_out(&mut service.client, rig::commitment(2, "seed", "b")).await;
    assert_eq!((unheard.state(), unheard.attempts), (IntentState::Done, 1), "{unheard:?}");
    assert_eq!(chain.extrinsics().await.unwrap().len(), 2);
    service.stop().await;
}

#[tokio::test]
async fn a_neuron_that_registered_late_waits_for_its_first_weights() {
    let mut genesis = Genesis { rate_limit: 10, ..rig::genesis() };
    genesis.neurons.remove(0);
    let chain = rig::start(genesis).await;
    let mut service = Running::start(rig::config(&chain), &Store::in_memory()).await;
    let uid = chain.register(GenesisNeuron::validator(rig::alice(), 100 * RAO)).await.unwrap();
    let head = chain.head().await.unwrap();
    chain.wait_for_block(head.number + 2).await.unwrap();
    let intent = rig::carried_out(&mut service.client, rig::weights(1, &[(0, 1.0)])).await;
    assert_eq!(intent.state(), IntentState::Done, "{intent:?}");
    assert!(intent.block >= u64::from(head.number) + 10, "{intent:?}");
    assert_eq!(chain.weights(uid).await.unwrap(), [(0, 65535)]);
    service.stop().await;
}

#[tokio::test]
async fn every_named_purpose_is_signed_as_the_contract_says() {
    use v1::sign_request::Purpose;
    let chain = rig::start(rig::genesis()).await;
    let mut service = Running::start(rig::config(&chain), &Store::in_memory()).await;
    let alice = domain::Hotkey::from_public_key(rig::alice());
    let hash = "0eee7f1a5039bef07ec2347f066ed08f5dc7512447e34043";
    let digest = [7_u8; 32];
    for (purpose, message) in [
        (Purpose::ModelHash(hash.to_owned()), hash.as_bytes().to_vec()),
        (Purpose::PeerDigest(digest.to_vec().into()), [b"connito.peer.v1:", &digest[..]].concat()),
        (
            Purpose::RecordDigest(digest.to_vec().into()),
            [b"connito.record.v1:", &digest[..]].concat(),
        ),
    ] {
        let request = v1::SignRequest { purpose: Some(purpose) };
        let signature = service.client.sign(request).await.unwrap().into_inner().signature;
        assert!(svc_chain::verify(&alice, &message, &signature));
    }
    for purpose in [
        None,
        Some(Purpose::ModelHash(hash.to_uppercase())),
        Some(Purpose::PeerDigest(vec![1; 31].into())),
        Some(Purpose::RecordDigest(vec![].into())),
    ] {
        let refused = service.client.sign(v1::SignRequest { purpose }).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
    service.stop().await;
}

#[tokio::test]
async fn a_whole_round_is_written_on_every_saved_runtime_of_the_live_chain() {
    let Some(folder) = std::env::var_os("CONNITO_METADATA_DIR") else {
        eprintln!("skipped: CONNITO_METADATA_DIR is not set");
        return;
    };
    let mut files: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.retain(|path| path.to_string_lossy().contains("subtensor_finney_"));
    assert!(!files.is_empty());
    for file in files {
        let metadata = Some(std::fs::read(&file).unwrap());
        let chain = rig::start(Genesis { metadata, ..rig::genesis() }).await;
        let mut service = Running::start(rig::config(&chain), &Store::in_memory()).await;
        for request in [
            rig::commitment(1, "seed", "s"),
            rig::weights(1, SHARES),
            rig::axon(1, "8.8.8.8", 8091),
        ] {
            let intent = rig::carried_out(&mut service.client, request).await;
            assert_eq!(intent.state(), IntentState::Done, "{}: {intent:?}", file.display());
        }
        let head = chain.head().await.unwrap();
        let request = v1::GetMetagraphRequest { at: rig::at_hash(&head.hash) };
        let metagraph = service.client.get_metagraph(request).await.unwrap().into_inner();
        assert_eq!(metagraph.neurons[0].axon, "8.8.8.8:8091");
        assert!(metagraph.neurons[0].last_update > 0);
        service.stop().await;
    }
}

#[tokio::test]
async fn the_configured_address_is_announced_at_start_and_not_again_at_the_next() {
    let chain = rig::start(rig::genesis()).await;
    let axon = "8.8.8.8:8091".parse().unwrap();
    let config = || Config { axon: Some(axon), ..rig::config(&chain) };
    let service = Running::start(config(), &Store::in_memory()).await;
    for _ in 0..200 {
        if chain.axon(rig::alice()).await.unwrap() == Some(axon) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(chain.axon(rig::alice()).await.unwrap(), Some(axon));
    service.stop().await;

    let again = Running::start(config(), &Store::in_memory()).await;
    let head = chain.head().await.unwrap();
    chain.wait_for_block(head.number + 4).await.unwrap();
    again.stop().await;
    assert_eq!(chain.extrinsics().await.unwrap().len(), 1);
}

#[tokio::test]
async fn nothing_is_signed_or_written_for_a_caller_that_does_not_say_who_it_is() {
    use v1::sign_request::Purpose;
    let chain = rig::start(rig::genesis()).await;
    let config = Config { round_signatures_per_minute: 2, ..rig::config(&chain) };
    let mut service = Running::start(config, &Store::in_memory()).await;
    let request = || v1::SignRequest { purpose: Some(Purpose::RecordDigest(vec![1; 32].into())) };
    let mut stranger = rig::stranger(service.addr);
    let refused = stranger.sign(request()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(!refused.message().contains(rig::TOKEN), "{refused:?}");
    let refused = stranger.submit_intent(rig::weights(1, SHARES)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let known = stranger.get_identity(v1::GetIdentityRequest {}).await;
    assert!(known.is_ok(), "what anybody may know is told: {known:?}");
    service.client.sign(request()).await.unwrap();
    service.client.sign(request()).await.unwrap();
    let often = service.client.sign(request()).await.unwrap_err();
    assert_eq!(often.code(), Code::ResourceExhausted);
    assert!(often.message().starts_with("sign_limit"), "{often:?}");
    assert!(chain.extrinsics().await.unwrap().is_empty());
    service.stop().await;
}

#[tokio::test]
async fn an_address_that_the_chain_has_forgotten_is_announced_again() {
    let chain = rig::start(Genesis { serving_rate_limit: 0, ..rig::genesis() }).await;
    let axon = "8.8.8.8:8091".parse().unwrap();
    let config = Config { axon: Some(axon), ..rig::config(&chain) };
    let service = Running::start(config, &Store::in_memory()).await;
    let announced = async || {
        while chain.axon(rig::alice()).await.unwrap() != Some(axon) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(rig::PATIENCE, announced()).await.expect("announced at start");
    // The slot changes hands and is won back: its address is gone.
    chain.replace(0, GenesisNeuron::miner([9; 32])).await.unwrap();
    let head = chain.head().await.unwrap();
    chain.wait_for_block(head.number + 2).await.unwrap();
    assert_eq!(chain.axon(rig::alice()).await.unwrap(), None);
    chain.replace(0, GenesisNeuron::validator(rig::alice(), 1000 * RAO)).await.unwrap();
    tokio::time::timeout(rig::PATIENCE, announced()).await.expect("announced again");
    let served = chain.extrinsics().await.unwrap();
    assert_eq!(served.len(), 2, "{served:?}");
    service.stop().await;
}
