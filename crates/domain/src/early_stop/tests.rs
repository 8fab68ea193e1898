//! How often it is wrong, by simulation, and what it saves.

use super::*;
use crate::paired::tests::Chance;

fn rival(losses: Vec<f64>, minimum_batches: usize) -> Rival {
    Rival { losses, confidence: 0.99, minimum_batches }
}

#[test]
fn one_that_is_worse_on_every_batch_is_stopped_and_one_that_is_better_never() {
    let wobble = |n: usize| 3.0 + 0.1 * (n as f64 * 1.7).sin();
    let rival = rival((0..50).map(wobble).collect(), 5);
    let worse: Vec<f64> = (0..50).map(|n| wobble(n) + 0.2 + 0.01 * (n as f64).cos()).collect();
    assert!(rival.is_out_of_reach(&worse[..6]));
    let better: Vec<f64> = (0..50).map(|n| wobble(n) - 0.001 * (n % 3) as f64).collect();
    assert!((0..=50).all(|n| !rival.is_out_of_reach(&better[..n])));
}

#[test]
fn nothing_is_stopped_before_the_minimum_or_after_the_end_or_without_a_confidence() {
    let mut rival = rival(vec![1.0; 10], 5);
    let losses: Vec<f64> = (0..12).map(|n| 2.0 + 0.001 * f64::from(n % 2)).collect();
    assert!((0..5).all(|n| !rival.is_out_of_reach(&losses[..n])));
    assert!(rival.is_out_of_reach(&losses[..5]));
    assert!(!rival.is_out_of_reach(&losses[..10]) && !rival.is_out_of_reach(&losses));
    for confidence in [0.0, 1.0, 1.5, f64::NAN] {
        rival.confidence = confidence;
        assert!(!rival.is_out_of_reach(&losses[..5]), "{confidence}");
    }
}

#[test]
fn students_quantiles_are_the_tables() {
    // 99.5 %, where z is 2.5758.
    for (freedom, table) in [(4.0, 4.604), (10.0, 3.169), (30.0, 2.750)] {
        let found = students(2.5758, freedom);
        assert!((found / table - 1.0).abs() < 0.02, "{freedom}: {found} instead of {table}");
    }
}

/// Share of stops, and of batches saved, among submissions that end `shift` standard deviations
/// worse than the rival over all batches, looked at after every batch.
fn stops(
    (all, minimum): (usize, usize),
    shift: f64,
    mut difference: impl FnMut(&mut Chance) -> f64,
) -> (f64, f64) {
    const TRIALS: usize = 3000;
    let rival = rival(vec![0.0; all], minimum);
    let mut chance = Chance::new(all as u64);
    let (mut stopped, mut saved) = (0, 0);
    for _ in 0..TRIALS {
        let drawn: Vec<f64> = (0..all).map(|_| difference(&mut chance)).collect();
        let mean = drawn.iter().sum::<f64>() / all as f64;
        let spread = drawn.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / all as f64;
        // Exactly as good as the rival at the end, less a hair, where it is not shifted: the hardest
        // case of one that would have been paid.
        let worse: Vec<f64> =
            drawn.iter().map(|x| x - mean - 1e-9 + shift * spread.sqrt()).collect();
        if let Some(at) = (minimum..all).find(|n| rival.is_out_of_reach(&worse[..*n])) {
            stopped += 1;
            saved += all - at;
        }
    }
    (stopped as f64 / TRIALS as f64, saved as f64 / (TRIALS * all) as f64)
}

#[test]
fn who_would_have_been_paid_is_stopped_at_most_as_often_as_the_confidence_allows() {
    for rounds in [(50, 10), (20, 8)] {
        let wrong = [
            ("normal", stops(rounds, 0.0, Chance::normal).0),
            ("Student's, 3 degrees", stops(rounds, 0.0, |chance| chance.student(3)).0),
            ("Student's, 2 degrees", stops(rounds, 0.0, |chance| chance.student(2)).0),
            ("exponential, better", stops(rounds, 0.0, |chance| -chance.exponential()).0),
            ("exponential, worse", stops(rounds, 0.0, Chance::exponential).0),
            ("log-normal, better", stops(rounds, 0.0, |chance| -chance.normal().exp()).0),
            ("log-normal, worse", stops(rounds, 0.0, |chance| chance.normal().exp()).0),
        ];
        for (kind, share) in wrong {
            eprintln!("{rounds:?} {kind}: wrongly stopped {share:.4}");
            // 3000 trials at 0.01: two standard errors are 0.0036.
            assert!(share <= 0.0136, "{rounds:?}: {kind}: {share}");
        }
    }
}

#[test]
fn rare_enormous_differences_that_were_not_seen_are_the_limit_of_it() {
    // On one batch of twenty the submission is better by 25 times the others' spread.
    let jumps = |chance: &mut Chance| {
        0.2 * chance.normal() - if chance.uniform() < 0.05 { 5.0 } else { 0.0 }
    };
    let (wrong, _) = stops((50, 10), 0.0, jumps);
    eprintln!("rare jumps: wrongly stopped {wrong:.4}");
    assert!((0.02..0.25).contains(&wrong), "no limit any more, or a worse one: {wrong}");
}

#[test]
fn one_that_is_clearly_worse_saves_batches() {
    for (shift, least) in [(1.0, 0.3), (2.0, 0.55)] {
        let (stopped, saved) = stops((50, 10), shift, Chance::normal);
        eprintln!("{shift} deviations worse: stopped {stopped:.3}, batches saved {saved:.3}");
        assert!(stopped > 0.95 && saved > least, "{shift}: {stopped}, {saved}");
    }
}
