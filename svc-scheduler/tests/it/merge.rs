//! A merger that ends as a test wants, or not at all.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use domain::ModelHash;
use kit::{GrpcServer, Shutdown, Tls};
use proto::{
    common::v1::ModelRef,
    peer::v1::{
        GetMergeRequest, MergeState, MergeStatus, StartMergeRequest,
        merge_service_server::{MergeService, MergeServiceServer},
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
        let handler = Handler { ending, started: Arc::default(), asked: Arc::default() };
        let server = server.add(MergeServiceServer::new(handler.clone()));
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
            return Ok(Response::new(MergeStatus { outcome, detail, ..ended }));
        }
        let alone = self.ending == Ending::LeavesSomebodyOut;
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
            detail: if alone { format!("{} left", hotkey(OTHER)) } else { String::new() },
            ..ended
        }))
    }
}
