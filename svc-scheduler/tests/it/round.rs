//! Whole rounds, as the other services see them.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use domain::{Hotkey, SignedHashCommitment, ValidatorCommitment};
use proto::{
    chain::v1::submit_intent_request::Payload,
    scheduler::v1::{
        JobKind, ListRecordsRequest, Phase, ReportRefusalRequest, RoundStage, WatchRoundRequest,
    },
};
use schnorrkel::Signature;
use tokio::time::timeout;
use tonic::Code;

use crate::{
    chain::Fault,
    merge::{Ending, merged_hash},
    record::verified,
    subnet::{BASE_VERSION, ME, OTHER, hotkey, keypair},
    world::{LONG, ROUND, World, base_hash, degraded, measured, miner, round, submission, written},
};

#[tokio::test]
async fn a_whole_round_pays_the_good_miner_moves_the_model_on_and_leaves_a_record() {
    let world = World::new().await;
    let scheduler = world.leader().await;
    let view = scheduler.view().await.unwrap();
    assert_eq!((view.phase(), view.cycle, &view.round), (Phase::Train, 0, &None));
    assert_eq!(view.hotkey, hotkey(ME).to_string());
    let base = view.base.unwrap();
    assert_eq!((base.global_version, base.model_hash), (BASE_VERSION, base_hash()));

    let view = world.frozen(&scheduler).await;
    let opened = round(&view).clone();
    assert_eq!((opened.round_id, opened.uploads_open), (ROUND, true));
    assert_eq!(view.validators.len(), 2);
    let seed = ValidatorCommitment::parse(&world.chain.commitment("seed")).unwrap();
    assert_eq!(seed.model_hash.unwrap().to_hex(), base_hash());
    assert!(seed.seed.is_some_and(|seed| seed > 0));
    assert!(miner(&view, 10).may_upload && miner(&view, 12).may_upload);
    assert_eq!((miner(&view, 10).outcome.as_str(), miner(&view, 10).uid), ("pending", 2));
    let absent = miner(&view, 13);
    assert_eq!((absent.may_upload, absent.outcome.as_str()), (false, "absent"));
    assert_eq!(absent.reason, "commitment_incomplete");

    assert!(scheduler.report(10).await.unwrap());
    assert!(scheduler.report(11).await.unwrap());
    let refusal = ReportRefusalRequest {
        round_id: ROUND,
        hotkey: hotkey(12).to_string(),
        reason: "non_finite".to_owned(),
        detail: "a NaN in layer 3".to_owned(),
    };
    scheduler.client.clone().report_refusal(refusal).await.unwrap();
    let view = scheduler.view().await.unwrap();
    assert_eq!(miner(&view, 12).outcome, "refused");
    assert_eq!(miner(&view, 12).detail, "a NaN in layer 3");

    let baseline = scheduler.lease("worker").await.unwrap();
    assert_eq!((baseline.kind(), baseline.attempt), (JobKind::Baseline, 1));
    assert_eq!((baseline.round_id, baseline.batches, baseline.seed.len()), (ROUND, 2, 64));
    assert_eq!(baseline.model.as_ref().unwrap().model_hash, base_hash());
    assert_eq!((&baseline.traceparent, baseline.lease_ms), (&opened.traceparent, 120));
    scheduler.finish(&baseline, measured(&baseline)).await.unwrap();
    let score = scheduler.lease("worker").await.unwrap();
    assert_eq!(score.kind(), JobKind::Score);
    let leased: Hotkey = score.submission.as_ref().unwrap().hotkey.parse().unwrap();
    let other = if leased == hotkey(10) { 11 } else { 10 };
    assert!([submission(10), submission(11)].contains(score.submission.as_ref().unwrap()));
    let view = scheduler.view().await.unwrap();
    let evaluating = round(&view).miners.iter().find(|m| m.hotkey == leased.as_str()).unwrap();
    assert_eq!(evaluating.outcome, "evaluating");
    assert_eq!(miner(&view, other).outcome, "queued");
    assert_eq!((round(&view).baseline, round(&view).held_out_before), (Some(5.0), Some(5.5)));
    scheduler.finish(&score, measured(&score)).await.unwrap();
    assert_eq!(scheduler.work().await, 1);

    let view = world.committed(&scheduler).await;
    assert!(!round(&view).uploads_open);
    let scores = [10, 11, 12].map(|seed| miner(&view, seed).score);
    assert_eq!(scores, [Some(2.25), Some(0.0), Some(0.0)]);
    assert_eq!((miner(&view, 10).loss, miner(&view, 10).raw_score), (Some(4.0), Some(1.0)));
    let weights: Vec<_> = round(&view).weights.iter().map(|w| (w.uid, w.value)).collect();
    assert_eq!(weights, [(2, 1.0)]);
    let merge = round(&view).merge.as_ref().unwrap();
    assert_eq!((merge.outcome.as_str(), merge.members.len()), ("merged", 2));
    assert_eq!(merge.model.as_ref().unwrap().model_hash, merged_hash());
    let held_out = scheduler.lease("worker").await.unwrap();
    assert_eq!(held_out.kind(), JobKind::HeldOut);
    assert_eq!(held_out.model.as_ref().unwrap().prefix, "models/24");
    scheduler.finish(&held_out, measured(&held_out)).await.unwrap();

    let view = world.closed(&scheduler).await;
    assert_eq!(round(&view).held_out_after, Some(4.5));
    assert_eq!(degraded(&view), [""; 0]);
    let base = view.base.as_ref().unwrap();
    assert_eq!((base.global_version, &base.model_hash), (24, &merged_hash()));
    assert!(["seed", "signed_hash", "model_hash", "weights"].iter().all(|k| written(&view, k)));

    let (_, record) = verified(&scheduler.record(ROUND).await);
    assert_eq!((record.round.0, record.traceparent), (ROUND, opened.traceparent));
    assert_eq!(record.base.model_hash.to_hex(), base_hash());
    assert_eq!(record.weights.len(), 1);
    let known = scheduler.client.clone().list_records(ListRecordsRequest {}).await.unwrap();
    assert_eq!(known.into_inner().round_ids, [ROUND]);
}

#[tokio::test]
async fn the_merger_is_told_who_goes_in_and_the_chain_gets_every_write_once_in_order() {
    let world = World::new().await;
    let scheduler = world.leader().await;
    let view = world.whole_round(&scheduler).await;

    let started = world.merge.started();
    let [plan] = started.as_slice() else { panic!("{} merges", started.len()) };
    assert_eq!((plan.round_id, plan.new_version, plan.expert_group), (ROUND, 24, 0));
    assert_eq!(plan.base.as_ref().unwrap().model_hash, base_hash());
    assert_eq!(plan.contributions.len(), 1);
    assert_eq!(plan.contributions[0].submission, Some(submission(10)));
    assert_eq!(plan.contributions[0].weight, 2.25);
    assert_eq!(plan.hotkey, hotkey(ME).to_string());
    let others: Vec<_> = plan.validators.iter().map(|v| (&v.hotkey, &v.axon, v.stake)).collect();
    let stake = 1_000_000;
    assert_eq!(others, [(&hotkey(OTHER).to_string(), &"127.0.0.1:8001".to_owned(), stake)]);
    assert_eq!(plan.stake, stake);
    assert_eq!(plan.block_hash, hex::encode(world.chain.hash(ROUND)));
    assert_eq!(plan.traceparent, round(&view).traceparent);
    // Four blocks of 40 ms are Merge's, of which 0.8 are for waiting.
    assert_eq!((plan.deadline_ms, plan.elapsed_ms), (128, 0));

    let kinds: Vec<_> = world
        .chain
        .book()
        .submitted
        .iter()
        .map(|((round, kind), _)| (*round, kind.clone()))
        .collect();
    let wanted = ["seed", "signed_hash", "model_hash", "weights"];
    assert_eq!(kinds, wanted.map(|kind| (ROUND, kind.to_owned())));
    let signed = SignedHashCommitment::parse(&world.chain.commitment("signed_hash")).unwrap();
    let signature = URL_SAFE_NO_PAD.decode(signed.signature.unwrap()).unwrap();
    let signature = Signature::from_bytes(&signature).unwrap();
    let public = keypair(ME).public;
    public.verify_simple(b"substrate", merged_hash().as_bytes(), &signature).unwrap();
    let revealed = ValidatorCommitment::parse(&world.chain.commitment("model_hash")).unwrap();
    assert_eq!(revealed.model_hash.unwrap().to_hex(), merged_hash());
    assert_eq!(revealed.version.unwrap().0, 24);
    let Payload::Weights(weights) = world.chain.payload("weights") else { panic!("weights") };
    let weights: Vec<_> = weights.weights.iter().map(|w| (w.uid, w.value)).collect();
    assert_eq!(weights, [(2, 1.0)]);
}

#[tokio::test]
async fn watchers_get_the_view_as_it_is_then_the_newest_and_an_end_when_the_scheduler_stops() {
    let world = World::new().await;
    let scheduler = world.leader().await;
    let mut client = scheduler.client.clone();
    let mut views = client.watch_round(WatchRoundRequest {}).await.unwrap().into_inner();
    let first = timeout(LONG, views.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(first.block, world.chain.head());

    world.to(&scheduler, 15).await;
    let mut revision = first.revision;
    loop {
        let view = timeout(LONG, views.message()).await.unwrap().unwrap().unwrap();
        assert!(view.revision > revision, "a view came twice, or an old one late");
        revision = view.revision;
        if view.block == 15 && written(&view, "seed") {
            break;
        }
    }
    scheduler.stop().await;
    let end = timeout(LONG, async { while let Ok(Some(_)) = views.message().await {} }).await;
    end.expect("the stream ends");
}

#[tokio::test]
async fn a_second_round_builds_on_the_first_ones_model() {
    let world = World::new().await;
    let scheduler = world.leader().await;
    let first = world.whole_round(&scheduler).await;
    world.to(&scheduler, 36 + 8).await;
    let view = scheduler.until("the next round", |v| round(v).cycle == 1).await;
    assert_eq!(round(&view).round_id, 36 + ROUND);
    assert_ne!(round(&view).traceparent, round(&first).traceparent);
    assert_eq!(view.base, first.base);
    scheduler.until("the seed", |view| written(view, "seed")).await;
    let book = world.chain.book();
    let (_, payload) = book.submitted.last().unwrap();
    let Payload::Commitment(commitment) = payload else { panic!("{payload:?}") };
    let commitment = ValidatorCommitment::parse(&commitment.data).unwrap();
    assert_eq!(commitment.version.unwrap().0, 24);
}

#[tokio::test]
async fn weights_that_the_chain_refuses_for_good_are_a_failed_write_and_the_round_ends() {
    let world = World::with(Fault::RefusesWeights, Ending::Merges).await;
    let scheduler = world.leader().await;
    let view = world.whole_round(&scheduler).await;
    assert_eq!(degraded(&view), ["write_failed"]);
    let weights = round(&view).writes.iter().find(|write| write.kind == "weights").unwrap();
    assert_eq!(weights.state, "failed");
    assert_eq!(weights.reason, "superseded by a newer round");
    let (_, record) = verified(&scheduler.record(ROUND).await);
    assert_eq!(record.degradations[0].kind.as_str(), "write_failed");
}

#[tokio::test]
async fn a_chain_service_that_loses_its_intents_is_told_the_same_again() {
    let world = World::with(Fault::Forgetful, Ending::Merges).await;
    let scheduler = world.leader().await;
    let view = world.whole_round(&scheduler).await;
    assert_eq!(degraded(&view), [""; 0]);
    for kind in ["seed", "signed_hash", "model_hash", "weights"] {
        // Fails when the payload is not the same each time.
        world.chain.payload(kind);
        let book = world.chain.book();
        assert_eq!(book.submitted.iter().filter(|((_, k), _)| k == kind).count(), 2, "{kind}");
    }
}

#[tokio::test]
async fn writes_that_never_land_leave_the_round_open_until_the_next_one_and_are_named_then() {
    let world = World::with(Fault::NeverLands, Ending::Merges).await;
    let scheduler = world.leader().await;
    world.to(&scheduler, ROUND).await;
    scheduler.until_stage(RoundStage::Evaluating).await;
    scheduler.work().await;
    world.committed(&scheduler).await;
    let view = world.to(&scheduler, 35).await;
    assert_eq!(round(&view).stage(), RoundStage::Committing);
    world.to(&scheduler, 36 + 8).await;
    let (_, record) = verified(&scheduler.record(ROUND).await);
    let left = record.degradations.iter().find(|d| d.kind.as_str() == "unfinished").unwrap();
    assert!(left.detail.contains("16/write/signed_hash"), "{}", left.detail);
    // The model was merged all the same: that it could not be announced does not undo it.
    let view = scheduler.view().await.unwrap();
    assert_eq!(view.base.unwrap().model_hash, merged_hash());
}

#[tokio::test]
async fn a_round_that_was_never_recorded_is_not_found() {
    let world = World::new().await;
    let scheduler = world.leader().await;
    let request = proto::scheduler::v1::GetRecordRequest { round_id: 3 };
    let call = scheduler.client.clone().get_record(request).await;
    assert_eq!(call.unwrap_err().code(), Code::NotFound);
    // A folder that is no record's is not listed.
    world.put("rounds/latest/record.json", "{}");
    world.put("rounds/7/notes.txt", "");
    let known = scheduler.client.clone().list_records(ListRecordsRequest {}).await.unwrap();
    assert_eq!(known.into_inner().round_ids, [0; 0]);
}
