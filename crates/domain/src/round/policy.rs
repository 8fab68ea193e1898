//! What an operator may decide.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::DegradationKind;
use crate::{CohortConfig, DuplicatePolicy, Hotkey, Schedule, TopK, TwoGroups, ValidatorSet};

/// How weights are made of averages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightPolicy {
    /// The protocol's two groups, sharing 98 % and 2 %.
    TwoGroups(TwoGroups),
    /// The best `k` averages, normalised.
    TopK(TopK),
}

/// What every model of a round is measured on: the same for the base model and for every miner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Terms {
    /// Batches per model.
    pub batches: u32,
    /// Sequences per batch.
    pub batch_size: u32,
    /// Tokens per sequence.
    pub sequence_length: u32,
}

/// When a submission may be stopped before its last batch: [`crate::Rival`] has the rule.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EarlyStop {
    /// Chance that stopping is right: 0.5 to 1, both excluded.
    pub confidence: f64,
    /// Batches that are measured in any case, at least 2.
    pub minimum_batches: u32,
}

/// The check of submissions on data that their miners could know: [`crate::OwnData`] has the rule.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct OwnDataPolicy {
    /// Batches of that data; 0 for no check.
    pub batches: u32,
    /// Whether an overfitted submission scores 0. It is reported in any case.
    pub enforce: bool,
    /// The largest share of the improvement on its own data that an overfitted submission has on
    /// the round's: 0 to 1.
    pub share: f64,
}

impl Default for OwnDataPolicy {
    /// No check. A share of a quarter: who learns the language learns it everywhere, and keeps most
    /// of an improvement on other texts.
    fn default() -> Self {
        Self { batches: 0, enforce: false, share: 0.25 }
    }
}

/// Everything that decides a round and is not read from the chain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    /// Lengths of the phases.
    pub schedule: Schedule,
    /// Hotkeys that may be validators; the chain's permits decide where it is empty.
    pub validator_allow_list: BTreeSet<Hotkey>,
    /// Miners per validator that the seeded assignment covers.
    pub foreground_top_n: usize,
    /// How cohorts are made of the validators' weights.
    pub cohorts: CohortConfig,
    /// How many cycles old a miner's base model may be.
    pub version_range_cycles: u64,
    /// Blocks for which a job is leased without renewal.
    pub lease_blocks: u64,
    /// How often a job is given out before it is given up.
    pub max_attempts: u32,
    /// What models are measured on; zeros in records from before it was written down.
    #[serde(default)]
    pub terms: Terms,
    /// Whether and when submissions may be stopped early.
    #[serde(default)]
    pub early_stop: Option<EarlyStop>,
    /// What is done about equal and nearly equal submissions.
    #[serde(default)]
    pub duplicates: DuplicatePolicy,
    /// How submissions are checked on data that their miners could know.
    #[serde(default)]
    pub own_data: OwnDataPolicy,
    /// How weights are made.
    pub weights: WeightPolicy,
    /// Whether the stale guard sends weights when the round has none.
    pub stale_guard: bool,
    /// Kinds of degradation at which no weights are sent.
    pub hold_weights_on: BTreeSet<DegradationKind>,
    /// Whether the model may step with nobody else's gradient while other validators exist.
    pub allow_solo_merge: bool,
}

/// Why a policy makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    #[error("`{key}` must be {must}")]
    OutOfRange {
        /// Name of the key.
        key: &'static str,
        /// What is asked of it.
        must: &'static str,
    },
    #[error("`{key}` must be at least 1")]
    Zero {
        /// Name of the key.
        key: &'static str,
    },
}

impl Policy {
    /// Who may be a validator.
    pub fn validator_set(&self) -> ValidatorSet {
        match self.validator_allow_list.is_empty() {
            true => ValidatorSet::Permits,
            false => ValidatorSet::AllowList(self.validator_allow_list.clone()),
        }
    }

    /// Checks what the types cannot.
    pub fn validate(&self) -> Result<(), PolicyError> {
        let zero = |key, value: bool| if value { Err(PolicyError::Zero { key }) } else { Ok(()) };
        zero("foreground_top_n", self.foreground_top_n == 0)?;
        zero("version_range_cycles", self.version_range_cycles == 0)?;
        zero("lease_blocks", self.lease_blocks == 0)?;
        zero("max_attempts", self.max_attempts == 0)?;
        zero("batches", self.terms.batches == 0)?;
        zero("batch_size", self.terms.batch_size == 0)?;
        zero("sequence_length", self.terms.sequence_length == 0)?;
        let within = |key, must, holds: bool| match holds {
            true => Ok(()),
            false => Err(PolicyError::OutOfRange { key, must }),
        };
        if let Some(EarlyStop { confidence, minimum_batches }) = self.early_stop {
            let sane = confidence > 0.5 && confidence < 1.0;
            within("early_stop.confidence", "above 0.5 and below 1", sane)?;
            within("early_stop.minimum_batches", "at least 2", minimum_batches >= 2)?;
        }
        let similarity = self.duplicates.similarity;
        within(
            "duplicates.similarity",
            "above 0 and at most 1",
            similarity > 0.0 && similarity <= 1.0,
        )?;
        let own = self.own_data;
        within("own_data.batches", "0 or at least 4", own.batches == 0 || own.batches >= 4)?;
        within("own_data.share", "from 0 to 1", (0.0..=1.0).contains(&own.share))
    }
}
