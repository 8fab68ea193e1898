//! A scheduler that gives out jobs from a list, takes them back from workers that do not renew, and
//! keeps what it is told by whoever holds the job.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
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
    ReportSubmissionResponse, Rival, RoundView, WatchRoundRequest,
    finish_job_request::Result as Outcome,
    scheduler_service_server::{SchedulerService, SchedulerServiceServer},
};
use tokio::{sync::mpsc, time::Instant};
use tonic::{Request, Response, Status};

#[derive(Clone)]
pub(crate) struct FakeScheduler {
    book: Arc<Mutex<Book>>,
    finished: mpsc::Sender<FinishJobRequest>,
    /// Renewals are refused, as after another worker got the job.
    pub(crate) leases_are_lost: Arc<AtomicBool>,
    /// So many results are answered with UNAVAILABLE first.
    pub(crate) refuse_results: Arc<AtomicUsize>,
    pub(crate) renewals: Arc<AtomicUsize>,
}

/// Who has which job.
#[derive(Default)]
struct Book {
    queue: VecDeque<Job>,
    leased: BTreeMap<String, Leased>,
    /// Jobs whose renewals are refused.
    taken: BTreeSet<String>,
    /// What renewals say.
    rival: Option<Rival>,
    /// Most jobs that one worker had at once.
    most_held: usize,
    given: BTreeMap<String, usize>,
}

struct Leased {
    job: Job,
    worker: String,
    until: Instant,
}

impl Book {
    /// Jobs that were not renewed go to the front of the queue, under a new fence.
    fn take_back(&mut self) {
        let now = Instant::now();
        let late: Vec<String> = self
            .leased
            .iter()
            .filter(|(_, leased)| leased.until <= now)
            .map(|(id, _)| id.clone())
            .collect();
        for id in late {
            let mut job = self.leased.remove(&id).unwrap().job;
            (job.fence, job.attempt) = (job.fence + 1, job.attempt + 1);
            self.queue.push_front(job);
        }
    }

    /// The lease of a job, if `worker` has it under `fence`.
    fn held(&mut self, id: &str, worker: &str, fence: u64) -> Option<&mut Leased> {
        self.leased
            .get_mut(id)
            .filter(|leased| leased.worker == worker && leased.job.fence == fence)
    }
}

/// The fake's end of the test: what workers told it.
pub(crate) struct Results(mpsc::Receiver<FinishJobRequest>);

impl Results {
    /// The next result: its job and how it ended.
    pub(crate) async fn next(&mut self) -> (String, Outcome) {
        let request = self.next_of_any().await;
        assert_eq!((request.worker.as_str(), request.fence), ("under-test", 3));
        (request.job_id, request.result.unwrap())
    }

    /// The next result, whoever told it.
    pub(crate) async fn next_of_any(&mut self) -> FinishJobRequest {
        let request = tokio::time::timeout(Duration::from_secs(120), self.0.recv());
        request.await.expect("a result in time").unwrap()
    }

    /// Whether nothing else was told.
    pub(crate) fn is_empty(&mut self) -> bool {
        self.0.try_recv().is_err()
    }
}

impl FakeScheduler {
    pub(crate) fn new() -> (Self, Results) {
        let (finished, results) = mpsc::channel(64);
        let fake = Self {
            book: Arc::default(),
            finished,
            leases_are_lost: Arc::default(),
            refuse_results: Arc::default(),
            renewals: Arc::default(),
        };
        (fake, Results(results))
    }

    pub(crate) fn enqueue(&self, job: Job) {
        self.book.lock().unwrap().queue.push_back(job);
    }

    /// Takes a job from whoever has it.
    pub(crate) fn take_away(&self, job: &str) {
        self.book.lock().unwrap().taken.insert(job.to_owned());
    }

    /// What every renewal says from now on.
    pub(crate) fn set_rival(&self, rival: Rival) {
        self.book.lock().unwrap().rival = Some(rival);
    }

    /// Most jobs that one worker had at once.
    pub(crate) fn most_held(&self) -> usize {
        self.book.lock().unwrap().most_held
    }

    /// Jobs that `worker` has now.
    pub(crate) fn held_by(&self, worker: &str) -> Vec<String> {
        let book = self.book.lock().unwrap();
        let held = book.leased.iter().filter(|(_, leased)| leased.worker == worker);
        held.map(|(id, _)| id.clone()).collect()
    }

    /// How often a job was given out.
    pub(crate) fn given(&self, job: &str) -> usize {
        self.book.lock().unwrap().given.get(job).copied().unwrap_or_default()
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
        request: Request<LeaseJobRequest>,
    ) -> Result<Response<LeaseJobResponse>, Status> {
        let worker = request.into_inner().worker;
        let mut book = self.book.lock().unwrap();
        book.take_back();
        let job = book.queue.pop_front();
        if let Some(job) = &job {
            let until = Instant::now() + Duration::from_millis(job.lease_ms);
            let leased = Leased { job: job.clone(), worker: worker.clone(), until };
            book.leased.insert(job.job_id.clone(), leased);
            *book.given.entry(job.job_id.clone()).or_default() += 1;
            let held = book.leased.values().filter(|leased| leased.worker == worker).count();
            book.most_held = book.most_held.max(held);
        }
        Ok(Response::new(LeaseJobResponse { job }))
    }

    async fn renew_job(
        &self,
        request: Request<RenewJobRequest>,
    ) -> Result<Response<RenewJobResponse>, Status> {
        self.renewals.fetch_add(1, Ordering::SeqCst);
        let RenewJobRequest { worker, job_id, fence } = request.into_inner();
        let mut book = self.book.lock().unwrap();
        let lost = self.leases_are_lost.load(Ordering::SeqCst) || book.taken.contains(&job_id);
        if lost {
            book.leased.remove(&job_id);
        }
        let rival = book.rival.clone();
        let Some(leased) = book.held(&job_id, &worker, fence) else {
            return Err(Status::failed_precondition("given to another worker"));
        };
        leased.until = Instant::now() + Duration::from_millis(leased.job.lease_ms);
        Ok(Response::new(RenewJobResponse { rival }))
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
        let request = request.into_inner();
        {
            let mut book = self.book.lock().unwrap();
            if book.held(&request.job_id, &request.worker, request.fence).is_none() {
                return Err(Status::failed_precondition("given to another worker"));
            }
            book.leased.remove(&request.job_id);
        }
        self.finished.send(request).await.unwrap();
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
