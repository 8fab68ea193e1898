//! What the scheduler knows: one value, saved whole, from which everything can go on.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{
    Degradation, Effect, Frozen, MergeOutcome, Rejection, Resync, WeightsOrigin, Write, WriteKind,
};
use crate::{
    BlockHash, BlockNumber, CycleIndex, ExpertGroup, GlobalVersion, History, Hotkey, Improvement,
    ModelHash, OwnData, Reason, RoundId, Sketch, Uid, Weights,
};

/// A global model in the artifact store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelRef {
    /// Block number stamped on the model.
    pub global_version: GlobalVersion,
    /// Hash of this validator's expert group slice.
    pub model_hash: ModelHash,
    /// Key of the model's folder in the artifact store.
    pub prefix: String,
}

/// A miner's verified file in the artifact store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submission {
    /// Whose it is.
    pub hotkey: Hotkey,
    /// Key of the file.
    pub key: String,
    /// Model hash of the file.
    pub model_hash: ModelHash,
    /// SHA-256 of the file, hex.
    pub sha256: String,
    /// Size in bytes.
    pub bytes: u64,
    /// Block at which it was stored.
    pub block: BlockNumber,
}

/// Where a round stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Opened, waiting for the freeze.
    Open,
    /// Frozen: submissions are taken and evaluated.
    Evaluating,
    /// Scores are final, the merge runs.
    Merging,
    /// Hash and weights go to the chain.
    Committing,
    /// Over, the record is made.
    Closed,
}

/// A miner of the round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Miner {
    /// Slot at the freeze.
    pub uid: Uid,
    /// Whether it is this validator's to evaluate first.
    pub assigned: bool,
    /// What it committed, where that can be used.
    pub committed: Option<Committed>,
    /// Why it may not upload, where it may not.
    pub fault: Option<Cause>,
    /// The last upload that was refused, until one is stored.
    pub refused: Option<Cause>,
    /// Its stored file.
    pub submission: Option<Submission>,
    /// What the evaluation found.
    pub verdict: Option<Verdict>,
    /// Rank score of the round, once final; none when the round writes nothing for it.
    pub score: Option<f64>,
    /// Why the final score is what it is, where there is a reason.
    pub reason: Option<Reason>,
    /// Whose submissions are equal or nearly equal to its own, ascending; known when scores are
    /// final.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub duplicates: Vec<Hotkey>,
}

/// What a miner revealed on chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Committed {
    /// Hash of its model.
    pub model_hash: ModelHash,
    /// URL-safe base64 of the signature from the first commit phase.
    pub signature: String,
    /// Version of the model that it trained on.
    pub version: GlobalVersion,
    /// Where it published the file, if it names a place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub: Option<HubPlace>,
}

/// A place on a model hub, as a commitment names it (protocol, section 4).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HubPlace {
    /// Repository, `owner/name`.
    pub repo: String,
    /// First 7 hex digits of the commit.
    pub revision: String,
}

/// A reason with its story.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// Stable reason code.
    pub reason: String,
    /// What happened, for a person.
    pub detail: String,
}

/// What an evaluation found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Verdict {
    /// Losses per batch, in nats per token, paired with the base model's.
    Measured {
        /// The base model's, on the same device.
        baseline: Vec<f64>,
        /// The submission's.
        losses: Vec<f64>,
        /// `max(0, mean baseline - mean loss) ^ 1.2`.
        raw: f64,
        /// Digest of the token ids used.
        batches_digest: String,
        /// By how much it lowers the loss, and how sure that is; none for a single batch.
        #[serde(default)]
        improvement: Option<Improvement>,
        /// The same on data that the miner could know, where policy asks for it.
        #[serde(default)]
        own: Option<OwnMeasured>,
        /// What it changed in the base model.
        #[serde(default)]
        sketch: Option<Sketch>,
    },
    /// Stopped early: it could no longer reach the ranks that pay.
    OutOfReach {
        /// The base model's losses on the batches that were measured.
        baseline: Vec<f64>,
        /// The submission's on the same: the first ones of the round.
        losses: Vec<f64>,
        /// Mean loss of the submission that it had to beat, over all batches.
        rival: f64,
        /// Digest of the token ids of all batches.
        batches_digest: String,
        /// By how much it lowers the loss on what was measured.
        improvement: Option<Improvement>,
    },
    /// The submission is invalid.
    Invalid(Cause),
}

/// A submission on data that its miner could know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OwnMeasured {
    /// Losses of the base model, per batch, in nats per token.
    pub baseline: Vec<f64>,
    /// The submission's.
    pub losses: Vec<f64>,
    /// By how much it lowers them.
    pub improvement: Option<Improvement>,
    /// What comparing that with the round's batches says; none when there are too few.
    pub says: Option<OwnData>,
}

/// What a job is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    /// Loss of the base model.
    Baseline,
    /// Loss of a miner's submission.
    Score(Hotkey),
    /// Loss of the merged model on the held-out batches.
    HeldOut,
}

/// Where a job stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Nobody works on it.
    Queued,
    /// A worker has it until `until`, if it does not renew.
    Leased {
        /// Name of the worker.
        worker: String,
        /// Token of the lease.
        fence: u64,
        /// First block at which the lease is over.
        until: BlockNumber,
    },
    /// There is a result.
    Done,
    /// Given up: the validator's fault.
    Failed(Cause),
}

/// A piece of work for an evaluator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// What for.
    pub kind: JobKind,
    /// Where it stands.
    pub state: JobState,
    /// How often it was given out.
    pub attempts: u32,
    /// First block at which it may be given out again.
    #[serde(default)]
    pub not_before: BlockNumber,
    /// Workers that measured it on other batches than the round's: they would do so again.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub not_for: BTreeSet<String>,
}

/// Losses of the base model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// Per round batch, in nats per token.
    pub losses: Vec<f64>,
    /// Mean over the held-out batches.
    pub held_out: f64,
    /// How many of those there are; 0 in records from before it was written down.
    #[serde(default)]
    pub held_out_batches: u32,
}

/// One round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// First block of the cycle's Submission phase.
    pub id: RoundId,
    /// Index of the cycle.
    pub cycle: CycleIndex,
    /// Where it stands.
    pub stage: Stage,
    /// Block at which it was opened.
    #[serde(default)]
    pub opened_at: BlockNumber,
    /// How often blocks that its inputs are read from were taken back before they were frozen.
    #[serde(default)]
    pub branch: u64,
    /// Why the inputs are not frozen yet: what came of the last try.
    #[serde(default)]
    pub held: Option<String>,
    /// Trace context that everything done for the round belongs to.
    pub traceparent: String,
    /// The seed that this validator publishes.
    pub own_seed: u64,
    /// The model that miners of this round trained on.
    pub base: ModelRef,
    /// Scores of earlier rounds, as they were when this one opened.
    pub history_before: History,
    /// The frozen inputs.
    pub frozen: Option<Frozen>,
    /// Everyone who could be paid or refused.
    pub miners: BTreeMap<Hotkey, Miner>,
    /// Work for evaluators, by name.
    pub jobs: BTreeMap<String, Job>,
    /// Digest of the round's batches: the first accepted result's. Everybody else's must be the same.
    #[serde(default)]
    pub batches_digest: Option<String>,
    /// Digest of the data sources that they were drawn from, likewise.
    #[serde(default)]
    pub sources_digest: Option<String>,
    /// What the base model loses.
    pub baseline: Option<Baseline>,
    /// Mean loss of the merged model on the held-out batches.
    pub held_out_after: Option<f64>,
    /// How the merge ended.
    pub merge: Option<MergeOutcome>,
    /// Weights of the round.
    pub weights: Vec<(Uid, f64)>,
    /// Where they come from.
    #[serde(default)]
    pub weights_origin: WeightsOrigin,
    /// Writes to the chain.
    pub writes: BTreeMap<WriteKind, Write>,
    /// What did not go the normal way.
    pub degradations: Vec<Degradation>,
}

/// Everything that the scheduler must not forget.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// This validator.
    pub hotkey: Hotkey,
    /// Expert group that it evaluates and merges.
    pub expert_group: ExpertGroup,
    /// Newest block seen.
    pub block: BlockNumber,
    /// Its hash; none in a state of before hashes were kept.
    #[serde(default)]
    pub block_hash: Option<BlockHash>,
    /// The model that is served and trained on; none before the first one is here.
    pub base: Option<ModelRef>,
    /// Scores of the last rounds.
    pub history: History,
    /// The last weights that were decided on their merits.
    pub last_weights: Weights,
    /// Validators of the last frozen round.
    pub validators: Vec<Hotkey>,
    /// The round in progress, or the last one until the next opens.
    pub round: Option<Round>,
    /// The last look at what validators have revealed.
    #[serde(default)]
    pub resync: Option<Resync>,
    /// Work outside that is not known to be done, by name. Saved with the state before any of it
    /// runs, and run again after a crash until an event says that it is done.
    pub effects: BTreeMap<String, Effect>,
    /// Grows with every change.
    pub revision: u64,
    /// The next lease's token.
    pub next_fence: u64,
}

impl State {
    /// The state of a validator that has just been set up with `base`, or without a model.
    pub fn new(hotkey: Hotkey, expert_group: ExpertGroup, base: Option<ModelRef>) -> Self {
        Self {
            hotkey,
            expert_group,
            block: BlockNumber(0),
            block_hash: None,
            base,
            history: History::default(),
            last_weights: Weights::new(),
            validators: Vec::new(),
            round: None,
            resync: None,
            effects: BTreeMap::new(),
            revision: 0,
            next_fence: 1,
        }
    }
}

impl State {
    /// The round `id`, if it is the open one.
    pub(super) fn open_round(&mut self, id: RoundId) -> Result<&mut Round, Rejection> {
        self.round
            .as_mut()
            .filter(|round| round.id == id && round.stage != Stage::Closed)
            .ok_or(Rejection::NotThisRound { asked: id })
    }
}
