//! The gRPC face of the scheduler: decode, hand in one event, encode.

use std::{pin::Pin, sync::Arc, time::Duration};

use domain::{
    BlockNumber, Cause, Event, Finished, JobGrant, JobKind, Measured, Reply, Rival, RoundId,
    Sketch, Terms,
};
use futures::Stream;
use kit::Shutdown;
use proto::{
    convert,
    scheduler::v1::{
        self as wire, finish_job_request::Result as JobResult,
        scheduler_service_server::SchedulerService,
    },
};
use store::Artifacts;
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use tracing::{debug, info};

use crate::{engine::Engine, error::Error, leader::Lead, metrics, record, view};

/// Answers while this scheduler leads, and says so when it does not.
pub(crate) struct Handler {
    engine: watch::Receiver<Lead>,
    artifacts: Artifacts,
    shutdown: Shutdown,
    jobs: Arc<JobTerms>,
}

/// What every job has in common.
#[derive(Debug, Clone)]
pub(crate) struct JobTerms {
    pub(crate) terms: Terms,
    pub(crate) block_time: Duration,
    pub(crate) lease_blocks: u64,
}

impl JobTerms {
    /// How long this many blocks take, for waits: what is late is decided in blocks.
    fn ms(&self, blocks: u64) -> u64 {
        let time = self.block_time.saturating_mul(u32::try_from(blocks).unwrap_or(u32::MAX));
        u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
    }
}

impl Handler {
    pub(crate) fn new(
        engine: watch::Receiver<Lead>,
        artifacts: Artifacts,
        jobs: JobTerms,
        shutdown: Shutdown,
    ) -> Self {
        Self { engine, artifacts, shutdown, jobs: Arc::new(jobs) }
    }

    fn engine(&self) -> Result<Engine, Error> {
        self.engine.borrow().clone().map_err(Error::Standby)
    }

    async fn apply(&self, event: Event) -> Result<Reply, Error> {
        self.engine()?.apply(event).await
    }

    fn job(&self, grant: JobGrant) -> wire::Job {
        wire::Job {
            job_id: grant.id,
            round_id: grant.round.0,
            fence: grant.fence,
            attempt: grant.attempt,
            kind: match grant.kind {
                JobKind::Baseline => wire::JobKind::Baseline,
                JobKind::Score(_) => wire::JobKind::Score,
                JobKind::HeldOut => wire::JobKind::HeldOut,
            }
            .into(),
            model: Some(view::model_ref(&grant.model)),
            expert_group: grant.expert_group.0,
            submission: grant.submission.as_ref().map(view::submission),
            seed: grant.seed.to_hex(),
            batches: self.jobs.terms.batches,
            batch_size: self.jobs.terms.batch_size,
            sequence_length: self.jobs.terms.sequence_length,
            traceparent: grant.traceparent,
            lease_ms: self.jobs.ms(self.jobs.lease_blocks),
            deadline_ms: self.jobs.ms(grant.blocks_left).max(1),
            own_batches: grant.own_batches,
            rival: grant.rival.map(rival),
        }
    }
}

#[tonic::async_trait]
impl SchedulerService for Handler {
    type WatchRoundStream = Pin<Box<dyn Stream<Item = Result<wire::RoundView, Status>> + Send>>;

    async fn get_round(
        &self,
        _: Request<wire::GetRoundRequest>,
    ) -> Result<Response<wire::RoundView>, Status> {
        let view = self.engine()?.view();
        let view = view.borrow().as_ref().clone();
        Ok(Response::new(view))
    }

    async fn watch_round(
        &self,
        _: Request<wire::WatchRoundRequest>,
    ) -> Result<Response<Self::WatchRoundStream>, Status> {
        let mut views = self.engine()?.view();
        views.mark_changed();
        let shutdown = self.shutdown.clone();
        let stream = async_stream::stream! {
            loop {
                tokio::select! {
                    changed = views.changed() => if changed.is_err() { break },
                    () = shutdown.cancelled() => break,
                }
                let view = views.borrow_and_update().as_ref().clone();
                yield Ok(view);
            }
        };
        Ok(Response::new(Box::pin(stream)))
    }

    async fn report_submission(
        &self,
        request: Request<wire::ReportSubmissionRequest>,
    ) -> Result<Response<wire::ReportSubmissionResponse>, Status> {
        let request = request.into_inner();
        let submission = decode_submission(request.submission).map_err(Error::from)?;
        let hotkey = submission.hotkey.clone();
        let round = RoundId(request.round_id);
        let reply = self.apply(Event::Stored { round, submission }).await?;
        let accepted = reply == Reply::Applied;
        if accepted {
            metrics::submission("stored");
            info!(%round, %hotkey, "submission stored");
        }
        Ok(Response::new(wire::ReportSubmissionResponse { accepted }))
    }

    async fn report_refusal(
        &self,
        request: Request<wire::ReportRefusalRequest>,
    ) -> Result<Response<wire::ReportRefusalResponse>, Status> {
        let request = request.into_inner();
        let hotkey = convert::parse("hotkey", &request.hotkey).map_err(Error::from)?;
        let cause = Cause { reason: request.reason, detail: request.detail };
        metrics::submission("refused");
        info!(round = request.round_id, %hotkey, reason = cause.reason, "submission refused");
        let round = RoundId(request.round_id);
        self.apply(Event::Refused { round, hotkey, cause }).await?;
        Ok(Response::new(wire::ReportRefusalResponse {}))
    }

    async fn lease_job(
        &self,
        request: Request<wire::LeaseJobRequest>,
    ) -> Result<Response<wire::LeaseJobResponse>, Status> {
        let worker = request.into_inner().worker;
        if worker.is_empty() || worker.len() > 128 {
            let error = proto::InvalidField::new("worker", "must have 1 to 128 characters");
            return Err(Error::from(error).into());
        }
        let reply = self.apply(Event::Lease { worker: worker.clone() }).await?;
        let grant = match reply {
            Reply::Granted(grant) => grant,
            Reply::Applied | Reply::Ignored | Reply::Renewed(_) => None,
        };
        if let Some(grant) = &grant {
            metrics::job_leased(&grant.kind);
            debug!(worker, job = grant.id, attempt = grant.attempt, "job leased");
        }
        let job = grant.map(|grant| self.job(*grant));
        Ok(Response::new(wire::LeaseJobResponse { job }))
    }

    async fn renew_job(
        &self,
        request: Request<wire::RenewJobRequest>,
    ) -> Result<Response<wire::RenewJobResponse>, Status> {
        let request = request.into_inner();
        let reply = self.apply(Event::Renew { job: request.job_id, fence: request.fence }).await?;
        let found = match reply {
            Reply::Renewed(found) => found,
            Reply::Applied | Reply::Ignored | Reply::Granted(_) => None,
        };
        Ok(Response::new(wire::RenewJobResponse { rival: found.map(|found| rival(*found)) }))
    }

    async fn finish_job(
        &self,
        request: Request<wire::FinishJobRequest>,
    ) -> Result<Response<wire::FinishJobResponse>, Status> {
        let request = request.into_inner();
        let result = convert::required("result", request.result).map_err(Error::from)?;
        let (result, name) = match result {
            JobResult::Measured(measured) => {
                let name = if measured.out_of_reach { "out_of_reach" } else { "measured" };
                (Finished::Measured(decode_measured(measured).map_err(Error::from)?), name)
            }
            JobResult::Invalid(wire::Invalid { reason, detail }) => {
                (Finished::Invalid(Cause { reason, detail }), "invalid")
            }
            JobResult::Failure(wire::WorkerFailure { reason, detail }) => {
                (Finished::Failed(Cause { reason, detail }), "failed")
            }
        };
        let (job, fence) = (request.job_id, request.fence);
        debug!(worker = request.worker, job, result = name, "job finished");
        self.apply(Event::Finish { job, fence, result }).await?;
        metrics::job_finished(name);
        Ok(Response::new(wire::FinishJobResponse {}))
    }

    async fn get_record(
        &self,
        request: Request<wire::GetRecordRequest>,
    ) -> Result<Response<wire::GetRecordResponse>, Status> {
        let round = RoundId(request.into_inner().round_id);
        let json = record::read(&self.artifacts, round).await?;
        Ok(Response::new(wire::GetRecordResponse { json }))
    }

    async fn list_records(
        &self,
        _: Request<wire::ListRecordsRequest>,
    ) -> Result<Response<wire::ListRecordsResponse>, Status> {
        let round_ids = record::list(&self.artifacts).await?;
        Ok(Response::new(wire::ListRecordsResponse { round_ids }))
    }
}

fn rival(rival: Rival) -> wire::Rival {
    wire::Rival {
        losses: rival.losses,
        confidence: rival.confidence,
        minimum_batches: u32::try_from(rival.minimum_batches).unwrap_or(u32::MAX),
    }
}

fn decode_measured(measured: wire::Measured) -> Result<Measured, proto::InvalidField> {
    let sketch = match measured.sketch.is_empty() {
        true => None,
        false => {
            let why = || format!("not {} bytes of finite float32", Sketch::BYTES);
            let sketch = Sketch::from_bytes(&measured.sketch);
            Some(sketch.ok_or_else(|| proto::InvalidField::new("sketch", why()))?)
        }
    };
    for digest in [&measured.batches_digest, &measured.sources_digest] {
        if digest.len() > 128 {
            return Err(proto::InvalidField::new("digest", "longer than 128 characters"));
        }
    }
    Ok(Measured {
        baseline: measured.baseline_losses,
        losses: measured.losses,
        out_of_reach: measured.out_of_reach,
        held_out: measured.held_out_losses,
        own_baseline: measured.own_baseline_losses,
        own_losses: measured.own_losses,
        sketch,
        batches_digest: measured.batches_digest,
        sources_digest: measured.sources_digest,
    })
}

fn decode_submission(
    submission: Option<proto::common::v1::Submission>,
) -> Result<domain::Submission, proto::InvalidField> {
    let submission = convert::required("submission", submission)?;
    Ok(domain::Submission {
        hotkey: convert::parse("hotkey", &submission.hotkey)?,
        key: submission.key,
        model_hash: convert::parse("model_hash", &submission.model_hash)?,
        sha256: submission.sha256,
        bytes: submission.bytes,
        block: BlockNumber(submission.block),
    })
}
