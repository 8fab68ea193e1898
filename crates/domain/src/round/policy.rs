//! What an operator may decide.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::DegradationKind;
use crate::{CohortConfig, Hotkey, Schedule, TopK, TwoGroups};

/// How weights are made of averages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightPolicy {
    /// The protocol's two groups, sharing 98 % and 2 %.
    TwoGroups(TwoGroups),
    /// The best `k` averages, normalised.
    TopK(TopK),
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
    #[error("`{key}` must be at least 1")]
    Zero {
        /// Name of the key.
        key: &'static str,
    },
}

impl Policy {
    /// Checks what the types cannot.
    pub fn validate(&self) -> Result<(), PolicyError> {
        let zero = |key, value: bool| if value { Err(PolicyError::Zero { key }) } else { Ok(()) };
        zero("foreground_top_n", self.foreground_top_n == 0)?;
        zero("version_range_cycles", self.version_range_cycles == 0)?;
        zero("lease_blocks", self.lease_blocks == 0)?;
        zero("max_attempts", self.max_attempts == 0)
    }
}
