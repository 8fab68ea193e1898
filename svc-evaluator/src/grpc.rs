//! Where protobuf ends: the status service, and what a job and its result look like on the wire.

use std::time::Duration;

use domain::{ExpertGroup, GlobalVersion, RoundId};
use proto::{
    InvalidField,
    convert::{parse, required},
    evaluator::v1::{
        GetStatusRequest, GetStatusResponse, evaluator_service_server::EvaluatorService,
    },
    scheduler::v1 as wire,
};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use crate::{
    error::Failure,
    job::{Batches, Job, Measured, ModelRef, Submission, Work},
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
        Self {
            worker: status.worker,
            device: status.device.to_string(),
            base_hash: status.base.map(|hash| hash.to_hex()).unwrap_or_default(),
            job_id: status.job.unwrap_or_default(),
            finished: status.finished,
            failed: status.failed,
            ..Self::default()
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
                Work::Score(Submission {
                    hotkey: parse("submission.hotkey", &submission.hotkey)?,
                    hash: parse("submission.model_hash", &submission.model_hash)?,
                    key: submission.key,
                    sha256,
                    bytes: submission.bytes,
                })
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
        })
    }
}

fn count(field: &'static str, n: u32) -> Result<usize, InvalidField> {
    match usize::try_from(n) {
        Ok(size) if (1..=MOST).contains(&n) => Ok(size),
        _ => Err(InvalidField::new(field, format!("{n} is not from 1 to {MOST}"))),
    }
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
            batches_digest: measured.digest.clone(),
            elapsed_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            ..wire::Measured::default()
        })),
        Err(Failure::Invalid { reason, detail }) => Some(Wire::Invalid(wire::Invalid {
            reason: (*reason).to_owned(),
            detail: detail.clone(),
        })),
        Err(Failure::Own(failure)) => Some(Wire::Failure(wire::WorkerFailure {
            reason: failure.reason().to_owned(),
            detail: failure.to_string(),
        })),
        Err(Failure::Stopped) => None,
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

    #[test]
    fn a_job_is_read_and_every_wrong_field_is_named() {
        let good = Job::try_from(job()).unwrap();
        assert_eq!((good.work, good.batches.count, good.model.version.0), (Work::Baseline, 4, 7));
        type Change = fn(&mut wire::Job);
        let wrong: [(&str, Change); 6] = [
            ("kind", |job| job.kind = 0),
            ("submission", |job| job.kind = wire::JobKind::Score.into()),
            ("model", |job| job.model = None),
            ("seed", |job| job.seed = "xyz".to_owned()),
            ("batches", |job| job.batches = u32::MAX),
            ("lease_ms", |job| job.lease_ms = 0),
        ];
        for (field, change) in wrong {
            let mut job = job();
            change(&mut job);
            assert_eq!(Job::try_from(job).unwrap_err().field, field);
        }
    }
}
