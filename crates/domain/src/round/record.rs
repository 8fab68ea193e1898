//! What is left of a round: enough to explain every result and to compute the weights again.

use serde::{Deserialize, Serialize};

use super::{
    Baseline, Degradation, Frozen, MergeOutcome, Miner, ModelRef, Policy, Round, WeightsOrigin,
    Write, WriteKind,
};
use crate::{BlockNumber, CycleIndex, GlobalVersion, History, Hotkey, RoundId, Uid};

/// One miner's round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MinerRecord {
    /// Whose.
    pub hotkey: Hotkey,
    /// What happened.
    #[serde(flatten)]
    pub miner: Miner,
}

/// The record of a round. Its JSON is signed by the validator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Version of this form.
    pub format: u32,
    /// Which round.
    pub round: RoundId,
    /// Index of the cycle.
    pub cycle: CycleIndex,
    /// Whose record it is.
    pub validator: Hotkey,
    /// Block at which the round ended.
    pub closed_at: BlockNumber,
    /// Trace context of the round.
    pub traceparent: String,
    /// What decided it beside the inputs.
    pub policy: Policy,
    /// The model that miners trained on.
    pub base: ModelRef,
    /// The fixed inputs.
    pub frozen: Option<Frozen>,
    /// Scores before the round.
    pub history_before: History,
    /// Scores after the round.
    pub history_after: History,
    /// Digest of the batches that every model was measured on.
    #[serde(default)]
    pub batches_digest: Option<String>,
    /// Digest of the data sources that they were drawn from.
    #[serde(default)]
    pub sources_digest: Option<String>,
    /// Loss of the base model.
    pub baseline: Option<Baseline>,
    /// Loss of the merged model on the held-out batches.
    pub held_out_after: Option<f64>,
    /// Every miner, ascending by hotkey.
    pub miners: Vec<MinerRecord>,
    /// Weights, by UID.
    pub weights: Vec<(Uid, f64)>,
    /// Where they come from; records from before it was written down say that there are none.
    #[serde(default)]
    pub weights_origin: WeightsOrigin,
    /// How the merge ended.
    pub merge: Option<MergeOutcome>,
    /// What was written to the chain.
    pub writes: Vec<(WriteKind, Write)>,
    /// What did not go the normal way.
    pub degradations: Vec<Degradation>,
}

impl Record {
    pub(super) fn of(
        round: &Round,
        validator: &Hotkey,
        history: &History,
        policy: &Policy,
        closed_at: BlockNumber,
    ) -> Self {
        let miner = |(hotkey, miner): (&Hotkey, &Miner)| MinerRecord {
            hotkey: hotkey.clone(),
            miner: miner.clone(),
        };
        Self {
            format: 1,
            round: round.id,
            cycle: round.cycle,
            validator: validator.clone(),
            closed_at,
            traceparent: round.traceparent.clone(),
            policy: policy.clone(),
            base: round.base.clone(),
            frozen: round.frozen.clone(),
            history_before: round.history_before.clone(),
            history_after: history.clone(),
            batches_digest: round.batches_digest.clone(),
            sources_digest: round.sources_digest.clone(),
            baseline: round.baseline.clone(),
            held_out_after: round.held_out_after,
            miners: round.miners.iter().map(miner).collect(),
            weights: round.weights.clone(),
            weights_origin: round.weights_origin,
            merge: round.merge.clone(),
            writes: round.writes.iter().map(|(kind, write)| (*kind, write.clone())).collect(),
            degradations: round.degradations.clone(),
        }
    }

    /// Version of the model after the round.
    pub fn model_version(&self) -> GlobalVersion {
        let merged = self.merge.as_ref().and_then(MergeOutcome::model);
        merged.unwrap_or(&self.base).global_version
    }
}
