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

impl Rival {
    /// Whether a submission with these losses on the first batches will not reach the rival's mean
    /// loss over all batches, at the stated confidence.
    ///
    /// The two are compared batch by batch. What the batches still to come will say is what those
    /// so far said, give or take the error of a mean that was sampled without replacement. Looking
    /// after every batch is many chances to be wrong: each look gets an equal part of what is
    /// allowed, and the bound on a normal's tail, `exp(-z²/2)`, says how far that is.
    pub fn is_out_of_reach(&self, losses: &[f64]) -> bool {
        let (seen, all) = (losses.len(), self.losses.len());
        let minimum = self.minimum_batches.max(2);
        if seen < minimum || seen >= all {
            return false;
        }
        let worse: Vec<f64> = losses.iter().zip(&self.losses).map(|(a, b)| a - b).collect();
        let n = seen as f64;
        let mean = worse.iter().sum::<f64>() / n;
        let variance = worse.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0);
        let left = 1.0 - n / all as f64;
        let error = (variance * left / n).sqrt();
        let looks = (all - minimum) as f64;
        let z = (2.0 * (looks / (1.0 - self.confidence)).ln()).sqrt();
        mean > z * error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rival(losses: Vec<f64>) -> Rival {
        Rival { losses, confidence: 0.95, minimum_batches: 5 }
    }

    #[test]
    fn one_that_is_worse_on_every_batch_is_stopped_and_one_that_is_better_never() {
        let wobble = |n: usize| 3.0 + 0.1 * (n as f64 * 1.7).sin();
        let rival = rival((0..50).map(wobble).collect());
        let worse: Vec<f64> = (0..50).map(|n| wobble(n) + 0.2 + 0.01 * (n as f64).cos()).collect();
        assert!(rival.is_out_of_reach(&worse[..6]));
        let better: Vec<f64> = (0..50).map(|n| wobble(n) - 0.001 * (n % 3) as f64).collect();
        assert!((0..=50).all(|n| !rival.is_out_of_reach(&better[..n])));
    }

    #[test]
    fn nothing_is_stopped_before_the_minimum_or_after_the_end() {
        let rival = rival(vec![1.0; 10]);
        let losses: Vec<f64> = (0..12).map(|n| 2.0 + 0.001 * f64::from(n % 2)).collect();
        assert!((0..5).all(|n| !rival.is_out_of_reach(&losses[..n])));
        assert!(rival.is_out_of_reach(&losses[..5]));
        assert!(!rival.is_out_of_reach(&losses[..10]) && !rival.is_out_of_reach(&losses));
    }
}
