//! Makes scores of verdicts and weights of scores.

use std::collections::BTreeMap;

use super::{
    Cause, DegradationKind, JobKind, JobState, Miner, Policy, Round, Verdict, WeightPolicy,
    WeightsOrigin, jobs, ranking,
};
use crate::{
    BlockNumber, CycleIndex, DuplicateGroup, History, Hotkey, Judgement, Reason, Uid, Weights,
    averages, rank_round,
};

/// Ends the evaluation of `round`: scores, history, weights.
pub(super) fn finalise(
    round: &mut Round,
    history: &mut History,
    last_weights: &mut Weights,
    block: BlockNumber,
    policy: &Policy,
) {
    let groups = ranking::groups(round, policy);
    let mut judgements = judge(round, block, policy);
    zero_duplicates(&mut judgements, &groups);
    let scores = rank_round(&judgements);
    let id = round.id;
    for group in &groups {
        for member in &group.members {
            if let Some(miner) = round.miners.get_mut(member) {
                let others = group.members.iter().filter(|other| *other != member);
                miner.duplicates = others.cloned().collect();
            }
        }
    }
    for (hotkey, miner) in &mut round.miners {
        history.observe(miner.uid, hotkey);
        miner.score = scores.scores.get(hotkey).copied();
        if let Some(score) = miner.score {
            history.record(miner.uid, hotkey, id, score);
        }
        miner.reason = match judgements.get(hotkey) {
            Some(Judgement::Failed(reason)) => Some(*reason),
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

/// Duplicates that are not kept get nothing, and leave the ranking before ranks are given: copying
/// never pushes an honest miner down.
fn zero_duplicates(judgements: &mut BTreeMap<Hotkey, Judgement>, groups: &[DuplicateGroup]) {
    for group in groups {
        for member in group.members.iter().filter(|member| !group.keeps(member)) {
            if let Some(judgement @ Judgement::Raw(_)) = judgements.get_mut(member) {
                let equal = group.equal.contains(member);
                *judgement = Judgement::Failed(if equal {
                    Reason::Duplicate
                } else {
                    Reason::NearDuplicate
                });
            }
        }
    }
}

/// What the round found out about each miner; miners of whom it says nothing are left out.
fn judge(round: &mut Round, block: BlockNumber, policy: &Policy) -> BTreeMap<Hotkey, Judgement> {
    let mut judgements = BTreeMap::new();
    let (mut unevaluated, mut untaken) = (Vec::new(), Vec::new());
    let without_data = jobs::without_data(round).is_some();
    let stopped = ranking::stopped_without_rival(round, policy);
    for (hotkey, miner) in &round.miners {
        let judgement = match (&miner.verdict, &miner.submission) {
            (Some(Verdict::Invalid(cause)), _) => Judgement::Failed(reason(&cause.reason)),
            (_, Some(_)) if without_data => {
                unevaluated.push(hotkey.clone());
                Judgement::Failed(Reason::DataUnavailable)
            }
            (Some(Verdict::Measured { .. }), _) if ranking::is_overfitted(miner, policy) => {
                Judgement::Failed(Reason::Overfitted)
            }
            (Some(Verdict::Measured { raw, .. }), _) => Judgement::Raw(*raw),
            (Some(Verdict::OutOfReach { .. }), _) if !stopped.contains(hotkey) => {
                Judgement::Failed(Reason::OutOfReach)
            }
            (Some(Verdict::OutOfReach { .. }) | None, Some(_)) => {
                unevaluated.push(hotkey.clone());
                Judgement::Failed(not_evaluated(round, hotkey))
            }
            (Some(Verdict::OutOfReach { .. }) | None, None) => match fault(miner) {
                Some(reason) => {
                    if !reason.is_miners_fault() {
                        untaken.push(hotkey.clone());
                    }
                    Judgement::Failed(reason)
                }
                None => continue,
            },
        };
        judgements.insert(hotkey.clone(), judgement);
    }
    for hotkey in unevaluated {
        let detail = format!("the submission of {hotkey} was not evaluated: it keeps its average");
        round.degrade(DegradationKind::NotEvaluated, detail, block);
    }
    for hotkey in untaken {
        let detail = format!("the file of {hotkey} could not be taken: it keeps its average");
        round.degrade(DegradationKind::NotEvaluated, detail, block);
    }
    judgements
}

/// Why a stored submission was not evaluated: what its job was given up for, or the time.
fn not_evaluated(round: &Round, hotkey: &Hotkey) -> Reason {
    let job = round.jobs.get(&JobKind::Score(hotkey.clone()).id());
    match job.map(|job| &job.state) {
        Some(JobState::Failed(cause)) => {
            let known = cause.reason.parse().ok().filter(|r: &Reason| !r.is_miners_fault());
            known.unwrap_or(Reason::EvaluatorError)
        }
        Some(JobState::Queued | JobState::Leased { .. } | JobState::Done) | None => Reason::Timeout,
    }
}

/// Why a miner without a submission scores 0; none when the round says nothing about it. What was
/// refused counts for everyone, what is missing only for those that are this validator's to
/// evaluate first: the others may have been busy elsewhere.
/// A refusal without a reason of the domain says nothing about the file: a slow or broken
/// connection, say. One that is the validator's fault scores nothing.
fn fault(miner: &Miner) -> Option<Reason> {
    if let Some(reason) = miner.refused.as_ref().and_then(|cause| cause.reason.parse().ok()) {
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
    match earned {
        Some(weights) => {
            last_weights.clone_from(&weights);
            round.weights = weights.into_iter().collect::<Vec<(Uid, f64)>>();
            round.weights_origin = WeightsOrigin::Earned;
        }
        None => {
            let detail = "no miner has a positive average".to_owned();
            round.degrade(DegradationKind::NoWeights, detail, block);
            guard_weights(round, block);
        }
    }
    hold_weights(round, block, policy);
}

/// A round that cannot be evaluated: nobody is judged, and no weights are made of it. Only the stale
/// guard may send any, so that the chain does not forget this validator meanwhile.
pub(super) fn without_evaluation(round: &mut Round, block: BlockNumber, policy: &Policy) {
    guard_weights(round, block);
    hold_weights(round, block, policy);
}

/// The stale guard's weights, where it has any.
fn guard_weights(round: &mut Round, block: BlockNumber) {
    let Some(guard) = round.frozen.as_ref().and_then(|frozen| frozen.fallback.clone()) else {
        return;
    };
    let detail = "last weights, or the other validators' votes".to_owned();
    round.degrade(DegradationKind::StaleGuard, detail, block);
    round.weights = guard.into_iter().collect::<Vec<(Uid, f64)>>();
    round.weights_origin = WeightsOrigin::StaleGuard;
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
