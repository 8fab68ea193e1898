//! A scheduler that gives out jobs from a list and keeps what it is told.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use proto::scheduler::v1::{
    FinishJobRequest, FinishJobResponse, GetRecordRequest, GetRecordResponse, GetRoundRequest, Job,
    LeaseJobRequest, LeaseJobResponse, ListRecordsRequest, ListRecordsResponse, RenewJobRequest,
    RenewJobResponse, ReportRefusalRequest, ReportRefusalResponse, ReportSubmissionRequest,
    ReportSubmissionResponse, RoundView, WatchRoundRequest,
    finish_job_request::Result as Outcome,
    scheduler_service_server::{SchedulerService, SchedulerServiceServer},
};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

#[derive(Clone)]
pub(crate) struct FakeScheduler {
    jobs: Arc<Mutex<VecDeque<Job>>>,
    finished: mpsc::Sender<FinishJobRequest>,
    /// Renewals are refused, as after another worker got the job.
    pub(crate) leases_are_lost: Arc<AtomicBool>,
    /// So many results are answered with UNAVAILABLE first.
    pub(crate) refuse_results: Arc<AtomicUsize>,
    pub(crate) renewals: Arc<AtomicUsize>,
}

/// The fake's end of the test: what workers told it.
pub(crate) struct Results(mpsc::Receiver<FinishJobRequest>);

impl Results {
    /// The next result: its job and how it ended.
    pub(crate) async fn next(&mut self) -> (String, Outcome) {
        let request = tokio::time::timeout(Duration::from_secs(120), self.0.recv());
        let request = request.await.expect("a result in time").unwrap();
        assert_eq!((request.worker.as_str(), request.fence), ("under-test", 3));
        (request.job_id, request.result.unwrap())
    }
}

impl FakeScheduler {
    pub(crate) fn new() -> (Self, Results) {
        let (finished, results) = mpsc::channel(64);
        let fake = Self {
            jobs: Arc::default(),
            finished,
            leases_are_lost: Arc::default(),
            refuse_results: Arc::default(),
            renewals: Arc::default(),
        };
        (fake, Results(results))
    }

    pub(crate) fn enqueue(&self, job: Job) {
        self.jobs.lock().unwrap().push_back(job);
    }

    /// Serves on `addr` until `shutdown`.
    pub(crate) async fn serve(&self, addr: SocketAddr, shutdown: &kit::Shutdown) -> String {
        let server = kit::GrpcServer::bind(addr, &kit::Tls::default()).await.unwrap();
        let url = format!("http://{}", server.local_addr());
        let server = server.add(SchedulerServiceServer::new(self.clone()));
        shutdown.spawn(kit::serve(server, shutdown.clone()));
        url
    }

    /// Waits until a job was renewed `n` times.
    pub(crate) async fn renewed(&self, n: usize) {
        while self.renewals.load(Ordering::SeqCst) < n {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tonic::async_trait]
impl SchedulerService for FakeScheduler {
    type WatchRoundStream = tokio_stream::Empty<Result<RoundView, Status>>;

    async fn lease_job(
        &self,
        _: Request<LeaseJobRequest>,
    ) -> Result<Response<LeaseJobResponse>, Status> {
        Ok(Response::new(LeaseJobResponse { job: self.jobs.lock().unwrap().pop_front() }))
    }

    async fn renew_job(
        &self,
        _: Request<RenewJobRequest>,
    ) -> Result<Response<RenewJobResponse>, Status> {
        self.renewals.fetch_add(1, Ordering::SeqCst);
        if self.leases_are_lost.load(Ordering::SeqCst) {
            return Err(Status::failed_precondition("given to another worker"));
        }
        Ok(Response::new(RenewJobResponse::default()))
    }

    async fn finish_job(
        &self,
        request: Request<FinishJobRequest>,
    ) -> Result<Response<FinishJobResponse>, Status> {
        let left = self.refuse_results.load(Ordering::SeqCst);
        if left > 0 {
            self.refuse_results.store(left - 1, Ordering::SeqCst);
            return Err(Status::unavailable("no leader"));
        }
        self.finished.send(request.into_inner()).await.unwrap();
        Ok(Response::new(FinishJobResponse {}))
    }

    async fn get_round(&self, _: Request<GetRoundRequest>) -> Result<Response<RoundView>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn watch_round(
        &self,
        _: Request<WatchRoundRequest>,
    ) -> Result<Response<Self::WatchRoundStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn report_submission(
        &self,
        _: Request<ReportSubmissionRequest>,
    ) -> Result<Response<ReportSubmissionResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn report_refusal(
        &self,
        _: Request<ReportRefusalRequest>,
    ) -> Result<Response<ReportRefusalResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_record(
        &self,
        _: Request<GetRecordRequest>,
    ) -> Result<Response<GetRecordResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_records(
        &self,
        _: Request<ListRecordsRequest>,
    ) -> Result<Response<ListRecordsResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}
