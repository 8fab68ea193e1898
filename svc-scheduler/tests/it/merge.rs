//! A merger that ends as a test wants, or not at all, and that fetches models in the same way.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use domain::ModelHash;
use kit::{GrpcServer, Shutdown, Tls};
use proto::{
    common::v1::ModelRef,
    peer::v1::{
        GetMergeRequest, GetResyncRequest, Influence, LeftOut, MergeState, MergeStatus,
        ResyncStatus, StartMergeRequest, StartResyncRequest,
        merge_service_server::{MergeService, MergeServiceServer},
        resync_service_server::{ResyncService, ResyncServiceServer},
    },
};
use tonic::{Request, Response, Status};

use crate::subnet::{ME, OTHER, hotkey};

/// How a merge ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// With a new model.
    Merges,
    /// With a new model, and somebody left out.
    LeavesSomebodyOut,
    /// With a new model, and somebody shown to have lied.
    FindsALiar,
    /// With a reason and without a model.
    Fails,
    /// Never.
    NeverEnds,
    /// With a new model, but not before the service was restarted and has forgotten it once.
    Forgetful,
}

/// The model that every merge ends with: its hash.
pub(crate) fn merged_hash() -> String {
    ModelHash([9; 24]).to_hex()
}

#[derive(Clone)]
struct Handler {
    ending: Ending,
    started: Arc<Mutex<Vec<StartMergeRequest>>>,
    asked: Arc<Mutex<u32>>,
    resyncs: Arc<Mutex<Vec<StartResyncRequest>>>,
    fetching: Arc<Mutex<Fetching>>,
}

/// What comes of fetching a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fetching {
    /// It is here when somebody asks.
    Works,
    /// Nobody has it.
    Fails,
    /// It never ends.
    Hangs,
    /// What comes is another model.
    BringsAnother,
}

/// The service.
pub(crate) struct FakeMerge {
    addr: SocketAddr,
    handler: Handler,
    shutdown: Shutdown,
}

impl FakeMerge {
    pub(crate) async fn start(ending: Ending) -> Self {
        let addr = ([127, 0, 0, 1], 0).into();
        let server = GrpcServer::bind(addr, &Tls::default()).await.unwrap();
        let (addr, shutdown) = (server.local_addr(), Shutdown::default());
        let handler = Handler {
            ending,
            started: Arc::default(),
            asked: Arc::default(),
            resyncs: Arc::default(),
            fetching: Arc::new(Mutex::new(Fetching::Works)),
        };
        let server = server
            .add(MergeServiceServer::new(handler.clone()))
            .add(ResyncServiceServer::new(handler.clone()));
        let stop = shutdown.clone();
        shutdown.spawn(async move { kit::serve(server, stop).await.unwrap() });
        Self { addr, handler, shutdown }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Every call of StartMerge, in order.
    pub(crate) fn started(&self) -> Vec<StartMergeRequest> {
        self.handler.started.lock().unwrap().clone()
    }

    /// Every call of StartResync, in order.
    pub(crate) fn resyncs(&self) -> Vec<StartResyncRequest> {
        self.handler.resyncs.lock().unwrap().clone()
    }

    /// What comes of fetching models from now on.
    pub(crate) fn fetching(&self, fetching: Fetching) {
        *self.handler.fetching.lock().unwrap() = fetching;
    }
}

impl Drop for FakeMerge {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

#[tonic::async_trait]
impl MergeService for Handler {
    async fn start_merge(
        &self,
        request: Request<StartMergeRequest>,
    ) -> Result<Response<MergeStatus>, Status> {
        let request = request.into_inner();
        let round_id = request.round_id;
        self.started.lock().unwrap().push(request);
        let state = MergeState::Aggregating.into();
        Ok(Response::new(MergeStatus { round_id, state, ..MergeStatus::default() }))
    }

    async fn get_merge(
        &self,
        request: Request<GetMergeRequest>,
    ) -> Result<Response<MergeStatus>, Status> {
        let round_id = request.into_inner().round_id;
        let started = self.started.lock().unwrap().last().cloned();
        let started = started.ok_or_else(|| Status::not_found("never started"))?;
        let asked = {
            let mut asked = self.asked.lock().unwrap();
            *asked += 1;
            *asked
        };
        let running = asked < 2 || self.ending == Ending::NeverEnds;
        if self.ending == Ending::Forgetful && asked == 1 {
            return Err(Status::not_found("never started"));
        }
        if running {
            let state = MergeState::Meeting.into();
            return Ok(Response::new(MergeStatus { round_id, state, ..MergeStatus::default() }));
        }
        let ended = MergeStatus { round_id, state: MergeState::Ended.into(), ..Default::default() };
        if self.ending == Ending::Fails {
            let (outcome, detail) = ("failed".to_owned(), "nobody answered".to_owned());
            let reason = "no_agreement".to_owned();
            return Ok(Response::new(MergeStatus { outcome, detail, reason, ..ended }));
        }
        let alone = self.ending == Ending::LeavesSomebodyOut;
        let lied = self.ending == Ending::FindsALiar;
        let members = if alone { vec![ME] } else { vec![ME, OTHER] };
        Ok(Response::new(MergeStatus {
            outcome: "merged".to_owned(),
            members: members.into_iter().map(|seed| hotkey(seed).to_string()).collect(),
            digest: "d1".repeat(32),
            model: Some(ModelRef {
                global_version: started.new_version,
                model_hash: merged_hash(),
                prefix: format!("models/{}", started.new_version),
            }),
            dropped: alone.then(|| other("silent")).into_iter().collect(),
            blamed: lied.then(|| other("two_slices")).into_iter().collect(),
            influence: vec![influence(ME, 0.75), influence(OTHER, f64::NAN)],
            ..ended
        }))
    }
}

#[tonic::async_trait]
impl ResyncService for Handler {
    async fn start_resync(
        &self,
        request: Request<StartResyncRequest>,
    ) -> Result<Response<ResyncStatus>, Status> {
        let request = request.into_inner();
        let model_hash = request.model.as_ref().unwrap().model_hash.clone();
        self.resyncs.lock().unwrap().push(request);
        let state = "running".to_owned();
        Ok(Response::new(ResyncStatus { model_hash, state, ..ResyncStatus::default() }))
    }

    async fn get_resync(
        &self,
        request: Request<GetResyncRequest>,
    ) -> Result<Response<ResyncStatus>, Status> {
        let model_hash = request.into_inner().model_hash;
        let started = self.resyncs.lock().unwrap().last().cloned();
        let model = started.ok_or_else(|| Status::not_found("never started"))?.model.unwrap();
        let word = |state: &str| ResyncStatus {
            model_hash: model_hash.clone(),
            state: state.to_owned(),
            ..ResyncStatus::default()
        };
        let fetching = *self.fetching.lock().unwrap();
        Ok(Response::new(match fetching {
            Fetching::Works => ResyncStatus { model: Some(model), ..word("done") },
            Fetching::Hangs => word("running"),
            Fetching::BringsAnother => {
                let another = ModelRef { model_hash: "08".repeat(24), ..model };
                ResyncStatus { model: Some(another), ..word("done") }
            }
            Fetching::Fails => {
                let (reason, detail) = ("no_holders".to_owned(), "nobody has it".to_owned());
                let blamed = vec![other("other_files")];
                ResyncStatus { reason, detail, blamed, ..word("failed") }
            }
        }))
    }
}

/// The other validator, for this reason.
fn other(reason: &str) -> LeftOut {
    let (hotkey, reason) = (hotkey(OTHER).to_string(), reason.to_owned());
    LeftOut { hotkey, reason, detail: String::new() }
}

fn influence(seed: u8, cosine: f64) -> Influence {
    let hotkey = hotkey(seed).to_string();
    Influence { hotkey, weight: 0.5, norm: 2.0, bounded_norm: 1.0, cosine, trimmed: 0.25 }
}
