//! Who is paid: duplicates, early stops, own data, and what is only shown.

use super::*;
use crate::{Keep, OwnData, Reason, Sketch};

/// Batches of these tests: enough for a stop.
const BATCHES: usize = 20;

fn wide(change: impl FnOnce(&mut Policy)) -> Policy {
    let mut policy = policy();
    policy.terms.batches = BATCHES as u32;
    change(&mut policy);
    policy.validate().unwrap();
    policy
}

fn stopping(policy: &mut Policy) {
    policy.early_stop = Some(EarlyStop { confidence: 0.95, minimum_batches: 5 });
}

/// Losses about `mean`, a little different on every batch and for every `who`.
fn losses(mean: f64, who: u8) -> Vec<f64> {
    (0..BATCHES).map(|n| mean + 0.01 * ((n * 7 + usize::from(who)) as f64).sin()).collect()
}

fn sketch(of: u8, noise: f32) -> Option<Sketch> {
    let sum = |n: usize| ((n * 13 + usize::from(of) * 101) as f32).sin() + noise * (n as f32).cos();
    Sketch::new(std::array::from_fn(sum))
}

fn of(mean: f64, who: u8) -> Measured {
    Measured {
        baseline: losses(5.0, 0),
        losses: losses(mean, who),
        batches_digest: "d".to_owned(),
        sources_digest: "s".to_owned(),
        ..Measured::default()
    }
}

fn must(state: &mut State, event: Event, policy: &Policy) -> Reply {
    apply(state, event, policy).unwrap()
}

/// A round whose miners commit in these blocks, frozen, with its baseline measured and these miners'
/// files stored.
fn with_miners(miners: &[u8], blocks_of: &[u64], policy: &Policy) -> State {
    let mut state = fresh();
    blocks(&mut state, first(Phase::MinerCommit1));
    written(&mut state, WriteKind::Seed);
    blocks(&mut state, first(Phase::Submission));
    let mut all = inputs();
    for n in 14..=20 {
        all.metagraph.neurons.push(neuron(u16::from(n), n, false));
        let [signed, revealed] =
            [&all.commit_1, &all.commit_2].map(|slot| slot.iter().find(|c| c.hotkey == key(10)));
        let mut signed = signed.unwrap().clone();
        let mut revealed = revealed.unwrap().clone();
        (signed.hotkey, revealed.hotkey) = (key(n), key(n));
        let text = String::from_utf8(revealed.data).unwrap();
        revealed.data = text.replace(&"0a".repeat(24), &hex::encode([n; 24])).into_bytes();
        all.commit_1.push(signed);
        all.commit_2.push(revealed);
    }
    for (k, at) in miners.iter().zip(blocks_of) {
        let slot = all.commit_1.iter_mut().find(|c| c.hotkey == key(*k)).unwrap();
        slot.block = BlockNumber(*at);
    }
    must(&mut state, Event::Frozen { round: id(), branch: 0, inputs: Box::new(all) }, policy);
    for k in miners {
        must(&mut state, stored(*k), policy);
    }
    let baseline = grant(&mut state, policy);
    let measured = Measured { losses: vec![], held_out: vec![5.5], ..of(5.0, 0) };
    hand_in(&mut state, &baseline, measured, policy).unwrap();
    state
}

fn grant(state: &mut State, policy: &Policy) -> JobGrant {
    match must(state, Event::Lease { worker: "w".to_owned() }, policy) {
        Reply::Granted(Some(grant)) => *grant,
        other @ (Reply::Applied | Reply::Ignored | Reply::Granted(None) | Reply::Renewed(_)) => {
            panic!("no job: {other:?}")
        }
    }
}

fn hand_in(
    state: &mut State,
    grant: &JobGrant,
    measured: Measured,
    policy: &Policy,
) -> Result<Reply, Rejection> {
    let result = Finished::Measured(measured);
    apply(state, Event::Finish { job: grant.id.clone(), fence: grant.fence, result }, policy)
}

/// Evaluates the miners as `found` says, in whatever order they are given out.
fn evaluate(state: &mut State, found: impl Fn(u8) -> Measured, policy: &Policy) {
    while let Reply::Granted(Some(grant)) =
        must(state, Event::Lease { worker: "w".to_owned() }, policy)
    {
        let JobKind::Score(hotkey) = &grant.kind else { panic!("{:?}", grant.kind) };
        let k = (10..=20).find(|k| key(*k) == *hotkey).unwrap();
        hand_in(state, &grant, found(k), policy).unwrap();
    }
}

fn finalised(state: &mut State, policy: &Policy) {
    for number in state.block.0 + 1..=first(Phase::Merge) {
        must(state, block(number), policy);
    }
}

fn paid(state: &State, k: u8) -> (Option<f64>, Option<Reason>) {
    (miner(state, k).score, miner(state, k).reason)
}

fn contributors(state: &State) -> usize {
    plan(state).contributions.len()
}

#[test]
fn a_verdict_says_how_sure_it_is_and_the_record_says_what_was_measured() {
    let policy = wide(|_| {});
    let mut state = with_miners(&[10], &[], &policy);
    evaluate(&mut state, |k| of(4.5, k), &policy);
    let Some(Verdict::Measured { improvement, .. }) = &miner(&state, 10).verdict else { panic!() };
    let found = improvement.unwrap();
    assert!((found.mean - 0.5).abs() < 0.01 && found.low > 0.49 && found.high < 0.51, "{found:?}");
    assert_eq!(found.batches, BATCHES);
    let round = round(&state);
    assert_eq!(round.baseline.as_ref().unwrap().held_out_batches, 1);
    let record = Record::of(round, &state.hotkey, &state.history, &policy, state.block);
    assert_eq!(record.policy.terms, policy.terms);
    assert_eq!(
        (record.batches_digest.as_deref(), record.sources_digest.as_deref()),
        (Some("d"), Some("s"))
    );
    let old = {
        let mut json = serde_json::to_value(&record).unwrap();
        for name in ["terms", "early_stop", "duplicates", "own_data"] {
            json["policy"].as_object_mut().unwrap().remove(name).unwrap();
        }
        for name in ["batches_digest", "sources_digest"] {
            json.as_object_mut().unwrap().remove(name).unwrap();
        }
        json["baseline"].as_object_mut().unwrap().remove("held_out_batches").unwrap();
        for miner in json["miners"].as_array_mut().unwrap() {
            if let Some(verdict) = miner["verdict"].as_object_mut() {
                for name in ["improvement", "own", "sketch"] {
                    verdict.remove(name).unwrap();
                }
            }
        }
        serde_json::from_value::<Record>(json).unwrap()
    };
    assert_eq!((old.policy.terms.batches, old.batches_digest), (0, None));
}

/// 10 and 11 send nearly the same, 12 and 14 the same to the bit, 15 and 16 are honest.
fn copies(keep: Keep) -> State {
    let policy = wide(|policy| policy.duplicates.keep = keep);
    let mut state = with_miners(&[10, 11, 12, 14, 15, 16], &[9, 8, 8, 9, 9, 9], &policy);
    let found = |k: u8| {
        let (mean, who, like, noise) = match k {
            10 => (4.0, 10, 10, 0.0),
            11 => (4.01, 11, 10, 0.02),
            12 | 14 => (4.1, 12, k, 0.0),
            k => (4.0 + 0.05 * f64::from(k - 10), k, k, 0.0),
        };
        Measured { sketch: sketch(like, noise), ..of(mean, who) }
    };
    evaluate(&mut state, found, &policy);
    finalised(&mut state, &policy);
    state
}

#[test]
fn duplicates_all_get_nothing_are_not_merged_and_the_others_get_the_ranks() {
    let state = copies(Keep::ZeroAll);
    for k in [10, 11] {
        assert_eq!(paid(&state, k), (Some(0.0), Some(Reason::NearDuplicate)));
    }
    for k in [12, 14] {
        assert_eq!(paid(&state, k), (Some(0.0), Some(Reason::Duplicate)));
    }
    assert_eq!([15, 16].map(|k| paid(&state, k)), [(Some(2.25), None), (Some(1.5), None)]);
    assert_eq!(miner(&state, 10).duplicates, [key(11)]);
    assert_eq!(miner(&state, 14).duplicates, [key(12)]);
    assert!(miner(&state, 15).duplicates.is_empty());
    assert_eq!(contributors(&state), 2);
}

#[test]
fn the_earliest_commitment_keeps_its_score_whatever_the_others_scored() {
    let state = copies(Keep::Earliest);
    assert_eq!(paid(&state, 10), (Some(0.0), Some(Reason::NearDuplicate)));
    assert_eq!(paid(&state, 11), (Some(2.25), None));
    assert_eq!(paid(&state, 12), (Some(1.5), None));
    assert_eq!(paid(&state, 14), (Some(0.0), Some(Reason::Duplicate)));
    assert_eq!([15, 16].map(|k| paid(&state, k).0), [Some(1.0), Some(0.0)]);
    assert_eq!(miner(&state, 11).duplicates, [key(10)]);
    assert_eq!(contributors(&state), 3);
}

/// Three that are paid so far, and two more that wait.
fn three_paid(policy: &Policy) -> State {
    let mut state = with_miners(&[10, 11, 12, 14, 15], &[], policy);
    for n in 0..3u8 {
        let grant = grant(&mut state, policy);
        assert_eq!(grant.rival, None, "a rank is free");
        let measured = Measured { sketch: sketch(n, 0.0), ..of(4.0 + 0.1 * f64::from(n), n) };
        hand_in(&mut state, &grant, measured, policy).unwrap();
    }
    state
}

fn cut(mean: f64, who: u8, batches: usize) -> Measured {
    let mut measured = of(mean, who);
    measured.losses.truncate(batches);
    measured.out_of_reach = true;
    measured
}

#[test]
fn who_can_no_longer_reach_the_third_is_stopped_scores_0_and_is_neither_ranked_nor_merged() {
    let policy = wide(stopping);
    let mut state = three_paid(&policy);
    let fourth = grant(&mut state, &policy);
    let rival = fourth.rival.clone().unwrap();
    assert_eq!((&rival.losses, rival.minimum_batches), (&losses(4.2, 2), 5));
    let renew = Event::Renew { job: fourth.id.clone(), fence: fourth.fence };
    assert_eq!(must(&mut state, renew, &policy), Reply::Renewed(Some(Box::new(rival))));
    hand_in(&mut state, &fourth, cut(4.9, 9, 8), &policy).unwrap();
    let JobKind::Score(hotkey) = &fourth.kind else { panic!() };
    let verdict = round(&state).miners[hotkey].verdict.clone().unwrap();
    let Verdict::OutOfReach { baseline, losses, rival, improvement, .. } = verdict else {
        panic!()
    };
    assert_eq!((baseline.len(), losses.len(), improvement.unwrap().batches), (8, 8, 8));
    assert!((rival - 4.2).abs() < 0.01);
    let fifth = grant(&mut state, &policy);
    hand_in(&mut state, &fifth, of(4.05, 20), &policy).unwrap();
    finalised(&mut state, &policy);
    let stopped = &round(&state).miners[hotkey];
    assert_eq!((stopped.score, stopped.reason), (Some(0.0), Some(Reason::OutOfReach)));
    assert_eq!(contributors(&state), 3);
    let history = state.history.get(stopped.uid).unwrap();
    assert_eq!(history.average(), 0.0);
}

#[test]
fn an_early_stop_is_believed_only_where_policy_has_it_and_the_rival_is_out_of_reach() {
    let off = wide(|_| {});
    let mut state = three_paid(&off);
    let fourth = grant(&mut state, &off);
    assert_eq!(fourth.rival, None);
    let refused = hand_in(&mut state, &fourth, cut(4.9, 9, 8), &off).unwrap_err();
    assert!(refused.to_string().contains("policy does not allow"), "{refused}");
    let short = Measured { out_of_reach: false, ..cut(4.9, 9, 8) };
    assert!(matches!(hand_in(&mut state, &fourth, short, &off), Err(Rejection::BadResult { .. })));

    let on = wide(stopping);
    let mut state = three_paid(&on);
    let fourth = grant(&mut state, &on);
    for bad in
        [cut(4.9, 9, 0), cut(4.9, 9, BATCHES), Measured { baseline: vec![5.0], ..cut(4.9, 9, 8) }]
    {
        assert!(matches!(hand_in(&mut state, &fourth, bad, &on), Err(Rejection::BadResult { .. })));
    }
    // Stopped too early, and stopped though it is the best of all: the worker's failure.
    for measured in [cut(4.9, 9, 4), cut(3.9, 9, 8)] {
        let again = match state.round.as_ref().unwrap().jobs[&fourth.id].state {
            JobState::Leased { .. } => fourth.clone(),
            JobState::Queued | JobState::Done | JobState::Failed(_) => grant(&mut state, &on),
        };
        hand_in(&mut state, &again, measured, &on).unwrap();
    }
    assert_eq!(kinds(&state), [DegradationKind::JobRetried, DegradationKind::JobFailed]);
    finalised(&mut state, &on);
    let JobKind::Score(hotkey) = &fourth.kind else { panic!() };
    let miner = &round(&state).miners[hotkey];
    assert_eq!((miner.score, miner.reason), (None, Some(Reason::EvaluatorError)));
}

#[test]
fn who_was_stopped_for_a_rival_that_is_a_copy_is_measured_to_its_end() {
    let policy = wide(stopping);
    let mut state = three_paid(&policy);
    let fourth = grant(&mut state, &policy);
    hand_in(&mut state, &fourth, cut(4.9, 9, 8), &policy).unwrap();
    // The fifth turns out to be a copy of the third: both fall, and a rank is free.
    let fifth = grant(&mut state, &policy);
    let copy = Measured { sketch: sketch(2, 0.0), ..of(4.21, 7) };
    hand_in(&mut state, &fifth, copy, &policy).unwrap();
    assert!(kinds(&state).contains(&DegradationKind::JobRetried));
    let again = grant(&mut state, &policy);
    assert_eq!((&again.id, again.attempt, &again.rival), (&fourth.id, 1, &None));
    let mut unfinished = state.clone();
    hand_in(&mut state, &again, of(4.9, 9), &policy).unwrap();
    finalised(&mut state, &policy);
    let JobKind::Score(hotkey) = &fourth.kind else { panic!() };
    assert_eq!(round(&state).miners[hotkey].score, Some(1.0));
    // Without the time for it, it keeps its average.
    finalised(&mut unfinished, &policy);
    let miner = &round(&unfinished).miners[hotkey];
    assert_eq!((miner.score, miner.reason), (None, Some(Reason::Timeout)));
}

fn own(random: f64, own: f64, n: usize) -> Measured {
    let wobble = |n: usize| 0.01 * (n as f64 * 3.1).sin();
    Measured {
        own_baseline: vec![5.0; n],
        own_losses: (0..n).map(|n| own + wobble(n)).collect(),
        ..of(random, 10)
    }
}

#[test]
fn own_data_is_reported_and_only_policy_makes_overfitting_cost_anything() {
    for (enforce, measured, says, expected) in [
        (false, own(4.98, 4.0, 6), OwnData::Overfitted, (Some(2.25), None)),
        (true, own(4.98, 4.0, 6), OwnData::Overfitted, (Some(0.0), Some(Reason::Overfitted))),
        (true, own(4.3, 4.0, 6), OwnData::Ordinary, (Some(2.25), None)),
        (true, own(4.3, 5.0, 6), OwnData::Lazy, (Some(2.25), None)),
    ] {
        let policy = wide(|policy| {
            policy.own_data = OwnDataPolicy { batches: 6, enforce, ..OwnDataPolicy::default() };
        });
        let mut state = with_miners(&[10], &[], &policy);
        let job = grant(&mut state, &policy);
        assert_eq!(job.own_batches, 6);
        let without = Measured { own_losses: vec![], ..measured.clone() };
        assert!(hand_in(&mut state, &job, without, &policy).is_err());
        hand_in(&mut state, &job, measured, &policy).unwrap();
        let Some(Verdict::Measured { own: Some(own), .. }) = &miner(&state, 10).verdict else {
            panic!()
        };
        assert_eq!((own.says, own.improvement.unwrap().batches), (Some(says), 6));
        finalised(&mut state, &policy);
        assert_eq!(paid(&state, 10), expected, "{says:?}");
    }
}

#[test]
fn policies_that_make_no_sense_are_refused_by_their_key() {
    type Change = fn(&mut Policy);
    let wrong: [(&str, Change); 7] = [
        ("batches", |p| p.terms.batches = 0),
        ("early_stop.confidence", |p| {
            p.early_stop = Some(EarlyStop { confidence: 1.0, minimum_batches: 5 });
        }),
        ("early_stop.minimum_batches", |p| {
            p.early_stop = Some(EarlyStop { confidence: 0.9, minimum_batches: 1 });
        }),
        ("duplicates.similarity", |p| p.duplicates.similarity = f64::NAN),
        ("duplicates.similarity", |p| p.duplicates.similarity = 0.0),
        ("own_data.batches", |p| p.own_data.batches = 3),
        ("own_data.share", |p| p.own_data.share = -0.1),
    ];
    for (key, change) in wrong {
        let mut policy = policy();
        change(&mut policy);
        let error = policy.validate().unwrap_err().to_string();
        assert!(error.contains(&format!("`{key}`")), "{error}");
    }
}
