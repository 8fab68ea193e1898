//! A job as the scheduler gave it, checked.

use std::time::Duration;

use domain::{ExpertGroup, GlobalVersion, Hotkey, ModelHash, RoundId, Seed};

/// What the evaluator was asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Job {
    pub(crate) id: String,
    pub(crate) round: RoundId,
    pub(crate) fence: u64,
    pub(crate) attempt: u32,
    pub(crate) work: Work,
    pub(crate) model: ModelRef,
    pub(crate) group: ExpertGroup,
    pub(crate) batches: Batches,
    pub(crate) traceparent: String,
    pub(crate) lease: Duration,
}

/// The three kinds of jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Work {
    /// The base model on the round's and the held-out batches.
    Baseline,
    /// A submission on the round's batches, paired with the base model.
    Score(Submission),
    /// A model on the held-out batches.
    HeldOut,
}

impl Work {
    /// Stable name, for spans and metrics.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Baseline => "baseline",
            Self::Score(_) => "score",
            Self::HeldOut => "held_out",
        }
    }
}

/// A global model in the artifact store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ModelRef {
    pub(crate) version: GlobalVersion,
    pub(crate) hash: ModelHash,
    pub(crate) prefix: String,
}

/// A miner's file in the artifact store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Submission {
    pub(crate) hotkey: Hotkey,
    pub(crate) key: String,
    pub(crate) hash: ModelHash,
    pub(crate) sha256: [u8; 32],
    pub(crate) bytes: u64,
}

/// The batches of a round: a pure function of these and the corpus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Batches {
    pub(crate) seed: Seed,
    pub(crate) count: usize,
    pub(crate) size: usize,
    pub(crate) length: usize,
}

/// Losses per batch, in nats.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Measured {
    pub(crate) baseline: Vec<f64>,
    pub(crate) submission: Vec<f64>,
    pub(crate) held_out: Vec<f64>,
    pub(crate) digest: String,
}
