//! What the validators have revealed at the end of a cycle.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{Degradation, Policy, RawCommitment, freeze::slots};
use crate::{
    Backed, CycleIndex, ExpertGroup, GlobalVersion, Hotkey, Metagraph, VersionWindow,
    join_validators, most_backed, round_validators,
};

/// What was read of a cycle's end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reveals {
    /// Neurons as of (last block of ValidatorCommit2) + 1.
    pub metagraph: Metagraph,
    /// Commitments as of (last block of ValidatorCommit1) + 1.
    pub commit_1: Vec<RawCommitment>,
    /// Commitments as of (last block of ValidatorCommit2) + 1.
    pub commit_2: Vec<RawCommitment>,
    /// What did not go the normal way while they were read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub degradations: Vec<Degradation>,
}

impl Reveals {
    /// The model of `group` that has the most stake behind it at the end of `cycle`.
    pub fn most_backed(
        &self,
        cycle: CycleIndex,
        group: ExpertGroup,
        policy: &Policy,
    ) -> Option<Backed> {
        let (set, length) = (policy.validator_set(), policy.schedule.cycle_length());
        let validators: BTreeSet<Hotkey> = round_validators(&self.metagraph, &set, length)
            .into_iter()
            .map(|neuron| neuron.hotkey.clone())
            .collect();
        // It is for the next cycle that they are usable: what a cycle makes is newer than its own
        // MinerCommit1.
        let next = CycleIndex(cycle.0 + 1);
        let window = VersionWindow::of_cycle(&policy.schedule, next, policy.version_range_cycles);
        let end = GlobalVersion(policy.schedule.cycle_start(next).0);
        let (first, second) = (slots(&self.commit_1), slots(&self.commit_2));
        let joined = join_validators(&first, &second, &self.metagraph, &validators, window);
        most_backed(joined.usable().filter(|c| c.group == group && c.version < end))
    }
}
