//! What evaluators are asked for beside losses, what they answer, and what is shown of it.

use std::time::Duration;

use domain::{DegradationKind, Keep, Sketch};
use proto::scheduler::v1::{
    Job, JobKind, Measured, RenewJobRequest, Rival, RoundStage,
    finish_job_request::Result as JobResult,
};
use tonic::Code;

use crate::{
    chain::Fault,
    merge::Ending,
    record::verified,
    subnet::hotkey,
    world::{ROUND, Scheduler, World, base_hash, degraded, measured, miner, round, written},
};

/// Batches of these tests.
const BATCHES: usize = 12;

/// A world whose policy stops early and looks at own data.
async fn strict() -> World {
    let mut world = World::new().await;
    world.config.evaluation.batches = BATCHES as u32;
    world.config.evaluation.early_stop.enabled = true;
    world.config.evaluation.early_stop.confidence = 0.95;
    world.config.evaluation.early_stop.minimum_batches = 4;
    world.config.policy.own_data.batches = 4;
    world
}

fn losses(mean: f64, phase: f64) -> Vec<f64> {
    (0..BATCHES).map(|n| mean + 0.01 * (n as f64 + phase).sin()).collect()
}

fn sketch(of: f32) -> Vec<u8> {
    let sums = std::array::from_fn(|n| ((n as f32) * of).sin());
    Sketch::new(sums).unwrap().to_bytes()
}

/// A measurement with everything that there may be in it.
fn full(job: &Job, loss: f64, phase: f64) -> Measured {
    let baseline = job.kind() == JobKind::Baseline;
    let own = if baseline { 0 } else { job.own_batches as usize };
    Measured {
        baseline_losses: losses(5.0, 0.0),
        losses: if baseline { vec![] } else { losses(loss, phase) },
        held_out_losses: if baseline { vec![5.5; 3] } else { vec![] },
        own_baseline_losses: vec![5.0; own],
        own_losses: (0..own).map(|n| 4.0 + 0.01 * n as f64).collect(),
        sketch: if baseline { vec![].into() } else { sketch(phase as f32 + 1.0).into() },
        batches_digest: "d".repeat(64),
        sources_digest: "e".repeat(64),
        ..Measured::default()
    }
}

async fn hand_in(
    scheduler: &Scheduler,
    job: &Job,
    measured: Measured,
) -> Result<(), tonic::Status> {
    scheduler.finish(job, JobResult::Measured(measured)).await
}

async fn renewed(scheduler: &Scheduler, job: &Job) -> Option<Rival> {
    let (job_id, fence) = (job.job_id.clone(), job.fence);
    let request = RenewJobRequest { worker: "worker".to_owned(), job_id, fence };
    scheduler.client.clone().renew_job(request).await.unwrap().into_inner().rival
}

#[tokio::test]
async fn a_job_says_until_when_on_which_data_and_whom_to_beat_and_all_that_is_measured_is_shown() {
    let world = strict().await;
    let scheduler = world.leader().await;
    world.frozen(&scheduler).await;
    for miner in [10, 11, 12] {
        scheduler.report(miner).await.unwrap();
    }
    let baseline = scheduler.lease("worker").await.unwrap();
    // Eight blocks of 40 ms until Merge.
    assert_eq!((baseline.deadline_ms, baseline.own_batches), (8 * 40, 0));
    hand_in(&scheduler, &baseline, full(&baseline, 0.0, 0.0)).await.unwrap();
    for n in 0..3 {
        let job = scheduler.lease("worker").await.unwrap();
        assert_eq!((job.own_batches, &job.rival), (4, &None));
        assert_eq!(renewed(&scheduler, &job).await, None);
        let mut bent = full(&job, 4.0, f64::from(n));
        bent.sketch = vec![0; 9].into();
        let refused = hand_in(&scheduler, &job, bent).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains("sketch"), "{}", refused.message());
        hand_in(&scheduler, &job, full(&job, 4.0 + 0.1 * f64::from(n), f64::from(n + 1)))
            .await
            .unwrap();
    }
    let view = scheduler.view().await.unwrap();
    for seed in [10, 11, 12] {
        let miner = miner(&view, seed);
        let found = miner.improvement.as_ref().unwrap();
        assert!(found.low < found.mean && found.mean < found.high && found.standard_error > 0.0);
        assert_eq!(found.batches as usize, BATCHES);
        assert_eq!(miner.own_improvement.as_ref().unwrap().batches, 4);
        assert_eq!(miner.own_data, "ordinary");
    }
    world.committed(&scheduler).await;
    scheduler.work().await;
    world.closed(&scheduler).await;
    let (_, record) = verified(&scheduler.record(ROUND).await);
    assert_eq!(record.policy.terms.batches as usize, BATCHES);
    assert_eq!(record.batches_digest.unwrap(), "d".repeat(64));
    assert_eq!(record.sources_digest.unwrap(), "e".repeat(64));
    assert_eq!(record.baseline.unwrap().held_out_batches, 3);
}

#[tokio::test]
async fn who_cannot_reach_the_last_paying_rank_is_stopped_shown_and_paid_nothing() {
    let world = strict().await;
    let scheduler = world.leader().await;
    world.frozen(&scheduler).await;
    for miner in [10, 11, 12, 14] {
        scheduler.report(miner).await.unwrap();
    }
    let baseline = scheduler.lease("worker").await.unwrap();
    hand_in(&scheduler, &baseline, full(&baseline, 0.0, 0.0)).await.unwrap();
    let last = scheduler.lease("slow").await.unwrap();
    assert_eq!(last.rival, None, "nobody has been measured yet");
    let stopped = || {
        let mut stopped = full(&last, 4.9, 9.0);
        stopped.losses.truncate(6);
        stopped.own_losses.clear();
        stopped.own_baseline_losses.clear();
        Measured { out_of_reach: true, ..stopped }
    };
    for n in 0..3 {
        let job = scheduler.lease("worker").await.unwrap();
        assert_eq!(job.rival, None, "a rank is free");
        let measured = full(&job, 4.0 + 0.1 * f64::from(n), f64::from(n));
        hand_in(&scheduler, &job, measured).await.unwrap();
    }
    let rival = renewed(&scheduler, &last).await.unwrap();
    assert_eq!((rival.losses, rival.minimum_batches), (losses(4.2, 2.0), 4));
    assert_eq!(rival.confidence, 0.95);
    let unsaid = Measured { out_of_reach: false, ..stopped() };
    let refused = hand_in(&scheduler, &last, unsaid).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    hand_in(&scheduler, &last, stopped()).await.unwrap();
    let hotkey = last.submission.as_ref().unwrap().hotkey.clone();
    let view = world.committed(&scheduler).await;
    let shown = round(&view).miners.iter().find(|m| m.hotkey == hotkey).unwrap();
    assert_eq!((shown.outcome.as_str(), shown.reason.as_str()), ("scored", "out_of_reach"));
    assert_eq!((shown.score, shown.loss, shown.raw_score), (Some(0.0), None, None));
    assert_eq!(shown.improvement.as_ref().unwrap().batches, 6);
    assert!(shown.detail.starts_with("stopped after 6 of 12 batches"), "{}", shown.detail);
    assert_eq!(world.merge.started()[0].contributions.len(), 3);
    assert_eq!(degraded(&view), [""; 0]);
}

#[tokio::test]
async fn a_stop_without_anybody_to_beat_is_the_workers_failure() {
    let world = strict().await;
    let scheduler = world.leader().await;
    world.frozen(&scheduler).await;
    scheduler.report(10).await.unwrap();
    let baseline = scheduler.lease("worker").await.unwrap();
    hand_in(&scheduler, &baseline, full(&baseline, 0.0, 0.0)).await.unwrap();
    let job = scheduler.lease("worker").await.unwrap();
    let mut stopped = full(&job, 4.9, 1.0);
    stopped.out_of_reach = true;
    stopped.losses.truncate(6);
    hand_in(&scheduler, &job, stopped).await.unwrap();
    let view = scheduler.view().await.unwrap();
    assert_eq!(degraded(&view), ["job_retried"]);
    assert_eq!(
        (miner(&view, 10).outcome.as_str(), &miner(&view, 10).improvement),
        ("queued", &None)
    );
}

#[tokio::test]
async fn near_copies_are_shown_with_their_originals_and_the_earliest_may_keep_its_score() {
    for (keep, scores) in [(Keep::ZeroAll, [0.0, 0.0, 2.25]), (Keep::Earliest, [2.25, 0.0, 1.5])] {
        let mut world = strict().await;
        world.config.policy.duplicates.keep = keep;
        let scheduler = world.leader().await;
        world.frozen(&scheduler).await;
        for miner in [10, 11, 12] {
            scheduler.report(miner).await.unwrap();
        }
        while let Some(job) = scheduler.lease("worker").await {
            let of = job.submission.as_ref().map(|submission| submission.hotkey.clone());
            let at = [10, 11, 12].iter().position(|k| of == Some(hotkey(*k).to_string()));
            let n = at.unwrap_or_default() as f64;
            let mut measured = full(&job, 4.0 + 0.01 * n, n);
            if at.is_some_and(|at| at < 2) {
                measured.sketch = sketch(7.0).into();
            }
            hand_in(&scheduler, &job, measured).await.unwrap();
        }
        let view = world.committed(&scheduler).await;
        let names = [10, 11].map(|seed| hotkey(seed).to_string());
        assert_eq!(miner(&view, 10).duplicates, [names[1].clone()]);
        assert_eq!(miner(&view, 11).duplicates, [names[0].clone()]);
        assert!(miner(&view, 12).duplicates.is_empty());
        // The commitments of these miners are of one block: a hash decides between them.
        let mut paid = [10, 11, 12].map(|seed| miner(&view, seed).score.unwrap());
        let zeroed: Vec<_> =
            [10, 11].into_iter().filter(|k| miner(&view, *k).score == Some(0.0)).collect();
        for seed in &zeroed {
            assert_eq!(miner(&view, *seed).reason, "near_duplicate");
        }
        assert_eq!(zeroed.len(), if keep == Keep::ZeroAll { 2 } else { 1 });
        paid[..2].sort_by(|a, b| b.total_cmp(a));
        assert_eq!(paid, scores);
    }
}

#[tokio::test]
async fn a_worker_that_measures_on_other_batches_fails_its_job_and_another_one_gets_it() {
    let world = World::new().await;
    let scheduler = world.leader().await;
    world.frozen(&scheduler).await;
    scheduler.report(10).await.unwrap();
    let baseline = scheduler.lease("one").await.unwrap();
    scheduler.finish(&baseline, measured(&baseline)).await.unwrap();
    let score = scheduler.lease("two").await.unwrap();
    let JobResult::Measured(mut other) = measured(&score) else { panic!() };
    other.batches_digest = "x".repeat(64);
    hand_in(&scheduler, &score, other).await.unwrap();
    let view = scheduler.view().await.unwrap();
    assert_eq!(degraded(&view), ["batches_differ", "job_retried"]);
    assert!(round(&view).degradations[0].detail.contains("two"));
    assert!(scheduler.lease("two").await.is_none());
    let again = scheduler.lease("one").await.unwrap();
    scheduler.finish(&again, measured(&again)).await.unwrap();
    assert_eq!(miner(&scheduler.view().await.unwrap(), 10).raw_score, Some(1.0));
    let JobResult::Measured(mut long) = measured(&again) else { panic!() };
    long.batches_digest = "x".repeat(129);
    let refused = hand_in(&scheduler, &again, long).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn one_worker_gets_two_jobs_and_a_renewal_keeps_each() {
    let world = World::new().await;
    let scheduler = world.leader().await;
    world.frozen(&scheduler).await;
    for miner in [10, 11] {
        scheduler.report(miner).await.unwrap();
    }
    let held = [scheduler.lease("a").await.unwrap(), scheduler.lease("a").await.unwrap()];
    assert!(scheduler.lease("a").await.is_none());
    for block in ROUND + 1..ROUND + 6 {
        world.to(&scheduler, block).await;
        for job in &held {
            renewed(&scheduler, job).await;
        }
    }
    assert!(scheduler.lease("b").await.is_some());
    for job in &held {
        scheduler.finish(job, measured(job)).await.unwrap();
    }
    assert_eq!(degraded(&scheduler.view().await.unwrap()), ["job_retried"; 0]);
}

#[tokio::test]
async fn without_a_seed_nothing_is_evaluated_and_the_model_is_committed_as_it_was() {
    let world = World::with(Fault::Seedless, Ending::Merges).await;
    let scheduler = world.leader().await;
    world.opened(&scheduler).await;
    world.to(&scheduler, ROUND).await;
    let view = scheduler.until_stage(RoundStage::Committing).await;
    assert_eq!(degraded(&view), [DegradationKind::NoSeeds.as_str()]);
    assert!(!round(&view).uploads_open);
    assert_eq!(miner(&view, 10).outcome, "not_evaluated");
    assert!(scheduler.lease("worker").await.is_none());
    assert_eq!(scheduler.report(10).await.unwrap_err().code(), Code::FailedPrecondition);
    let view = world.closed(&scheduler).await;
    assert!(written(&view, "model_hash") && !written(&view, "weights"));
    assert_eq!(view.base.unwrap().model_hash, base_hash());
    assert!(world.merge.started().is_empty());
    let (_, record) = verified(&scheduler.record(ROUND).await);
    assert_eq!(record.frozen.unwrap().seed, None);
}

#[tokio::test]
async fn a_policy_that_makes_no_sense_is_refused_at_start_by_its_key() {
    let mut world = World::new().await;
    world.config.evaluation.early_stop.enabled = true;
    world.config.evaluation.early_stop.confidence = 1.0;
    let (config, common) = (world.config.clone(), world.common.clone());
    let run = svc_scheduler::run(config, common, kit::Shutdown::default());
    let ended = tokio::time::timeout(Duration::from_secs(60), run).await.unwrap();
    assert!(format!("{:#}", ended.unwrap_err()).contains("early_stop.confidence"));
}
