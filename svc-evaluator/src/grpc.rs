//! Where protobuf ends: the status service, and what a job and its result look like on the wire.

use std::time::Duration;

use domain::{ExpertGroup, GlobalVersion, Rival, RoundId, Sketch};
use proto::{
    InvalidField,
    convert::{parse, required},
    evaluator::v1::{
        GetStatusRequest, GetStatusResponse, Memory, evaluator_service_server::EvaluatorService,
    },
    scheduler::v1 as wire,
};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use crate::{
    error::Failure,
    job::{Batches, Job, Measured, ModelRef, Score, Submission, Work},
    status,
};

/// More batches, rows or tokens than any round has: a malformed job must not ask for all memory.
const MOST: u32 = 1 << 20;

/// Tells how the evaluator is.
#[derive(Debug)]
pub(crate) struct Handler {
    status: watch::Receiver<status::Status>,
}

impl Handler {
    pub(crate) fn new(status: watch::Receiver<status::Status>) -> Self {
        Self { status }
    }
}

#[tonic::async_trait]
impl EvaluatorService for Handler {
    async fn get_status(
        &self,
        _: Request<GetStatusRequest>,
    ) -> Result<Response<GetStatusResponse>, Status> {
        let status = self.status.borrow().clone();
        Ok(Response::new(status.into()))
    }
}

impl From<status::Status> for GetStatusResponse {
    fn from(status: status::Status) -> Self {
        let on_device = status.on_device;
        let memory = on_device.memory.into_iter().map(|part| Memory {
            part: part.name,
            place: part.place.to_owned(),
            bytes: part.bytes,
        });
        Self {
            worker: status.worker,
            device: status.device.to_string(),
            base_hash: on_device.base.map(|hash| hash.to_hex()).unwrap_or_default(),
            job_id: status.job.unwrap_or_default(),
            finished: status.finished,
            failed: status.failed,
            staged_job_id: status.staged.unwrap_or_default(),
            base_digest: on_device.digest,
            batches_digest: status.batches_digest,
            memory: memory.collect(),
        }
    }
}

impl TryFrom<wire::Job> for Job {
    type Error = InvalidField;

    fn try_from(job: wire::Job) -> Result<Self, InvalidField> {
        let work = match job.kind() {
            wire::JobKind::Baseline => Work::Baseline,
            wire::JobKind::HeldOut => Work::HeldOut,
            wire::JobKind::Score => {
                let submission = required("submission", job.submission)?;
                let mut sha256 = [0; 32];
                hex::decode_to_slice(&submission.sha256, &mut sha256)
                    .map_err(|error| InvalidField::new("submission.sha256", error))?;
                let submission = Submission {
                    hotkey: parse("submission.hotkey", &submission.hotkey)?,
                    hash: parse("submission.model_hash", &submission.model_hash)?,
                    key: submission.key,
                    sha256,
                    bytes: submission.bytes,
                };
                let own_batches = match job.own_batches {
                    0 => 0,
                    some => count("own_batches", some)?,
                };
                let rival = job.rival.map(rival).transpose()?;
                Work::Score(Box::new(Score { submission, own_batches, rival }))
            }
            wire::JobKind::Unspecified => return Err(InvalidField::new("kind", "unspecified")),
        };
        let model = required("model", job.model)?;
        let lease = Duration::from_millis(job.lease_ms);
        if lease.is_zero() {
            return Err(InvalidField::new("lease_ms", "zero"));
        }
        Ok(Self {
            id: job.job_id,
            round: RoundId(job.round_id),
            fence: job.fence,
            attempt: job.attempt,
            work,
            model: ModelRef {
                version: GlobalVersion(model.global_version),
                hash: parse("model.model_hash", &model.model_hash)?,
                prefix: model.prefix,
            },
            group: ExpertGroup(job.expert_group),
            batches: Batches {
                seed: parse("seed", &job.seed)?,
                count: count("batches", job.batches)?,
                size: count("batch_size", job.batch_size)?,
                length: count("sequence_length", job.sequence_length)?,
            },
            traceparent: job.traceparent,
            lease,
            deadline: (job.deadline_ms > 0).then(|| Duration::from_millis(job.deadline_ms)),
        })
    }
}

fn count(field: &'static str, n: u32) -> Result<usize, InvalidField> {
    match usize::try_from(n) {
        Ok(size) if (1..=MOST).contains(&n) => Ok(size),
        _ => Err(InvalidField::new(field, format!("{n} is not from 1 to {MOST}"))),
    }
}

/// The submission that another one must beat.
pub(crate) fn rival(rival: wire::Rival) -> Result<Rival, InvalidField> {
    let wire::Rival { losses, confidence, minimum_batches } = rival;
    if losses.len() > MOST as usize || losses.iter().any(|loss| !loss.is_finite()) {
        return Err(InvalidField::new("rival.losses", "too many, or one is not finite"));
    }
    // A confidence that is not a number is in no range.
    if !(0.5..1.0).contains(&confidence) {
        return Err(InvalidField::new("rival.confidence", confidence));
    }
    let minimum_batches = count("rival.minimum_batches", minimum_batches)?;
    Ok(Rival { losses, confidence, minimum_batches })
}

/// A result as the scheduler takes it; `None` when there is nothing to tell.
pub(crate) fn result(
    outcome: &Result<Measured, Failure>,
    took: Duration,
) -> Option<wire::finish_job_request::Result> {
    use wire::finish_job_request::Result as Wire;
    match outcome {
        Ok(measured) => Some(Wire::Measured(wire::Measured {
            baseline_losses: measured.baseline.clone(),
            losses: measured.submission.clone(),
            held_out_losses: measured.held_out.clone(),
            batches_digest: measured.batches_digest.clone(),
            elapsed_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            own_baseline_losses: measured.own_baseline.clone(),
            own_losses: measured.own.clone(),
            sketch: measured.sketch.as_ref().map(Sketch::to_bytes).unwrap_or_default().into(),
            out_of_reach: measured.out_of_reach,
            sources_digest: measured.sources_digest.clone(),
        })),
        Err(Failure::Invalid { reason, detail }) => Some(Wire::Invalid(wire::Invalid {
            reason: (*reason).to_owned(),
            detail: detail.clone(),
        })),
        Err(Failure::Own(failure)) => Some(Wire::Failure(wire::WorkerFailure {
            reason: failure.reason().as_str().to_owned(),
            detail: failure.to_string(),
        })),
        Err(Failure::Lost) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> wire::Job {
        wire::Job {
            job_id: "baseline".to_owned(),
            kind: wire::JobKind::Baseline.into(),
            model: Some(proto::common::v1::ModelRef {
                global_version: 7,
                model_hash: "ab".repeat(24),
                prefix: "models/7".to_owned(),
            }),
            seed: "01".repeat(32),
            batches: 4,
            batch_size: 2,
            sequence_length: 64,
            lease_ms: 3000,
            ..wire::Job::default()
        }
    }

    fn score() -> wire::Job {
        wire::Job {
            kind: wire::JobKind::Score.into(),
            submission: Some(proto::common::v1::Submission {
                hotkey: domain::Hotkey::from_public_key([7; 32]).as_str().to_owned(),
                model_hash: "cd".repeat(24),
                sha256: "ef".repeat(32),
                ..proto::common::v1::Submission::default()
            }),
            ..job()
        }
    }

    #[test]
    fn a_score_has_its_rival_and_its_deadline() {
        let rival = wire::Rival { losses: vec![1.0, 2.0], confidence: 0.95, minimum_batches: 2 };
        let job = wire::Job { rival: Some(rival), own_batches: 2, deadline_ms: 1500, ..score() };
        let job = Job::try_from(job).unwrap();
        let score = job.work.score().unwrap();
        assert_eq!(score.rival.as_ref().unwrap().losses, [1.0, 2.0]);
        assert_eq!((score.own_batches, job.deadline), (2, Some(Duration::from_millis(1500))));
        assert_eq!(Job::try_from(self::job()).unwrap().deadline, None);
    }

    #[test]
    fn a_job_is_read_and_every_wrong_field_is_named() {
        let good = Job::try_from(job()).unwrap();
        assert_eq!((good.work, good.batches.count, good.model.version.0), (Work::Baseline, 4, 7));
        type Change = fn(&mut wire::Job);
        let wrong: [(&str, Change); 8] = [
            ("kind", |job| job.kind = 0),
            ("submission", |job| job.kind = wire::JobKind::Score.into()),
            ("model", |job| job.model = None),
            ("seed", |job| job.seed = "xyz".to_owned()),
            ("batches", |job| job.batches = u32::MAX),
            ("lease_ms", |job| job.lease_ms = 0),
            ("own_batches", |job| {
                *job = score();
                job.own_batches = u32::MAX;
            }),
            ("rival.confidence", |job| {
                *job = score();
                job.rival = Some(wire::Rival { confidence: f64::NAN, ..wire::Rival::default() });
            }),
        ];
        for (field, change) in wrong {
            let mut job = job();
            change(&mut job);
            assert_eq!(Job::try_from(job).unwrap_err().field, field);
        }
    }
}
