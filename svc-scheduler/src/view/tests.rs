use std::collections::BTreeMap;

use domain::{
    BlockNumber, Committed, CycleIndex, GlobalVersion, History, Hotkey, Job, JobKind, ModelHash,
    Reason, RoundId, Submission, Uid, WeightsOrigin,
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
    let job = job.map(|state| (kind.id(), Job { kind, state, attempts: 1, not_before, not_for }));
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
    let invalid = || Miner { verdict: Some(Verdict::Invalid(cause("hash_mismatch"))), ..stored() };
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
