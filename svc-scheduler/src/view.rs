//! The state as the other services see it.

use domain::{
    Cause, Degradation, Improvement, JobState, MergeOutcome, Miner, ModelRef, Policy, Reason,
    Round, Stage, State, Verdict, WriteKind, mean,
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use domain::{
        BlockNumber, Committed, CycleIndex, GlobalVersion, History, Hotkey, Job, JobKind,
        ModelHash, Reason, RoundId, Submission, Uid, WeightsOrigin,
    };

    use super::*;

    fn key() -> Hotkey {
        Hotkey::from_public_key([10; 32])
    }

    fn base() -> ModelRef {
        let model_hash = ModelHash([0; 24]);
        ModelRef { global_version: GlobalVersion(0), model_hash, prefix: "models/0".to_owned() }
    }

    fn cause(reason: &str) -> Cause {
        Cause { reason: reason.to_owned(), detail: String::new() }
    }

    fn expected() -> Miner {
        let model_hash = ModelHash([1; 24]);
        let (signature, version) = ("s".to_owned(), GlobalVersion(0));
        Miner {
            uid: Uid(2),
            assigned: true,
            committed: Some(Committed { model_hash, signature, version, hub: None }),
            fault: None,
            refused: None,
            submission: None,
            verdict: None,
            score: None,
            reason: None,
            duplicates: Vec::new(),
        }
    }

    fn stored() -> Miner {
        let (model_hash, sha256) = (ModelHash([1; 24]), "ab".repeat(32));
        let (key, bytes, block) = ("k".to_owned(), 1, BlockNumber(1));
        let submission = Submission { hotkey: self::key(), key, model_hash, sha256, bytes, block };
        Miner { submission: Some(submission), ..expected() }
    }

    fn measured() -> Option<Verdict> {
        let (baseline, losses, raw) = (vec![5.0], vec![4.0], 1.0);
        let (batches_digest, improvement, own, sketch) = (String::new(), None, None, None);
        Some(Verdict::Measured { baseline, losses, raw, batches_digest, improvement, own, sketch })
    }

    /// Word and reason for `miner` in a round at `stage`, with its job in this state.
    fn told(miner: Miner, stage: Stage, job: Option<JobState>) -> (&'static str, String) {
        let kind = JobKind::Score(key());
        let (not_before, not_for) = (BlockNumber(0), Default::default());
        let job =
            job.map(|state| (kind.id(), Job { kind, state, attempts: 1, not_before, not_for }));
        let round = Round {
            id: RoundId(16),
            cycle: CycleIndex(0),
            stage,
            opened_at: BlockNumber(8),
            branch: 0,
            held: None,
            traceparent: String::new(),
            own_seed: 0,
            base: base(),
            history_before: History::default(),
            frozen: None,
            miners: BTreeMap::new(),
            jobs: job.into_iter().collect(),
            batches_digest: None,
            sources_digest: None,
            baseline: None,
            held_out_after: None,
            merge: None,
            weights: Vec::new(),
            weights_origin: WeightsOrigin::None,
            writes: BTreeMap::new(),
            degradations: Vec::new(),
        };
        let (word, cause) = outcome(&key(), &miner, &round);
        (word, cause.map(|cause| cause.reason).unwrap_or_default())
    }

    #[test]
    fn every_miner_has_one_word_for_what_became_of_it_and_a_reason_where_there_is_one() {
        use Stage::{Evaluating, Merging, Open};
        let refused = || Miner { refused: Some(cause("non_finite")), ..expected() };
        let lacking = || Miner { committed: None, fault: Some(cause("wrong_group")), ..expected() };
        let absent = || Miner { reason: Some(Reason::NotSubmitted), ..expected() };
        let late = || Miner { reason: Some(Reason::Timeout), ..stored() };
        let scored = || Miner { verdict: measured(), ..stored() };
        let copied = || Miner { reason: Some(Reason::Duplicate), ..scored() };
        let unscored = || Miner { reason: Some(Reason::DataUnavailable), ..scored() };
        let stopped = || Miner {
            verdict: Some(Verdict::OutOfReach {
                baseline: vec![5.0],
                losses: vec![4.9],
                rival: 4.0,
                batches_digest: String::new(),
                improvement: None,
            }),
            ..stored()
        };
        let invalid =
            || Miner { verdict: Some(Verdict::Invalid(cause("hash_mismatch"))), ..stored() };
        let (worker, until) = ("w".to_owned(), BlockNumber(20));
        let leased = || JobState::Leased { worker: worker.clone(), fence: 1, until };
        let failed = || JobState::Failed(cause("worker_lost"));
        let queued = JobState::Queued;
        for (miner, stage, job, word, reason) in [
            (expected(), Open, None, "pending", ""),
            (expected(), Evaluating, None, "pending", ""),
            (absent(), Merging, None, "absent", "not_submitted"),
            (lacking(), Evaluating, None, "absent", "wrong_group"),
            (refused(), Evaluating, None, "refused", "non_finite"),
            (refused(), Merging, None, "refused", "non_finite"),
            (stored(), Evaluating, Some(queued.clone()), "queued", ""),
            (stored(), Evaluating, Some(leased()), "evaluating", ""),
            (stored(), Evaluating, Some(failed()), "not_evaluated", "worker_lost"),
            (stored(), Merging, Some(failed()), "not_evaluated", "worker_lost"),
            (late(), Merging, Some(queued), "not_evaluated", "timeout"),
            (late(), Merging, Some(leased()), "not_evaluated", "timeout"),
            (scored(), Evaluating, Some(JobState::Done), "scored", ""),
            (copied(), Merging, Some(JobState::Done), "scored", "duplicate"),
            (unscored(), Merging, Some(JobState::Done), "not_evaluated", "data_unavailable"),
            (stopped(), Evaluating, Some(JobState::Done), "scored", "out_of_reach"),
            (stopped(), Merging, Some(JobState::Done), "scored", "out_of_reach"),
            (invalid(), Merging, Some(JobState::Done), "invalid", "hash_mismatch"),
        ] {
            let shown = format!("{miner:?} at {stage:?} with {job:?}");
            assert_eq!(told(miner, stage, job), (word, reason.to_owned()), "{shown}");
        }
    }
}
