//! Intervals that hold what they promise, by simulation, and the same bits for everyone.

use proptest::prelude::*;

use super::*;

/// Chance for simulations: uniform, normal, Student's and skewed numbers from a fixed seed.
pub(crate) struct Chance(SplitMix64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(SplitMix64(seed))
    }

    /// Uniform in (0, 1).
    pub(crate) fn uniform(&mut self) -> f64 {
        ((self.0.next() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// Standard normal (Box and Muller).
    pub(crate) fn normal(&mut self) -> f64 {
        let (u, v) = (self.uniform(), self.uniform());
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }

    /// Exponential with mean 1.
    pub(crate) fn exponential(&mut self) -> f64 {
        -self.uniform().ln()
    }

    /// Student's with this many degrees of freedom.
    pub(crate) fn student(&mut self, freedom: usize) -> f64 {
        let squares: f64 = (0..freedom).map(|_| self.normal().powi(2)).sum();
        self.normal() / (squares / freedom as f64).sqrt()
    }
}

fn key(n: u64) -> Hotkey {
    let mut bytes = [7; 32];
    bytes[..8].copy_from_slice(&n.to_le_bytes());
    Hotkey::from_public_key(bytes)
}

const SEED: Seed = Seed([5; 32]);

fn of(gains: &[f64], n: u64) -> Improvement {
    let zeros = vec![0.0; gains.len()];
    Improvement::of(gains, &zeros, MeasuredOn::Round, &SEED, &key(n)).unwrap()
}

/// How often the interval of `n` gains holds their true mean.
fn coverage(n: usize, mean: f64, mut gain: impl FnMut(&mut Chance) -> f64) -> f64 {
    const TRIALS: u64 = 600;
    let mut chance = Chance::new(n as u64);
    let held = (0..TRIALS).filter(|trial| {
        let gains: Vec<f64> = (0..n).map(|_| gain(&mut chance)).collect();
        let found = of(&gains, *trial);
        (found.low..=found.high).contains(&mean)
    });
    let share = held.count() as f64 / TRIALS as f64;
    eprintln!("{n} gains about {mean}: held {share:.4}");
    share
}

#[test]
fn the_interval_holds_the_true_mean_about_as_often_as_it_says() {
    // 600 trials: one standard error is 0.9 %.
    let normal = coverage(50, 0.3, |chance| 0.3 + chance.normal());
    assert!((0.92..=0.97).contains(&normal), "normal: {normal}");
    let heavy = coverage(50, 0.0, |chance| chance.student(3));
    assert!((0.92..=0.98).contains(&heavy), "Student's t with 3 degrees: {heavy}");
    let skewed = coverage(50, 1.0, Chance::exponential);
    assert!((0.905..=0.96).contains(&skewed), "exponential: {skewed}");
    let few = coverage(10, 0.0, Chance::normal);
    assert!((0.89..=0.95).contains(&few), "ten batches: {few}");
}

#[test]
fn the_figures_are_those_of_the_textbook_and_the_draws_are_pinned() {
    let found = of(&[1.0, 2.0, 3.0, 4.0], 1);
    assert_eq!((found.mean, found.batches), (2.5, 4));
    assert!((found.standard_error - (5.0f64 / 3.0 / 4.0).sqrt()).abs() < 1e-15);
    // By the published reference generator: outputs for the state 1234567.
    let mut draws = SplitMix64(1_234_567);
    assert_eq!(draws.next(), 6_457_827_717_110_365_317);
    assert_eq!(draws.next(), 3_203_168_211_198_807_973);
    let gains: Vec<f64> = (1..=10).map(|n| 1.0 / f64::from(n)).collect();
    let found = of(&gains, 1);
    // Computed by a second implementation, in Python, from the description above.
    assert_eq!((found.low, found.high), (0.151_054_450_454_616_77, 0.491_292_102_409_770_17));
}

#[test]
fn another_miner_and_the_own_data_have_draws_of_their_own() {
    let gains: Vec<f64> = (0..50).map(|n| f64::from(n * n).sin()).collect();
    let zeros = vec![0.0; 50];
    let own = Improvement::of(&gains, &zeros, MeasuredOn::Own, &SEED, &key(1)).unwrap();
    let all = [of(&gains, 1), of(&gains, 2), own];
    assert!(all.iter().all(|found| found.mean == all[0].mean));
    assert!(all[0].low != all[1].low && all[0].low != all[2].low);
}

#[test]
fn one_batch_says_nothing_of_its_error() {
    let one = Improvement::of(&[2.0], &[1.0], MeasuredOn::Round, &SEED, &key(1));
    assert_eq!(one, None);
}

#[test]
fn the_quantile_of_students_distribution_is_the_tables() {
    for (freedom, table) in [(3.0, 4.541), (5.0, 3.365), (10.0, 2.764), (30.0, 2.457)] {
        let found = t_99(freedom);
        assert!((found / table - 1.0).abs() < 0.02, "{freedom}: {found} instead of {table}");
    }
}

#[test]
fn a_model_that_knows_its_own_data_only_is_overfitted_and_an_honest_one_is_not() {
    let mut chance = Chance::new(3);
    let mut about = |mean: f64, n: usize| {
        let gains: Vec<f64> = (0..n).map(|_| mean + 0.05 * chance.normal()).collect();
        of(&gains, 9)
    };
    let word = |random, own| OwnData::of(&random, &own, 0.25);
    assert_eq!(word(about(0.02, 50), about(0.5, 10)), Some(OwnData::Overfitted));
    assert_eq!(word(about(-0.2, 50), about(0.5, 10)), Some(OwnData::Overfitted));
    // Better on its own data, significantly so, as every trained model is.
    assert_eq!(word(about(0.3, 50), about(0.5, 10)), Some(OwnData::Ordinary));
    assert_eq!(word(about(0.3, 50), about(0.3, 10)), Some(OwnData::Ordinary));
    assert_eq!(word(about(0.3, 50), about(0.0, 10)), Some(OwnData::Lazy));
    assert_eq!(word(about(0.02, 50), about(0.5, 3)), None);
}

#[test]
fn who_gains_the_same_on_both_is_called_overfitted_in_less_than_one_of_a_hundred() {
    let mut chance = Chance::new(4);
    // Noise as large as the gain: the sample means often differ much.
    let mut sample = |n: usize, key: u64| {
        let gains: Vec<f64> = (0..n).map(|_| 0.5 + 0.5 * chance.student(3)).collect();
        of(&gains, key)
    };
    const TRIALS: u64 = 1000;
    let wrong = (0..TRIALS).filter(|trial| {
        let (random, own) = (sample(20, *trial), sample(8, trial + TRIALS));
        OwnData::of(&random, &own, 0.25) == Some(OwnData::Overfitted)
    });
    let wrong = wrong.count() as f64 / TRIALS as f64;
    assert!(wrong <= 0.01, "{wrong}");
}

proptest! {
    #[test]
    fn the_interval_holds_the_mean_and_every_gain_bounds_it(
        gains in prop::collection::vec(-5.0f64..5.0, 2..60)
    ) {
        let found = of(&gains, 3);
        let slack = 1e-9;
        prop_assert!(found.low <= found.mean + slack && found.mean <= found.high + slack);
        prop_assert!(found.standard_error >= 0.0);
        let wider = 1.5 * 10.0;
        prop_assert!(found.high - found.low <= wider);
    }

    #[test]
    fn a_worse_model_has_the_mirrored_mean(
        gains in prop::collection::vec(-5.0f64..5.0, 2..60)
    ) {
        let worse: Vec<f64> = gains.iter().map(|gain| -gain).collect();
        prop_assert!((of(&gains, 3).mean + of(&worse, 3).mean).abs() < 1e-9);
        prop_assert!((of(&gains, 3).low + of(&worse, 3).high).abs() < 0.5 * 10.0);
    }
}
