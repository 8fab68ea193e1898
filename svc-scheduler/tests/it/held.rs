//! Rounds that wait until the chain's endpoints agree, blocks that are taken back, and what the
//! chain service tells beside blocks.

use domain::{DegradationKind, WeightsOrigin};
use proto::{
    chain::v1::submit_intent_request::Payload,
    scheduler::v1::{RoundStage, RoundView},
};
use tonic::Code;

use crate::{
    chain::Fault,
    merge::Ending,
    record::verified,
    world::{ROUND, World, degraded, round, written},
};

#[tokio::test]
async fn a_round_is_held_while_endpoints_disagree_and_frozen_once_they_agree() {
    let world = World::with(Fault::Disagrees, Ending::Merges).await;
    let scheduler = world.leader().await;
    world.opened(&scheduler).await;
    world.to(&scheduler, ROUND).await;
    let held = |view: &RoundView| !round(view).held.is_empty();
    let view = scheduler.until("the reason", held).await;
    assert_eq!(round(&view).held, "disagreement: block 16 has two hashes");
    assert_eq!(round(&view).stage(), RoundStage::Open);
    assert!(!round(&view).uploads_open);
    assert_eq!(scheduler.report(10).await.unwrap_err().code(), Code::PermissionDenied);
    world.chain.agree();
    let view = scheduler.until_stage(RoundStage::Evaluating).await;
    assert_eq!((round(&view).held.as_str(), degraded(&view)), ("", vec![]));
    assert!(scheduler.report(10).await.unwrap());
}

#[tokio::test]
async fn a_round_whose_endpoints_never_agree_fails_with_that_reason_and_pays_nobody() {
    let world = World::with(Fault::Disagrees, Ending::Merges).await;
    let scheduler = world.leader().await;
    world.opened(&scheduler).await;
    world.to(&scheduler, ROUND).await;
    scheduler.until("the reason", |view| !round(view).held.is_empty()).await;
    let view = world.committed(&scheduler).await;
    assert_eq!(degraded(&view), ["freeze_failed"]);
    let detail = &round(&view).degradations[0].detail;
    assert!(detail.ends_with("before Merge: disagreement: block 16 has two hashes"), "{detail}");
    world.closed(&scheduler).await;
    let (_, record) = verified(&scheduler.record(ROUND).await);
    assert!(record.frozen.is_none() && record.weights.is_empty());
    assert_eq!(record.weights_origin, WeightsOrigin::None);
}

#[tokio::test]
async fn blocks_that_are_taken_back_before_the_freeze_cost_nothing_and_it_is_of_the_new_branch() {
    let world = World::with(Fault::Disagrees, Ending::Merges).await;
    let scheduler = world.leader().await;
    world.opened(&scheduler).await;
    world.to(&scheduler, ROUND).await;
    // It is reading when the block goes away.
    scheduler.until("the reason", |view| !round(view).held.is_empty()).await;
    let abandoned = world.chain.hash(ROUND);
    world.chain.reorganise(ROUND - 3, ROUND - 1);
    let view = scheduler.until("the new branch", |view| view.block == ROUND - 1).await;
    assert_eq!(round(&view).stage(), RoundStage::Open);
    world.chain.agree();
    world.to(&scheduler, ROUND).await;
    let view = scheduler.until_stage(RoundStage::Evaluating).await;
    assert_eq!(degraded(&view), [""; 0]);
    scheduler.report(10).await.unwrap();
    scheduler.work().await;
    world.committed(&scheduler).await;
    scheduler.work().await;
    world.closed(&scheduler).await;
    let (_, record) = verified(&scheduler.record(ROUND).await);
    let inputs = record.frozen.unwrap().inputs;
    assert_eq!(inputs.block_hash.0.to_vec(), world.chain.hash(ROUND));
    assert_eq!(inputs.seed_block_hash.0.to_vec(), world.chain.hash(ROUND - 1));
    assert_ne!(inputs.block_hash.0.to_vec(), abandoned);
    world.chain.payload("seed");
}

#[tokio::test]
async fn blocks_that_are_taken_back_after_the_freeze_are_named_and_double_nothing() {
    let world = World::new().await;
    let scheduler = world.leader().await;
    world.frozen(&scheduler).await;
    let abandoned = world.chain.hash(ROUND);
    scheduler.report(10).await.unwrap();
    world.to(&scheduler, ROUND + 2).await;
    world.chain.reorganise(ROUND - 2, ROUND + 1);
    let view = scheduler.until("the new branch", |view| view.block == ROUND + 1).await;
    assert_eq!(degraded(&view), ["reorganised"]);
    let told = &round(&view).degradations[0];
    assert!(told.detail.contains(&hex::encode(&abandoned)), "{}", told.detail);
    assert!(told.detail.contains(&hex::encode(world.chain.hash(ROUND - 2))), "{}", told.detail);
    assert_eq!(told.block, ROUND + 2);
    assert_eq!(scheduler.work().await, 2);
    world.committed(&scheduler).await;
    scheduler.work().await;
    let view = world.closed(&scheduler).await;
    assert!(["seed", "signed_hash", "model_hash", "weights"].iter().all(|k| written(&view, k)));
    assert_eq!(world.chain.book().submitted.len(), 4);
    assert_eq!(world.merge.started().len(), 1);
    let (_, record) = verified(&scheduler.record(ROUND).await);
    assert_eq!(record.frozen.unwrap().inputs.block_hash.0.to_vec(), abandoned);
}

/// Asserts that the round says that the block at which it was frozen was taken back.
fn is_marked(world: &World, view: &RoundView, abandoned: &[u8]) {
    assert_eq!(degraded(view), ["reorganised"]);
    let told = &round(view).degradations[0];
    assert!(told.detail.contains(&hex::encode(abandoned)), "{}", told.detail);
    assert!(told.detail.contains(&hex::encode(world.chain.hash(ROUND - 2))), "{}", told.detail);
    assert_eq!(told.block, ROUND + 2);
}

#[tokio::test]
async fn blocks_that_are_taken_back_while_no_scheduler_runs_are_named_by_the_next_one() {
    let world = World::new().await;
    let first = world.leader().await;
    world.frozen(&first).await;
    let abandoned = world.chain.hash(ROUND);
    first.report(10).await.unwrap();
    world.to(&first, ROUND + 2).await;
    first.stop().await;
    // Twice, and the newest one not below the other.
    world.chain.reorganise(ROUND - 2, ROUND + 3);
    world.chain.reorganise(ROUND + 1, ROUND + 4);
    let second = world.leader().await;
    is_marked(&world, &second.view().await.unwrap(), &abandoned);
    // It is told once, to whoever leads.
    second.stop().await;
    let third = world.leader().await;
    is_marked(&world, &third.view().await.unwrap(), &abandoned);
}

#[tokio::test]
async fn blocks_that_are_taken_back_while_the_chain_service_is_away_are_named_when_it_is_back() {
    let mut world = World::new().await;
    let scheduler = world.leader().await;
    world.frozen(&scheduler).await;
    let abandoned = world.chain.hash(ROUND);
    scheduler.report(10).await.unwrap();
    world.to(&scheduler, ROUND + 2).await;
    world.chain.go_away().await;
    world.chain.reorganise(ROUND - 2, ROUND + 1);
    world.chain.come_back().await;
    let view = scheduler.until("the new branch", |view| view.block == ROUND + 1).await;
    is_marked(&world, &view, &abandoned);
    assert_eq!(scheduler.work().await, 2);
    world.committed(&scheduler).await;
    scheduler.work().await;
    let view = world.closed(&scheduler).await;
    assert_eq!(degraded(&view), ["reorganised"]);
    assert_eq!(world.chain.book().submitted.len(), 4);
}

#[tokio::test]
async fn blocks_that_are_taken_back_above_the_frozen_one_while_nobody_looks_are_nobodys_loss() {
    let world = World::new().await;
    let first = world.leader().await;
    world.frozen(&first).await;
    world.to(&first, ROUND + 3).await;
    first.stop().await;
    world.chain.reorganise(ROUND + 1, ROUND + 4);
    let second = world.leader().await;
    assert_eq!(degraded(&second.view().await.unwrap()), [""; 0]);
}

#[tokio::test]
async fn weights_are_held_by_policy_when_the_chain_service_had_no_quorum() {
    let mut world = World::new().await;
    world.config.policy.hold_weights_on = vec![DegradationKind::NoQuorum];
    let scheduler = world.leader().await;
    world.frozen(&scheduler).await;
    scheduler.report(10).await.unwrap();
    scheduler.work().await;
    // What is older than the round, and what is told twice, is nothing new.
    world.chain.tell("endpoint_switched", "from a to b", 7);
    world.chain.tell("no_quorum", "1 of 2 endpoints answer", ROUND);
    world.chain.tell("no_quorum", "1 of 2 endpoints answer", ROUND + 1);
    world.chain.tell("round_missed", "says who?", ROUND + 1);
    let view = world.committed(&scheduler).await;
    assert_eq!(degraded(&view), ["no_quorum", "chain_degraded", "weights_held"]);
    assert!(round(&view).weights.is_empty());
    scheduler.work().await;
    let view = world.closed(&scheduler).await;
    assert!(!written(&view, "weights") && written(&view, "model_hash"));
    assert!(world.chain.book().submitted.iter().all(|((_, kind), _)| kind != "weights"));
}

#[tokio::test]
async fn what_went_wrong_while_the_inputs_were_read_is_in_the_round_once() {
    let world = World::with(Fault::TellsDegradations, Ending::Merges).await;
    let scheduler = world.leader().await;
    let view = world.frozen(&scheduler).await;
    assert_eq!(degraded(&view), ["archive_used"]);
    assert_eq!(round(&view).degradations[0].detail, "ws://archive:9944");
}

#[tokio::test]
async fn weights_of_the_stale_guard_are_told_apart_on_the_wire_in_the_view_and_in_the_record() {
    let world = World::with(Fault::NeverPaid, Ending::Merges).await;
    let round_id = ROUND + 36;
    world.chain.advance(36 + 5);
    let scheduler = world.leader().await;
    world.to(&scheduler, 36 + 8).await;
    world.to(&scheduler, round_id).await;
    scheduler.until_stage(RoundStage::Evaluating).await;
    world.to(&scheduler, 36 + 24).await;
    scheduler.until_stage(RoundStage::Committing).await;
    scheduler.work().await;
    world.to(&scheduler, 36 + 28).await;
    scheduler.until("the signed hash", |view| written(view, "signed_hash")).await;
    world.to(&scheduler, 36 + 32).await;
    let view = scheduler.until("the weights", |view| written(view, "weights")).await;
    assert_eq!(round(&view).weights_origin, "stale_guard");
    assert!(degraded(&view).contains(&"stale_guard"), "{:?}", degraded(&view));
    let Payload::Weights(sent) = world.chain.payload("weights") else { panic!("weights") };
    assert!(sent.stale_guard);
    assert_eq!((sent.weights[0].uid, sent.weights[0].value), (4, 1.0));
    world.to(&scheduler, 36 + 36 + 8).await;
    let (_, record) = verified(&scheduler.record(round_id).await);
    assert_eq!(record.weights_origin, WeightsOrigin::StaleGuard);

    // Those that were earned are not.
    let world = World::new().await;
    let scheduler = world.leader().await;
    let view = world.whole_round(&scheduler).await;
    assert_eq!(round(&view).weights_origin, "earned");
    let Payload::Weights(sent) = world.chain.payload("weights") else { panic!("weights") };
    assert!(!sent.stale_guard);
    let (_, record) = verified(&scheduler.record(ROUND).await);
    assert_eq!(record.weights_origin, WeightsOrigin::Earned);
}
