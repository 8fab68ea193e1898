//! Proof of loss: from per-batch losses to the round's scores (protocol, section 6).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Reason;

/// Exponent that turns an improvement into a raw score.
const EXPONENT: f64 = 1.2;

/// Scores of the three best positive deltas of a round; everyone else gets 0.
pub const RANK_SCORES: [f64; 3] = [2.25, 1.5, 1.0];

/// `max(0, baseline - loss)`, in nats.
pub fn delta(baseline: f64, loss: f64) -> f64 {
    (baseline - loss).max(0.0)
}

/// `delta ^ 1.2`.
pub fn raw_score(delta: f64) -> f64 {
    delta.powf(EXPONENT)
}

/// Why losses cannot be compared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScoreError {
    /// The two models saw different numbers of batches, or none.
    #[error("{losses} losses against {baseline} of the baseline")]
    Lengths {
        /// Batches of the baseline.
        baseline: usize,
        /// Batches of the submission.
        losses: usize,
    },
    /// The submission's loss of a batch is not finite: the miner's fault.
    #[error("the loss of batch {batch} is not finite")]
    NonFinite {
        /// Index of the batch.
        batch: usize,
    },
    /// The baseline's loss of a batch is not finite: not the miner's fault.
    #[error("the baseline's loss of batch {batch} is not finite")]
    NonFiniteBaseline {
        /// Index of the batch.
        batch: usize,
    },
}

/// A submission against the base model on the same batches. Losses are in nats.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Mean loss of the base model.
    pub baseline: f64,
    /// Mean loss of the submission.
    pub loss: f64,
    /// `max(0, baseline - loss)`.
    pub delta: f64,
    /// `delta ^ 1.2`.
    pub raw: f64,
    /// Improvement batch by batch, positive is better.
    pub per_batch: Vec<f64>,
}

/// Arithmetic mean; `None` of nothing.
pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Compares the per-batch losses of a submission with those of the base model, in batch order.
///
/// # Errors
/// When the numbers of batches differ or are 0, or any loss is not finite: a batch is never
/// skipped.
pub fn compare(baseline: &[f64], losses: &[f64]) -> Result<Comparison, ScoreError> {
    let lengths = ScoreError::Lengths { baseline: baseline.len(), losses: losses.len() };
    if baseline.len() != losses.len() {
        return Err(lengths);
    }
    if let Some(batch) = baseline.iter().position(|loss| !loss.is_finite()) {
        return Err(ScoreError::NonFiniteBaseline { batch });
    }
    if let Some(batch) = losses.iter().position(|loss| !loss.is_finite()) {
        return Err(ScoreError::NonFinite { batch });
    }
    let (Some(mean_baseline), Some(mean_loss)) = (mean(baseline), mean(losses)) else {
        return Err(lengths);
    };
    let delta = delta(mean_baseline, mean_loss);
    Ok(Comparison {
        baseline: mean_baseline,
        loss: mean_loss,
        delta,
        raw: raw_score(delta),
        per_batch: baseline.iter().zip(losses).map(|(base, loss)| base - loss).collect(),
    })
}

/// What a round found out about one miner.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Judgement {
    /// Evaluated, with this raw score: finite and not negative.
    Raw(f64),
    /// Not evaluated, or evaluated in vain.
    Failed(Reason),
}

/// The scores of a round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoundScores<K: Ord> {
    /// What goes into the history; nobody is in here whose evaluation failed by the validator's
    /// fault.
    pub scores: BTreeMap<K, f64>,
    /// The miners with a rank, best first: at most as many as [`RANK_SCORES`].
    pub ranked: Vec<K>,
    /// Sets of miners with bit-equal raw scores, each of two or more.
    pub duplicates: Vec<Vec<K>>,
}

impl<K: Ord> RoundScores<K> {
    /// Whether the miner's raw score was bit-equal to another's.
    pub fn is_duplicate(&self, miner: &K) -> bool {
        self.duplicates.iter().flatten().any(|duplicate| duplicate == miner)
    }
}

/// Ranks the miners of a round.
///
/// Duplicates leave the ranking before ranks are given, so that copying never pushes an honest
/// miner down. A raw score of 0 is no duplicate: it says nothing about the weights.
pub fn rank_round<K: Ord + Clone>(judgements: &BTreeMap<K, Judgement>) -> RoundScores<K> {
    let mut scores = BTreeMap::new();
    let mut by_raw: BTreeMap<u64, Vec<K>> = BTreeMap::new();
    for (miner, judgement) in judgements {
        match judgement {
            Judgement::Raw(raw) => {
                scores.insert(miner.clone(), 0.0);
                if raw.is_finite() && *raw > 0.0 {
                    // The bits of positive floats order as the floats do.
                    by_raw.entry(raw.to_bits()).or_default().push(miner.clone());
                }
            }
            Judgement::Failed(reason) if reason.is_miners_fault() => {
                scores.insert(miner.clone(), 0.0);
            }
            Judgement::Failed(_) => {}
        }
    }

    let mut ranked = Vec::new();
    let mut duplicates = Vec::new();
    for (_, miners) in by_raw.into_iter().rev() {
        match <[K; 1]>::try_from(miners) {
            Ok([miner]) => {
                if let Some(score) = RANK_SCORES.get(ranked.len()) {
                    scores.insert(miner.clone(), *score);
                    ranked.push(miner);
                }
            }
            Err(equal) => duplicates.push(equal),
        }
    }
    RoundScores { scores, ranked, duplicates }
}

#[cfg(test)]
mod tests;
