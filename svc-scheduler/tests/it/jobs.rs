//! Gateways and workers that repeat themselves, come late, or vanish.

use proto::scheduler::v1::{
    Invalid, Job, JobKind, Measured, RenewJobRequest, ReportRefusalRequest,
    ReportSubmissionRequest, WorkerFailure, finish_job_request::Result as JobResult,
};
use tonic::{Code, Status};

use crate::{
    subnet::hotkey,
    world::{ROUND, Scheduler, World, degraded, measured, miner, round, submission},
};

async fn renew(scheduler: &Scheduler, job: &Job) -> Result<(), Status> {
    let request = RenewJobRequest {
        worker: "worker".to_owned(),
        job_id: job.job_id.clone(),
        fence: job.fence,
    };
    scheduler.client.clone().renew_job(request).await.map(|_| ())
}

#[tokio::test]
async fn a_worker_that_lost_its_lease_is_refused_and_another_one_has_the_job() {
    let world = World::new().await;
    let scheduler = world.leader().await;
    let block = world.frozen(&scheduler).await.block;
    let lost = scheduler.lease("slow").await.unwrap();
    assert!(scheduler.lease("fast").await.is_none(), "the only job was given out twice");
    world.to(&scheduler, block + world.config.evaluation.lease_blocks).await;

    assert_eq!(renew(&scheduler, &lost).await.unwrap_err().code(), Code::FailedPrecondition);
    let again = scheduler.lease("fast").await.unwrap();
    assert_eq!((&again.job_id, again.attempt), (&lost.job_id, 2));
    assert!(again.fence > lost.fence);
    let late = scheduler.finish(&lost, measured(&lost)).await.unwrap_err();
    assert_eq!(late.code(), Code::FailedPrecondition);
    assert!(late.message().contains("baseline"), "{}", late.message());
    scheduler.finish(&again, measured(&again)).await.unwrap();
    let twice = scheduler.finish(&again, measured(&again)).await.unwrap_err();
    assert_eq!(twice.code(), Code::FailedPrecondition);
    let view = scheduler.view().await.unwrap();
    assert_eq!(degraded(&view), ["job_retried"]);
    assert!(round(&view).degradations[0].detail.contains("slow"));
}

#[tokio::test]
async fn a_worker_that_renews_keeps_its_job_over_many_blocks() {
    let world = World::new().await;
    let scheduler = world.leader().await;
    world.frozen(&scheduler).await;
    let job = scheduler.lease("slow").await.unwrap();
    for block in ROUND + 1..24 {
        world.to(&scheduler, block).await;
        renew(&scheduler, &job).await.unwrap();
    }
    scheduler.finish(&job, measured(&job)).await.unwrap();
    assert_eq!(degraded(&scheduler.view().await.unwrap()), [""; 0]);
}

#[tokio::test]
async fn what_no_worker_can_evaluate_is_the_validators_fault_and_costs_the_miner_nothing() {
    let world = World::new().await;
    let scheduler = world.leader().await;
    world.frozen(&scheduler).await;
    scheduler.report(10).await.unwrap();
    let failure = |reason: &str| {
        let detail = "out of memory".to_owned();
        JobResult::Failure(WorkerFailure { reason: reason.to_owned(), detail })
    };
    let mut attempts = 0;
    while let Some(job) = scheduler.lease("worker").await {
        let result = match job.kind() {
            JobKind::Score => failure("evaluator_error"),
            JobKind::Baseline | JobKind::HeldOut | JobKind::Unspecified => measured(&job),
        };
        attempts += u32::from(job.kind() == JobKind::Score);
        scheduler.finish(&job, result).await.unwrap();
    }
    assert_eq!(attempts, world.config.evaluation.max_attempts);
    let view = scheduler.view().await.unwrap();
    assert_eq!(miner(&view, 10).outcome, "not_evaluated");
    assert_eq!(miner(&view, 10).reason, "evaluator_error");
    assert_eq!(degraded(&view), ["job_retried", "job_retried", "job_failed"]);
    let view = world.committed(&scheduler).await;
    assert_eq!(miner(&view, 10).score, None);
}

#[tokio::test]
async fn an_invalid_submission_is_the_miners_fault_and_scores_zero() {
    let world = World::new().await;
    let scheduler = world.leader().await;
    world.frozen(&scheduler).await;
    scheduler.report(10).await.unwrap();
    let baseline = scheduler.lease("worker").await.unwrap();
    let invalid = || {
        let (reason, detail) = ("non_finite".to_owned(), "loss of batch 1".to_owned());
        JobResult::Invalid(Invalid { reason, detail })
    };
    let refused = scheduler.finish(&baseline, invalid()).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "a base model cannot be invalid");
    scheduler.finish(&baseline, measured(&baseline)).await.unwrap();
    let score = scheduler.lease("worker").await.unwrap();
    scheduler.finish(&score, invalid()).await.unwrap();
    let view = world.committed(&scheduler).await;
    let miner = miner(&view, 10);
    assert_eq!((miner.outcome.as_str(), miner.reason.as_str()), ("invalid", "non_finite"));
    assert_eq!(miner.score, Some(0.0));
}

#[tokio::test]
async fn a_result_that_is_no_number_or_too_short_is_refused_and_the_job_stays_with_its_worker() {
    let world = World::new().await;
    let scheduler = world.leader().await;
    world.frozen(&scheduler).await;
    let job = scheduler.lease("worker").await.unwrap();
    for (baseline, held_out) in [(f64::NAN, vec![5.0]), (f64::INFINITY, vec![5.0]), (5.0, vec![])] {
        let result = JobResult::Measured(Measured {
            baseline_losses: vec![5.0, baseline],
            held_out_losses: held_out,
            ..Measured::default()
        });
        let refused = scheduler.finish(&job, result).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{}", refused.message());
    }
    scheduler.finish(&job, measured(&job)).await.unwrap();
}

#[tokio::test]
async fn a_submission_reported_twice_counts_once_and_another_file_is_refused() {
    let world = World::new().await;
    let scheduler = world.leader().await;
    world.frozen(&scheduler).await;
    assert!(scheduler.report(10).await.unwrap());
    let revision = scheduler.view().await.unwrap().revision;
    assert!(!scheduler.report(10).await.unwrap());
    assert_eq!(scheduler.view().await.unwrap().revision, revision);
    assert_eq!(scheduler.work().await, 2, "the baseline and one score");

    let mut other = submission(10);
    other.sha256 = "cd".repeat(32);
    let request = ReportSubmissionRequest { round_id: ROUND, submission: Some(other) };
    let refused = scheduler.client.clone().report_submission(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists);
}

#[tokio::test]
async fn reports_of_strangers_of_other_rounds_and_after_the_end_are_refused_by_their_codes() {
    let world = World::new().await;
    let scheduler = world.leader().await;
    world.frozen(&scheduler).await;
    let report = async |round_id, submission| {
        let request = ReportSubmissionRequest { round_id, submission };
        scheduler.client.clone().report_submission(request).await.unwrap_err()
    };
    let stranger = report(ROUND, Some(submission(77))).await;
    assert_eq!(stranger.code(), Code::PermissionDenied);
    let without_commitment = report(ROUND, Some(submission(13))).await;
    assert_eq!(without_commitment.code(), Code::PermissionDenied);
    let other_round = report(ROUND + 36, Some(submission(10))).await;
    assert_eq!(other_round.code(), Code::FailedPrecondition);
    let nothing = report(ROUND, None).await;
    assert_eq!(nothing.code(), Code::InvalidArgument);
    assert!(nothing.message().contains("submission"), "{}", nothing.message());
    let mut bent = submission(10);
    bent.model_hash = "xyz".to_owned();
    let bent = report(ROUND, Some(bent)).await;
    assert!(bent.message().contains("model_hash"), "{}", bent.message());

    let refusal = ReportRefusalRequest {
        round_id: ROUND,
        hotkey: hotkey(77).to_string(),
        reason: "malformed".to_owned(),
        detail: String::new(),
    };
    let refused = scheduler.client.clone().report_refusal(refusal).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);

    // Validate's last block is the last at which a gateway may still be busy with an upload.
    world.to(&scheduler, 23).await;
    assert!(scheduler.report(11).await.unwrap());
    world.committed(&scheduler).await;
    let late = report(ROUND, Some(submission(10))).await;
    assert_eq!(late.code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn a_worker_without_a_name_or_a_result_is_refused_and_gets_nothing() {
    let world = World::new().await;
    let scheduler = world.leader().await;
    world.frozen(&scheduler).await;
    let lease = async |worker: String| {
        let request = proto::scheduler::v1::LeaseJobRequest { worker };
        scheduler.client.clone().lease_job(request).await.unwrap_err().code()
    };
    assert_eq!(lease(String::new()).await, Code::InvalidArgument);
    assert_eq!(lease("w".repeat(129)).await, Code::InvalidArgument);
    let job = scheduler.lease(&"w".repeat(128)).await.unwrap();
    let request = proto::scheduler::v1::FinishJobRequest {
        job_id: job.job_id,
        fence: job.fence,
        ..Default::default()
    };
    let refused = scheduler.client.clone().finish_job(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("result"), "{}", refused.message());
}
