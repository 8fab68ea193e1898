use proptest::prelude::*;

use super::*;

fn judgements(raws: &[f64]) -> BTreeMap<usize, Judgement> {
    raws.iter().copied().map(Judgement::Raw).enumerate().collect()
}

#[test]
fn the_three_best_positive_deltas_get_ranks_and_the_rest_nothing() {
    let round = rank_round(&judgements(&[0.5, 2.0, 0.0, 1.0, 0.25]));
    assert_eq!(round.ranked, [1, 3, 0]);
    assert_eq!(round.scores.into_values().collect::<Vec<_>>(), [1.0, 2.25, 0.0, 1.5, 0.0]);
    assert!(round.duplicates.is_empty());
}

#[test]
fn bit_equal_scores_are_worth_nothing_and_push_nobody_down() {
    let round = rank_round(&judgements(&[2.0, 1.0, 2.0, 0.5, 2.0]));
    assert_eq!(round.duplicates, [vec![0, 2, 4]]);
    assert!(round.is_duplicate(&2) && !round.is_duplicate(&1));
    assert_eq!(round.ranked, [1, 3]);
    assert_eq!(round.scores.into_values().collect::<Vec<_>>(), [0.0, 2.25, 0.0, 1.5, 0.0]);
}

#[test]
fn several_miners_that_learnt_nothing_are_not_duplicates() {
    let round = rank_round(&judgements(&[0.0, 0.0]));
    assert!(round.duplicates.is_empty() && round.ranked.is_empty());
}

#[test]
fn the_miners_fault_writes_zero_and_the_validators_fault_writes_nothing() {
    let round = rank_round(&BTreeMap::from([
        ("late", Judgement::Failed(Reason::NotSubmitted)),
        ("unlucky", Judgement::Failed(Reason::Timeout)),
    ]));
    assert_eq!(round.scores, BTreeMap::from([("late", 0.0)]));
}

#[test]
fn one_loss_that_is_not_finite_spoils_the_comparison() {
    assert_eq!(compare(&[1.0, 1.0], &[1.0, f64::NAN]), Err(ScoreError::NonFinite { batch: 1 }));
    assert_eq!(
        compare(&[f64::INFINITY, 1.0], &[1.0, 1.0]),
        Err(ScoreError::NonFiniteBaseline { batch: 0 })
    );
}

#[test]
fn losses_over_other_batches_are_not_compared() {
    let err = compare(&[1.0, 2.0], &[1.0]).unwrap_err();
    assert_eq!(err.to_string(), "1 losses against 2 of the baseline");
    assert_eq!(compare(&[], &[]), Err(ScoreError::Lengths { baseline: 0, losses: 0 }));
}

#[test]
fn a_miner_that_got_worse_scores_zero_and_not_less() {
    let worse = compare(&[1.0, 2.0], &[1.5, 2.5]).unwrap();
    assert_eq!((worse.delta, worse.raw), (0.0, 0.0));
    assert_eq!(worse.per_batch, [-0.5, -0.5]);
}

proptest! {
    #[test]
    fn scores_are_the_rank_scores_and_each_rank_is_given_at_most_once(
        raws in prop::collection::vec(prop_oneof![Just(0.0), Just(1.0), 0.0..4.0], 0..12),
    ) {
        let round = rank_round(&judgements(&raws));
        prop_assert_eq!(round.scores.len(), raws.len());
        for rank in RANK_SCORES {
            prop_assert!(round.scores.values().filter(|score| **score == rank).count() <= 1);
        }
        for (miner, score) in &round.scores {
            prop_assert_eq!(*score > 0.0, round.ranked.contains(miner));
            prop_assert!(!(*score > 0.0 && round.is_duplicate(miner)));
        }
        for pair in round.ranked.windows(2) {
            prop_assert!(raws[pair[0]] > raws[pair[1]]);
        }
    }

    #[test]
    fn a_lower_loss_never_scores_less(baseline in 0.0..10.0, loss in 0.0..10.0, less in 0.0..1.0) {
        let worse = raw_score(delta(baseline, loss));
        let better = raw_score(delta(baseline, loss - less));
        prop_assert!(better >= worse && worse >= 0.0 && better.is_finite());
    }
}
