//! The gRPC faces: for the own scheduler, and for other validators.

use std::{pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use domain::{ExpertGroup, GlobalVersion, Hotkey, RoundId};
use futures::{Stream, StreamExt as _};
use proto::{
    InvalidField,
    common::v1::ModelRef,
    convert::{parse, required},
    peer::v1::{
        self as wire, merge_service_server::MergeService, peer_service_server::PeerService,
    },
};
use tonic::{Request, Response, Status};
use tracing::instrument;

use crate::{
    error::Refused,
    messages::{MAX_MEMBERS, What},
    plan::{Contribution, Model, Plan},
    report::Report,
    resync::roster::{Rosters, Source},
    round::State,
    rounds::{Found, Rounds},
    serve::{Desk, Part},
};

/// For the scheduler of the same validator.
#[derive(Debug)]
pub(crate) struct MergeHandler {
    rounds: Arc<Rounds>,
    rosters: Arc<Rosters>,
}

impl MergeHandler {
    /// Starts and finds these rounds; `rosters` are told whom they are with.
    pub(crate) fn new(rounds: Arc<Rounds>, rosters: Arc<Rosters>) -> Self {
        Self { rounds, rosters }
    }
}

#[tonic::async_trait]
impl MergeService for MergeHandler {
    #[instrument(name = "peer.start_merge", skip_all, fields(round = request.get_ref().round_id))]
    async fn start_merge(
        &self,
        request: Request<wire::StartMergeRequest>,
    ) -> Result<Response<wire::MergeStatus>, Status> {
        let plan = plan(request.into_inner()).map_err(Refused::from)?;
        let others = plan.validators.keys().cloned().collect();
        self.rosters.learn(Source::Merge, plan.round, &plan.hotkey, others);
        Ok(Response::new(status(self.rounds.start(plan).await?)))
    }

    #[instrument(name = "peer.get_merge", skip_all, fields(round = request.get_ref().round_id))]
    async fn get_merge(
        &self,
        request: Request<wire::GetMergeRequest>,
    ) -> Result<Response<wire::MergeStatus>, Status> {
        let id = RoundId(request.into_inner().round_id);
        Ok(Response::new(status(self.rounds.find(id).await?)))
    }
}

/// For the peer services of other validators.
#[derive(Debug)]
pub(crate) struct PeerHandler {
    desk: Desk,
}

impl PeerHandler {
    /// Answers with `desk`.
    pub(crate) fn new(desk: Desk) -> Self {
        Self { desk }
    }

    async fn stream(&self, what: What, request: wire::SliceRequest) -> Result<Chunks, Status> {
        let parts = self.desk.slice(what, (request.body, request.signature)).await?;
        Ok(Box::pin(parts.map(|part| part.map(chunk).map_err(Status::from))))
    }
}

type Chunks = Pin<Box<dyn Stream<Item = Result<wire::Chunk, Status>> + Send>>;

#[tonic::async_trait]
impl PeerService for PeerHandler {
    type GetGradientStream = Chunks;
    type GetReducedStream = Chunks;

    async fn hello(
        &self,
        request: Request<wire::SignedHello>,
    ) -> Result<Response<wire::SignedHello>, Status> {
        let wire::SignedHello { body, signature } = request.into_inner();
        let (body, signature) = self.desk.hello((body, signature)).await?;
        Ok(Response::new(wire::SignedHello { body, signature }))
    }

    async fn get_gradient(
        &self,
        request: Request<wire::SliceRequest>,
    ) -> Result<Response<Chunks>, Status> {
        Ok(Response::new(self.stream(What::Gradient, request.into_inner()).await?))
    }

    async fn get_reduced(
        &self,
        request: Request<wire::SliceRequest>,
    ) -> Result<Response<Chunks>, Status> {
        Ok(Response::new(self.stream(What::Reduced, request.into_inner()).await?))
    }

    async fn confirm(
        &self,
        request: Request<wire::SignedConfirm>,
    ) -> Result<Response<wire::SignedConfirm>, Status> {
        let wire::SignedConfirm { body, signature } = request.into_inner();
        let (body, signature) = self.desk.confirm((body, signature)).await?;
        Ok(Response::new(wire::SignedConfirm { body, signature }))
    }
}

fn chunk(part: Part) -> wire::Chunk {
    let part = match part {
        Part::Data(bytes) => wire::chunk::Part::Data(bytes),
        Part::End { digest, signature } => {
            let digest = Bytes::copy_from_slice(&digest);
            wire::chunk::Part::End(wire::ChunkEnd { digest, signature })
        }
    };
    wire::Chunk { part: Some(part) }
}

/// A day: no cycle is longer.
const MAX_DEADLINE_MS: u64 = 24 * 60 * 60 * 1000;

fn plan(request: wire::StartMergeRequest) -> Result<Plan, InvalidField> {
    let hotkey: Hotkey = parse("hotkey", &request.hotkey)?;
    if request.validators.len() > MAX_MEMBERS {
        return Err(InvalidField::new("validators", "too many"));
    }
    let mut validators = std::collections::BTreeMap::new();
    for validator in request.validators {
        let other: Hotkey = parse("validators.hotkey", &validator.hotkey)?;
        if other != hotkey && validators.insert(other, validator.axon).is_some() {
            return Err(InvalidField::new("validators.hotkey", "one is named twice"));
        }
    }
    let mut contributions: Vec<Contribution> = Vec::new();
    for contribution in request.contributions {
        let submission = required("contributions.submission", contribution.submission)?;
        let weight = contribution.weight;
        if !weight.is_finite() || weight < 0.0 {
            return Err(InvalidField::new("contributions.weight", "negative or not finite"));
        }
        let miner: Hotkey = parse("contributions.submission.hotkey", &submission.hotkey)?;
        if contributions.iter().any(|other| other.hotkey == miner) {
            return Err(InvalidField::new("contributions.submission.hotkey", "one is named twice"));
        }
        contributions.push(Contribution {
            hotkey: miner,
            key: submission.key,
            model_hash: parse("contributions.submission.model_hash", &submission.model_hash)?,
            weight,
        });
    }
    if !(1..=MAX_DEADLINE_MS).contains(&request.deadline_ms) {
        return Err(InvalidField::new("deadline_ms", "must be 1 to a day"));
    }
    Ok(Plan {
        round: RoundId(request.round_id),
        base: model(required("base", request.base)?)?,
        group: ExpertGroup(request.expert_group),
        new_version: GlobalVersion(request.new_version),
        contributions,
        validators,
        hotkey,
        deadline: Duration::from_millis(request.deadline_ms),
        allow_solo: request.allow_solo,
        traceparent: request.traceparent,
    })
}

fn model(model: ModelRef) -> Result<Model, InvalidField> {
    Ok(Model {
        global_version: GlobalVersion(model.global_version),
        model_hash: parse("base.model_hash", &model.model_hash)?,
        prefix: model.prefix,
    })
}

fn status(found: Found) -> wire::MergeStatus {
    match found {
        Found::Before(report) => ended(&report),
        Found::Here(round) => {
            let shown = round.now();
            if let Some(report) = &shown.report {
                return ended(report);
            }
            let state = match shown.state {
                State::Aggregating => wire::MergeState::Aggregating,
                State::Meeting => wire::MergeState::Meeting,
                State::Reducing => wire::MergeState::Reducing,
                State::Writing | State::Ended => wire::MergeState::Writing,
            };
            wire::MergeStatus {
                round_id: round.plan.round.0,
                state: state.into(),
                ..wire::MergeStatus::default()
            }
        }
    }
}

fn ended(report: &Report) -> wire::MergeStatus {
    wire::MergeStatus {
        round_id: report.round.0,
        state: wire::MergeState::Ended.into(),
        outcome: report.outcome.as_str().to_owned(),
        members: report.members.iter().map(Hotkey::to_string).collect(),
        digest: report.digest.clone(),
        model: Some(ModelRef {
            global_version: report.model.global_version.0,
            model_hash: report.model.model_hash.to_hex(),
            prefix: report.model.prefix.clone(),
        }),
        detail: report.detail(),
        ..wire::MergeStatus::default()
    }
}
