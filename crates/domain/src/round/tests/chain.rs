//! Blocks taken back, rounds held, and what the chain service tells: nothing begins twice, nothing
//! is forgotten, and nobody outside decides what a round does.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{replay::any_event, *};

fn reorganised(ancestor: u64, abandoned: u64) -> Event {
    Event::Reorganised {
        ancestor: BlockNumber(ancestor),
        ancestor_hash: BlockHash([0xaa; 32]),
        abandoned: BlockNumber(abandoned),
    }
}

fn told(kind: DegradationKind, detail: &str, block: u64) -> Event {
    Event::Degraded { kind, detail: detail.to_owned(), block: BlockNumber(block) }
}

fn freeze_effect(state: &State) -> Option<&Effect> {
    state.effects.get(&format!("{}/freeze", id()))
}

/// A round that waits for its inputs.
fn waiting() -> State {
    let mut state = fresh();
    blocks(&mut state, first(Phase::Submission));
    assert!(freeze_effect(&state).is_some());
    state
}

#[test]
fn a_round_whose_frozen_block_is_taken_back_says_so_with_both_hashes_and_goes_on() {
    let mut state = frozen();
    let freeze = first(Phase::Submission);
    let before = round(&state).clone();
    assert_eq!(run(&mut state, reorganised(freeze - 2, freeze)), Reply::Applied);
    assert_eq!(state.block, BlockNumber(freeze - 2));
    let degradations = &round(&state).degradations;
    assert_eq!(kinds(&state), [DegradationKind::Reorganised]);
    let detail = &degradations[0].detail;
    assert!(detail.contains(&"01".repeat(32)) && detail.contains(&"aa".repeat(32)), "{detail}");
    assert_eq!(degradations[0].block, BlockNumber(freeze));
    blocks(&mut state, freeze + 1);
    assert_eq!(round(&state).frozen, before.frozen);
    assert_eq!(round(&state).stage, Stage::Evaluating);
    assert!(freeze_effect(&state).is_none(), "inputs are frozen once");
    run(&mut state, stored(10));
}

#[test]
fn a_reorganisation_above_the_frozen_block_is_nobodys_loss() {
    let mut state = frozen();
    let freeze = first(Phase::Submission);
    blocks(&mut state, freeze + 2);
    run(&mut state, reorganised(freeze, freeze + 2));
    assert_eq!(kinds(&state), []);
    assert_eq!(state.block, BlockNumber(freeze));
    blocks(&mut state, freeze + 3);
    assert_eq!(state.block, BlockNumber(freeze + 3));
}

#[test]
fn inputs_that_are_being_read_when_their_block_is_taken_back_are_read_on_the_new_branch() {
    let mut state = waiting();
    let freeze = first(Phase::Submission);
    run(&mut state, reorganised(freeze - 1, freeze));
    assert_eq!(freeze_effect(&state), None, "not before the block has come again");
    let late = Event::Frozen { round: id(), branch: 0, inputs: Box::new(inputs()) };
    let rejection = apply(&mut state, late.clone(), &policy()).unwrap_err();
    assert_eq!(rejection, Rejection::OtherBranch { round: id() });
    blocks(&mut state, freeze);
    assert!(matches!(freeze_effect(&state), Some(Effect::Freeze { branch: 1, .. })));
    apply(&mut state, late, &policy()).unwrap_err();
    run(&mut state, Event::Frozen { round: id(), branch: 1, inputs: Box::new(inputs()) });
    assert_eq!((round(&state).stage, kinds(&state)), (Stage::Evaluating, vec![]));
}

#[test]
fn what_was_not_seen_cannot_be_taken_back_and_a_block_sent_again_is_still_nothing_new() {
    let mut state = frozen();
    let before = state.clone();
    let height = state.block.0;
    assert_eq!(run(&mut state, reorganised(height, height + 3)), Reply::Ignored);
    assert_eq!(run(&mut state, reorganised(height + 1, height + 3)), Reply::Ignored);
    assert_eq!(run(&mut state, block(height)), Reply::Ignored);
    assert_eq!(state, before);
    assert_eq!(state.block_hash, Some(BlockHash([height as u8; 32])));
    run(&mut state, reorganised(height - 1, height));
    assert_eq!((state.block.0, state.block_hash), (height - 1, Some(BlockHash([0xaa; 32]))));
    assert_eq!(run(&mut state, block(height - 1)), Reply::Ignored);
    assert_eq!(run(&mut state, block(height)), Reply::Applied);
}

#[test]
fn a_round_that_is_held_until_merge_fails_with_the_last_reason() {
    let mut state = waiting();
    let held = |why: &str| Event::Held { round: id(), why: why.to_owned() };
    assert_eq!(run(&mut state, held("no answer")), Reply::Applied);
    let revision = state.revision;
    assert_eq!(run(&mut state, held("no answer")), Reply::Ignored);
    assert_eq!(state.revision, revision, "the same reason again is not worth a save");
    run(&mut state, held("disagreement: two hashes of block 15"));
    blocks(&mut state, first(Phase::Merge));
    let [failed] = round(&state).degradations.as_slice() else { panic!("{:?}", kinds(&state)) };
    assert_eq!(failed.kind, DegradationKind::FreezeFailed);
    assert!(failed.detail.ends_with("before Merge: disagreement: two hashes of block 15"));
    assert_eq!(run(&mut state, held("too late")), Reply::Ignored);
}

#[test]
fn a_round_that_was_held_and_then_frozen_is_held_no_more() {
    let mut state = waiting();
    run(&mut state, Event::Held { round: id(), why: "x".repeat(2_000) });
    let held = round(&state).held.clone().unwrap();
    assert!(held.chars().count() <= 501, "{}", held.len());
    run(&mut state, Event::Frozen { round: id(), branch: 0, inputs: Box::new(inputs()) });
    assert_eq!((round(&state).held.as_ref(), kinds(&state)), (None, vec![]));
}

#[test]
fn what_is_told_goes_into_the_open_round_once_and_what_is_older_does_not() {
    use DegradationKind::{EndpointSwitched, FinalityBroken};
    let mut state = fresh();
    assert_eq!(run(&mut state, told(EndpointSwitched, "a to b", 3)), Reply::Ignored, "no round");
    let opened = first(Phase::MinerCommit1);
    blocks(&mut state, opened + 1);
    assert_eq!(run(&mut state, told(EndpointSwitched, "a to b", opened - 1)), Reply::Ignored);
    assert_eq!(run(&mut state, told(EndpointSwitched, "a to b", opened)), Reply::Applied);
    assert_eq!(run(&mut state, told(EndpointSwitched, "a to b", opened + 1)), Reply::Ignored);
    assert_eq!(run(&mut state, told(EndpointSwitched, "b to a", opened + 1)), Reply::Applied);
    assert_eq!(run(&mut state, told(FinalityBroken, "a to b", opened + 1)), Reply::Applied);
    assert_eq!(kinds(&state), [EndpointSwitched, EndpointSwitched, FinalityBroken]);
}

#[test]
fn nobody_outside_can_make_a_round_missed_or_its_state_grow_without_bound() {
    let mut state = frozen();
    for kind in DegradationKind::ALL.iter().copied().filter(|kind| !kind.is_chains()) {
        assert_eq!(run(&mut state, told(kind, "", 30)), Reply::Ignored);
    }
    for n in 0..1_000 {
        run(
            &mut state,
            told(DegradationKind::ChainDegraded, &format!("{n}{}", "y".repeat(900)), 30),
        );
    }
    let degradations = &round(&state).degradations;
    assert_eq!(degradations.len(), 16);
    assert!(degradations.iter().all(|told| told.detail.chars().count() <= 501));
}

#[test]
fn every_kind_has_one_name_in_all_places_and_strange_words_keep_theirs() {
    for kind in DegradationKind::ALL.iter().copied() {
        assert_eq!(kind.as_str().parse(), Ok(kind));
        assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        let found = Degradation::from_chain(kind.as_str(), "why", BlockNumber(1));
        match kind.is_chains() {
            true => assert_eq!((found.kind, found.detail.as_str()), (kind, "why")),
            false => {
                assert_eq!(found.kind, DegradationKind::ChainDegraded);
                assert_eq!(found.detail, format!("{}: why", kind.as_str()));
            }
        }
    }
    let strange = Degradation::from_chain("pulse_missed", "drand is silent", BlockNumber(7));
    assert_eq!(strange.kind, DegradationKind::ChainDegraded);
    assert_eq!(strange.detail, "pulse_missed: drand is silent");
    assert!("Late_start".parse::<DegradationKind>().is_err());
}

#[test]
fn what_went_wrong_while_the_inputs_were_read_is_the_rounds() {
    let told = |kind: &str| Degradation::from_chain(kind, "read", BlockNumber(16));
    let degradations = vec![told("archive_used"), told("archive_used"), told("round_missed")];
    let mut state = waiting();
    let inputs = Box::new(FreezeInputs { degradations, ..inputs() });
    run(&mut state, Event::Frozen { round: id(), branch: 0, inputs });
    assert_eq!(kinds(&state), [DegradationKind::ArchiveUsed, DegradationKind::ChainDegraded]);
    assert!(round(&state).frozen.as_ref().unwrap().inputs.degradations.is_empty());
}

/// A whole round up to the moment at which weights would be sent, with `told` when its merge runs.
fn committing(policy: &Policy, told: Option<Event>) -> State {
    let mut state = evaluated();
    if let Some(told) = told {
        apply(&mut state, told, policy).unwrap();
    }
    apply(&mut state, merged(), policy).unwrap();
    for number in state.block.0 + 1..=first(Phase::ValidatorCommit2) {
        apply(&mut state, block(number), policy).unwrap();
        if number == first(Phase::ValidatorCommit1) {
            run(&mut state, Event::HashSigned { round: id(), signature: "s".repeat(86) });
            written(&mut state, WriteKind::SignedHash);
        }
    }
    state
}

#[test]
fn policy_holds_weights_for_what_is_told_up_to_the_moment_at_which_they_would_be_sent() {
    let mut policy = policy();
    policy.hold_weights_on.insert(DegradationKind::NoQuorum);
    let late = told(DegradationKind::NoQuorum, "1 of 2", first(Phase::Merge));
    let state = committing(&policy, Some(late.clone()));
    assert_eq!(kinds(&state), [DegradationKind::NoQuorum, DegradationKind::WeightsHeld]);
    assert!(round(&state).weights.is_empty());
    assert_eq!(round(&state).weights_origin, WeightsOrigin::None);
    assert!(!round(&state).writes.contains_key(&WriteKind::Weights));
    // Without that policy they are sent.
    let state = committing(&super::policy(), Some(late));
    assert!(round(&state).writes.contains_key(&WriteKind::Weights));
}

#[test]
fn weights_say_where_they_come_from_in_the_round_in_the_write_and_in_the_record() {
    let payload = |state: &State| round(state).writes[&WriteKind::Weights].payload.clone();
    let earned = committing(&policy(), None);
    assert_eq!(round(&earned).weights_origin, WeightsOrigin::Earned);
    assert_eq!(payload(&earned), Payload::Weights(vec![(Uid(2), 1.0)]));

    // Nobody earns anything, and the chain is about to forget this validator.
    let mut state = frozen();
    let last = Weights::from([(Uid(3), 1.0)]);
    state.round.as_mut().unwrap().frozen.as_mut().unwrap().fallback = Some(last);
    blocks(&mut state, first(Phase::Merge));
    run(&mut state, merged());
    blocks(&mut state, first(Phase::ValidatorCommit1));
    run(&mut state, Event::HashSigned { round: id(), signature: "s".repeat(86) });
    written(&mut state, WriteKind::SignedHash);
    blocks(&mut state, first(Phase::ValidatorCommit2));
    assert_eq!(round(&state).weights_origin, WeightsOrigin::StaleGuard);
    assert_eq!(payload(&state), Payload::StaleWeights(vec![(Uid(3), 1.0)]));
    blocks(&mut state, 36 + first(Phase::MinerCommit1));
    let record = serde_json::to_value(record(&state)).unwrap();
    assert_eq!(record["weights_origin"], "stale_guard");
}

#[test]
fn states_and_records_from_before_are_read_as_they_were_meant() {
    let mut state = committing(&policy(), None);
    let strip = |value: &mut serde_json::Value, names: &[&str]| {
        let object = value.as_object_mut().unwrap();
        for name in names {
            assert!(object.remove(*name).is_some(), "there is no `{name}`");
        }
    };
    let mut old = serde_json::to_value(&state).unwrap();
    strip(&mut old["round"], &["opened_at", "branch", "held", "weights_origin"]);
    strip(&mut old, &["block_hash", "resync"]);
    let read: State = serde_json::from_value(old).unwrap();
    assert_eq!((read.block, read.block_hash), (state.block, None));
    assert_eq!(read.round.unwrap().weights, round(&state).weights);

    blocks(&mut state, 36 + first(Phase::MinerCommit1));
    let effect = state.effects[&format!("{}/record", id())].clone();
    let Effect::Record(record) = effect else { panic!("{effect:?}") };
    let mut old = serde_json::to_value(&record).unwrap();
    strip(&mut old, &["weights_origin"]);
    let read: Record = serde_json::from_value(old).unwrap();
    assert_eq!((read.format, read.weights_origin), (1, WeightsOrigin::None));

    let mut old = serde_json::to_value(freeze_effect(&waiting()).unwrap()).unwrap();
    strip(&mut old["freeze"], &["branch"]);
    let read: Effect = serde_json::from_value(old).unwrap();
    assert!(matches!(read, Effect::Freeze { branch: 0, .. }));
}

/// Does whatever is to be done outside, until nothing is.
fn settle(state: &mut State) {
    loop {
        let before = state.revision;
        for effect in state.effects.clone().into_values() {
            let event = match &effect {
                Effect::Freeze { round, branch, .. } => {
                    Event::Frozen { round: *round, branch: *branch, inputs: Box::new(inputs()) }
                }
                Effect::Merge(_) => merged(),
                Effect::SignHash { round, .. } => {
                    Event::HashSigned { round: *round, signature: "s".repeat(86) }
                }
                Effect::Write { round, kind, .. } => {
                    let status = WriteStatus { state: WriteState::Done, ..WriteStatus::pending() };
                    Event::Written { round: *round, kind: *kind, status }
                }
                Effect::Reveals { cycle, asked, .. } => {
                    Event::Revealed { cycle: *cycle, asked: *asked, reveals: Box::new(reveals(9)) }
                }
                Effect::Resync(plan) => {
                    let (cycle, model) = (plan.cycle, plan.model.clone());
                    Event::Resynced { cycle, model, blamed: vec![] }
                }
                Effect::Record(_) => continue,
            };
            run(state, event);
        }
        for k in [10, 11] {
            // Refused before the freeze and after Submission.
            let _ = apply(state, stored(k), &policy());
        }
        while let Reply::Granted(Some(grant)) = run(state, Event::Lease { worker: "w".to_owned() })
        {
            let good = grant.kind == JobKind::Score(key(10));
            finish(state, &grant, measured(5.0, if good { 4.0 } else { 5.0 }));
        }
        if state.revision == before {
            return;
        }
    }
}

/// A round to its end; before block `at` that many are taken back, for each of `forks`.
fn played(forks: &BTreeMap<u64, u64>) -> State {
    let mut state = fresh();
    let end = first(Phase::ValidatorCommit2) + 2;
    for number in 1..=end {
        if let Some(depth) = forks.get(&number) {
            let ancestor = (number - 1).saturating_sub(*depth);
            run(&mut state, reorganised(ancestor, number - 1));
            for again in ancestor + 1..number {
                run(&mut state, block(again));
                settle(&mut state);
            }
        }
        run(&mut state, block(number));
        settle(&mut state);
    }
    state
}

proptest! {
    #[test]
    fn whatever_is_taken_back_nothing_begins_twice_but_reading_on_another_branch(
        events in prop::collection::vec(any_event(), 0..160)
    ) {
        let mut state = fresh();
        let mut begun: BTreeMap<(String, u64), u32> = BTreeMap::new();
        let mut rounds = Vec::new();
        for event in events {
            let before = state.clone();
            let _ = apply(&mut state, event, &policy());
            for (id, effect) in &state.effects {
                let branch = match effect {
                    Effect::Freeze { branch, .. } => *branch,
                    Effect::Reveals { asked, .. } => *asked,
                    Effect::Resync(_) => state.resync.as_ref().unwrap().asked,
                    Effect::Merge(_)
                    | Effect::SignHash { .. }
                    | Effect::Write { .. }
                    | Effect::Record(_) => 0,
                };
                if !before.effects.contains_key(id) {
                    *begun.entry((id.clone(), branch)).or_default() += 1;
                }
            }
            let (was, is) = (before.round.map(|round| round.id), state.round.as_ref().map(|r| r.id));
            if was != is {
                rounds.extend(is);
            }
        }
        prop_assert!(begun.values().all(|times| *times == 1), "{begun:?}");
        prop_assert!(rounds.is_sorted_by(|a, b| a < b), "{rounds:?}");
    }

    #[test]
    fn a_round_ends_the_same_whatever_was_taken_back_on_its_way(
        forks in prop::collection::btree_map(1u64..34, 1u64..12, 0..5)
    ) {
        let (straight, mut forked) = (played(&BTreeMap::new()), played(&forks));
        prop_assert_eq!(round(&straight).stage, Stage::Closed);
        let round = forked.round.as_mut().unwrap();
        round.degradations.retain(|d| d.kind != DegradationKind::Reorganised);
        round.branch = 0;
        prop_assert_eq!(straight.round, forked.round);
        prop_assert_eq!(
            (straight.base, straight.history, straight.last_weights, straight.block),
            (forked.base, forked.history, forked.last_weights, forked.block)
        );
    }
}
