use proptest::prelude::*;

use super::*;
use crate::{BlockHash, Hotkey, Neuron};

fn hotkey(uid: u16) -> Hotkey {
    Hotkey::from_public_key([uid as u8; 32])
}

/// A history with these scores per UID, in the last of the rounds 1, 2, 3, …, 10.
fn history(scores: &[(u16, &[f64])]) -> History {
    let mut history = History::default();
    for (uid, scores) in scores {
        for (round, score) in (11 - scores.len() as u64..).zip(*scores) {
            history.record(Uid(*uid), &hotkey(*uid), RoundId(round), *score);
        }
    }
    history
}

const LAST: [RoundId; 2] = [RoundId(9), RoundId(10)];

fn uids(uids: &[u16]) -> Vec<Uid> {
    uids.iter().copied().map(Uid).collect()
}

fn cohorts(a: &[u16], b: &[u16], c: &[u16]) -> Cohorts {
    Cohorts { group_a: uids(a), group_b: uids(b), group_c: uids(c), foreground: Vec::new() }
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-12
}

#[test]
fn group_1_is_of_a_and_b_and_group_2_the_next_best_of_all() {
    let history = history(&[
        (1, &[1.0, 1.0, 1.0]),
        (2, &[2.0, 2.0, 2.0]),
        (3, &[2.25, 2.25]),
        (4, &[1.5, 1.5, 1.5]),
        (5, &[2.25]),
        (6, &[0.0, 0.0, 0.0]),
    ]);
    let policy = TwoGroups { group_1_size: 2, ..TwoGroups::default() };
    let groups = policy.choose(&cohorts(&[1, 2, 3], &[6], &[4, 5]), &history, LAST);
    // 3 has too few records for group 1, 5 for group 2; 6 earned nothing.
    assert_eq!(groups, WeightGroups { group_1: uids(&[2, 1]), group_2: uids(&[3, 4]) });
    let weights = policy.weights(&groups, &averages(&history));
    assert!(close(weights[&Uid(2)], 0.98 * 2.0 / 3.0));
    assert!(close(weights[&Uid(3)], 0.02 * 2.25 / 3.75));
}

#[test]
fn group_1_must_have_records_in_both_of_the_last_two_rounds() {
    let mut history = history(&[(1, &[1.0; 8])]);
    let policy = TwoGroups::default();
    let last = [RoundId(10), RoundId(11)];
    assert!(policy.choose(&cohorts(&[1], &[], &[]), &history, last).group_1.is_empty());
    history.record(Uid(1), &hotkey(1), RoundId(11), 0.0);
    assert_eq!(policy.choose(&cohorts(&[1], &[], &[]), &history, last).group_1, uids(&[1]));
}

#[test]
fn the_share_of_an_empty_group_1_is_burnt() {
    let history = history(&[(7, &[1.0, 1.0])]);
    let policy = TwoGroups::default();
    let groups = policy.choose(&cohorts(&[], &[], &[7]), &history, LAST);
    let weights = policy.weights(&groups, &averages(&history));
    assert_eq!(weights, Weights::from([(Uid(0), 0.98), (Uid(7), 0.02)]));
}

#[test]
fn what_an_empty_group_2_leaves_goes_to_group_1() {
    let history = history(&[(7, &[1.0, 1.0, 1.0])]);
    let policy = TwoGroups::default();
    let groups = policy.choose(&cohorts(&[7], &[], &[]), &history, LAST);
    assert_eq!(policy.weights(&groups, &averages(&history)), Weights::from([(Uid(7), 1.0)]));
}

#[test]
fn when_nobody_earned_anything_all_is_burnt() {
    let history = history(&[(7, &[0.0, 0.0, 0.0])]);
    let burnt = Weights::from([(Uid(0), 1.0)]);
    let policy = TwoGroups::default();
    let groups = policy.choose(&cohorts(&[7], &[], &[]), &history, LAST);
    assert_eq!(policy.weights(&groups, &averages(&history)), burnt);
    let top = TopK { k: 3 };
    assert_eq!(top.weights(&top.choose(&history), &averages(&history)), burnt);
}

#[test]
fn the_best_k_share_in_proportion_and_equals_rank_by_uid() {
    let history = history(&[(4, &[1.0]), (2, &[1.0]), (3, &[2.0]), (9, &[1.0])]);
    let top = TopK { k: 3 };
    let chosen = top.choose(&history);
    assert_eq!(chosen, uids(&[3, 2, 4]));
    let weights = top.weights(&chosen, &averages(&history));
    assert_eq!(weights, Weights::from([(Uid(2), 0.25), (Uid(3), 0.5), (Uid(4), 0.25)]));
}

#[test]
fn a_validator_is_stale_one_block_after_a_cycle() {
    assert!(!is_stale(BlockNumber(100), BlockNumber(572), 472));
    assert!(is_stale(BlockNumber(100), BlockNumber(573), 472));
    assert!(!is_stale(BlockNumber(100), BlockNumber(50), 472));
}

fn metagraph(stakes: &[(u16, u64)]) -> Metagraph {
    let neuron = |(uid, stake): &(u16, u64)| Neuron {
        uid: Uid(*uid),
        hotkey: hotkey(*uid),
        coldkey: None,
        axon: String::new(),
        stake: *stake,
        incentive: 0,
        validator_permit: true,
        last_update: BlockNumber(0),
        registered_at: BlockNumber(0),
    };
    Metagraph {
        block: BlockNumber(1),
        block_hash: BlockHash([0; 32]),
        neurons: stakes.iter().map(neuron).collect(),
        weights_rate_limit: 0,
        min_allowed_weights: 0,
        weights_version: 0,
        commit_reveal: false,
    }
}

fn row(uid: u16, weights: &[(u16, u16)]) -> WeightRow {
    WeightRow {
        uid: Uid(uid),
        weights: weights.iter().map(|(uid, value)| (Uid(*uid), *value)).collect(),
    }
}

#[test]
fn the_stale_guard_repeats_previous_weights_that_tell_miners_apart() {
    let previous = Weights::from([(Uid(0), 0.5), (Uid(5), 0.375), (Uid(6), 0.125)]);
    let found = fallback(Uid(0), Some(&previous), &[], &metagraph(&[]), &[Uid(0)].into());
    let expected = Weights::from([(Uid(5), 0.75), (Uid(6), 0.25)]);
    assert_eq!(found, Some(Fallback::Previous(expected)));
}

#[test]
fn without_them_it_splits_evenly_over_the_five_with_the_most_votes() {
    let uniform = Weights::from([(Uid(20), 0.5), (Uid(21), 0.5)]);
    let rows = [
        row(0, &[(30, 65535)]),
        row(1, &[(10, 65535), (11, 30000), (12, 20000), (13, 10000), (14, 5000), (2, 65535)]),
        row(2, &[(15, 65535), (10, 100)]),
        row(3, &[(31, 65535)]),
    ];
    let metagraph = metagraph(&[(0, 100), (1, 100), (2, 1), (3, 1000)]);
    let validators = [Uid(0), Uid(1), Uid(2)].into();
    let found = fallback(Uid(0), Some(&uniform), &rows, &metagraph, &validators).unwrap();
    // 15 has less stake behind it than 14; 31 is the choice of somebody who is no validator.
    let expected: Weights = uids(&[10, 11, 12, 13, 14]).into_iter().map(|u| (u, 0.2)).collect();
    assert_eq!(found, Fallback::Votes(expected));
}

#[test]
fn without_any_votes_the_stale_guard_sends_nothing() {
    let rows = [row(1, &[(10, 0)]), row(0, &[(11, 65535)])];
    let validators = [Uid(0), Uid(1)].into();
    assert_eq!(fallback(Uid(0), None, &rows, &metagraph(&[(1, 5)]), &validators), None);
}

#[test]
fn u16_weights_are_scaled_to_the_largest_and_rounded_half_to_even() {
    let weights = Weights::from([
        (Uid(1), 0.5),
        (Uid(2), 0.25),
        (Uid(3), 0.0),
        (Uid(4), 1e-9),
        (Uid(5), f64::NAN),
        (Uid(6), -1.0),
    ]);
    // 32767.5 lies halfway and goes to the even 32768; 1e-9 rounds to 0 and is dropped.
    assert_eq!(to_u16(&weights), [(Uid(1), 65535), (Uid(2), 32768)]);
    assert_eq!(to_u16(&Weights::new()), []);
}

#[test]
fn u16_weights_pass_through_single_precision() {
    // Times 65535 it is 20000.5001, but as f32 it is 20000.4995.
    let weights = Weights::from([(Uid(1), 1.0), (Uid(2), 0.305_188_068_970_779)]);
    assert_eq!(to_u16(&weights), [(Uid(1), 65535), (Uid(2), 20000)]);
}

fn scores() -> impl Strategy<Value = Vec<(u16, Vec<f64>)>> {
    let score = prop::sample::select(vec![0.0, 1.0, 1.5, 2.25]);
    prop::collection::btree_map(0u16..20, prop::collection::vec(score, 1..9), 0..20)
        .prop_map(|scores| scores.into_iter().collect())
}

fn is_distribution(weights: &Weights) -> bool {
    let sum: f64 = weights.values().sum();
    weights.values().all(|weight| weight.is_finite() && *weight >= 0.0) && (sum - 1.0).abs() < 1e-9
}

proptest! {
    #[test]
    fn weights_are_finite_and_not_negative_and_sum_to_one_and_never_pay_the_idle(
        scores in scores(),
        split in 0u16..20,
        k in 0usize..6,
    ) {
        let scores: Vec<(u16, &[f64])> = scores.iter().map(|(u, s)| (*u, &s[..])).collect();
        let history = history(&scores);
        let averages = averages(&history);
        let (ab, c): (Vec<u16>, Vec<u16>) = (0..20).partition(|uid| *uid < split);
        let two = TwoGroups::default();
        let groups = two.choose(&cohorts(&ab, &[], &c), &history, LAST);
        let top = TopK { k };
        for weights in [two.weights(&groups, &averages), top.weights(&top.choose(&history), &averages)] {
            prop_assert!(is_distribution(&weights), "{weights:?}");
            for uid in weights.keys().filter(|uid| **uid != BURN_UID) {
                prop_assert!(averages[uid] > 0.0);
            }
        }
    }

    #[test]
    fn u16_conversion_keeps_the_order_and_the_largest_is_65535(
        values in prop::collection::vec(0.0f64..1.0, 1..40),
    ) {
        let weights: Weights = (0u16..).map(Uid).zip(values).collect();
        let converted: BTreeMap<Uid, u16> = to_u16(&weights).into_iter().collect();
        for (a, weight_a) in &weights {
            for (b, weight_b) in &weights {
                let value = |uid| converted.get(uid).copied().unwrap_or(0);
                prop_assert!(weight_a > weight_b || value(a) <= value(b));
            }
        }
        let positive = weights.values().any(|weight| *weight as f32 > 0.0);
        prop_assert_eq!(converted.values().max().copied(), positive.then_some(u16::MAX));
    }
}
