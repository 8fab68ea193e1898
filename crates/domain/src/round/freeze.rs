//! The one moment at which a round's inputs are fixed. Nothing in the round is read from the chain
//! after it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{Cause, Committed, Degradation, DegradationKind, HubPlace, Miner, Policy, Round};
use crate::{
    BlockHash, BlockNumber, Checkpoint, CohortValidator, Cohorts, ExpertGroup, History, Hotkey,
    Joined, Metagraph, Neuron, Reason, Seed, Slots, Uid, VersionWindow, WeightRow, Weights, assign,
    background, cohorts, combined_seed, evaluation_seed, fallback, foreground_cut, is_stale,
    join_miners, round_validators, validator_seeds,
};

/// A commitment as it lies on chain: hostile until parsed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RawCommitment {
    /// Whose.
    pub hotkey: Hotkey,
    /// Block at which it was stored.
    pub block: BlockNumber,
    /// Its bytes.
    pub data: Vec<u8>,
}

/// What was read for a round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FreezeInputs {
    /// First block of Submission.
    pub block: BlockNumber,
    /// Its hash: the round is bound to it.
    pub block_hash: BlockHash,
    /// Hash of the last block of MinerCommit2, unknown before the models were revealed.
    pub seed_block_hash: BlockHash,
    /// Neurons as of `block`.
    pub metagraph: Metagraph,
    /// Weights on chain as of `block`.
    pub weights: Vec<WeightRow>,
    /// Commitments as of (last block of MinerCommit1) + 1.
    pub commit_1: Vec<RawCommitment>,
    /// Commitments as of (last block of MinerCommit2) + 1.
    pub commit_2: Vec<RawCommitment>,
    /// What did not go the normal way while they were read. They go into the round.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub degradations: Vec<Degradation>,
}

/// A validator of the round.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrozenValidator {
    /// Its hotkey.
    pub hotkey: Hotkey,
    /// Its slot.
    pub uid: Uid,
    /// Its address, `ip:port`; empty when it has none.
    pub axon: String,
    /// Its stake, in rao.
    pub stake: u64,
    /// The seed that it committed, 0 where it did not.
    pub seed: u64,
}

/// The fixed inputs of a round, and what follows from them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Frozen {
    /// What was read.
    pub inputs: FreezeInputs,
    /// Validators of the round, ascending by UID.
    pub validators: Vec<FrozenValidator>,
    /// What the batches are drawn from; none when no validator has published a seed.
    pub seed: Option<Seed>,
    /// Groups A, B and C, and the foreground.
    pub cohorts: Cohorts,
    /// Miners with a usable checkpoint, in the order in which they are evaluated.
    pub roster: Vec<Hotkey>,
    /// Commitments that could not be read.
    pub garbage: u64,
    /// What the stale guard would send; none when this validator is not stale.
    pub fallback: Option<Weights>,
}

/// Fixes the inputs of `round`.
pub(super) fn freeze(
    round: &mut Round,
    me: &Hotkey,
    group: ExpertGroup,
    history: &History,
    previous: &Weights,
    mut inputs: FreezeInputs,
    policy: &Policy,
) {
    let block = inputs.block;
    for told in std::mem::take(&mut inputs.degradations) {
        round.tell(told);
    }
    let set = policy.validator_set();
    let neurons = round_validators(&inputs.metagraph, &set, policy.schedule.cycle_length());
    let (first, second) = (slots(&inputs.commit_1), slots(&inputs.commit_2));
    let (seeds, unread) = validator_seeds(&first, &neurons);
    let hotkeys: BTreeSet<Hotkey> = neurons.iter().map(|n| n.hotkey.clone()).collect();
    if !hotkeys.contains(me) {
        let detail =
            format!("{me} is not registered, has no permit, or set no weights for a cycle");
        round.degrade(DegradationKind::NotAValidator, detail, block);
    }
    let seeded = seeds.iter().any(|(_, seed)| *seed != 0);
    if !seeded {
        let detail = format!(
            "none of {} validators has published a seed: nothing is evaluated",
            seeds.len()
        );
        round.degrade(DegradationKind::NoSeeds, detail, block);
    }

    let window =
        VersionWindow::of_cycle(&policy.schedule, round.cycle, policy.version_range_cycles);
    let joined = join_miners(&first, &second, &inputs.metagraph, &hotkeys, window, group);
    let cohorts = cohort(&inputs, &neurons, &seeds, &hotkeys, me, policy);
    let roster = roster(&joined, &cohorts, history);
    let assigned: BTreeSet<Uid> = cohorts.foreground.iter().copied().collect();
    round.miners = miners(&inputs.metagraph, &joined, &assigned);
    round.frozen = Some(Frozen {
        validators: neurons
            .iter()
            .zip(&seeds)
            .map(|(neuron, (_, seed))| FrozenValidator {
                hotkey: neuron.hotkey.clone(),
                uid: neuron.uid,
                axon: neuron.axon.clone(),
                stake: neuron.stake,
                seed: *seed,
            })
            .collect(),
        seed: seeded.then(|| evaluation_seed(&combined_seed(&seeds), &inputs.seed_block_hash)),
        garbage: (joined.garbage.len() + unread.len()) as u64,
        fallback: stale_weights(&inputs, me, previous, &hotkeys, policy),
        cohorts,
        roster,
        inputs,
    });
}

pub(super) fn slots(commitments: &[RawCommitment]) -> Slots {
    commitments.iter().map(|c| (c.hotkey.clone(), c.data.clone())).collect()
}

/// Groups and foreground. While no validator has put weights on any miner, groups A and B are
/// empty, and the seeded assignment itself is the foreground.
fn cohort(
    inputs: &FreezeInputs,
    neurons: &[&Neuron],
    seeds: &[(Hotkey, u64)],
    hotkeys: &BTreeSet<Hotkey>,
    me: &Hotkey,
    policy: &Policy,
) -> Cohorts {
    let shares = |uid| {
        let row = inputs.weights.iter().find(|row| row.uid == uid);
        row.map(WeightRow::shares).unwrap_or_default()
    };
    let validators: Vec<CohortValidator<Hotkey>> = neurons
        .iter()
        .zip(seeds)
        .map(|(neuron, (hotkey, seed))| CohortValidator {
            hotkey: hotkey.clone(),
            seed: *seed,
            weights: shares(neuron.uid),
        })
        .collect();
    let neurons = || inputs.metagraph.neurons.iter().filter(|n| !hotkeys.contains(&n.hotkey));
    let miners: BTreeMap<Uid, Hotkey> = neurons().map(|n| (n.uid, n.hotkey.clone())).collect();
    let mut cohorts = cohorts(&validators, &miners, me, &policy.cohorts);
    if cohorts.group_a.is_empty() && cohorts.group_b.is_empty() {
        let ranked: Vec<(Hotkey, u16)> =
            neurons().map(|n| (n.hotkey.clone(), n.incentive)).collect();
        let covered = foreground_cut(&ranked, policy.foreground_top_n, seeds.len());
        let mine = assign(seeds, &covered, None).remove(me).unwrap_or_default();
        let uid_of = |hotkey: &Hotkey| inputs.metagraph.by_hotkey(hotkey).map(|n| n.uid);
        cohorts.foreground = mine.iter().filter_map(uid_of).collect();
        cohorts.group_c.retain(|uid| !cohorts.foreground.contains(uid));
    }
    cohorts
}

/// Miners with a usable checkpoint: foreground first, then background.
fn roster(joined: &Joined, cohorts: &Cohorts, history: &History) -> Vec<Hotkey> {
    let usable: BTreeMap<Uid, &Checkpoint> = joined.usable().map(|c| (c.uid, c)).collect();
    let last = usable
        .keys()
        .map(|uid| (*uid, history.get(*uid).and_then(|miner| miner.last_round())))
        .collect();
    let order = cohorts.foreground.iter().copied().chain(background(cohorts, &last));
    order.filter_map(|uid| usable.get(&uid).map(|c| c.hotkey.clone())).collect()
}

/// Every neuron that is not a validator. Miners of another expert group are somebody else's: they
/// are left out.
fn miners(
    metagraph: &Metagraph,
    joined: &Joined,
    assigned: &BTreeSet<Uid>,
) -> BTreeMap<Hotkey, Miner> {
    let uid_of = |hotkey: &Hotkey| metagraph.by_hotkey(hotkey).map(|neuron| neuron.uid);
    let found = joined.checkpoints.iter().filter_map(|(hotkey, found)| {
        let (committed, fault) = match found {
            Ok(checkpoint) => (Some(committed(checkpoint)), None),
            Err(unusable) if unusable.reason == Reason::WrongGroup => return None,
            Err(unusable) => {
                let reason = unusable.reason.as_str().to_owned();
                (None, Some(Cause { reason, detail: unusable.detail.clone() }))
            }
        };
        let uid = uid_of(hotkey)?;
        let miner = Miner {
            uid,
            assigned: assigned.contains(&uid),
            committed,
            fault,
            refused: None,
            submission: None,
            verdict: None,
            score: None,
            reason: None,
            duplicates: Vec::new(),
        };
        Some((hotkey.clone(), miner))
    });
    found.collect()
}

fn committed(checkpoint: &Checkpoint) -> Committed {
    Committed {
        model_hash: checkpoint.model_hash,
        signature: checkpoint.signature.clone(),
        version: checkpoint.version,
        hub: checkpoint
            .repo
            .clone()
            .zip(checkpoint.revision.clone())
            .map(|(repo, revision)| HubPlace { repo, revision }),
    }
}

/// What the stale guard has to send, if this validator is stale.
fn stale_weights(
    inputs: &FreezeInputs,
    me: &Hotkey,
    previous: &Weights,
    validators: &BTreeSet<Hotkey>,
    policy: &Policy,
) -> Option<Weights> {
    let neuron = inputs.metagraph.by_hotkey(me)?;
    if !policy.stale_guard
        || !is_stale(neuron.last_update, inputs.block, policy.schedule.cycle_length())
    {
        return None;
    }
    let uids = inputs.metagraph.neurons.iter().filter(|n| validators.contains(&n.hotkey));
    let uids: BTreeSet<Uid> = uids.map(|n| n.uid).chain([neuron.uid]).collect();
    let previous = (!previous.is_empty()).then_some(previous);
    let found = fallback(neuron.uid, previous, &inputs.weights, &inputs.metagraph, &uids)?;
    Some(found.weights().clone())
}
