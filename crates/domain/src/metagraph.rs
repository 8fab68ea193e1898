//! The subnet at one block: its neurons and the weights that validators gave each other's miners.

use serde::{Deserialize, Serialize};

use crate::{BlockHash, BlockNumber, Hotkey, Uid};

/// One slot of the subnet at one block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neuron {
    /// The slot.
    pub uid: Uid,
    /// The key that holds it.
    pub hotkey: Hotkey,
    /// Address of the owner; `None` where the source does not tell.
    pub coldkey: Option<Hotkey>,
    /// Announced address as `ip:port`; empty when none was announced.
    pub axon: String,
    /// Total stake in rao (1e-9 of a unit).
    pub stake: u64,
    /// Share of the subnet's miner emission, 0 to 65535.
    pub incentive: u16,
    /// Whether the chain lets it set weights.
    pub validator_permit: bool,
    /// Block of its last weight setting.
    pub last_update: BlockNumber,
    /// Block at which the hotkey took the slot.
    pub registered_at: BlockNumber,
}

/// The subnet's table of neurons at one block, with the chain's rules for setting weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metagraph {
    /// Height that was read.
    pub block: BlockNumber,
    /// Hash of that block.
    pub block_hash: BlockHash,
    /// Every neuron, ascending by UID.
    pub neurons: Vec<Neuron>,
    /// Blocks that must pass between two weight settings of one hotkey.
    pub weights_rate_limit: u64,
    /// Least number of weights that the chain takes.
    pub min_allowed_weights: u32,
    /// Version key that the chain asks for.
    pub weights_version: u64,
    /// Whether weights must be committed and revealed.
    pub commit_reveal: bool,
}

impl Metagraph {
    /// The neuron that holds a slot.
    pub fn by_uid(&self, uid: Uid) -> Option<&Neuron> {
        self.neurons.iter().find(|neuron| neuron.uid == uid)
    }

    /// The neuron of a hotkey.
    pub fn by_hotkey(&self, hotkey: &Hotkey) -> Option<&Neuron> {
        self.neurons.iter().find(|neuron| neuron.hotkey == *hotkey)
    }
}

/// The weights of one validator as they stand on chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightRow {
    /// UID of the validator.
    pub uid: Uid,
    /// What it gave to whom; the largest value of a row is 65535.
    pub weights: Vec<(Uid, u16)>,
}

impl WeightRow {
    /// The row as shares that sum to one, dropping zeros; empty when it gives nothing.
    pub fn shares(&self) -> Vec<(Uid, f64)> {
        let sum: f64 = self.weights.iter().map(|(_, value)| f64::from(*value)).sum();
        self.weights
            .iter()
            .filter(|(_, value)| *value > 0)
            .map(|(uid, value)| (*uid, f64::from(*value) / sum))
            .collect()
    }
}
