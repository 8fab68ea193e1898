//! A scheduler that says what it is told to say, and remembers what it is told.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use proto::{
    common::v1::Submission,
    scheduler::v1::{
        FinishJobRequest, FinishJobResponse, GetRecordRequest, GetRecordResponse, GetRoundRequest,
        LeaseJobRequest, LeaseJobResponse, ListRecordsRequest, ListRecordsResponse,
        RenewJobRequest, RenewJobResponse, ReportRefusalRequest, ReportRefusalResponse,
        ReportSubmissionRequest, ReportSubmissionResponse, RoundView, WatchRoundRequest,
        scheduler_service_server::{SchedulerService, SchedulerServiceServer},
    },
};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tokio_stream::{
    Stream, StreamExt as _,
    wrappers::{TcpListenerStream, WatchStream},
};
use tonic::{Request, Response, Status, transport::Server};

/// The fake: cheap to clone, all clones are the same.
#[derive(Clone)]
pub(crate) struct FakeScheduler {
    pub(crate) url: String,
    pub(crate) addr: SocketAddr,
    views: Arc<watch::Sender<Option<RoundView>>>,
    submissions: Arc<Mutex<Vec<Submission>>>,
    refusals: Arc<Mutex<Vec<ReportRefusalRequest>>>,
    /// How many reports of submissions fail before one succeeds.
    failing: Arc<AtomicU32>,
    server: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl FakeScheduler {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let this = Self {
            url: format!("http://{addr}"),
            addr,
            views: Arc::new(watch::Sender::new(None)),
            submissions: Arc::default(),
            refusals: Arc::default(),
            failing: Arc::default(),
            server: Arc::default(),
        };
        this.serve(listener);
        this
    }

    fn serve(&self, listener: TcpListener) {
        let service = SchedulerServiceServer::new(self.clone());
        let server = Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpListenerStream::new(listener));
        *self.server.lock().unwrap() = Some(tokio::spawn(async { server.await.unwrap() }));
    }

    /// Kills the server; [`Self::come_back`] starts it on the same address.
    pub(crate) fn die(&self) {
        self.server.lock().unwrap().take().unwrap().abort();
    }

    pub(crate) async fn come_back(&self) {
        let listener = loop {
            match TcpListener::bind(self.addr).await {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
            }
        };
        self.serve(listener);
    }

    pub(crate) fn set(&self, view: RoundView) {
        self.views.send_replace(Some(view));
    }

    pub(crate) fn view(&self) -> Option<RoundView> {
        self.views.borrow().clone()
    }

    pub(crate) fn fail_reports(&self, times: u32) {
        self.failing.store(times, Ordering::SeqCst);
    }

    pub(crate) fn submissions(&self) -> Vec<Submission> {
        self.submissions.lock().unwrap().clone()
    }

    pub(crate) fn refusals(&self) -> Vec<(String, String)> {
        let refusals = self.refusals.lock().unwrap();
        refusals.iter().map(|r| (r.hotkey.clone(), r.reason.clone())).collect()
    }
}

#[tonic::async_trait]
impl SchedulerService for FakeScheduler {
    type WatchRoundStream = Pin<Box<dyn Stream<Item = Result<RoundView, Status>> + Send>>;

    async fn watch_round(
        &self,
        _: Request<WatchRoundRequest>,
    ) -> Result<Response<Self::WatchRoundStream>, Status> {
        let views = WatchStream::new(self.views.subscribe()).filter_map(|view| view.map(Ok));
        Ok(Response::new(Box::pin(views)))
    }

    async fn get_round(&self, _: Request<GetRoundRequest>) -> Result<Response<RoundView>, Status> {
        self.view().map(Response::new).ok_or_else(|| Status::unavailable("no view"))
    }

    async fn report_submission(
        &self,
        request: Request<ReportSubmissionRequest>,
    ) -> Result<Response<ReportSubmissionResponse>, Status> {
        let one_less = |n: u32| n.checked_sub(1);
        if self.failing.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_ok() {
            return Err(Status::unavailable("told to fail"));
        }
        let submission = request.into_inner().submission.unwrap();
        let mut submissions = self.submissions.lock().unwrap();
        let accepted = !submissions.contains(&submission);
        if accepted {
            submissions.push(submission);
        }
        Ok(Response::new(ReportSubmissionResponse { accepted }))
    }

    async fn report_refusal(
        &self,
        request: Request<ReportRefusalRequest>,
    ) -> Result<Response<ReportRefusalResponse>, Status> {
        self.refusals.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ReportRefusalResponse {}))
    }

    async fn lease_job(
        &self,
        _: Request<LeaseJobRequest>,
    ) -> Result<Response<LeaseJobResponse>, Status> {
        Err(Status::unimplemented("the gateway has no jobs"))
    }

    async fn renew_job(
        &self,
        _: Request<RenewJobRequest>,
    ) -> Result<Response<RenewJobResponse>, Status> {
        Err(Status::unimplemented("the gateway has no jobs"))
    }

    async fn finish_job(
        &self,
        _: Request<FinishJobRequest>,
    ) -> Result<Response<FinishJobResponse>, Status> {
        Err(Status::unimplemented("the gateway has no jobs"))
    }

    async fn get_record(
        &self,
        _: Request<GetRecordRequest>,
    ) -> Result<Response<GetRecordResponse>, Status> {
        Err(Status::unimplemented("the gateway reads no records"))
    }

    async fn list_records(
        &self,
        _: Request<ListRecordsRequest>,
    ) -> Result<Response<ListRecordsResponse>, Status> {
        Err(Status::unimplemented("the gateway reads no records"))
    }
}
