//! What a merge is to do: one round, as the scheduler asks for it.

use std::{collections::BTreeMap, time::Duration};

use domain::{BlockHash, ExpertGroup, GlobalVersion, Hotkey, ModelHash, RoundId};
use merge::Roster;

/// A global model in the artifact store.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Model {
    /// Block number stamped on it.
    pub(crate) global_version: GlobalVersion,
    /// Model hash of the expert group's slice.
    pub(crate) model_hash: ModelHash,
    /// Key of its folder.
    pub(crate) prefix: String,
}

/// A miner's file that goes into the local pseudo-gradient.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Contribution {
    /// The miner.
    pub(crate) hotkey: Hotkey,
    /// Key of the file.
    pub(crate) key: String,
    /// Model hash that the file must have.
    pub(crate) model_hash: ModelHash,
    /// Share in the weighted mean.
    pub(crate) weight: f64,
}

/// Another validator of the round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Validator {
    /// Its address on chain as `ip:port`, empty when it has none.
    pub(crate) axon: String,
    /// What it has at stake, in rao.
    pub(crate) stake: u64,
}

/// The merge of one round.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Plan {
    /// Round to merge.
    pub(crate) round: RoundId,
    /// The block at which it was frozen: another chain has another one.
    pub(crate) block_hash: BlockHash,
    /// Its base model.
    pub(crate) base: Model,
    /// Expert group that is merged.
    pub(crate) group: ExpertGroup,
    /// Version of the model to be made.
    pub(crate) new_version: GlobalVersion,
    /// Files that go into the local pseudo-gradient.
    pub(crate) contributions: Vec<Contribution>,
    /// The other validators of the round.
    pub(crate) validators: BTreeMap<Hotkey, Validator>,
    /// Validators that do not take part, and may ask for models.
    pub(crate) absent: Vec<Hotkey>,
    /// This validator.
    pub(crate) hotkey: Hotkey,
    /// What it has at stake, in rao.
    pub(crate) stake: u64,
    /// How long the merge may take: the same for all.
    pub(crate) deadline: Duration,
    /// How long ago it began for everybody.
    pub(crate) elapsed: Duration,
    /// Whether to step alone while others should be there.
    pub(crate) allow_solo: bool,
    /// Trace context of the round.
    pub(crate) traceparent: String,
}

impl Plan {
    /// Key prefix of the model to be made.
    pub(crate) fn new_prefix(&self) -> String {
        format!("models/{}", self.new_version)
    }

    /// Everybody with what they have at stake.
    pub(crate) fn roster(&self) -> Roster {
        let others = self.validators.iter().map(|(hotkey, one)| (hotkey.clone(), one.stake));
        Roster(others.chain([(self.hotkey.clone(), self.stake)]).collect())
    }

    /// Name of the file with the optimizer's state of the merged group.
    pub(crate) fn optimizer_file(&self) -> String {
        format!("optimizer_{}.safetensors", self.group)
    }

    /// Key of a file that belongs to the round.
    pub(crate) fn round_key(&self, name: &str) -> String {
        format!("rounds/{}/{name}", self.round)
    }
}
