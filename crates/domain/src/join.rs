//! What a round's commitments mean together: who is a validator, whose checkpoint is usable, which
//! model is the network's (protocol, section 4).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    BlockNumber, CommitmentError, CycleIndex, ExpertGroup, GlobalVersion, Hotkey, Metagraph,
    MinerCommitment, ModelHash, Neuron, Phase, Reason, Schedule, SignedHashCommitment, Uid,
    ValidatorCommitment,
};

/// The raw commitments of the subnet as of one block, by hotkey.
pub type Slots = BTreeMap<Hotkey, Vec<u8>>;

/// Versions that are usable in a round, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionWindow {
    /// Oldest.
    pub min: GlobalVersion,
    /// Newest: first block of the latest MinerCommit1.
    pub max: GlobalVersion,
}

impl VersionWindow {
    /// The window as seen at `block`: the MinerCommit1 that started last before it counts. Until
    /// the first one only version 0 is in it.
    pub fn at(schedule: &Schedule, block: BlockNumber, version_range_cycles: u64) -> Self {
        let latest = schedule.previous(block, Phase::MinerCommit1).start;
        Self::ending_at(schedule, u64::try_from(latest).unwrap_or(0), version_range_cycles)
    }

    /// The window of the round in `cycle`.
    pub fn of_cycle(schedule: &Schedule, cycle: CycleIndex, version_range_cycles: u64) -> Self {
        let latest = schedule.phase_range(cycle, Phase::MinerCommit1).0.0;
        Self::ending_at(schedule, latest, version_range_cycles)
    }

    fn ending_at(schedule: &Schedule, max: u64, version_range_cycles: u64) -> Self {
        let range = version_range_cycles.saturating_mul(schedule.cycle_length());
        Self { min: GlobalVersion(max.saturating_sub(range)), max: GlobalVersion(max) }
    }

    /// Whether a version is usable.
    pub fn contains(&self, version: GlobalVersion) -> bool {
        (self.min..=self.max).contains(&version)
    }
}

/// A checkpoint that a hotkey announced on chain, complete and of a usable version. Its signature
/// is not verified yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Who announced it.
    pub hotkey: Hotkey,
    /// Its slot.
    pub uid: Uid,
    /// Its address, `ip:port`.
    pub axon: String,
    /// Its total stake, in rao.
    pub stake: u64,
    /// Model hash from the second commit phase.
    pub model_hash: ModelHash,
    /// Signature of the model hash from the first commit phase, URL-safe base64.
    pub signature: String,
    /// A miner's: version of the model that it trained on. A validator's: version of the model.
    pub version: GlobalVersion,
    /// Expert group.
    pub group: ExpertGroup,
    /// Optimizer steps, where a miner tells.
    pub inner_step: Option<u64>,
    /// Hub repository and revision, where told.
    pub repo: Option<String>,
    /// First 7 hex digits of the hub commit, where told.
    pub revision: Option<String>,
}

/// Why a hotkey has no usable checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct Unusable {
    /// Stable reason.
    pub reason: Reason,
    /// What is missing or wrong, for a person.
    pub detail: String,
}

impl Unusable {
    fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

/// A commitment that could not be read. It is skipped, counted and shown, never fatal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Garbage {
    /// Who committed it.
    pub hotkey: Hotkey,
    /// Which of the two commit phases it was read for, 1 or 2.
    pub slot: u8,
    /// What is wrong with it.
    pub error: CommitmentError,
}

/// The checkpoints of a round, or why there are none, for every hotkey that was asked about.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Joined {
    /// By hotkey.
    pub checkpoints: BTreeMap<Hotkey, Result<Checkpoint, Unusable>>,
    /// What could not be read, ascending by hotkey.
    pub garbage: Vec<Garbage>,
}

impl Joined {
    /// The usable checkpoints, ascending by hotkey.
    pub fn usable(&self) -> impl Iterator<Item = &Checkpoint> {
        self.checkpoints.values().filter_map(|found| found.as_ref().ok())
    }
}

/// What a second commitment tells, whichever role wrote it.
struct Revealed {
    model_hash: Option<ModelHash>,
    version: Option<GlobalVersion>,
    group: Option<ExpertGroup>,
    inner_step: Option<u64>,
    repo: Option<String>,
    revision: Option<String>,
}

impl From<MinerCommitment> for Revealed {
    fn from(miner: MinerCommitment) -> Self {
        let MinerCommitment { model_hash, version, group, inner_step, repo, revision, .. } = miner;
        Self { model_hash, version, group, inner_step, repo, revision }
    }
}

impl From<ValidatorCommitment> for Revealed {
    fn from(validator: ValidatorCommitment) -> Self {
        let ValidatorCommitment { model_hash, version, group, repo, revision, .. } = validator;
        Self { model_hash, version, group, inner_step: None, repo, revision }
    }
}

/// The checkpoints of every neuron that is not a validator of the round: the join of `first`, as of
/// (last block of MinerCommit1) + 1, and `second`, as of (last block of MinerCommit2) + 1. A
/// checkpoint of another group than `group` is unusable here.
pub fn join_miners(
    first: &Slots,
    second: &Slots,
    metagraph: &Metagraph,
    validators: &BTreeSet<Hotkey>,
    window: VersionWindow,
    group: ExpertGroup,
) -> Joined {
    let miners = metagraph.neurons.iter().filter(|neuron| !validators.contains(&neuron.hotkey));
    join(first, second, miners, window, |bytes| MinerCommitment::parse(bytes).map(Revealed::from))
        .of_group(group)
}

/// The checkpoints of the round's validators, of any group: the join of `first` and `second` as of
/// the blocks after the two ValidatorCommit phases.
pub fn join_validators(
    first: &Slots,
    second: &Slots,
    metagraph: &Metagraph,
    validators: &BTreeSet<Hotkey>,
    window: VersionWindow,
) -> Joined {
    let neurons = metagraph.neurons.iter().filter(|neuron| validators.contains(&neuron.hotkey));
    join(first, second, neurons, window, |bytes| {
        ValidatorCommitment::parse(bytes).map(Revealed::from)
    })
}

impl Joined {
    fn of_group(mut self, group: ExpertGroup) -> Self {
        for found in self.checkpoints.values_mut() {
            if let Ok(checkpoint) = found
                && checkpoint.group != group
            {
                let detail = format!("group {} instead of {group}", checkpoint.group);
                *found = Err(Unusable::new(Reason::WrongGroup, detail));
            }
        }
        self
    }
}

fn join<'a>(
    first: &Slots,
    second: &Slots,
    neurons: impl Iterator<Item = &'a Neuron>,
    window: VersionWindow,
    parse: impl Fn(&[u8]) -> Result<Revealed, CommitmentError>,
) -> Joined {
    let mut joined = Joined::default();
    for neuron in neurons {
        let mut note = |slot, error| {
            joined.garbage.push(Garbage { hotkey: neuron.hotkey.clone(), slot, error });
        };
        let signed = first.get(&neuron.hotkey).map(|bytes| SignedHashCommitment::parse(bytes));
        let signed = signed.map(|parsed| parsed.map_err(|error| note(1, error)).ok());
        let revealed = second.get(&neuron.hotkey).map(|bytes| parse(bytes));
        let revealed = revealed.map(|parsed| parsed.map_err(|error| note(2, error)).ok());
        let found = match (signed, revealed) {
            (None, None) => Err(Unusable::new(
                Reason::NothingCommitted,
                "no commitment on chain as of the end of either commit phase",
            )),
            (signed, revealed) => complete(
                neuron,
                signed.flatten().and_then(|signed| signed.signature),
                revealed.flatten(),
                window,
            ),
        };
        joined.checkpoints.insert(neuron.hotkey.clone(), found);
    }
    joined.garbage.sort_by(|a, b| (&a.hotkey, a.slot).cmp(&(&b.hotkey, b.slot)));
    joined
}

fn complete(
    neuron: &Neuron,
    signature: Option<String>,
    revealed: Option<Revealed>,
    window: VersionWindow,
) -> Result<Checkpoint, Unusable> {
    let missing = |what: &str| Unusable::new(Reason::CommitmentIncomplete, what);
    let signature = signature
        .filter(|signature| !signature.is_empty())
        .ok_or_else(|| missing("no signed hash in the first commit phase"))?;
    let revealed =
        revealed.ok_or_else(|| missing("no readable commitment in the second commit phase"))?;
    let model_hash = revealed.model_hash.ok_or_else(|| missing("no model hash"))?;
    let version = revealed.version.ok_or_else(|| missing("no global version"))?;
    let group = revealed.group.ok_or_else(|| missing("no expert group"))?;
    if neuron.axon.is_empty() {
        return Err(missing("no axon address"));
    }
    if !window.contains(version) {
        let VersionWindow { min, max } = window;
        let detail = format!("version {version} is not within {min} to {max}");
        return Err(Unusable::new(Reason::VersionOutOfRange, detail));
    }
    Ok(Checkpoint {
        hotkey: neuron.hotkey.clone(),
        uid: neuron.uid,
        axon: neuron.axon.clone(),
        stake: neuron.stake,
        model_hash,
        signature,
        version,
        group,
        inner_step: revealed.inner_step,
        repo: revealed.repo,
        revision: revealed.revision,
    })
}

/// Who may be a validator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ValidatorSet {
    /// These hotkeys: from configuration or from the subnet owner's API.
    AllowList(BTreeSet<Hotkey>),
    /// Whoever has the chain's validator permit.
    Permits,
}

impl ValidatorSet {
    /// Whether a neuron is in the set.
    pub fn contains(&self, neuron: &Neuron) -> bool {
        match self {
            Self::AllowList(hotkeys) => hotkeys.contains(&neuron.hotkey),
            Self::Permits => neuron.validator_permit,
        }
    }
}

/// The neurons that count as validators of the round, ascending by UID: they are in the set, and
/// their last weight setting is at most one cycle before the metagraph's block.
pub fn round_validators<'a>(
    metagraph: &'a Metagraph,
    set: &ValidatorSet,
    cycle_length: u64,
) -> Vec<&'a Neuron> {
    let mut validators: Vec<&Neuron> = metagraph
        .neurons
        .iter()
        .filter(|neuron| set.contains(neuron))
        .filter(|neuron| metagraph.block.0.saturating_sub(neuron.last_update.0) <= cycle_length)
        .collect();
    validators.sort_by_key(|neuron| neuron.uid);
    validators
}

/// The seeds of the round's validators in their order, 0 where a readable one is absent, and what
/// could not be read. `slots` are as of (last block of MinerCommit1) + 1.
pub fn validator_seeds(
    slots: &Slots,
    validators: &[&Neuron],
) -> (Vec<(Hotkey, u64)>, Vec<Garbage>) {
    let mut garbage = Vec::new();
    let seeds = validators
        .iter()
        .map(|neuron| {
            let parsed = slots.get(&neuron.hotkey).map(|bytes| ValidatorCommitment::parse(bytes));
            let seed = match parsed {
                Some(Ok(commitment)) => commitment.seed.unwrap_or(0),
                Some(Err(error)) => {
                    garbage.push(Garbage { hotkey: neuron.hotkey.clone(), slot: 1, error });
                    0
                }
                None => 0,
            };
            (neuron.hotkey.clone(), seed)
        })
        .collect();
    (seeds, garbage)
}

/// The network's model: the hash with the most stake behind it. Among equals the smallest hash, so
/// that everyone chooses the same.
pub fn authoritative<'a>(
    checkpoints: impl IntoIterator<Item = &'a Checkpoint>,
) -> Option<ModelHash> {
    let mut stakes: BTreeMap<ModelHash, u128> = BTreeMap::new();
    for checkpoint in checkpoints {
        *stakes.entry(checkpoint.model_hash).or_default() += u128::from(checkpoint.stake);
    }
    let mut best: Option<(ModelHash, u128)> = None;
    for (hash, stake) in stakes {
        if best.is_none_or(|(_, most)| stake > most) {
            best = Some((hash, stake));
        }
    }
    best.map(|(hash, _)| hash)
}

#[cfg(test)]
mod tests;
