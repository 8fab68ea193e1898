//! The state as the other services see it.

use domain::{
    Cause, Degradation, JobState, MergeOutcome, Miner, ModelRef, Policy, Round, Stage, State,
    Verdict, WriteKind, score,
};
use proto::{common::v1 as common, scheduler::v1 as wire};

/// Encodes the state.
pub(crate) fn round_view(state: &State, policy: &Policy) -> wire::RoundView {
    let at = policy.schedule.phase_at(state.block);
    wire::RoundView {
        hotkey: state.hotkey.to_string(),
        block: state.block.0,
        phase: wire::Phase::from(at.phase_name).into(),
        cycle: at.cycle_index.0,
        schedule: Some(wire::Schedule { lengths: policy.schedule.lengths().to_vec() }),
        base: Some(model_ref(&state.base)),
        expert_group: state.expert_group.0,
        round: state.round.as_ref().map(|round| round_wire(round, state, policy)),
        validators: state.validators.iter().map(ToString::to_string).collect(),
        revision: state.revision,
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
    let uploads_open = round.stage == Stage::Evaluating
        && (submission.0..=submission.1).contains(&state.block);
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
        baseline: baseline.and_then(|b| score::mean(&b.losses)),
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
    }
}

fn miner(hotkey: &domain::Hotkey, miner: &Miner, round: &Round, state: &State) -> wire::Miner {
    let (outcome, cause) = outcome(hotkey, miner, round);
    let (loss, raw_score) = match &miner.verdict {
        Some(Verdict::Measured { losses, raw, .. }) => (score::mean(losses), Some(*raw)),
        Some(Verdict::Invalid(_)) | None => (None, None),
    };
    let committed = miner.committed.as_ref();
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
    }
}

/// What became of a miner, in one word, and why.
fn outcome(
    hotkey: &domain::Hotkey,
    miner: &Miner,
    round: &Round,
) -> (&'static str, Option<Cause>) {
    let duplicate = || {
        let reason = miner.reason?;
        let detail = reason.describe().to_owned();
        Some(Cause { reason: reason.as_str().to_owned(), detail })
    };
    match (&miner.verdict, &miner.submission) {
        (Some(Verdict::Invalid(cause)), _) => return ("invalid", Some(cause.clone())),
        (Some(Verdict::Measured { .. }), _) => return ("scored", duplicate()),
        (None, Some(_)) => {
            let job = round.jobs.get(&domain::JobKind::Score(hotkey.clone()).id());
            return match job.map(|job| &job.state) {
                Some(JobState::Leased { .. }) if round.stage == Stage::Evaluating => {
                    ("evaluating", None)
                }
                Some(JobState::Failed(cause)) => ("not_evaluated", Some(cause.clone())),
                Some(_) | None if round.stage == Stage::Evaluating => ("queued", None),
                Some(_) | None => ("not_evaluated", duplicate()),
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
    if round.stage <= Stage::Evaluating { ("pending", None) } else { ("absent", duplicate()) }
}

fn merge(outcome: &MergeOutcome, round: &Round) -> wire::Merge {
    match outcome {
        MergeOutcome::Merged(result) | MergeOutcome::Solo(result) => wire::Merge {
            outcome: outcome.as_str().to_owned(),
            members: result.members.iter().map(ToString::to_string).collect(),
            digest: result.digest.clone(),
            model: Some(model_ref(&result.model)),
            detail: result.detail.clone(),
        },
        MergeOutcome::Failed { why } => wire::Merge {
            outcome: outcome.as_str().to_owned(),
            members: Vec::new(),
            digest: String::new(),
            model: Some(model_ref(&round.base)),
            detail: why.clone(),
        },
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
