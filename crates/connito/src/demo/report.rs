//! The result of a demonstration as data.

use std::collections::BTreeMap;

use serde::Serialize;

/// Everything that happened.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// Whether everything held that must hold.
    pub ok: bool,
    /// What did not hold, in sentences.
    pub broken: Vec<String>,
    /// The complete cycles.
    pub cycles: Vec<Cycle>,
    /// Trace ids, one per validator and cycle.
    pub trace_ids: Vec<String>,
    /// How long it took, setup included.
    pub seconds: f64,
}

/// One cycle.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Cycle {
    /// Its index.
    pub cycle: u64,
    /// Every validator.
    pub validators: Vec<ValidatorReport>,
    /// Every miner.
    pub miners: Vec<MinerReport>,
}

/// One validator's cycle.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ValidatorReport {
    /// Its hotkey.
    pub hotkey: String,
    /// Loss of the round's base model on the held-out batches, nats per token.
    pub baseline_before: Option<f64>,
    /// Loss of the merged model on the same batches.
    pub baseline_after: Option<f64>,
    /// Hash of its model after the cycle.
    pub model_hash: String,
    /// Hash that it revealed on chain.
    pub committed_hash: String,
    /// What its round put on chain: share by UID.
    pub weights: BTreeMap<u16, f64>,
    /// Hashes of the extrinsics that set weights in this cycle.
    pub weight_extrinsics: Vec<String>,
    /// What did not go the normal way.
    pub degradations: Vec<String>,
    /// Trace of the cycle.
    pub trace_id: String,
}

/// One miner's cycle, as its assigned validator saw it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct MinerReport {
    /// Its slot.
    pub uid: u16,
    /// Its hotkey.
    pub hotkey: String,
    /// What it was there to do.
    pub behaviour: String,
    /// What became of it.
    pub outcome: String,
    /// Stable reason; empty when there is none.
    pub reason: String,
    /// Mean loss on the round's batches, nats per token.
    pub loss: Option<f64>,
    /// Rank score of the round.
    pub score: Option<f64>,
}
