//! A job as the scheduler gave it, checked, and what comes out of it.

use std::time::Duration;

use domain::{ExpertGroup, GlobalVersion, Hotkey, ModelHash, Rival, RoundId, Seed, Sketch};

/// What the evaluator was asked to do.
#[derive(Debug, Clone, PartialEq)]
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
    /// How long the result is waited for, from when the job was given; `None` for ever.
    pub(crate) deadline: Option<Duration>,
}

/// The three kinds of jobs.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Work {
    /// The base model on the round's and the held-out batches.
    Baseline,
    /// A submission on the round's batches, paired with the base model.
    Score(Box<Score>),
    /// A model on the held-out batches.
    HeldOut,
}

/// What is to be measured of a submission.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Score {
    pub(crate) submission: Submission,
    /// Batches of the miner's own data that are measured as well; 0 for none.
    pub(crate) own_batches: usize,
    /// What it must beat to be paid, when the job was given.
    pub(crate) rival: Option<Rival>,
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

    /// The submission, where there is one.
    pub(crate) fn score(&self) -> Option<&Score> {
        match self {
            Self::Score(score) => Some(score),
            Self::Baseline | Self::HeldOut => None,
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

/// A model and a group of its experts: what is on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BaseId {
    pub(crate) hash: ModelHash,
    pub(crate) group: ExpertGroup,
}

impl Job {
    /// The model that it needs on the device.
    pub(crate) fn base(&self) -> BaseId {
        BaseId { hash: self.model.hash, group: self.group }
    }
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

/// The batches of a round: a pure function of these and the sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Batches {
    pub(crate) seed: Seed,
    pub(crate) count: usize,
    pub(crate) size: usize,
    pub(crate) length: usize,
}

/// Losses per batch, in nats, and what shows how they were come by.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Measured {
    pub(crate) baseline: Vec<f64>,
    /// Of the submission; fewer than of the base where it was stopped.
    pub(crate) submission: Vec<f64>,
    pub(crate) held_out: Vec<f64>,
    pub(crate) own_baseline: Vec<f64>,
    pub(crate) own: Vec<f64>,
    pub(crate) sketch: Option<Sketch>,
    /// Whether it was stopped, as it could no longer beat the job's rival.
    pub(crate) out_of_reach: bool,
    /// Of the batches that `baseline` and `submission`, or else `held_out`, were measured on.
    pub(crate) batches_digest: String,
    pub(crate) sources_digest: String,
}
