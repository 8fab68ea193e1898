//! Has the peer service merge a round, and reads what came of it.

use std::time::Duration;

use domain::{
    GlobalVersion, Hotkey, Influence, LeftOut, MergeFailure, MergeOutcome, MergePlan, MergeResult,
    ModelRef, Phase,
};
use proto::{
    InvalidField,
    common::v1 as common,
    convert,
    peer::v1::{
        self as peer, GetMergeRequest, MergeState, MergeStatus, StartMergeRequest, Validator,
    },
};
use tracing::warn;

use crate::{
    effects::{Failure, Outside},
    engine::Engine,
    view,
};

/// Starts the merge, or finds it running, and waits for its end.
pub(crate) async fn run(
    plan: &MergePlan,
    engine: &Engine,
    outside: &Outside,
) -> Result<MergeOutcome, Failure> {
    let request = request(plan, &engine.view().borrow(), outside)?;
    let mut status = outside.merge().start_merge(request).await?.into_inner();
    loop {
        if status.state() == MergeState::Ended {
            return outcome(status);
        }
        tokio::time::sleep(outside.poll(Duration::from_millis(50))).await;
        let request = GetMergeRequest { round_id: plan.round.0 };
        status = outside.merge().get_merge(request).await?.into_inner();
    }
}

/// The plan on the wire. How long a merge may take is the same for every validator of the same
/// schedule, and it counts from the same block for all: only how much of it is over is particular.
fn request(
    plan: &MergePlan,
    view: &proto::scheduler::v1::RoundView,
    outside: &Outside,
) -> Result<StartMergeRequest, Failure> {
    let hotkey: Hotkey = convert::parse("hotkey", &view.hotkey)?;
    let blocks = outside.policy().schedule.length(Phase::Merge);
    let deadline = outside.time_of(blocks).mul_f64(outside.merge_share());
    let elapsed = outside.time_of(view.block.saturating_sub(plan.first().0));
    let round = view.round.as_ref();
    Ok(StartMergeRequest {
        round_id: plan.round.0,
        base: Some(view::model_ref(&plan.base)),
        expert_group: view.expert_group,
        new_version: plan.new_version.0,
        contributions: plan
            .contributions
            .iter()
            .map(|(submission, weight)| peer::Contribution {
                submission: Some(view::submission(submission)),
                weight: *weight,
            })
            .collect(),
        validators: plan
            .validators
            .iter()
            .map(|(hotkey, axon)| Validator {
                hotkey: hotkey.to_string(),
                axon: axon.clone(),
                stake: plan.stake(hotkey),
            })
            .collect(),
        absent: plan.absent.iter().map(Hotkey::to_string).collect(),
        stake: plan.stake(&hotkey),
        hotkey: hotkey.to_string(),
        deadline_ms: ms(deadline).max(1),
        elapsed_ms: ms(elapsed),
        allow_solo: outside.policy().allow_solo_merge,
        traceparent: round.map(|round| round.traceparent.clone()).unwrap_or_default(),
        block_hash: plan.block_hash.map(|hash| hash.to_string()).unwrap_or_default(),
    })
}

pub(crate) fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn outcome(status: MergeStatus) -> Result<MergeOutcome, Failure> {
    let dropped = left_out(status.dropped)?;
    let blamed = left_out(status.blamed)?;
    if status.outcome == "failed" {
        let (why, reason) = (status.detail, status.reason);
        return Ok(MergeOutcome::Failed(MergeFailure { why, reason, dropped, blamed }));
    }
    let members = status.members.iter().map(|text| convert::parse("members", text));
    let result = MergeResult {
        members: members.collect::<Result<_, _>>()?,
        digest: status.digest,
        model: model(convert::required("model", status.model)?)?,
        detail: status.detail,
        dropped,
        blamed,
        influence: influence(status.influence)?,
    };
    match status.outcome.as_str() {
        "merged" => Ok(MergeOutcome::Merged(result)),
        "solo" => Ok(MergeOutcome::Solo(result)),
        other => Err(InvalidField::new("outcome", format!("`{other}`")).into()),
    }
}

pub(crate) fn model(model: common::ModelRef) -> Result<ModelRef, InvalidField> {
    Ok(ModelRef {
        global_version: GlobalVersion(model.global_version),
        model_hash: convert::parse("model_hash", &model.model_hash)?,
        prefix: model.prefix,
    })
}

pub(crate) fn left_out(list: Vec<peer::LeftOut>) -> Result<Vec<LeftOut>, InvalidField> {
    let decode = |one: peer::LeftOut| {
        let hotkey = convert::parse("hotkey", &one.hotkey)?;
        Ok(LeftOut { hotkey, reason: one.reason, detail: one.detail })
    };
    list.into_iter().map(decode).collect()
}

/// Figures that are no numbers are left out: they explain a result, and are no part of it.
fn influence(list: Vec<peer::Influence>) -> Result<Vec<Influence>, InvalidField> {
    let mut decoded = Vec::with_capacity(list.len());
    for one in list {
        let peer::Influence { hotkey, weight, norm, bounded_norm, cosine, trimmed } = one;
        let hotkey = convert::parse("hotkey", &hotkey)?;
        let influence = Influence { hotkey, weight, norm, bounded_norm, cosine, trimmed };
        match influence.is_finite() {
            true => decoded.push(influence),
            false => warn!(hotkey = %influence.hotkey, "the merger's figures are no numbers"),
        }
    }
    Ok(decoded)
}
