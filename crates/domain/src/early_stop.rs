//! When a submission may be stopped before its last batch: policy, off by default.

use serde::{Deserialize, Serialize};

/// The submission on the last rank that pays, as far as the round has come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rival {
    /// Its losses on all batches of the round, in batch order, in nats.
    pub losses: Vec<f64>,
    /// Chance that stopping is right: 0.5 to 1, both excluded.
    pub confidence: f64,
    /// Batches that are measured in any case, at least 2.
    pub minimum_batches: usize,
}

/// How far beyond all that was seen an unseen batch may lie, in largest departures from the mean.
const SURPRISE: f64 = 3.0;

impl Rival {
    /// Whether a submission with these losses on the first batches will not reach the rival's mean
    /// loss over all batches, at the stated confidence. It errs towards measuring on.
    ///
    /// The two are compared batch by batch: `worse` is the submission's loss minus the rival's. The
    /// batches of a round are drawn at random, so those seen are a sample without replacement of
    /// all, and the mean over all departs from theirs with the variance `s²/n * (1 - n/N)`
    /// (Cochran, 1977, chapter 2). Three things make this safe to look at after every batch:
    ///
    /// - Each of the looks gets an equal part of the error that is allowed (Bonferroni), and
    ///   `exp(-z²/2)` bounds the normal's tail.
    /// - `s` is an estimate: `z` is turned into Student's `t` by Wallace's approximation (1959).
    /// - The sample may not have shown the worst. A batch is added to it on which the submission is
    ///   better by three times the largest departure from the mean that was seen: without it, an
    ///   exponential's tail makes more than three wrong stops in a hundred at a confidence of 99 %,
    ///   and a log-normal's ten.
    ///
    /// Nothing protects against differences of which a few are enormous and were not seen: the
    /// largest one that is possible is not known. `tests` states the error rates, that one's too.
    ///
    /// The rival may change while a submission runs: each look is at one of them. A better one takes
    /// its place, and who will not reach the former one will not reach the better one either; when it
    /// turns out to be somebody's duplicate, the round takes its stops back.
    pub fn is_out_of_reach(&self, losses: &[f64]) -> bool {
        let (seen, all) = (losses.len(), self.losses.len());
        let minimum = self.minimum_batches.max(2);
        let sane = self.confidence > 0.0 && self.confidence < 1.0;
        if seen < minimum || seen >= all || !sane {
            return false;
        }
        let worse: Vec<f64> = losses.iter().zip(&self.losses).map(|(a, b)| a - b).collect();
        let n = seen as f64;
        let mean = worse.iter().sum::<f64>() / n;
        let departure = worse.iter().map(|x| (x - mean).abs()).fold(0.0, f64::max);
        let squares: f64 = worse.iter().map(|x| (x - mean) * (x - mean)).sum();

        // With the batch that was not seen: `surprise` below the mean.
        let surprise = SURPRISE * departure;
        let with = n + 1.0;
        let mean = mean - surprise / with;
        let variance = (squares + surprise * surprise * n / with) / n;

        let error = (variance * (1.0 - n / all as f64) / n).sqrt();
        let looks = (all - minimum) as f64;
        let z = (2.0 * (looks / (1.0 - self.confidence)).ln()).sqrt();
        mean > students(z, n) * error
    }
}

/// Student's quantile with `freedom` degrees at the level of the normal's `z` (Wallace, 1959).
fn students(z: f64, freedom: f64) -> f64 {
    let narrowed = z * (8.0 * freedom + 3.0) / (8.0 * freedom + 1.0);
    (freedom * (narrowed * narrowed / freedom).exp_m1()).sqrt()
}

#[cfg(test)]
mod tests;
