//! Makes scores of verdicts, weights of scores, and a merge plan of the best.

use std::collections::BTreeMap;

use super::{
    Cause, DegradationKind, JobKind, JobState, MergePlan, Miner, Policy, Round, Verdict,
    WeightPolicy, WeightsOrigin,
};
use crate::{
    BlockNumber, CycleIndex, GlobalVersion, History, Hotkey, Judgement, Phase, Reason, Uid,
    Weights, averages, rank_round,
};

/// Ends the evaluation of `round`: scores, history, weights.
pub(super) fn finalise(
    round: &mut Round,
    history: &mut History,
    last_weights: &mut Weights,
    block: BlockNumber,
    policy: &Policy,
) {
    let judgements = judge(round, block);
    let scores = rank_round(&judgements);
    let id = round.id;
    for (hotkey, miner) in &mut round.miners {
        history.observe(miner.uid, hotkey);
        miner.score = scores.scores.get(hotkey).copied();
        if let Some(score) = miner.score {
            history.record(miner.uid, hotkey, id, score);
        }
        miner.reason = match judgements.get(hotkey) {
            Some(Judgement::Failed(reason)) => Some(*reason),
            Some(Judgement::Raw(_)) if scores.is_duplicate(hotkey) => Some(Reason::Duplicate),
            Some(Judgement::Raw(_)) => None,
            None => miner.committed.is_some().then_some(Reason::NotSubmitted),
        };
    }
    cancel_scoring(round);
    decide_weights(round, history, last_weights, block, policy);
}

/// Scores are final: what was not evaluated by now is not evaluated any more.
fn cancel_scoring(round: &mut Round) {
    let detail = "scores are final at the end of Validate".to_owned();
    let cause = Cause { reason: Reason::Timeout.as_str().to_owned(), detail };
    for job in round.jobs.values_mut() {
        let waiting = matches!(job.state, JobState::Queued | JobState::Leased { .. });
        if waiting && matches!(job.kind, JobKind::Score(_)) {
            job.state = JobState::Failed(cause.clone());
        }
    }
}

/// What the round found out about each miner; miners of whom it says nothing are left out.
fn judge(round: &mut Round, block: BlockNumber) -> BTreeMap<Hotkey, Judgement> {
    let mut judgements = BTreeMap::new();
    let mut unevaluated = Vec::new();
    for (hotkey, miner) in &round.miners {
        let judgement = match (&miner.verdict, &miner.submission) {
            (Some(Verdict::Measured { raw, .. }), _) => Judgement::Raw(*raw),
            (Some(Verdict::Invalid(cause)), _) => Judgement::Failed(reason(&cause.reason)),
            (None, Some(_)) => {
                let job = round.jobs.get(&JobKind::Score(hotkey.clone()).id());
                let given_up = matches!(job.map(|job| &job.state), Some(JobState::Failed(_)));
                unevaluated.push(hotkey.clone());
                Judgement::Failed(if given_up { Reason::EvaluatorError } else { Reason::Timeout })
            }
            (None, None) => match fault(miner) {
                Some(reason) => Judgement::Failed(reason),
                None => continue,
            },
        };
        judgements.insert(hotkey.clone(), judgement);
    }
    for hotkey in unevaluated {
        let detail = format!("the submission of {hotkey} was not evaluated: it keeps its average");
        round.degrade(DegradationKind::NotEvaluated, detail, block);
    }
    judgements
}

/// Why a miner without a submission scores 0; none when the round says nothing about it. What was
/// refused counts for everyone, what is missing only for those that are this validator's to
/// evaluate first: the others may have been busy elsewhere.
/// A refusal without a reason of the domain says nothing about the file: a slow or broken
/// connection, say.
fn fault(miner: &Miner) -> Option<Reason> {
    let refused = miner.refused.as_ref().and_then(|cause| cause.reason.parse().ok());
    if let Some(reason) = refused.filter(|reason: &Reason| reason.is_miners_fault()) {
        return Some(reason);
    }
    if !miner.assigned {
        return None;
    }
    match &miner.fault {
        Some(cause) => Some(reason(&cause.reason)),
        None => Some(Reason::NotSubmitted),
    }
}

/// The reason with this text; one that is not known is about the file's content.
fn reason(text: &str) -> Reason {
    text.parse().unwrap_or(Reason::Malformed)
}

fn decide_weights(
    round: &mut Round,
    history: &History,
    last_weights: &mut Weights,
    block: BlockNumber,
    policy: &Policy,
) {
    let earned = match &policy.weights {
        WeightPolicy::TopK(top) => {
            let chosen = top.choose(history);
            (!chosen.is_empty()).then(|| top.weights(&chosen, &averages(history)))
        }
        WeightPolicy::TwoGroups(groups) => {
            let previous = CycleIndex(round.cycle.0.saturating_sub(1));
            let rounds = [policy.schedule.round_id(previous), round.id];
            let cohorts = round.frozen.as_ref().map(|f| f.cohorts.clone()).unwrap_or_default();
            let chosen = groups.choose(&cohorts, history, rounds);
            let none = chosen.group_1.is_empty() && chosen.group_2.is_empty();
            (!none).then(|| groups.weights(&chosen, &averages(history)))
        }
    };
    let (weights, origin) = match earned {
        Some(weights) => {
            last_weights.clone_from(&weights);
            (weights, WeightsOrigin::Earned)
        }
        None => {
            let detail = "no miner has a positive average".to_owned();
            round.degrade(DegradationKind::NoWeights, detail, block);
            let guard = round.frozen.as_ref().and_then(|frozen| frozen.fallback.clone());
            match guard {
                Some(guard) => {
                    let detail = "last weights, or the other validators' votes".to_owned();
                    round.degrade(DegradationKind::StaleGuard, detail, block);
                    (guard, WeightsOrigin::StaleGuard)
                }
                None => (Weights::new(), WeightsOrigin::None),
            }
        }
    };
    round.weights = weights.into_iter().collect::<Vec<(Uid, f64)>>();
    round.weights_origin = origin;
    hold_weights(round, block, policy);
}

/// Gives the weights up where policy asks for it: when they are decided, and once more before they
/// are sent, for what has happened in between.
pub(super) fn hold_weights(round: &mut Round, block: BlockNumber, policy: &Policy) {
    let held = round.degradations.iter().find(|d| policy.hold_weights_on.contains(&d.kind));
    let Some(kind) = held.map(|held| held.kind) else { return };
    round.weights.clear();
    round.weights_origin = WeightsOrigin::None;
    if !round.degradations.iter().any(|d| d.kind == DegradationKind::WeightsHeld) {
        let detail = format!("policy holds weights on `{}`", kind.as_str());
        round.degrade(DegradationKind::WeightsHeld, detail, block);
    }
}

/// What the peer service is asked to do: the ranked miners' files, weighted by their scores.
pub(super) fn merge_plan(
    round: &Round,
    me: &Hotkey,
    until: BlockNumber,
    policy: &Policy,
) -> MergePlan {
    let contributions = round.miners.values().filter_map(|miner| {
        let score = miner.score.filter(|score| *score > 0.0)?;
        Some((miner.submission.clone()?, score))
    });
    let validators = round.frozen.iter().flat_map(|frozen| &frozen.validators);
    let first = policy.schedule.phase_range(round.cycle, Phase::Merge).0;
    MergePlan {
        round: round.id,
        base: round.base.clone(),
        new_version: GlobalVersion(first.0),
        contributions: contributions.collect(),
        validators: validators
            .filter(|validator| validator.hotkey != *me)
            .map(|validator| (validator.hotkey.clone(), validator.axon.clone()))
            .collect(),
        until,
    }
}
