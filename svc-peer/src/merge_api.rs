//! The face for the own scheduler.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use domain::{ExpertGroup, GlobalVersion, Hotkey, RoundId};
use proto::{
    InvalidField,
    common::v1::ModelRef,
    convert::{parse, required},
    peer::v1::{self as wire, merge_service_server::MergeService},
};
use tonic::{Request, Response, Status};
use tracing::instrument;

use crate::{
    error::Refused,
    merger::Handle,
    plan::{Contribution, Model, Plan, Validator},
    reduction::Influence,
    report::{LeftOut, Report},
    resync::roster::{Rosters, Source},
    round::State,
    rounds::{Found, Rounds},
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
        let others = plan.validators.keys().chain(&plan.absent).cloned().collect();
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

/// A day: no cycle is longer.
const MAX_DEADLINE_MS: u64 = 24 * 60 * 60 * 1000;

fn plan(request: wire::StartMergeRequest) -> Result<Plan, InvalidField> {
    let hotkey: Hotkey = parse("hotkey", &request.hotkey)?;
    if request.validators.len() >= merge::MAX_ROSTER {
        return Err(InvalidField::new("validators", "too many"));
    }
    let mut validators = BTreeMap::new();
    for validator in request.validators {
        let other: Hotkey = parse("validators.hotkey", &validator.hotkey)?;
        let (axon, stake) = (validator.axon, validator.stake);
        if other != hotkey && validators.insert(other, Validator { axon, stake }).is_some() {
            return Err(InvalidField::new("validators.hotkey", "one is named twice"));
        }
    }
    if request.absent.len() > merge::MAX_ROSTER {
        return Err(InvalidField::new("absent", "too many"));
    }
    let absent = request.absent.iter().map(|text| parse("absent", text));
    let absent = absent.collect::<Result<Vec<Hotkey>, _>>()?;
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
        block_hash: parse("block_hash", &request.block_hash)?,
        base: model(required("base", request.base)?)?,
        group: ExpertGroup(request.expert_group),
        new_version: GlobalVersion(request.new_version),
        contributions,
        validators,
        absent,
        hotkey,
        stake: request.stake,
        deadline: Duration::from_millis(request.deadline_ms),
        elapsed: Duration::from_millis(request.elapsed_ms),
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
            let grouped = shown.merging.as_ref().is_some_and(Handle::is_grouped);
            let state = match shown.state {
                State::Aggregating => wire::MergeState::Aggregating,
                State::Merging if grouped => wire::MergeState::Reducing,
                State::Merging => wire::MergeState::Meeting,
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
    let reduced = &report.reduced;
    wire::MergeStatus {
        round_id: report.round.0,
        state: wire::MergeState::Ended.into(),
        outcome: reduced.outcome.as_str().to_owned(),
        members: reduced.members.iter().map(Hotkey::to_string).collect(),
        digest: reduced.digest.clone(),
        model: Some(ModelRef {
            global_version: report.model.global_version.0,
            model_hash: report.model.model_hash.to_hex(),
            prefix: report.model.prefix.clone(),
        }),
        detail: report.detail(),
        reason: report.reason.clone(),
        dropped: reduced.dropped.iter().map(left_out).collect(),
        blamed: report.blamed().iter().map(left_out).collect(),
        influence: reduced.influence.iter().map(influence).collect(),
    }
}

fn left_out(one: &LeftOut) -> wire::LeftOut {
    wire::LeftOut {
        hotkey: one.hotkey.to_string(),
        reason: one.reason.clone(),
        detail: one.detail.clone(),
    }
}

fn influence(one: &Influence) -> wire::Influence {
    let Influence { hotkey, weight, norm, bounded_norm, cosine, trimmed, .. } = one.clone();
    wire::Influence { hotkey: hotkey.to_string(), weight, norm, bounded_norm, cosine, trimmed }
}
