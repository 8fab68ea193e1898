//! The gRPC faces of resyncs: for the own scheduler, and for other validators.

use std::{collections::BTreeMap, pin::Pin, sync::Arc, time::Duration};

use domain::{ExpertGroup, GlobalVersion, Hotkey, ModelHash, RoundId};
use futures::{Stream, StreamExt as _};
use proto::{
    InvalidField,
    common::v1::ModelRef,
    convert::{parse, required},
    peer::{
        v1::{self, resync_service_server::ResyncService},
        v2::{self, model_service_server::ModelService},
    },
};
use tonic::{Request, Response, Status};
use tracing::instrument;

use super::{
    Resyncs, assemble::Target, desk::ModelDesk, holders::Holder, status::Shown, task::Wanted,
};
use crate::{error::Refused, part::Part, plan::Model, report::LeftOut};

/// A day: no cycle is longer.
const MAX_DEADLINE_MS: u64 = 24 * 60 * 60 * 1000;

/// For the scheduler of the same validator.
#[derive(Debug)]
pub(crate) struct ResyncHandler {
    resyncs: Arc<Resyncs>,
}

impl ResyncHandler {
    /// Starts and finds these resyncs.
    pub(crate) fn new(resyncs: Arc<Resyncs>) -> Self {
        Self { resyncs }
    }
}

#[tonic::async_trait]
impl ResyncService for ResyncHandler {
    #[instrument(name = "peer.start_resync", skip_all, fields(round = request.get_ref().round_id))]
    async fn start_resync(
        &self,
        request: Request<v1::StartResyncRequest>,
    ) -> Result<Response<v1::ResyncStatus>, Status> {
        let wanted = wanted(request.into_inner()).map_err(Refused::from)?;
        let model = wanted.target.model;
        Ok(Response::new(status(&model, self.resyncs.start(wanted).await?)))
    }

    #[instrument(name = "peer.get_resync", skip_all)]
    async fn get_resync(
        &self,
        request: Request<v1::GetResyncRequest>,
    ) -> Result<Response<v1::ResyncStatus>, Status> {
        let model: ModelHash =
            parse("model_hash", &request.get_ref().model_hash).map_err(Refused::from)?;
        Ok(Response::new(status(&model, self.resyncs.find(&model).await?)))
    }
}

/// For the peer services of other validators.
#[derive(Debug)]
pub(crate) struct ModelHandler {
    desk: ModelDesk,
}

impl ModelHandler {
    /// Answers with `desk`.
    pub(crate) fn new(desk: ModelDesk) -> Self {
        Self { desk }
    }
}

type Chunks = Pin<Box<dyn Stream<Item = Result<v2::Chunk, Status>> + Send>>;

#[tonic::async_trait]
impl ModelService for ModelHandler {
    type GetShardStream = Chunks;

    async fn get_holdings(
        &self,
        request: Request<v2::SignedMessage>,
    ) -> Result<Response<v2::SignedMessage>, Status> {
        let v2::SignedMessage { body, signature } = request.into_inner();
        let (body, signature) = self.desk.holdings(&body, &signature).await?;
        Ok(Response::new(v2::SignedMessage { body, signature }))
    }

    async fn get_shard(
        &self,
        request: Request<v2::SignedMessage>,
    ) -> Result<Response<Chunks>, Status> {
        let v2::SignedMessage { body, signature } = request.into_inner();
        let parts = self.desk.shard(&body, &signature).await?;
        Ok(Response::new(Box::pin(
            parts.map(|part| part.map(Part::into_wire).map_err(Status::from)),
        )))
    }
}

fn wanted(request: v1::StartResyncRequest) -> Result<Wanted, InvalidField> {
    let hotkey: Hotkey = parse("hotkey", &request.hotkey)?;
    if request.holders.len() > merge::MAX_ROSTER {
        return Err(InvalidField::new("holders", "too many"));
    }
    let mut holders = BTreeMap::new();
    for v1::Validator { hotkey: text, axon, stake } in request.holders {
        let other: Hotkey = parse("holders.hotkey", &text)?;
        if other != hotkey && holders.insert(other, Holder { axon, stake }).is_some() {
            return Err(InvalidField::new("holders.hotkey", "one is named twice"));
        }
    }
    if holders.is_empty() {
        return Err(InvalidField::new("holders", "nobody to ask"));
    }
    if !(1..=MAX_DEADLINE_MS).contains(&request.deadline_ms) {
        return Err(InvalidField::new("deadline_ms", "must be 1 to a day"));
    }
    let ModelRef { global_version, model_hash, prefix } = required("model", request.model)?;
    let model = Model {
        global_version: GlobalVersion(global_version),
        model_hash: parse("model.model_hash", &model_hash)?,
        prefix,
    };
    let target = Target {
        version: model.global_version,
        group: ExpertGroup(request.expert_group),
        model: model.model_hash,
    };
    Ok(Wanted {
        round: RoundId(request.round_id),
        model,
        target,
        holders,
        hotkey,
        deadline: Duration::from_millis(request.deadline_ms),
        traceparent: request.traceparent,
    })
}

fn status(model: &ModelHash, shown: Shown) -> v1::ResyncStatus {
    let Shown { state, bytes, total, model: made, reason, detail, blamed } = shown;
    let blamed = blamed.into_iter().map(|LeftOut { hotkey, reason, detail }| v1::LeftOut {
        hotkey: hotkey.to_string(),
        reason,
        detail,
    });
    v1::ResyncStatus {
        model_hash: model.to_hex(),
        state: state.as_str().to_owned(),
        bytes,
        total,
        model: made.map(|made| ModelRef {
            global_version: made.global_version.0,
            model_hash: made.model_hash.to_hex(),
            prefix: made.prefix,
        }),
        reason: reason.to_owned(),
        detail,
        blamed: blamed.collect(),
    }
}
