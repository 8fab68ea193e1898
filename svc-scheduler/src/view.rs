//! The state as the other services see it.

use domain::{
    Cause, Degradation, Improvement, Influence, JobState, LeftOut, MergeOutcome, Miner, ModelRef,
    Policy, Reason, Resync, ResyncStage, Round, Stage, State, Verdict, WriteKind, mean,
};
use proto::{common::v1 as common, peer::v1 as peer, scheduler::v1 as wire};

/// Encodes the state.
pub(crate) fn round_view(state: &State, policy: &Policy) -> wire::RoundView {
    let at = policy.schedule.phase_at(state.block);
    wire::RoundView {
        hotkey: state.hotkey.to_string(),
        block: state.block.0,
        phase: wire::Phase::from(at.phase_name).into(),
        cycle: at.cycle_index.0,
        schedule: Some(wire::Schedule { lengths: policy.schedule.lengths().to_vec() }),
        base: state.base.as_ref().map(model_ref),
        expert_group: state.expert_group.0,
        round: state.round.as_ref().map(|round| round_wire(round, state, policy)),
        validators: state.validators.iter().map(ToString::to_string).collect(),
        revision: state.revision,
        resync: state.resync.as_ref().map(resync),
    }
}

fn resync(resync: &Resync) -> wire::Resync {
    let most = resync.most.as_ref();
    let prefix = match &resync.stage {
        ResyncStage::Fetching(plan) => plan.model.prefix.clone(),
        ResyncStage::Done(model) => model.prefix.clone(),
        ResyncStage::Reading
        | ResyncStage::TakenBack
        | ResyncStage::Nobody
        | ResyncStage::Split
        | ResyncStage::Same
        | ResyncStage::Late => String::new(),
    };
    let model = most.map(|most| common::ModelRef {
        global_version: most.version.0,
        model_hash: most.model_hash.to_hex(),
        prefix,
    });
    let holders = most.iter().flat_map(|most| &most.holders);
    let cause = resync.cause.clone();
    let (reason, detail) = cause.map(|cause| (cause.reason, cause.detail)).unwrap_or_default();
    wire::Resync {
        cycle: resync.cycle.0,
        stage: resync.stage.as_str().to_owned(),
        model,
        stake: most.map_or(0, |most| most.stake),
        revealed: most.map_or(0, |most| most.revealed),
        holders: holders.map(|holder| holder.hotkey.to_string()).collect(),
        reason,
        detail,
        degradations: resync.degradations.iter().map(degradation).collect(),
    }
}

pub(crate) fn model_ref(model: &ModelRef) -> common::ModelRef {
    common::ModelRef {
        global_version: model.global_version.0,
        model_hash: model.model_hash.to_hex(),
        prefix: model.prefix.clone(),
    }
}

pub(crate) fn submission(submission: &domain::Submission) -> common::Submission {
    common::Submission {
        hotkey: submission.hotkey.to_string(),
        key: submission.key.clone(),
        model_hash: submission.model_hash.to_hex(),
        sha256: submission.sha256.clone(),
        bytes: submission.bytes,
        block: submission.block.0,
    }
}

fn round_wire(round: &Round, state: &State, policy: &Policy) -> wire::Round {
    let submission = policy.schedule.phase_range(round.cycle, domain::Phase::Submission);
    let uploads_open =
        round.stage == Stage::Evaluating && (submission.0..=submission.1).contains(&state.block);
    let baseline = round.baseline.as_ref();
    wire::Round {
        round_id: round.id.0,
        cycle: round.cycle.0,
        stage: match round.stage {
            Stage::Open => wire::RoundStage::Open,
            Stage::Evaluating => wire::RoundStage::Evaluating,
            Stage::Merging => wire::RoundStage::Merging,
            Stage::Committing => wire::RoundStage::Committing,
            Stage::Closed => wire::RoundStage::Closed,
        }
        .into(),
        traceparent: round.traceparent.clone(),
        uploads_open,
        miners: round.miners.iter().map(|(hotkey, m)| miner(hotkey, m, round, state)).collect(),
        baseline: baseline.and_then(|b| mean(&b.losses)),
        held_out_before: baseline.map(|b| b.held_out),
        held_out_after: round.held_out_after,
        merge: round.merge.as_ref().map(|outcome| merge(outcome, round)),
        weights: round
            .weights
            .iter()
            .map(|(uid, value)| wire::Weight { uid: u32::from(uid.0), value: *value })
            .collect(),
        writes: round.writes.iter().map(|(kind, write)| chain_write(*kind, write)).collect(),
        degradations: round.degradations.iter().map(degradation).collect(),
        weights_origin: round.weights_origin.as_str().to_owned(),
        held: round.held.clone().unwrap_or_default(),
    }
}

fn miner(hotkey: &domain::Hotkey, miner: &Miner, round: &Round, state: &State) -> wire::Miner {
    let (outcome, cause) = outcome(hotkey, miner, round);
    let (loss, raw_score) = match &miner.verdict {
        Some(Verdict::Measured { losses, raw, .. }) => (mean(losses), Some(*raw)),
        // A mean over some of the batches is not to be compared with the others'.
        Some(Verdict::OutOfReach { .. } | Verdict::Invalid(_)) | None => (None, None),
    };
    let (found, own) = match &miner.verdict {
        Some(Verdict::Measured { improvement, own, .. }) => (improvement.as_ref(), own.as_ref()),
        Some(Verdict::OutOfReach { improvement, .. }) => (improvement.as_ref(), None),
        Some(Verdict::Invalid(_)) | None => (None, None),
    };
    let committed = miner.committed.as_ref();
    let hub = committed.and_then(|c| c.hub.as_ref());
    wire::Miner {
        hotkey: hotkey.to_string(),
        uid: u32::from(miner.uid.0),
        assigned: miner.assigned,
        may_upload: committed.is_some(),
        model_hash: committed.map(|c| c.model_hash.to_hex()).unwrap_or_default(),
        signature: committed.map(|c| c.signature.clone()).unwrap_or_default(),
        expert_group: state.expert_group.0,
        outcome: outcome.to_owned(),
        reason: cause.as_ref().map(|c| c.reason.clone()).unwrap_or_default(),
        detail: cause.map(|c| c.detail).unwrap_or_default(),
        loss,
        raw_score,
        score: miner.score,
        improvement: found.map(improvement),
        own_improvement: own.and_then(|own| own.improvement.as_ref()).map(improvement),
        own_data: own.and_then(|own| own.says).map_or("", domain::OwnData::as_str).to_owned(),
        duplicates: miner.duplicates.iter().map(ToString::to_string).collect(),
        hub_repo: hub.map(|hub| hub.repo.clone()).unwrap_or_default(),
        hub_revision: hub.map(|hub| hub.revision.clone()).unwrap_or_default(),
    }
}

fn improvement(found: &Improvement) -> wire::Improvement {
    wire::Improvement {
        mean: found.mean,
        standard_error: found.standard_error,
        low: found.low,
        high: found.high,
        batches: u32::try_from(found.batches).unwrap_or(u32::MAX),
    }
}

/// What became of a miner, in one word, and why.
fn outcome(hotkey: &domain::Hotkey, miner: &Miner, round: &Round) -> (&'static str, Option<Cause>) {
    let because = |reason: Reason, detail| Cause { reason: reason.as_str().to_owned(), detail };
    let judged = || Some(because(miner.reason?, String::new()));
    let ours = miner.reason.is_some_and(|reason| !reason.is_miners_fault());
    match (&miner.verdict, &miner.submission) {
        (Some(Verdict::Invalid(cause)), _) => return ("invalid", Some(cause.clone())),
        (Some(Verdict::Measured { .. } | Verdict::OutOfReach { .. }), _) if ours => {
            return ("not_evaluated", judged());
        }
        (Some(Verdict::Measured { .. }), _) => return ("scored", judged()),
        (Some(Verdict::OutOfReach { baseline, losses, rival, .. }), _) => {
            let all = round.baseline.as_ref().map_or(0, |baseline| baseline.losses.len());
            let of = if all > 0 { format!(" of {all}") } else { String::new() };
            let at = losses.len();
            let ahead = mean(baseline).zip(mean(losses)).map_or(0.0, |(base, loss)| base - loss);
            let detail = format!(
                "stopped after {at}{of} batches, {ahead:.4} better than the base on them: it could \
                 not reach the loss {rival:.4} of the last paying rank"
            );
            return ("scored", Some(because(Reason::OutOfReach, detail)));
        }
        (None, Some(_)) => {
            let job = round.jobs.get(&domain::JobKind::Score(hotkey.clone()).id());
            return match job.map(|job| &job.state) {
                Some(JobState::Leased { .. }) if round.stage == Stage::Evaluating => {
                    ("evaluating", None)
                }
                Some(JobState::Failed(cause)) => ("not_evaluated", Some(cause.clone())),
                Some(_) | None if round.stage == Stage::Evaluating => ("queued", None),
                Some(_) | None => ("not_evaluated", judged()),
            };
        }
        (None, None) => {}
    }
    if let Some(cause) = &miner.refused {
        return ("refused", Some(cause.clone()));
    }
    if let Some(cause) = &miner.fault {
        return ("absent", Some(cause.clone()));
    }
    if round.stage <= Stage::Evaluating {
        return ("pending", None);
    }
    // Without a seed nobody could submit anything.
    let seedless = round.frozen.as_ref().is_some_and(|frozen| frozen.seed.is_none());
    if seedless { ("not_evaluated", None) } else { ("absent", judged()) }
}

fn merge(outcome: &MergeOutcome, round: &Round) -> wire::Merge {
    let all = |list: &[LeftOut]| list.iter().map(left_out).collect();
    let told = wire::Merge {
        outcome: outcome.as_str().to_owned(),
        detail: outcome.detail().to_owned(),
        model: Some(model_ref(outcome.model().unwrap_or(&round.base))),
        dropped: all(outcome.dropped()),
        blamed: all(outcome.blamed()),
        ..wire::Merge::default()
    };
    match outcome {
        MergeOutcome::Merged(result) | MergeOutcome::Solo(result) => wire::Merge {
            members: result.members.iter().map(ToString::to_string).collect(),
            digest: result.digest.clone(),
            influence: result.influence.iter().map(influence).collect(),
            ..told
        },
        MergeOutcome::Failed(failure) => wire::Merge { reason: failure.reason.clone(), ..told },
    }
}

fn left_out(one: &LeftOut) -> peer::LeftOut {
    let (hotkey, reason) = (one.hotkey.to_string(), one.reason.clone());
    peer::LeftOut { hotkey, reason, detail: one.detail.clone() }
}

fn influence(one: &Influence) -> peer::Influence {
    peer::Influence {
        hotkey: one.hotkey.to_string(),
        weight: one.weight,
        norm: one.norm,
        bounded_norm: one.bounded_norm,
        cosine: one.cosine,
        trimmed: one.trimmed,
    }
}

fn chain_write(kind: WriteKind, write: &domain::Write) -> wire::ChainWrite {
    wire::ChainWrite {
        kind: kind.as_str().to_owned(),
        state: write.status.state.as_str().to_owned(),
        extrinsic_hash: write.status.extrinsic_hash.clone(),
        block: write.status.block.0,
        reason: write.status.reason.clone(),
    }
}

fn degradation(degradation: &Degradation) -> common::Degradation {
    common::Degradation {
        kind: degradation.kind.as_str().to_owned(),
        detail: degradation.detail.clone(),
        block: degradation.block.0,
    }
}

#[cfg(test)]
mod tests;
