//! Both ends of gRPC: the gateway's own service for operators, and the scheduler's, which it calls.

use std::net::SocketAddr;

use domain::{Hotkey, RoundId};
use kit::Channel;
use proto::{
    common::v1::Submission,
    gateway::v1::{
        GetStatusRequest, GetStatusResponse,
        gateway_service_server::{GatewayService, GatewayServiceServer},
    },
    scheduler::v1::{
        ReportRefusalRequest, ReportSubmissionRequest, RoundView, WatchRoundRequest,
        scheduler_service_client::SchedulerServiceClient,
    },
};
use tonic::{Request, Response, Status, Streaming, server::NamedService};

use crate::app::App;

/// Name of the gateway's service, for health.
pub(crate) const SERVICE: &str = <GatewayServiceServer<Handler> as NamedService>::NAME;

/// The gateway's gRPC face.
#[derive(Debug)]
pub(crate) struct Handler {
    pub(crate) app: App,
    pub(crate) http_addr: SocketAddr,
}

#[tonic::async_trait]
impl GatewayService for Handler {
    async fn get_status(
        &self,
        _request: Request<GetStatusRequest>,
    ) -> Result<Response<GetStatusResponse>, Status> {
        let seen = self.app.latest.any().ok();
        let view = seen.as_ref().map(|seen| &seen.view);
        Ok(Response::new(GetStatusResponse {
            http_addr: self.http_addr.to_string(),
            block: view.map_or(0, |view| view.block.0),
            model_hash: seen
                .as_ref()
                .and_then(|seen| seen.model().ok())
                .map(|(base, _)| base.model_hash.to_hex())
                .unwrap_or_default(),
            uploads: u32::try_from(self.app.uploads.taken()).unwrap_or(u32::MAX),
            stored: self.app.stored.get(),
            refused: self.app.refused.get(),
        }))
    }
}

/// The scheduler, as the gateway sees it.
#[derive(Debug, Clone)]
pub(crate) struct Scheduler(SchedulerServiceClient<Channel>);

/// Largest round view that is taken: thousands of miners.
const MAX_VIEW: usize = 64 << 20;

impl Scheduler {
    pub(crate) fn new(channel: Channel) -> Self {
        Self(SchedulerServiceClient::new(channel).max_decoding_message_size(MAX_VIEW))
    }

    /// Follows the validator's state.
    pub(crate) async fn watch(&self) -> Result<Streaming<RoundView>, Status> {
        Ok(self.0.clone().watch_round(WatchRoundRequest {}).await?.into_inner())
    }

    /// Tells of a stored submission; false when it was known.
    pub(crate) async fn report_submission(
        &self,
        round: RoundId,
        submission: Submission,
    ) -> Result<bool, Status> {
        let request = ReportSubmissionRequest { round_id: round.0, submission: Some(submission) };
        Ok(self.0.clone().report_submission(request).await?.into_inner().accepted)
    }

    /// Tells why an authenticated miner's upload was refused.
    pub(crate) async fn report_refusal(
        &self,
        round: RoundId,
        hotkey: &Hotkey,
        reason: &str,
        detail: &str,
    ) -> Result<(), Status> {
        let request = ReportRefusalRequest {
            round_id: round.0,
            hotkey: hotkey.to_string(),
            reason: reason.to_owned(),
            detail: detail.to_owned(),
        };
        self.0.clone().report_refusal(request).await.map(drop)
    }
}
