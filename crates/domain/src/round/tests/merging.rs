//! What the peer service is asked for, and what is made of its answer.

use super::*;

fn left_out(k: u8, reason: &str, detail: &str) -> LeftOut {
    LeftOut { hotkey: key(k), reason: reason.to_owned(), detail: detail.to_owned() }
}

fn ended(outcome: MergeOutcome) -> State {
    let mut state = evaluated();
    run(&mut state, Event::Merged { round: id(), outcome });
    assert_eq!(round(&state).stage, Stage::Committing);
    state
}

#[test]
fn the_plan_has_everybodys_stake_and_the_frozen_block_and_begins_when_merge_does() {
    let plan = plan(&evaluated());
    assert_eq!(plan.stakes, [(key(ME), 1_000_000), (key(OTHER), 1_000_000)].into());
    assert_eq!((plan.stake(&key(ME)), plan.stake(&key(10))), (1_000_000, 0));
    assert_eq!(plan.block_hash, Some(BlockHash([1; 32])));
    assert_eq!(plan.first().0, first(Phase::Merge));
}

#[test]
fn a_plan_asked_for_late_begins_no_later_and_says_the_same() {
    let (early, mut late) = (plan(&evaluated()), frozen());
    run(&mut late, stored(10));
    for _ in 0..2 {
        let grant = lease(&mut late);
        finish(&mut late, &grant, measured(5.0, 4.0));
    }
    // The whole of Merge but its last block passes unseen.
    run(&mut late, block(first(Phase::ValidatorCommit1) - 1));
    let late = plan(&late);
    assert_eq!((late.first(), late.new_version), (early.first(), early.new_version));
    assert_eq!((late.stakes, late.block_hash), (early.stakes, early.block_hash));
}

#[test]
fn a_validator_that_is_none_of_the_rounds_still_says_what_it_has_at_stake() {
    let mut state = fresh();
    blocks(&mut state, first(Phase::Submission));
    let mut inputs = inputs();
    inputs.metagraph.neurons[0].validator_permit = false;
    inputs.metagraph.neurons[0].stake = 7;
    run(&mut state, Event::Frozen { round: id(), branch: 0, inputs: Box::new(inputs) });
    blocks(&mut state, first(Phase::Merge));
    assert_eq!(plan(&state).stakes, [(key(ME), 7), (key(OTHER), 1_000_000)].into());
}

#[test]
fn who_has_set_no_weights_lately_takes_no_part_and_may_ask_for_the_model() {
    const AWAY: u8 = 3;
    let mut state = fresh();
    blocks(&mut state, first(Phase::Submission));
    let mut inputs = inputs();
    inputs.metagraph.block = BlockNumber(1000);
    inputs.metagraph.neurons.iter_mut().for_each(|n| n.last_update = BlockNumber(999));
    let away = Neuron { last_update: BlockNumber(0), ..neuron(100, AWAY, true) };
    let miner = Neuron { last_update: BlockNumber(0), ..neuron(101, 4, false) };
    inputs.metagraph.neurons.extend([away, miner]);
    run(&mut state, Event::Frozen { round: id(), branch: 0, inputs: Box::new(inputs) });
    blocks(&mut state, first(Phase::Merge));
    let plan = plan(&state);
    assert!(!plan.stakes.contains_key(&key(AWAY)));
    assert_eq!(plan.validators.iter().map(|(hotkey, _)| hotkey).collect::<Vec<_>>(), [&key(OTHER)]);
    assert_eq!(plan.absent, [key(AWAY)]);
}

#[test]
fn a_merge_that_took_everybody_in_is_no_degradation_and_keeps_its_figures() {
    let influence = Influence {
        hotkey: key(OTHER),
        weight: 0.5,
        norm: 3.0,
        bounded_norm: 2.0,
        cosine: 0.9,
        trimmed: 0.1,
    };
    let broken = Influence { cosine: f64::NAN, ..influence.clone() };
    let influence = vec![influence];
    let told = MergeResult { influence: [influence.clone(), vec![broken]].concat(), ..result() };
    let state = ended(MergeOutcome::Merged(told));
    assert_eq!(kinds(&state), []);
    let Some(MergeOutcome::Merged(kept)) = &round(&state).merge else { panic!("not merged") };
    assert_eq!(kept.influence, influence, "what is no number cannot be kept in JSON");
    let saved = serde_json::to_vec(&state).unwrap();
    assert_eq!(serde_json::from_slice::<State>(&saved).unwrap(), state);
}

#[test]
fn who_was_left_out_and_who_lied_is_named_each_by_its_kind() {
    let told = MergeResult {
        dropped: vec![left_out(OTHER, "silent", "")],
        blamed: vec![left_out(7, "two_offers", "of 3 and of 4 chunks")],
        detail: "submissions skipped: one".to_owned(),
        ..result()
    };
    let state = ended(MergeOutcome::Merged(told));
    assert_eq!(kinds(&state), [DegradationKind::MergePartial, DegradationKind::PeerBlamed]);
    let [partial, blamed] = round(&state).degradations.as_slice() else { panic!("two") };
    let (other, liar) = (key(OTHER), key(7));
    let wanted = format!(
        "left out: {other} (silent); to blame: {liar} (two_offers); submissions skipped: one"
    );
    assert_eq!(partial.detail, wanted);
    assert_eq!(blamed.detail, format!("{liar} (two_offers): of 3 and of 4 chunks"));
}

#[test]
fn a_liar_that_hurt_nobody_is_told_all_the_same() {
    let blamed = vec![left_out(OTHER, "wrong_reduction", "")];
    let state = ended(MergeOutcome::Merged(MergeResult { blamed, ..result() }));
    assert_eq!(kinds(&state), [DegradationKind::MergePartial, DegradationKind::PeerBlamed]);
}

#[test]
fn a_merge_that_failed_says_why_and_whose_doing_it_was_and_the_model_stays() {
    let failure = MergeFailure {
        why: "slice 1 was not reduced".to_owned(),
        reason: "slice_missing".to_owned(),
        dropped: vec![],
        blamed: vec![left_out(OTHER, "two_slices", "")],
    };
    let state = ended(MergeOutcome::Failed(failure.clone()));
    assert_eq!(kinds(&state), [DegradationKind::MergeFailed, DegradationKind::PeerBlamed]);
    let told = &round(&state).degradations[0].detail;
    assert_eq!(*told, format!("slice 1 was not reduced; to blame: {} (two_slices)", key(OTHER)));
    assert_eq!(round(&state).merge, Some(MergeOutcome::Failed(failure)));
    assert!(!round(&state).jobs.contains_key("held_out"));
}

#[test]
fn a_merge_that_never_ends_fails_for_a_reason_with_a_name() {
    let mut state = evaluated();
    blocks(&mut state, first(Phase::ValidatorCommit2));
    let Some(MergeOutcome::Failed(failure)) = &round(&state).merge else { panic!("not failed") };
    assert_eq!(failure.reason, "timeout");
}

#[test]
fn a_story_from_outside_is_cut() {
    let long = "x".repeat(100_000);
    let told = MergeResult {
        dropped: vec![left_out(OTHER, "silent", &long)],
        detail: long.clone(),
        ..result()
    };
    let state = ended(MergeOutcome::Merged(told));
    let merge = round(&state).merge.as_ref().unwrap();
    assert!(merge.detail().len() < 600 && merge.dropped()[0].detail.len() < 600);
    assert!(round(&state).degradations[0].detail.len() < 1000);
}

#[test]
fn outcomes_and_plans_that_were_saved_before_there_was_more_to_say_still_load() {
    let model = r#"{"global_version":24,"model_hash":"HASH","prefix":"models/24"}"#
        .replace("HASH", &ModelHash([9; 24]).to_hex());
    let merged = format!(
        r#"{{"outcome":"merged","members":["{}"],"digest":"d","model":{model},"detail":""}}"#,
        key(ME)
    );
    let merged: MergeOutcome = serde_json::from_str(&merged).unwrap();
    let members = vec![key(ME)];
    assert_eq!(merged, MergeOutcome::Merged(MergeResult { members, ..result() }));

    let failed = r#"{"outcome":"failed","why":"nobody answered"}"#;
    let failed: MergeOutcome = serde_json::from_str(failed).unwrap();
    let why = "nobody answered".to_owned();
    assert_eq!(failed, MergeOutcome::Failed(MergeFailure { why, ..MergeFailure::default() }));

    let plan = format!(
        r#"{{"merge":{{"round":16,"base":{model},"new_version":24,"contributions":[],
        "validators":[["{}","127.0.0.1:8001"]],"until":31}}}}"#,
        key(OTHER)
    );
    let Effect::Merge(plan) = serde_json::from_str(&plan).unwrap() else { panic!("no merge") };
    assert_eq!((plan.first().0, plan.stake(&key(OTHER)), plan.block_hash), (24, 0, None));
}
