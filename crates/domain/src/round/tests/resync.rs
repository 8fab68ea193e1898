//! What the validators have revealed at the end of a cycle, and how this validator comes to it.

use super::{reveals::commitment, *};
use crate::CycleIndex;

const CYCLE: CycleIndex = CycleIndex(0);
const THIRD: u8 = 3;

/// First block after the first cycle.
fn after() -> u64 {
    policy().schedule.cycle_length()
}

/// First block of MinerCommit1 of the second cycle.
fn next_round() -> u64 {
    after() + first(Phase::MinerCommit1)
}

/// A first cycle that ended well, with model 9 as the base; up to the last block of it.
fn over() -> State {
    let mut state = evaluated();
    run(&mut state, merged());
    ends(&mut state);
    assert_eq!(state.base, Some(model(first(Phase::Merge), 9)));
    state
}

/// The same after a merge that failed: the base stays.
fn failed() -> State {
    let mut state = evaluated();
    let failure = MergeFailure { reason: "too_few".to_owned(), ..MergeFailure::default() };
    run(&mut state, Event::Merged { round: id(), outcome: MergeOutcome::Failed(failure) });
    ends(&mut state);
    assert_eq!(state.base, Some(model(0, 0)));
    state
}

fn ends(state: &mut State) {
    let held_out = lease_or_none(state);
    if let Some(grant) = held_out {
        finish(state, &grant, measured(4.5, 4.5));
    }
    blocks(state, first(Phase::ValidatorCommit1));
    run(state, Event::HashSigned { round: id(), signature: "s".repeat(86) });
    written(state, WriteKind::SignedHash);
    blocks(state, first(Phase::ValidatorCommit2));
    written(state, WriteKind::ModelHash);
    written(state, WriteKind::Weights);
    assert_eq!(round(state).stage, Stage::Closed);
    blocks(state, after() - 1);
}

fn lease_or_none(state: &mut State) -> Option<JobGrant> {
    match run(state, Event::Lease { worker: "w".to_owned() }) {
        Reply::Granted(grant) => grant.map(|grant| *grant),
        other @ (Reply::Applied | Reply::Ignored | Reply::Renewed(_)) => panic!("{other:?}"),
    }
}

fn resync(state: &State) -> &Resync {
    state.resync.as_ref().unwrap()
}

/// Hands in what was read, as the effect that waits for it would.
fn revealed(state: &mut State, reveals: Reveals) -> Reply {
    let asked = resync(state).asked;
    run(state, Event::Revealed { cycle: CYCLE, asked, reveals: Box::new(reveals) })
}

fn fetching(state: &State) -> ResyncPlan {
    let Effect::Resync(plan) = &state.effects["resync/0"] else { panic!("nothing is fetched") };
    plan.clone()
}

fn arrives(state: &mut State) {
    let model = fetching(state).model;
    run(state, Event::Resynced { cycle: CYCLE, model, blamed: vec![] });
}

fn fails(state: &mut State, reason: &str) -> Reply {
    let cause = Cause { reason: reason.to_owned(), detail: "so it was".to_owned() };
    run(state, Event::ResyncFailed { cycle: CYCLE, cause, blamed: vec![] })
}

#[test]
fn what_was_revealed_is_read_once_after_the_cycle_and_not_in_the_first_one() {
    let mut state = over();
    assert_eq!(state.resync, None);
    blocks(&mut state, after());
    let asked = resync(&state).asked;
    let wanted = Effect::Reveals { cycle: CYCLE, asked, traceparent: "00-trace".to_owned() };
    assert_eq!(state.effects["reveals/0"], wanted);
    blocks(&mut state, after() + 3);
    assert_eq!(resync(&state).asked, asked);
    assert_eq!(revealed(&mut state, reveals(9)), Reply::Applied);
    assert_eq!(resync(&state).stage, ResyncStage::Same);
    assert!(!state.effects.contains_key("reveals/0") && !state.effects.contains_key("resync/0"));
    assert_eq!(revealed(&mut state, reveals(7)), Reply::Ignored, "it is decided");
    blocks(&mut state, next_round());
    assert_eq!((round(&state).cycle.0, kinds(&state)), (1, vec![]));
    assert_eq!(round(&state).base, model(first(Phase::Merge), 9));
}

#[test]
fn who_missed_the_merge_fetches_the_majoritys_model_and_the_next_round_stands_on_it() {
    let mut state = failed();
    blocks(&mut state, after());
    revealed(&mut state, reveals(9));
    let plan = fetching(&state);
    assert_eq!((plan.round, plan.until.0), (id(), next_round()));
    assert_eq!(plan.model.model_hash, ModelHash([9; 24]));
    assert_eq!(plan.model.global_version.0, first(Phase::Merge));
    assert_eq!(plan.model.prefix, "models/24-0909090909090909");
    let holders: Vec<_> = plan.holders.iter().map(|one| (one.hotkey.clone(), one.stake)).collect();
    let mut wanted = vec![(key(OTHER), 1_000_000), (key(THIRD), 1_000_000)];
    wanted.sort();
    assert_eq!(holders, wanted);
    assert_eq!(plan.holders.iter().filter(|one| one.axon.is_empty()).count(), 0);
    let before = state.base.clone();
    arrives(&mut state);
    assert_ne!(state.base, before);
    assert_eq!(state.base, Some(plan.model.clone()));
    assert!(!state.effects.contains_key("resync/0"));
    blocks(&mut state, next_round());
    assert_eq!(
        (&round(&state).base, kinds(&state)),
        (&plan.model, vec![DegradationKind::Resynced])
    );
    let Payload::Commitment(seed) = &round(&state).writes[&WriteKind::Seed].payload else {
        panic!("no commitment")
    };
    let seed = ValidatorCommitment::parse(seed).unwrap();
    assert_eq!(seed.model_hash, Some(ModelHash([9; 24])), "it is announced");
}

#[test]
fn who_made_another_model_than_the_majority_takes_theirs_and_keeps_it() {
    let mut state = over();
    blocks(&mut state, after());
    revealed(&mut state, reveals(7));
    let plan = fetching(&state);
    assert_ne!(plan.model.prefix, state.base.as_ref().unwrap().prefix, "two models in one folder");
    arrives(&mut state);
    // Nothing that happens to the old round brings its model back.
    blocks(&mut state, after() + 3);
    run(&mut state, Event::EffectDone { effect: format!("{}/record", id()) });
    assert_eq!(state.base, Some(plan.model.clone()));
    blocks(&mut state, next_round());
    assert_eq!(round(&state).base, plan.model);
    blocks(&mut state, after() + first(Phase::Merge));
    assert_eq!(state.base, Some(plan.model));
}

#[test]
fn a_round_that_is_closed_late_does_not_bring_its_model_back() {
    let mut state = evaluated();
    run(&mut state, merged());
    // Its hash is never revealed.
    blocks(&mut state, after());
    assert_eq!(round(&state).stage, Stage::Committing);
    revealed(&mut state, reveals(7));
    arrives(&mut state);
    let fetched = state.base.clone();
    written(&mut state, WriteKind::Seed);
    blocks(&mut state, next_round());
    assert_eq!((round(&state).cycle.0, &state.base), (1, &fetched));
    let left =
        record(&state).degradations.into_iter().find(|d| d.kind == DegradationKind::Unfinished);
    assert!(!left.unwrap().detail.contains("resync"), "it is none of the round's work");
}

#[test]
fn what_is_here_already_is_not_fetched() {
    // The others' merge failed, and this validator's did not.
    let mut state = over();
    blocks(&mut state, after());
    revealed(&mut state, reveals(0));
    assert_eq!(resync(&state).stage, ResyncStage::Done(model(0, 0)));
    assert_eq!(state.base, Some(model(0, 0)));
    assert!(!state.effects.contains_key("resync/0"));
    blocks(&mut state, next_round());
    assert_eq!(kinds(&state), [DegradationKind::Resynced]);

    // It merged with them, and only its own reveal has not landed.
    let mut state = evaluated();
    run(&mut state, merged());
    blocks(&mut state, after());
    assert_eq!(state.base, Some(model(0, 0)));
    revealed(&mut state, reveals(9));
    assert_eq!(state.base, Some(model(first(Phase::Merge), 9)));
}

#[test]
fn without_a_majority_everybody_keeps_its_own_and_the_round_says_so() {
    let mut state = over();
    blocks(&mut state, after());
    let mut split = reveals(7);
    // One of the two others has revealed another one.
    let other = commitment(OTHER, 6);
    split.commit_2.retain(|one| one.hotkey != key(OTHER));
    split.commit_2.push(other);
    revealed(&mut state, split);
    assert_eq!(resync(&state).stage, ResyncStage::Split);
    blocks(&mut state, next_round());
    assert_eq!(kinds(&state), [DegradationKind::MajorityUnknown]);
    assert_eq!(round(&state).base, model(first(Phase::Merge), 9));

    let mut state = over();
    blocks(&mut state, after());
    let mut silent = reveals(7);
    silent.commit_1.clear();
    silent.commit_2.clear();
    revealed(&mut state, silent);
    assert_eq!(resync(&state).stage, ResyncStage::Nobody);
    blocks(&mut state, next_round());
    assert_eq!(kinds(&state), []);
}

#[test]
fn a_fetch_that_fails_is_tried_until_minercommit1_and_is_named_then_with_its_reason() {
    let mut state = failed();
    blocks(&mut state, after());
    revealed(&mut state, reveals(9));
    assert_eq!(fails(&mut state, "no_holders"), Reply::Applied);
    assert_eq!(fails(&mut state, "no_holders"), Reply::Ignored, "nothing new");
    assert_eq!(resync(&state).cause.as_ref().unwrap().reason, "no_holders");
    assert!(state.effects.contains_key("resync/0"), "it is tried again");
    blocks(&mut state, next_round() - 1);
    assert!(state.effects.contains_key("resync/0"));
    let plan = fetching(&state);
    blocks(&mut state, next_round());
    assert!(!state.effects.contains_key("resync/0"), "while a round runs");
    assert_eq!(kinds(&state), [DegradationKind::BehindMajority]);
    let told = &round(&state).degradations[0].detail;
    assert!(told.ends_with("before MinerCommit1: no_holders: so it was"), "{told}");
    let late = Event::Resynced { cycle: CYCLE, model: plan.model, blamed: vec![] };
    assert_eq!(run(&mut state, late), Reply::Ignored);
    assert_eq!(state.base, Some(model(0, 0)));
}

#[test]
fn a_fetch_that_works_after_all_leaves_no_trace_of_what_failed_before() {
    let mut state = failed();
    blocks(&mut state, after());
    revealed(&mut state, reveals(9));
    fails(&mut state, "no_holders");
    arrives(&mut state);
    assert_eq!(resync(&state).cause, None);
    blocks(&mut state, next_round());
    assert_eq!(kinds(&state), [DegradationKind::Resynced]);
}

#[test]
fn holders_that_lied_are_named_once() {
    let mut state = failed();
    blocks(&mut state, after());
    revealed(&mut state, reveals(9));
    let blamed = vec![LeftOut {
        hotkey: key(OTHER),
        reason: "other_files".to_owned(),
        detail: String::new(),
    }];
    let cause = Cause { reason: "no_holders".to_owned(), detail: String::new() };
    let failed = Event::ResyncFailed { cycle: CYCLE, cause, blamed: blamed.clone() };
    run(&mut state, failed);
    let next = state.block.0 + 1;
    blocks(&mut state, next);
    let model = fetching(&state).model;
    run(&mut state, Event::Resynced { cycle: CYCLE, model, blamed });
    blocks(&mut state, next_round());
    assert_eq!(kinds(&state), [DegradationKind::PeerBlamed, DegradationKind::Resynced]);
}

#[test]
fn another_model_than_the_one_that_was_asked_for_is_not_taken() {
    let mut state = failed();
    blocks(&mut state, after());
    revealed(&mut state, reveals(9));
    let event = Event::Resynced { cycle: CYCLE, model: model(24, 8), blamed: vec![] };
    assert_eq!(run(&mut state, event), Reply::Ignored);
    assert_eq!(state.base, Some(model(0, 0)));
}

#[test]
fn reveals_that_cannot_be_read_in_time_are_named() {
    let mut state = over();
    blocks(&mut state, after());
    fails(&mut state, "unreadable");
    blocks(&mut state, next_round());
    assert_eq!(kinds(&state), [DegradationKind::MajorityUnknown]);
    assert!(round(&state).degradations[0].detail.ends_with("unreadable: so it was"));
}

#[test]
fn a_scheduler_that_comes_when_it_is_too_late_to_look_says_so() {
    let mut state = over();
    run(&mut state, block(next_round()));
    assert_eq!(kinds(&state), [DegradationKind::MajorityUnknown]);
    // One that missed the whole round has nothing that could be wrong.
    let mut state = over();
    run(&mut state, block(after() + first(Phase::Merge)));
    assert_eq!(kinds(&state), [DegradationKind::RoundMissed]);
}

#[test]
fn a_round_that_was_slept_through_is_not_followed_back() {
    let mut state = over();
    blocks(&mut state, after());
    revealed(&mut state, reveals(7));
    arrives(&mut state);
    let fetched = state.base.clone();
    // The whole second cycle passes unseen.
    run(&mut state, block(2 * after()));
    assert_eq!((resync(&state).cycle.0, &state.base), (1, &fetched));
    run(&mut state, Event::EffectDone { effect: format!("{}/record", id()) });
    assert_eq!(state.base, fetched);
}

#[test]
fn blocks_that_are_taken_back_have_it_read_again_and_what_is_here_stays() {
    let mut state = failed();
    blocks(&mut state, after() + 1);
    let old = resync(&state).asked;
    let back = |to: u64, from: u64| Event::Reorganised {
        ancestor: BlockNumber(to),
        ancestor_hash: BlockHash([9; 32]),
        abandoned: BlockNumber(from),
    };
    // Above the block as of which it is read nothing changes.
    run(&mut state, back(after(), after() + 1));
    assert_eq!(resync(&state).asked, old);
    run(&mut state, back(after() - 1, after()));
    assert!(!state.effects.contains_key("reveals/0"));
    blocks(&mut state, after());
    assert_ne!(resync(&state).asked, old);
    let stale = Event::Revealed { cycle: CYCLE, asked: old, reveals: Box::new(reveals(7)) };
    assert_eq!(run(&mut state, stale), Reply::Ignored);
    revealed(&mut state, reveals(9));
    run(&mut state, back(after() - 1, after()));
    assert!(!state.effects.contains_key("resync/0"), "what it fetches may be of another branch");
    blocks(&mut state, after());
    revealed(&mut state, reveals(9));
    arrives(&mut state);
    let fetched = state.base.clone();
    run(&mut state, back(after() - 1, after()));
    blocks(&mut state, next_round());
    assert_eq!((&state.base, kinds(&state)), (&fetched, vec![DegradationKind::Resynced]));
}

#[test]
fn a_validator_without_a_model_opens_no_round_and_joins_by_the_majoritys() {
    let mut state = State::new(key(ME), ExpertGroup(0), None);
    blocks(&mut state, first(Phase::Merge));
    assert_eq!((&state.round, &state.effects), (&None, &Default::default()));
    blocks(&mut state, after());
    revealed(&mut state, reveals(9));
    arrives(&mut state);
    assert_eq!(state.base.as_ref().unwrap().model_hash, ModelHash([9; 24]));
    blocks(&mut state, next_round());
    assert_eq!(round(&state).base.model_hash, ModelHash([9; 24]));
    assert_eq!(kinds(&state), [DegradationKind::Resynced]);
    assert!(round(&state).degradations[0].detail.ends_with("this validator had none"));
}

#[test]
fn a_validator_without_a_model_that_is_late_tries_in_the_next_cycle_and_forgets_nothing() {
    let mut state = State::new(key(ME), ExpertGroup(0), None);
    blocks(&mut state, after());
    revealed(&mut state, reveals(9));
    blocks(&mut state, 2 * after());
    assert_eq!(state.round, None);
    assert_eq!(resync(&state).cycle.0, 1);
    let told: Vec<_> = resync(&state).degradations.iter().map(|told| told.kind).collect();
    assert_eq!(told, [DegradationKind::BehindMajority]);
}

#[test]
fn a_first_model_is_taken_where_there_is_none_and_only_there() {
    let mut state = State::new(key(ME), ExpertGroup(0), None);
    blocks(&mut state, first(Phase::MinerCommit1));
    assert_eq!(state.round, None);
    assert_eq!(run(&mut state, Event::ModelFound { model: model(4, 5) }), Reply::Applied);
    assert_eq!(run(&mut state, Event::ModelFound { model: model(5, 6) }), Reply::Ignored);
    let next = state.block.0 + 1;
    blocks(&mut state, next);
    assert_eq!(round(&state).base, model(4, 5));
}

#[test]
fn a_state_from_before_there_was_a_look_still_loads_with_its_model() {
    let mut state = over();
    let mut old = serde_json::to_value(&state).unwrap();
    assert!(old.as_object_mut().unwrap().remove("resync").is_some());
    let mut read: State = serde_json::from_value(old).unwrap();
    assert_eq!(read, state);
    blocks(&mut read, after());
    blocks(&mut state, after());
    assert_eq!(read, state);
}
