//! A whole round, lost workers and latecomers, on a schedule of nine short phases.

mod chain;
mod merging;
mod replay;
mod resync;
mod reveals;
mod rules;
mod verdicts;

use std::collections::BTreeSet;

use reveals::reveals;

use super::*;
use crate::{
    BlockHash, BlockNumber, CohortConfig, DuplicatePolicy, ExpertGroup, GlobalVersion, Hotkey,
    Metagraph, MinerCommitment, ModelHash, Neuron, Phase, RoundId, Schedule, SignedHashCommitment,
    TopK, Uid, ValidatorCommitment, Weights,
};

const ME: u8 = 1;
const OTHER: u8 = 2;
const MINERS: [u8; 4] = [10, 11, 12, 13];

fn key(n: u8) -> Hotkey {
    Hotkey::from_public_key([n; 32])
}

fn model(version: u64, byte: u8) -> ModelRef {
    ModelRef {
        global_version: GlobalVersion(version),
        model_hash: ModelHash([byte; 24]),
        prefix: format!("models/{version}"),
    }
}

fn policy() -> Policy {
    Policy {
        schedule: Schedule::new([4; 9]).unwrap(),
        validator_allow_list: BTreeSet::new(),
        foreground_top_n: 13,
        cohorts: CohortConfig::default(),
        version_range_cycles: 2,
        lease_blocks: 3,
        max_attempts: 2,
        terms: Terms { batches: 2, batch_size: 1, sequence_length: 16 },
        early_stop: None,
        duplicates: DuplicatePolicy::default(),
        own_data: OwnDataPolicy::default(),
        weights: WeightPolicy::TopK(TopK { k: 3 }),
        stale_guard: true,
        hold_weights_on: BTreeSet::new(),
        allow_solo_merge: false,
    }
}

fn first(phase: Phase) -> u64 {
    policy().schedule.phase_range(crate::CycleIndex(0), phase).0.0
}

fn block(number: u64) -> Event {
    Event::Block {
        number: BlockNumber(number),
        hash: BlockHash([number as u8; 32]),
        entropy: 7,
        traceparent: "00-trace".to_owned(),
    }
}

fn neuron(uid: u16, key_byte: u8, validator: bool) -> Neuron {
    Neuron {
        uid: Uid(uid),
        hotkey: key(key_byte),
        coldkey: None,
        axon: format!("127.0.0.1:{}", 8000 + uid),
        stake: if validator { 1_000_000 } else { 0 },
        incentive: 0,
        validator_permit: validator,
        last_update: BlockNumber(0),
        registered_at: BlockNumber(0),
    }
}

fn inputs() -> FreezeInputs {
    let validators = [(0, ME), (1, OTHER)].map(|(uid, k)| neuron(uid, k, true));
    let miners = MINERS.iter().enumerate().map(|(i, k)| neuron(i as u16 + 2, *k, false));
    let raw = |k: u8, json: String| RawCommitment {
        hotkey: key(k),
        block: BlockNumber(9),
        data: json.into_bytes(),
    };
    let seed = |k: u8, seed| {
        let commitment = ValidatorCommitment { seed: Some(seed), ..Default::default() };
        raw(k, commitment.to_json().unwrap())
    };
    let signed = |k: u8| {
        let commitment = SignedHashCommitment { signature: Some("sig".to_owned()) };
        raw(k, commitment.to_json().unwrap())
    };
    let revealed = |k: u8| {
        let commitment = MinerCommitment {
            model_hash: Some(ModelHash([k; 24])),
            version: Some(GlobalVersion(0)),
            group: Some(ExpertGroup(0)),
            ..Default::default()
        };
        raw(k, commitment.to_json().unwrap())
    };
    // The last miner commits nothing.
    let committing = &MINERS[..3];
    FreezeInputs {
        block: BlockNumber(first(Phase::Submission)),
        block_hash: BlockHash([1; 32]),
        seed_block_hash: BlockHash([2; 32]),
        metagraph: Metagraph {
            block: BlockNumber(first(Phase::Submission)),
            block_hash: BlockHash([1; 32]),
            neurons: validators.into_iter().chain(miners).collect(),
            weights_rate_limit: 1,
            min_allowed_weights: 1,
            weights_version: 0,
            commit_reveal: false,
        },
        weights: vec![],
        commit_1: [seed(ME, 5), seed(OTHER, 6)]
            .into_iter()
            .chain(committing.iter().map(|k| signed(*k)))
            .collect(),
        commit_2: committing
            .iter()
            .map(|k| revealed(*k))
            .chain([raw(MINERS[3], "garbage".to_owned())])
            .collect(),
        degradations: vec![],
    }
}

fn stored(k: u8) -> Event {
    Event::Stored {
        round: id(),
        submission: Submission {
            hotkey: key(k),
            key: format!("submissions/{}/{}/model.pt", id(), key(k)),
            model_hash: ModelHash([k; 24]),
            sha256: "ab".repeat(32),
            bytes: 100,
            block: BlockNumber(first(Phase::Submission)),
        },
    }
}

fn id() -> RoundId {
    policy().schedule.round_id(crate::CycleIndex(0))
}

fn fresh() -> State {
    State::new(key(ME), ExpertGroup(0), Some(model(0, 0)))
}

fn run(state: &mut State, event: Event) -> Reply {
    apply(state, event, &policy()).unwrap()
}

fn blocks(state: &mut State, to: u64) {
    for number in state.block.0 + 1..=to {
        run(state, block(number));
    }
}

fn lease(state: &mut State) -> JobGrant {
    match run(state, Event::Lease { worker: "w".to_owned() }) {
        Reply::Granted(Some(grant)) => *grant,
        other @ (Reply::Applied | Reply::Ignored | Reply::Granted(None) | Reply::Renewed(_)) => {
            panic!("no job: {other:?}")
        }
    }
}

fn measured(baseline: f64, loss: f64) -> Finished {
    Finished::Measured(Measured {
        baseline: vec![baseline; 2],
        losses: vec![loss; 2],
        held_out: vec![baseline],
        batches_digest: "d".to_owned(),
        ..Measured::default()
    })
}

fn finish(state: &mut State, grant: &JobGrant, result: Finished) {
    run(state, Event::Finish { job: grant.id.clone(), fence: grant.fence, result });
}

fn written(state: &mut State, kind: WriteKind) {
    let status = WriteStatus {
        state: WriteState::Done,
        extrinsic_hash: "0x01".to_owned(),
        ..WriteStatus::pending()
    };
    run(state, Event::Written { round: id(), kind, status });
}

fn frozen() -> State {
    let mut state = fresh();
    blocks(&mut state, first(Phase::MinerCommit1));
    written(&mut state, WriteKind::Seed);
    blocks(&mut state, first(Phase::Submission));
    run(&mut state, Event::Frozen { round: id(), branch: 0, inputs: Box::new(inputs()) });
    state
}

fn result() -> MergeResult {
    MergeResult {
        members: vec![key(ME), key(OTHER)],
        digest: "d".to_owned(),
        model: model(first(Phase::Merge), 9),
        detail: String::new(),
        dropped: vec![],
        blamed: vec![],
        influence: vec![],
    }
}

fn merged() -> Event {
    Event::Merged { round: id(), outcome: MergeOutcome::Merged(result()) }
}

/// What the peer service was asked for.
fn plan(state: &State) -> MergePlan {
    let Effect::Merge(plan) = &state.effects[&format!("{}/merge", id())] else {
        panic!("no merge")
    };
    plan.clone()
}

/// The record of the first round, which is not stored yet.
fn record(state: &State) -> Record {
    let effect = &state.effects[&format!("{}/record", id())];
    let Effect::Record(record) = effect else { panic!("no record: {effect:?}") };
    record.as_ref().clone()
}

fn round(state: &State) -> &Round {
    state.round.as_ref().unwrap()
}

fn miner(state: &State, k: u8) -> &Miner {
    &round(state).miners[&key(k)]
}

fn kinds(state: &State) -> Vec<DegradationKind> {
    round(state).degradations.iter().map(|degradation| degradation.kind).collect()
}

/// A round in which miner 10 is good, 11 idle, 12 refused and 13 absent; up to the merge's start.
fn evaluated() -> State {
    let mut state = frozen();
    run(&mut state, stored(10));
    run(&mut state, stored(11));
    let cause = Cause { reason: "non_finite".to_owned(), detail: "NaN".to_owned() };
    run(&mut state, Event::Refused { round: id(), hotkey: key(12), cause });
    for _ in 0..3 {
        let grant = lease(&mut state);
        let loss = match &grant.kind {
            JobKind::Score(hotkey) if *hotkey == key(10) => 4.0,
            JobKind::Score(_) | JobKind::Baseline | JobKind::HeldOut => 5.0,
        };
        finish(&mut state, &grant, measured(5.0, loss));
    }
    blocks(&mut state, first(Phase::Merge));
    state
}

#[test]
fn a_whole_round_pays_the_honest_miner_alone_and_ends_with_a_record() {
    let mut state = evaluated();
    assert_eq!(round(&state).stage, Stage::Merging);
    assert_eq!(round(&state).weights, [(Uid(2), 1.0)]);
    assert_eq!(miner(&state, 10).score, Some(2.25));
    assert_eq!(miner(&state, 11).score, Some(0.0));
    assert_eq!(miner(&state, 12).score, Some(0.0));
    let plan = plan(&state);
    assert_eq!(plan.contributions.len(), 1);
    assert_eq!(plan.validators, [(key(OTHER), "127.0.0.1:8001".to_owned())]);

    run(&mut state, merged());
    let grant = lease(&mut state);
    assert_eq!((&grant.kind, &grant.model.model_hash), (&JobKind::HeldOut, &ModelHash([9; 24])));
    finish(&mut state, &grant, measured(4.5, 4.5));
    blocks(&mut state, first(Phase::ValidatorCommit1));
    run(&mut state, Event::HashSigned { round: id(), signature: "s".repeat(86) });
    written(&mut state, WriteKind::SignedHash);
    blocks(&mut state, first(Phase::ValidatorCommit2));
    assert_eq!(state.base, Some(model(0, 0)), "not before it is revealed");
    written(&mut state, WriteKind::ModelHash);
    assert_eq!(state.base, Some(model(first(Phase::Merge), 9)));
    written(&mut state, WriteKind::Weights);

    assert_eq!(round(&state).stage, Stage::Closed);
    assert_eq!(round(&state).degradations, []);
    let records: Vec<_> = state.effects.values().collect();
    assert!(matches!(records.as_slice(), [Effect::Record(record)] if record.weights.len() == 1));
}

fn refuse(state: &mut State, miner: u8, reason: &str) {
    let cause = Cause { reason: reason.to_owned(), detail: "so it was".to_owned() };
    run(state, Event::Refused { round: id(), hotkey: key(miner), cause });
}

#[test]
fn a_miner_whose_file_could_not_be_taken_keeps_its_average_and_the_record_says_so() {
    let mut state = frozen();
    run(&mut state, stored(10));
    refuse(&mut state, 12, "unavailable");
    // Slow or broken: whose fault that is nobody can tell, and the miner has submitted nothing.
    refuse(&mut state, 11, "too_slow");
    for _ in 0..2 {
        let grant = lease(&mut state);
        finish(&mut state, &grant, measured(5.0, 4.0));
    }
    blocks(&mut state, first(Phase::Merge));
    assert_eq!(miner(&state, 12).score, None);
    assert_eq!(miner(&state, 12).reason, Some(crate::Reason::Unavailable));
    assert_eq!(miner(&state, 11).score, Some(0.0));
    let told = |degradation: &Degradation| degradation.detail.contains(key(12).as_str());
    assert!(round(&state).degradations.iter().any(told));
}

#[test]
fn a_try_that_came_to_nothing_does_not_cover_what_was_wrong_with_the_file_before() {
    let mut state = frozen();
    refuse(&mut state, 12, "non_finite");
    refuse(&mut state, 12, "broken_off");
    assert_eq!(miner(&state, 12).refused.as_ref().unwrap().reason, "non_finite");
    // A mended file that the validator could not take is the validator's fault.
    refuse(&mut state, 12, "no_room");
    assert_eq!(miner(&state, 12).refused.as_ref().unwrap().reason, "no_room");
    refuse(&mut state, 12, "hash_mismatch");
    assert_eq!(miner(&state, 12).refused.as_ref().unwrap().reason, "hash_mismatch");
}

#[test]
fn the_reveal_waits_for_the_signature_to_land() {
    let mut state = evaluated();
    run(&mut state, merged());
    blocks(&mut state, first(Phase::ValidatorCommit1));
    run(&mut state, Event::HashSigned { round: id(), signature: "s".repeat(86) });
    blocks(&mut state, first(Phase::ValidatorCommit2));
    assert!(!round(&state).writes.contains_key(&WriteKind::ModelHash));
    written(&mut state, WriteKind::SignedHash);
    assert!(round(&state).writes.contains_key(&WriteKind::ModelHash));
}

#[test]
fn a_lost_workers_job_goes_to_another_and_is_given_up_after_its_attempts() {
    let mut state = frozen();
    let lost = lease(&mut state);
    let until = state.block.0 + policy().lease_blocks;
    blocks(&mut state, until);
    let again = lease(&mut state);
    assert_eq!((&again.id, again.attempt), (&lost.id, 2));
    assert!(again.fence > lost.fence);
    let late = Event::Finish { job: lost.id, fence: lost.fence, result: measured(5.0, 5.0) };
    assert!(matches!(apply(&mut state, late, &policy()), Err(Rejection::LeaseLost { .. })));
    let until = state.block.0 + policy().lease_blocks;
    blocks(&mut state, until);
    assert_eq!(kinds(&state), [DegradationKind::JobRetried, DegradationKind::JobFailed]);
}

#[test]
fn a_renewed_lease_is_not_given_to_anyone_else() {
    let mut state = frozen();
    let grant = lease(&mut state);
    for _ in 0..4 {
        let next = state.block.0 + 1;
        blocks(&mut state, next);
        run(&mut state, Event::Renew { job: grant.id.clone(), fence: grant.fence });
    }
    assert_eq!(run(&mut state, Event::Lease { worker: "x".to_owned() }), Reply::Granted(None));
}

#[test]
fn what_was_not_evaluated_in_time_costs_its_miner_nothing() {
    let mut state = frozen();
    run(&mut state, stored(10));
    blocks(&mut state, first(Phase::Merge));
    assert_eq!(miner(&state, 10).score, None);
    assert!(kinds(&state).contains(&DegradationKind::NotEvaluated));
    assert!(state.history.get(Uid(2)).is_none_or(|miner| miner.records().len() == 0));
}

#[test]
fn a_second_submission_is_refused_and_the_same_one_again_is_nothing_new() {
    let mut state = frozen();
    assert_eq!(run(&mut state, stored(10)), Reply::Applied);
    assert_eq!(run(&mut state, stored(10)), Reply::Ignored);
    let Event::Stored { round, mut submission } = stored(10) else { unreachable!() };
    submission.sha256 = "cd".repeat(32);
    let other = Event::Stored { round, submission };
    assert!(matches!(apply(&mut state, other, &policy()), Err(Rejection::AlreadySubmitted { .. })));
}

#[test]
fn a_result_with_a_loss_that_is_no_number_is_refused() {
    let mut state = frozen();
    let grant = lease(&mut state);
    let before = state.clone();
    let event =
        Event::Finish { job: grant.id, fence: grant.fence, result: measured(f64::NAN, 1.0) };
    assert!(matches!(apply(&mut state, event, &policy()), Err(Rejection::BadResult { .. })));
    assert_eq!(state, before);
}

#[test]
fn a_merge_that_never_ends_leaves_the_model_and_is_recorded() {
    let mut state = evaluated();
    blocks(&mut state, first(Phase::ValidatorCommit2));
    assert!(kinds(&state).contains(&DegradationKind::MergeFailed));
    run(&mut state, Event::HashSigned { round: id(), signature: "s".repeat(86) });
    written(&mut state, WriteKind::SignedHash);
    written(&mut state, WriteKind::ModelHash);
    written(&mut state, WriteKind::Weights);
    assert_eq!(round(&state).stage, Stage::Closed);
    assert_eq!(state.base, Some(model(0, 0)));
}

#[test]
fn inputs_that_cannot_be_read_before_merge_fail_the_round_by_name() {
    let mut state = fresh();
    blocks(&mut state, first(Phase::Merge));
    assert!(kinds(&state).contains(&DegradationKind::FreezeFailed));
    assert!(!state.effects.contains_key(&format!("{}/freeze", id())));
}

#[test]
fn a_scheduler_that_starts_after_submission_records_a_missed_round() {
    let mut state = fresh();
    run(&mut state, block(first(Phase::Merge)));
    assert_eq!(kinds(&state), [DegradationKind::RoundMissed]);
    blocks(&mut state, first(Phase::ValidatorCommit2));
    assert_eq!(round(&state).stage, Stage::Closed);
    assert!(round(&state).writes.is_empty());
}

#[test]
fn an_unfinished_round_is_closed_when_the_next_one_opens() {
    let mut state = evaluated();
    blocks(&mut state, 36 + first(Phase::MinerCommit1));
    assert_eq!(round(&state).cycle.0, 1);
    let kinds: Vec<_> = record(&state).degradations.into_iter().map(|d| d.kind).collect();
    assert!(kinds.contains(&DegradationKind::Unfinished));
}

#[test]
fn held_weights_are_not_sent() {
    let mut policy = policy();
    policy.hold_weights_on.insert(DegradationKind::JobRetried);
    let mut state = frozen();
    lease(&mut state);
    for number in state.block.0 + 1..=first(Phase::Merge) {
        apply(&mut state, block(number), &policy).unwrap();
    }
    assert!(kinds(&state).contains(&DegradationKind::WeightsHeld));
    assert!(round(&state).weights.is_empty());
}
