//! Chain services and mergers that go away, stutter, cannot read, or never end.

use proto::scheduler::v1::{ReportSubmissionRequest, RoundStage};
use testkit::RedisServer;
use tonic::Code;

use crate::{
    chain::Fault,
    merge::{Ending, merged_hash},
    record::verified,
    subnet::{OTHER, hotkey},
    world::{ROUND, World, base_hash, degraded, miner, round, submission, written},
};

#[tokio::test]
async fn a_chain_service_that_goes_away_and_comes_back_costs_no_block_and_doubles_none() {
    let mut world = World::new().await;
    let scheduler = world.leader().await;
    let before = world.frozen(&scheduler).await;
    scheduler.report(10).await.unwrap();
    world.chain.go_away().await;
    // Work that needs no chain goes on.
    assert_eq!(scheduler.work().await, 2);
    let revision = scheduler.view().await.unwrap().revision;
    world.chain.come_back().await;
    // It goes on after the block that the scheduler holds.
    world.chain.is_watched(2).await;
    world.chain.advance(ROUND + 2);
    let after = scheduler.until("the new block", |view| view.block == ROUND + 2).await;
    assert_eq!(after.revision, revision + 2);
    assert_eq!(world.chain.book().sent.iter().filter(|number| **number == ROUND).count(), 1);
    assert_eq!(round(&after).traceparent, round(&before).traceparent);
    world.committed(&scheduler).await;
    scheduler.work().await;
    let view = world.closed(&scheduler).await;
    assert_eq!(degraded(&view), [""; 0]);
}

#[tokio::test]
async fn blocks_that_were_made_while_the_chain_service_was_away_take_their_effect_after_it() {
    let mut world = World::new().await;
    let scheduler = world.leader().await;
    world.frozen(&scheduler).await;
    scheduler.report(10).await.unwrap();
    scheduler.work().await;
    world.chain.go_away().await;
    // The whole of Validate passes unseen, and the merge begins late.
    world.chain.advance(25);
    let blind = scheduler.view().await.unwrap();
    assert_eq!((blind.block, round(&blind).stage()), (ROUND, RoundStage::Evaluating));
    world.chain.come_back().await;
    let view = scheduler.until_stage(RoundStage::Committing).await;
    assert_eq!(view.block, 25);
    assert_eq!(miner(&view, 10).score, Some(2.25));
    let started = world.merge.started();
    let [plan] = started.as_slice() else { panic!("{} merges", started.len()) };
    // It has as long as for everybody, and says how much of that is over.
    assert_eq!((plan.deadline_ms, plan.elapsed_ms), (128, 40));
    scheduler.work().await;
    let view = world.closed(&scheduler).await;
    assert_eq!(degraded(&view), [""; 0]);
}

#[tokio::test]
async fn a_cycle_that_passed_unseen_is_not_played_as_if_it_were_now() {
    let world = World::new().await;
    let scheduler = world.leader().await;
    world.opened(&scheduler).await;
    scheduler.stop().await;
    let before = world.chain.book().submitted.len();
    // A whole cycle with its round goes by, and most of the next one.
    world.chain.advance(36 + 36 + 25);
    let scheduler = world.leader().await;
    let view = scheduler.view().await.unwrap();
    assert_eq!(round(&view).round_id, 36 + 36 + ROUND);
    assert_eq!(degraded(&view), ["round_missed"]);
    assert_eq!(world.chain.book().submitted.len(), before);
}

#[tokio::test]
async fn a_write_that_the_outage_met_is_made_after_it() {
    let mut world = World::new().await;
    let scheduler = world.leader().await;
    world.frozen(&scheduler).await;
    scheduler.work().await;
    world.committed(&scheduler).await;
    scheduler.work().await;
    world.to(&scheduler, 27).await;
    world.chain.advance(28);
    world.chain.go_away().await;
    world.chain.come_back().await;
    let view = world.closed(&scheduler).await;
    assert!(written(&view, "signed_hash") && written(&view, "model_hash"));
    world.chain.payload("signed_hash");
    world.chain.payload("model_hash");
}

#[tokio::test]
async fn a_store_that_crashes_and_comes_back_in_mid_round_costs_the_round_nothing() {
    let mut redis = RedisServer::start().await.unwrap();
    let mut world = World::new().await;
    world.common.store_url = redis.url();
    let scheduler = world.leader().await;
    let before = world.frozen(&scheduler).await;
    assert!(scheduler.report(10).await.unwrap());
    redis.kill();
    world.chain.advance(ROUND + 1);
    let waiting = {
        let mut client = scheduler.client.clone();
        let (round_id, submission) = (ROUND, Some(submission(11)));
        let request = ReportSubmissionRequest { round_id, submission };
        tokio::spawn(async move { client.report_submission(request).await })
    };
    redis.revive().await.unwrap();
    let view = scheduler.until("the block of the outage", |v| v.block == ROUND + 1).await;
    assert_eq!(round(&view).traceparent, round(&before).traceparent);
    // Whoever was answered with an error asks again, as the gateway does.
    if waiting.await.unwrap().is_err() {
        scheduler.report(11).await.unwrap();
    }
    assert_eq!(scheduler.work().await, 3);
    world.committed(&scheduler).await;
    scheduler.work().await;
    let view = world.closed(&scheduler).await;
    assert_eq!(degraded(&view), [""; 0]);
    assert_eq!(miner(&view, 11).outcome, "scored");
}

#[tokio::test]
async fn a_chain_service_that_stutters_moves_nothing_twice() {
    let world = World::with(Fault::Stutters, Ending::Merges).await;
    let scheduler = world.leader().await;
    let view = world.whole_round(&scheduler).await;
    assert_eq!(degraded(&view), [""; 0]);
    // Each block was sent twice and once more when it was old, and counted once.
    let sent = world.chain.book().sent.len() as u64;
    assert_eq!(sent, 3 * (32 - 5 + 1));
    let honest = World::new().await;
    let scheduler = honest.leader().await;
    let begun = scheduler.view().await.unwrap();
    let view = honest.to(&scheduler, 7).await;
    assert_eq!(view.revision, begun.revision + 2);
}

#[tokio::test]
async fn a_round_whose_inputs_cannot_be_read_fails_by_name_and_takes_nothing() {
    let world = World::with(Fault::Blind, Ending::Merges).await;
    let scheduler = world.leader().await;
    world.opened(&scheduler).await;
    let view = world.to(&scheduler, ROUND + 2).await;
    assert_eq!(round(&view).stage(), RoundStage::Open);
    assert!(!round(&view).uploads_open);
    assert_eq!(scheduler.report(10).await.unwrap_err().code(), Code::PermissionDenied);
    assert!(scheduler.lease("worker").await.is_none());
    let view = world.committed(&scheduler).await;
    assert_eq!(degraded(&view), ["freeze_failed"]);
    let view = world.closed(&scheduler).await;
    assert_eq!(view.base.unwrap().model_hash, base_hash());
    assert!(world.merge.started().is_empty());
    let (_, record) = verified(&scheduler.record(ROUND).await);
    assert!(record.frozen.is_none() && record.weights.is_empty());
}

#[tokio::test]
async fn a_merge_that_never_ends_is_recorded_as_failed_and_the_base_stays() {
    let world = World::with(Fault::Honest, Ending::NeverEnds).await;
    let scheduler = world.leader().await;
    world.frozen(&scheduler).await;
    scheduler.report(10).await.unwrap();
    scheduler.work().await;
    world.to(&scheduler, 24).await;
    scheduler.until_stage(RoundStage::Merging).await;
    let view = world.to(&scheduler, 31).await;
    assert_eq!(round(&view).stage(), RoundStage::Merging);
    world.to(&scheduler, 32).await;
    let view = scheduler.until_stage(RoundStage::Closed).await;
    assert_eq!(degraded(&view), ["merge_failed"]);
    assert_eq!(round(&view).merge.as_ref().unwrap().outcome, "failed");
    assert_eq!(view.base.as_ref().unwrap().model_hash, base_hash());
    // The miner is paid, and what is announced is the old model.
    assert!(written(&view, "weights") && written(&view, "signed_hash"));
    let revealed = world.chain.commitment("model_hash");
    let revealed = domain::ValidatorCommitment::parse(&revealed).unwrap();
    assert_eq!(revealed.model_hash.unwrap().to_hex(), base_hash());
    let (_, record) = verified(&scheduler.record(ROUND).await);
    assert_eq!(record.degradations[0].kind.as_str(), "merge_failed");
}

#[tokio::test]
async fn a_merge_that_fails_says_why_in_the_round_and_the_base_stays() {
    let world = World::with(Fault::Honest, Ending::Fails).await;
    let scheduler = world.leader().await;
    let view = world.whole_round(&scheduler).await;
    assert_eq!(degraded(&view), ["merge_failed"]);
    assert_eq!(round(&view).degradations[0].detail, "nobody answered");
    let merge = round(&view).merge.as_ref().unwrap();
    assert_eq!((merge.outcome.as_str(), merge.reason.as_str()), ("failed", "no_agreement"));
    assert_eq!(view.base.as_ref().unwrap().model_hash, base_hash());
    assert!(written(&view, "weights"));
}

#[tokio::test]
async fn a_merger_that_was_restarted_in_mid_merge_is_started_again() {
    let world = World::with(Fault::Honest, Ending::Forgetful).await;
    let scheduler = world.leader().await;
    let view = world.whole_round(&scheduler).await;
    assert_eq!(degraded(&view), [""; 0]);
    let started = world.merge.started();
    assert_eq!(started.len(), 2);
    assert_eq!(started[0].contributions, started[1].contributions);
    assert_eq!(view.base.unwrap().model_hash, merged_hash());
}

#[tokio::test]
async fn a_merge_without_one_of_the_validators_names_it() {
    let world = World::with(Fault::Honest, Ending::LeavesSomebodyOut).await;
    let scheduler = world.leader().await;
    let view = world.whole_round(&scheduler).await;
    assert_eq!(degraded(&view), ["merge_partial"]);
    let other = hotkey(OTHER).to_string();
    assert_eq!(round(&view).degradations[0].detail, format!("left out: {other} (silent)"));
    let merge = round(&view).merge.as_ref().unwrap();
    assert_eq!((merge.members.len(), merge.dropped.len()), (1, 1));
    assert_eq!((&merge.dropped[0].hotkey, merge.dropped[0].reason.as_str()), (&other, "silent"));
}

#[tokio::test]
async fn a_validator_that_lied_in_the_merge_is_named_in_the_view_and_in_the_record() {
    let world = World::with(Fault::Honest, Ending::FindsALiar).await;
    let scheduler = world.leader().await;
    let view = world.whole_round(&scheduler).await;
    assert_eq!(degraded(&view), ["merge_partial", "peer_blamed"]);
    let merge = round(&view).merge.as_ref().unwrap();
    assert_eq!(merge.blamed[0].hotkey, hotkey(OTHER).to_string());
    // Figures that are no numbers are left out; the rest are kept as they came.
    let [influence] = merge.influence.as_slice() else { panic!("{:?}", merge.influence) };
    assert_eq!((influence.cosine, influence.bounded_norm), (0.75, 1.0));
    let (_, record) = verified(&scheduler.record(ROUND).await);
    let merge = record.merge.unwrap();
    assert_eq!((merge.blamed()[0].hotkey.clone(), merge.dropped()), (hotkey(OTHER), &[][..]));
}

#[tokio::test]
async fn a_scheduler_that_comes_in_mid_round_says_that_it_was_late_or_missed_it() {
    let world = World::new().await;
    world.chain.advance(13);
    let scheduler = world.leader().await;
    world.to(&scheduler, ROUND).await;
    let view = scheduler.until_stage(RoundStage::Evaluating).await;
    assert_eq!(degraded(&view), ["late_start"]);
    assert!(round(&view).writes.is_empty(), "a seed after its phase is of no use");

    let world = World::new().await;
    world.chain.advance(25);
    let scheduler = world.leader().await;
    let view = world.to(&scheduler, 26).await;
    assert_eq!(degraded(&view), ["round_missed"]);
    world.to(&scheduler, 32).await;
    scheduler.until_stage(RoundStage::Closed).await;
    verified(&scheduler.record(ROUND).await);
    assert!(world.chain.book().submitted.is_empty());
}
