//! What did not go the normal way.

use serde::{Deserialize, Serialize};

use super::Round;
use crate::BlockNumber;

/// Something that did not go the normal way. Nothing falls back silently.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Degradation {
    /// Stable kind.
    pub kind: DegradationKind,
    /// What happened, to what.
    pub detail: String,
    /// Block at which it was noticed.
    pub block: BlockNumber,
}

/// Kinds of [`Degradation`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DegradationKind {
    /// The scheduler came too late to publish its seed.
    LateStart,
    /// The scheduler came too late to take part in the round at all.
    RoundMissed,
    /// The inputs could not be read from the chain in time.
    FreezeFailed,
    /// This validator is not registered, or does not count as a validator.
    NotAValidator,
    /// No validator has published a seed.
    NoSeeds,
    /// A submission was not evaluated: the validator's fault, nothing is written for its miner.
    NotEvaluated,
    /// A worker lost its lease and the job was given out again.
    JobRetried,
    /// A job failed on every worker that tried it.
    JobFailed,
    /// The merge did not end in time, or failed: the model stays as it was.
    MergeFailed,
    /// A validator that should have been in the merge was not.
    MergePartial,
    /// Nobody earned a weight in this round.
    NoWeights,
    /// Weights of the stale guard instead of the round's own.
    StaleGuard,
    /// Weights were held back by policy.
    WeightsHeld,
    /// A write to the chain failed for good.
    WriteFailed,
    /// The round ended with something left undone.
    Unfinished,
}

impl DegradationKind {
    /// The stable, snake_case name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LateStart => "late_start",
            Self::RoundMissed => "round_missed",
            Self::FreezeFailed => "freeze_failed",
            Self::NotAValidator => "not_a_validator",
            Self::NoSeeds => "no_seeds",
            Self::NotEvaluated => "not_evaluated",
            Self::JobRetried => "job_retried",
            Self::JobFailed => "job_failed",
            Self::MergeFailed => "merge_failed",
            Self::MergePartial => "merge_partial",
            Self::NoWeights => "no_weights",
            Self::StaleGuard => "stale_guard",
            Self::WeightsHeld => "weights_held",
            Self::WriteFailed => "write_failed",
            Self::Unfinished => "unfinished",
        }
    }
}

impl Round {
    /// Notes that something did not go the normal way; once per kind and detail.
    pub(super) fn degrade(&mut self, kind: DegradationKind, detail: String, block: BlockNumber) {
        let known = self.degradations.iter().any(|d| d.kind == kind && d.detail == detail);
        if !known {
            self.degradations.push(Degradation { kind, detail, block });
        }
    }
}
