//! Several schedulers of one validator: one leads, whoever follows it goes on where it was.

use std::time::Duration;

use domain::JobState;
use proto::scheduler::v1::{
    GetRoundRequest, LeaseJobRequest, ReportSubmissionRequest, RoundStage, WatchRoundRequest,
};
use tokio::time::timeout;
use tonic::Code;

use crate::{
    record::verified,
    subnet,
    world::{LONG, ROUND, World, degraded, measured, miner, round, submission, written},
};

#[tokio::test]
async fn a_second_scheduler_stands_by_and_says_so_but_shows_records() {
    let world = World::new().await;
    let first = world.leader().await;
    world.whole_round(&first).await;
    let second = world.scheduler().await;
    second.record(ROUND).await;
    let mut client = second.client.clone();
    let refused = [
        client.get_round(GetRoundRequest {}).await.unwrap_err(),
        client.watch_round(WatchRoundRequest {}).await.unwrap_err(),
        client.lease_job(LeaseJobRequest { worker: "w".to_owned() }).await.unwrap_err(),
        second.report(10).await.unwrap_err(),
    ];
    for status in refused {
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.message().contains("stands by"), "{}", status.message());
    }
    assert!(first.view().await.is_ok());
}

#[tokio::test]
async fn a_scheduler_that_stops_gives_the_lead_back_and_the_next_one_need_not_wait() {
    let mut world = World::new().await;
    // Nobody could wait for this lease to run out.
    world.config.leader_ttl = Duration::from_secs(1_000_000);
    let first = world.leader().await;
    let before = world.frozen(&first).await;
    first.stop().await;
    let second = world.leader().await;
    let after = second.view().await.unwrap();
    assert_eq!(after.round, before.round);
}

#[tokio::test]
async fn a_leader_that_was_frozen_past_its_lease_finds_out_and_changes_nothing() {
    let mut world = World::new().await;
    world.config.leader_ttl = Duration::from_secs(1);
    let first = world.leader().await;
    world.frozen(&first).await;
    let mut client = first.client.clone();
    let mut views = client.watch_round(WatchRoundRequest {}).await.unwrap().into_inner();

    let frozen = first.freeze();
    let second = world.leader().await;
    assert!(second.report(10).await.unwrap());
    // It is waiting for the first one when that wakes up, still believing that it leads.
    let late = {
        let mut client = first.client.clone();
        let submission = Some(submission(11));
        let request = ReportSubmissionRequest { round_id: ROUND, submission };
        tokio::spawn(async move { client.report_submission(request).await })
    };
    drop(frozen);
    let late = timeout(LONG, late).await.unwrap().unwrap().unwrap_err();
    assert_eq!(late.code(), Code::Unavailable, "{}", late.message());
    let ended = timeout(LONG, async { while let Ok(Some(_)) = views.message().await {} }).await;
    ended.expect("the stream of the one that lost the lead ends");
    let view = second.view().await.unwrap();
    assert_eq!(miner(&view, 10).outcome, "queued");
    assert_eq!(miner(&view, 11).outcome, "pending");
}

#[tokio::test]
async fn what_was_answered_or_shown_is_saved_already() {
    let world = World::new().await;
    let scheduler = world.leader().await;
    world.frozen(&scheduler).await;
    let store = store::Store::open(&world.common.store_url, &world.common.namespace).unwrap();
    let saved = async || {
        let bytes = store.get("scheduler/state").await.unwrap().unwrap();
        serde_json::from_slice::<domain::State>(&bytes).unwrap()
    };
    for miner in [10, 11, 12] {
        scheduler.report(miner).await.unwrap();
        let state = saved().await;
        let stored = &state.round.unwrap().miners[&subnet::hotkey(miner)];
        assert!(stored.submission.is_some(), "{miner}");
    }
    while let Some(job) = scheduler.lease("worker").await {
        let state = saved().await;
        let kept = &state.round.unwrap().jobs[&job.job_id].state;
        assert!(matches!(kept, JobState::Leased { fence, .. } if *fence == job.fence), "{kept:?}");
        scheduler.finish(&job, measured(&job)).await.unwrap();
        assert_eq!(saved().await.round.unwrap().jobs[&job.job_id].state, JobState::Done);
        let shown = scheduler.view().await.unwrap();
        assert!(saved().await.revision >= shown.revision);
    }
}

#[tokio::test]
async fn a_round_goes_on_over_the_crash_of_its_leader_at_every_stage() {
    let mut world = World::new().await;
    world.config.leader_ttl = Duration::from_secs(1);

    let leader = world.leader().await;
    let opened = world.opened(&leader).await;
    leader.crash();

    let leader = world.leader().await;
    let frozen = world.frozen(&leader).await;
    assert!(leader.report(10).await.unwrap());
    let lost = leader.lease("worker").await.unwrap();
    leader.crash();

    // The submission is known, and the worker's lease outlives the leader that gave it.
    let leader = world.leader().await;
    assert!(!leader.report(10).await.unwrap());
    assert_eq!(lost.traceparent, round(&opened).traceparent);
    leader.finish(&lost, measured(&lost)).await.unwrap();
    assert_eq!(leader.work().await, 1);
    world.chain.advance(24);
    leader.until("the merge", |v| round(v).stage() >= RoundStage::Merging).await;
    leader.crash();

    let leader = world.leader().await;
    leader.until_stage(RoundStage::Committing).await;
    leader.work().await;
    world.chain.advance(28);
    leader.until("the signed hash", |v| round(v).writes.len() >= 2).await;
    leader.crash();

    let leader = world.leader().await;
    leader.until("the signed hash", |view| written(view, "signed_hash")).await;
    world.chain.advance(32);
    leader.until("the weights", |v| round(v).writes.len() >= 3).await;
    leader.crash();

    let leader = world.leader().await;
    let closed = leader.until_stage(RoundStage::Closed).await;
    let (_, record) = verified(&leader.record(ROUND).await);
    for view in [&frozen, &closed] {
        assert_eq!(round(view).traceparent, round(&opened).traceparent);
    }
    assert_eq!(record.traceparent, round(&opened).traceparent);
    assert_eq!(degraded(&closed), [""; 0]);
    assert_eq!(round(&closed).weights.len(), 1);
    // The payload of each, however often it was submitted, was the same: `payload` checks it.
    for kind in ["seed", "signed_hash", "model_hash", "weights"] {
        world.chain.payload(kind);
    }
    let merges = world.merge.started();
    assert!(merges.iter().all(|plan| plan.contributions == merges[0].contributions));
    assert_eq!(merges[0].contributions[0].submission, Some(submission(10)));
}

#[tokio::test]
async fn two_schedulers_that_start_together_agree_on_one_leader() {
    let world = World::new().await;
    let both = [world.scheduler().await, world.scheduler().await];
    let end = tokio::time::Instant::now() + LONG;
    loop {
        let views = [both[0].view().await, both[1].view().await];
        let leading = views.iter().filter(|view| view.is_ok()).count();
        assert!(leading < 2, "both lead");
        if leading == 1 {
            break;
        }
        assert!(tokio::time::Instant::now() < end, "nobody leads: {views:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
