//! The worker's calls to the scheduler.

use std::time::Duration;

use domain::Rival;
use kit::Channel;
use proto::{
    InvalidField,
    scheduler::v1::{
        FinishJobRequest, LeaseJobRequest, RenewJobRequest,
        scheduler_service_client::SchedulerServiceClient,
    },
};
use tokio::time::timeout;
use tonic::{Code, Status};

use crate::{
    error::Failure,
    grpc,
    job::{Job, Measured},
    metrics,
};

/// A call that takes longer is given up: the next one may reach another scheduler.
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// The scheduler, as one worker sees it.
#[derive(Debug, Clone)]
pub(crate) struct Scheduler {
    worker: String,
    client: SchedulerServiceClient<Channel>,
}

/// A job that was leased to this worker.
#[derive(Debug)]
pub(crate) struct Leased {
    pub(crate) claim: Claim,
    pub(crate) job: Result<Job, InvalidField>,
}

/// What shows that the job is this worker's.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    pub(crate) job_id: String,
    pub(crate) fence: u64,
}

/// Why a call did not work.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// The job is not this worker's any more.
    #[error("the lease is lost: {0}")]
    LeaseLost(String),
    /// The scheduler can't be reached or can't answer now.
    #[error("{0}")]
    Unavailable(String),
    /// The scheduler will never take this.
    #[error("{0}")]
    Refused(String),
}

impl CallError {
    fn of(method: &'static str, status: &Status) -> Self {
        let text = format!("{method}: {:?}: {}", status.code(), status.message());
        match status.code() {
            Code::FailedPrecondition | Code::NotFound | Code::Aborted => Self::LeaseLost(text),
            Code::InvalidArgument
            | Code::Unimplemented
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::OutOfRange
            | Code::AlreadyExists
            | Code::DataLoss => {
                metrics::scheduler_call_failed(method);
                Self::Refused(text)
            }
            Code::Ok
            | Code::Cancelled
            | Code::Unknown
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Internal
            | Code::Unavailable => {
                metrics::scheduler_call_failed(method);
                Self::Unavailable(text)
            }
        }
    }
}

impl Scheduler {
    pub(crate) fn new(worker: String, client: SchedulerServiceClient<Channel>) -> Self {
        Self { worker, client }
    }

    /// Asks for a job.
    pub(crate) async fn lease(&self) -> Result<Option<Leased>, CallError> {
        let request = LeaseJobRequest { worker: self.worker.clone() };
        let mut client = self.client.clone();
        let response = limited("LeaseJob", CALL_LIMIT, client.lease_job(request)).await?;
        Ok(response.job.map(|job| Leased {
            claim: Claim { job_id: job.job_id.clone(), fence: job.fence },
            job: Job::try_from(job),
        }))
    }

    /// Says that the worker still works on the job; waits for at most `limit`. Returns what the job's
    /// submission must beat by now.
    pub(crate) async fn renew(
        &self,
        claim: &Claim,
        limit: Duration,
    ) -> Result<Option<Rival>, CallError> {
        let request = RenewJobRequest {
            worker: self.worker.clone(),
            job_id: claim.job_id.clone(),
            fence: claim.fence,
        };
        let mut client = self.client.clone();
        let renewed = limited("RenewJob", limit, client.renew_job(request)).await?;
        // One that can't be read stops nothing.
        Ok(renewed.rival.and_then(|rival| grpc::rival(rival).ok()))
    }

    /// Tells how the job ended, once.
    pub(crate) async fn finish(
        &self,
        claim: &Claim,
        outcome: &Result<Measured, Failure>,
        took: Duration,
    ) -> Result<(), CallError> {
        let Some(result) = grpc::result(outcome, took) else { return Ok(()) };
        let request = FinishJobRequest {
            worker: self.worker.clone(),
            job_id: claim.job_id.clone(),
            fence: claim.fence,
            result: Some(result),
        };
        let mut client = self.client.clone();
        limited("FinishJob", CALL_LIMIT, client.finish_job(request)).await?;
        Ok(())
    }
}

async fn limited<T>(
    method: &'static str,
    limit: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, CallError> {
    match timeout(limit, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(CallError::of(method, &status)),
        Err(_) => Err(CallError::of(method, &Status::deadline_exceeded("no answer in time"))),
    }
}
