//! The merge of a round: what the peer service is asked for, and what came of it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    DegradationKind, Frozen, FrozenValidator, ModelRef, Policy, Rejection, Reply, Round, Stage,
    State, Submission, degradation::bounded,
};
use crate::{BlockHash, BlockNumber, GlobalVersion, Hotkey, Phase, RoundId};

/// What the peer service needs to know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MergePlan {
    /// Which round.
    pub round: RoundId,
    /// The model that the pseudo-gradients are relative to.
    pub base: ModelRef,
    /// Version of the model to be made: the first block of Merge.
    pub new_version: GlobalVersion,
    /// Files that go in, with their share.
    pub contributions: Vec<(Submission, f64)>,
    /// The other validators and their addresses.
    pub validators: Vec<(Hotkey, String)>,
    /// Stakes of all validators as of the frozen block, this one's too, in rao; empty in a state of
    /// before they were kept.
    #[serde(default)]
    pub stakes: BTreeMap<Hotkey, u64>,
    /// Hash of the frozen block; none in a state of before it was kept.
    #[serde(default)]
    pub block_hash: Option<BlockHash>,
    /// Those of the validator set who do not take part, since they have set no weights lately: new ones,
    /// and ones that were away. They may ask for models, or they would never be back.
    #[serde(default)]
    pub absent: Vec<Hotkey>,
}

impl MergePlan {
    /// The block at which the merge begins for every validator, whenever it is asked for.
    pub fn first(&self) -> BlockNumber {
        BlockNumber(self.new_version.0)
    }

    /// What a validator has at stake, in rao.
    pub fn stake(&self, hotkey: &Hotkey) -> u64 {
        self.stakes.get(hotkey).copied().unwrap_or_default()
    }
}

/// How a merge ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum MergeOutcome {
    /// With others.
    Merged(MergeResult),
    /// Alone.
    Solo(MergeResult),
    /// Not at all: the model stays as it was.
    Failed(MergeFailure),
}

/// What a merge made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MergeResult {
    /// Whose gradient is in the result.
    pub members: Vec<Hotkey>,
    /// Digest of the reduced pseudo-gradient, hex.
    pub digest: String,
    /// The new model.
    pub model: ModelRef,
    /// What else did not go the normal way, such as miners' files that were left out; empty when
    /// nothing.
    pub detail: String,
    /// Validators whose gradient is not in the result.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dropped: Vec<LeftOut>,
    /// Members that were shown to have broken the rules.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blamed: Vec<LeftOut>,
    /// What each contributor did to the result.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub influence: Vec<Influence>,
}

/// Why a merge made nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MergeFailure {
    /// For a person.
    pub why: String,
    /// Stable reason; empty in records of before it was written down.
    #[serde(default)]
    pub reason: String,
    /// Validators that were left out by then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dropped: Vec<LeftOut>,
    /// Members that were shown to have broken the rules by then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blamed: Vec<LeftOut>,
}

/// Somebody who is not in a result, or is to blame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Who.
    pub hotkey: Hotkey,
    /// Stable reason.
    pub reason: String,
    /// What happened, for a person; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// A contributor's part in a result, as far as this validator has reduced or checked it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Influence {
    /// Who.
    pub hotkey: Hotkey,
    /// Share of the weights, 0 to 1.
    pub weight: f64,
    /// L2 norm of what it gave.
    pub norm: f64,
    /// The same after the bound on norms.
    pub bounded_norm: f64,
    /// Of the angle between what it gave and the result, -1 to 1.
    pub cosine: f64,
    /// Share of the elements in which it lies outside of what was kept, 0 to 1.
    pub trimmed: f64,
}

impl Influence {
    /// Whether every figure is a number: others cannot be kept in JSON.
    pub fn is_finite(&self) -> bool {
        [self.weight, self.norm, self.bounded_norm, self.cosine, self.trimmed]
            .iter()
            .all(|figure| figure.is_finite())
    }
}

impl MergeOutcome {
    /// The new model, if there is one.
    pub fn model(&self) -> Option<&ModelRef> {
        match self {
            Self::Merged(result) | Self::Solo(result) => Some(&result.model),
            Self::Failed(_) => None,
        }
    }

    /// The stable, snake_case name.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Merged(_) => "merged",
            Self::Solo(_) => "solo",
            Self::Failed(_) => "failed",
        }
    }

    /// Validators whose gradient is not in the result.
    pub fn dropped(&self) -> &[LeftOut] {
        match self {
            Self::Merged(result) | Self::Solo(result) => &result.dropped,
            Self::Failed(failure) => &failure.dropped,
        }
    }

    /// Members that were shown to have broken the rules.
    pub fn blamed(&self) -> &[LeftOut] {
        match self {
            Self::Merged(result) | Self::Solo(result) => &result.blamed,
            Self::Failed(failure) => &failure.blamed,
        }
    }

    /// What is told of the whole, for a person.
    pub fn detail(&self) -> &str {
        match self {
            Self::Merged(result) | Self::Solo(result) => &result.detail,
            Self::Failed(failure) => &failure.why,
        }
    }

    /// The same with what comes from outside cut to what is kept.
    fn bounded(mut self) -> Self {
        let (text, dropped, blamed) = match &mut self {
            Self::Merged(result) | Self::Solo(result) => {
                result.influence.retain(Influence::is_finite);
                (&mut result.detail, &mut result.dropped, &mut result.blamed)
            }
            Self::Failed(failure) => (&mut failure.why, &mut failure.dropped, &mut failure.blamed),
        };
        *text = bounded(text);
        for left_out in dropped.iter_mut().chain(blamed) {
            left_out.detail = bounded(&left_out.detail);
        }
        self
    }

    /// What is to be told of it, one sentence; empty when it went the normal way.
    fn story(&self) -> String {
        let named = |what: &str, list: &[LeftOut]| {
            let names: Vec<String> = list.iter().map(LeftOut::short).collect();
            (!names.is_empty()).then(|| format!("{what}: {}", names.join(", ")))
        };
        let detail = self.detail();
        let detail = (!detail.is_empty()).then(|| detail.to_owned());
        // Why it failed comes first, and after a success what is not there.
        let first = detail.clone().filter(|_| self.model().is_none());
        let last = detail.filter(|_| self.model().is_some());
        let named = [named("left out", self.dropped()), named("to blame", self.blamed())];
        let parts: Vec<String> = [first].into_iter().chain(named).chain([last]).flatten().collect();
        parts.join("; ")
    }
}

impl LeftOut {
    fn short(&self) -> String {
        format!("{} ({})", self.hotkey, self.reason)
    }

    /// Who and why, with the story where there is one.
    pub(super) fn told(&self) -> String {
        match self.detail.is_empty() {
            true => self.short(),
            false => format!("{}: {}", self.short(), self.detail),
        }
    }
}

/// What the peer service is asked to do: the ranked miners' files, weighted by their scores.
pub(super) fn plan(round: &Round, me: &Hotkey, policy: &Policy) -> MergePlan {
    let contributions = round.miners.values().filter_map(|miner| {
        let score = miner.score.filter(|score| *score > 0.0)?;
        Some((miner.submission.clone()?, score))
    });
    let frozen = round.frozen.as_ref();
    let validators = || frozen.iter().flat_map(|frozen| &frozen.validators);
    let own = frozen.and_then(|frozen| frozen.inputs.metagraph.by_hotkey(me));
    let own = (me.clone(), own.map_or(0, |neuron| neuron.stake));
    let stake = |validator: &FrozenValidator| (validator.hotkey.clone(), validator.stake);
    let first = policy.schedule.phase_range(round.cycle, Phase::Merge).0;
    MergePlan {
        round: round.id,
        base: round.base.clone(),
        new_version: GlobalVersion(first.0),
        contributions: contributions.collect(),
        validators: validators()
            .filter(|validator| validator.hotkey != *me)
            .map(|validator| (validator.hotkey.clone(), validator.axon.clone()))
            .collect(),
        stakes: [own].into_iter().chain(validators().map(stake)).collect(),
        block_hash: frozen.map(|frozen| frozen.inputs.block_hash),
        absent: frozen.map(|frozen| absent(frozen, me, policy)).unwrap_or_default(),
    }
}

/// Others of the validator set who are no validators of the round.
fn absent(frozen: &Frozen, me: &Hotkey, policy: &Policy) -> Vec<Hotkey> {
    let set = policy.validator_set();
    let present = |hotkey: &Hotkey| frozen.validators.iter().any(|one| one.hotkey == *hotkey);
    let neurons = frozen.inputs.metagraph.neurons.iter().filter(|neuron| set.contains(neuron));
    let others = neurons.map(|neuron| &neuron.hotkey).filter(|hotkey| *hotkey != me);
    others.filter(|hotkey| !present(hotkey)).cloned().collect()
}

pub(super) fn on_merged(
    state: &mut State,
    id: RoundId,
    outcome: MergeOutcome,
) -> Result<Reply, Rejection> {
    let block = state.block;
    let round = state.open_round(id)?;
    if round.merge.is_some() || round.stage != Stage::Merging {
        return Ok(Reply::Ignored);
    }
    end(round, outcome.bounded(), block);
    state.effects.remove(&format!("{id}/merge"));
    Ok(Reply::Applied)
}

/// Nobody waits for the merge any more.
pub(super) fn give_up(round: &mut Round, block: BlockNumber) {
    let why = "the merge did not end before ValidatorCommit2".to_owned();
    let failure = MergeFailure { why, reason: "timeout".to_owned(), ..MergeFailure::default() };
    end(round, MergeOutcome::Failed(failure), block);
}

/// Takes the outcome in, and tells what did not go the normal way.
fn end(round: &mut Round, outcome: MergeOutcome, block: BlockNumber) {
    let story = outcome.story();
    match &outcome {
        MergeOutcome::Failed(_) => round.degrade(DegradationKind::MergeFailed, story, block),
        MergeOutcome::Merged(_) | MergeOutcome::Solo(_) => {
            if !story.is_empty() {
                round.degrade(DegradationKind::MergePartial, story, block);
            }
            round.add_job(super::JobKind::HeldOut);
        }
    }
    for liar in outcome.blamed() {
        round.degrade(DegradationKind::PeerBlamed, liar.told(), block);
    }
    round.merge = Some(outcome);
    round.stage = Stage::Committing;
}
