//! What a round writes to the chain, and when.

use serde::{Deserialize, Serialize};

use super::{
    Degradation, DegradationKind, Effect, MergeOutcome, ModelRef, Policy, Rejection, Reply, Round,
    Stage, State, events::write_id, finalise::hold_weights,
};
use crate::{
    BlockNumber, CommitmentError, ExpertGroup, Phase, RoundId, SignedHashCommitment, Uid,
    ValidatorCommitment,
};

/// What is written to the chain in a round, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WriteKind {
    /// Seed and heartbeat, in MinerCommit1.
    Seed,
    /// Signature of the new model's hash, in ValidatorCommit1.
    SignedHash,
    /// The hash itself, in ValidatorCommit2.
    ModelHash,
    /// The weights, in ValidatorCommit2.
    Weights,
}

impl WriteKind {
    /// The stable, snake_case name: also the intent's kind at the chain service.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Seed => "seed",
            Self::SignedHash => "signed_hash",
            Self::ModelHash => "model_hash",
            Self::Weights => "weights",
        }
    }
}

/// What is to be written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Payload {
    /// Bytes of a commitment.
    Commitment(Vec<u8>),
    /// Shares by UID, summing to one: earned in rounds.
    Weights(Vec<(Uid, f64)>),
    /// The same of the stale guard: never over a round's own.
    StaleWeights(Vec<(Uid, f64)>),
}

/// Where the weights of a round come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightsOrigin {
    /// There are none, or it was not written down.
    #[default]
    None,
    /// Miners earned them.
    Earned,
    /// The stale guard: the last ones, or an even split of the other validators' votes.
    StaleGuard,
}

impl WeightsOrigin {
    /// The stable, snake_case name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Earned => "earned",
            Self::StaleGuard => "stale_guard",
        }
    }
}

/// Where a write stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WriteState {
    /// Nothing sent yet.
    Pending,
    /// Handed to a node.
    Submitted,
    /// In a block.
    Included,
    /// Final and read back.
    Done,
    /// Refused for good.
    Failed,
}

impl WriteState {
    /// Whether nothing will change any more.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Done | Self::Failed)
    }

    /// The stable, snake_case name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Submitted => "submitted",
            Self::Included => "included",
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }
}

/// A write to the chain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Write {
    /// What.
    pub payload: Payload,
    /// Where it stands.
    pub status: WriteStatus,
}

/// What is known of a write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteStatus {
    /// Where it stands.
    pub state: WriteState,
    /// Hash of the extrinsic, `0x` and hex; empty before one was sent.
    pub extrinsic_hash: String,
    /// Block that holds it; zero before inclusion.
    pub block: BlockNumber,
    /// Reason of a failure; empty otherwise.
    pub reason: String,
}

impl WriteStatus {
    /// Of a write that nobody has tried.
    pub fn pending() -> Self {
        Self {
            state: WriteState::Pending,
            extrinsic_hash: String::new(),
            block: BlockNumber(0),
            reason: String::new(),
        }
    }
}

/// Adds the writes that have become due at `block`.
pub(super) fn due(
    round: &mut Round,
    group: ExpertGroup,
    block: BlockNumber,
    policy: &Policy,
    effects: &mut Vec<Effect>,
) {
    if round.stage == Stage::Closed || has(&round.degradations, DegradationKind::RoundMissed) {
        return;
    }
    let cycle = round.cycle;
    let started = |phase| block >= policy.schedule.phase_range(cycle, phase).0;
    let late = has(&round.degradations, DegradationKind::LateStart);
    if !late && !round.writes.contains_key(&WriteKind::Seed) {
        let commitment = validator_commitment(&round.base, group, Some(round.own_seed));
        round.add_write(WriteKind::Seed, commitment, block, effects);
    }
    if round.stage != Stage::Committing {
        return;
    }
    let model = round.merge.as_ref().and_then(MergeOutcome::model).unwrap_or(&round.base).clone();
    if started(Phase::ValidatorCommit1) && !round.writes.contains_key(&WriteKind::SignedHash) {
        effects.push(Effect::SignHash { round: round.id, model_hash: model.model_hash });
    }
    // The slot holds one commitment: the reveal must not overtake the signature.
    let signed = round.writes.get(&WriteKind::SignedHash);
    let signed = signed.is_some_and(|write| write.status.state.is_terminal());
    if started(Phase::ValidatorCommit2) && signed {
        if !round.writes.contains_key(&WriteKind::ModelHash) {
            let commitment = validator_commitment(&model, group, None);
            round.add_write(WriteKind::ModelHash, commitment, block, effects);
        }
        if !round.weights.is_empty() && !round.writes.contains_key(&WriteKind::Weights) {
            hold_weights(round, block, policy);
        }
        if !round.weights.is_empty() && !round.writes.contains_key(&WriteKind::Weights) {
            let payload = match round.weights_origin {
                WeightsOrigin::StaleGuard => Payload::StaleWeights(round.weights.clone()),
                WeightsOrigin::Earned | WeightsOrigin::None => {
                    Payload::Weights(round.weights.clone())
                }
            };
            round.add_payload(WriteKind::Weights, payload, effects);
        }
    }
}

fn has(degradations: &[Degradation], kind: DegradationKind) -> bool {
    degradations.iter().any(|degradation| degradation.kind == kind)
}

fn validator_commitment(
    model: &ModelRef,
    group: ExpertGroup,
    seed: Option<u64>,
) -> Result<String, CommitmentError> {
    let commitment = ValidatorCommitment {
        model_hash: Some(model.model_hash),
        version: Some(model.global_version),
        group: Some(group),
        seed,
        repo: None,
        revision: None,
    };
    commitment.to_json()
}

impl Round {
    /// Adds the write of a commitment; one that cannot be written counts as failed at once.
    fn add_write(
        &mut self,
        kind: WriteKind,
        commitment: Result<String, CommitmentError>,
        block: BlockNumber,
        effects: &mut Vec<Effect>,
    ) {
        match commitment {
            Ok(json) => self.add_payload(kind, Payload::Commitment(json.into_bytes()), effects),
            Err(error) => {
                let reason = format!("commitment: {error}");
                let detail = format!("{}: {reason}", kind.as_str());
                self.degrade(DegradationKind::WriteFailed, detail, block);
                let status =
                    WriteStatus { state: WriteState::Failed, reason, ..WriteStatus::pending() };
                self.writes.insert(kind, Write { payload: Payload::Commitment(vec![]), status });
            }
        }
    }

    fn add_payload(&mut self, kind: WriteKind, payload: Payload, effects: &mut Vec<Effect>) {
        let status = WriteStatus::pending();
        self.writes.insert(kind, Write { payload: payload.clone(), status });
        effects.push(Effect::Write { round: self.id, kind, payload });
    }
}

/// Whether the round's model hash is on the chain for good.
pub(super) fn revealed(round: &Round) -> bool {
    let write = round.writes.get(&WriteKind::ModelHash);
    write.is_some_and(|write| write.status.state == WriteState::Done)
}

pub(super) fn on_signed(
    state: &mut State,
    id: RoundId,
    signature: &str,
) -> Result<Reply, Rejection> {
    let block = state.block;
    let round = state.open_round(id)?;
    if round.writes.contains_key(&WriteKind::SignedHash) {
        return Ok(Reply::Ignored);
    }
    let mut effects = Vec::new();
    let commitment = SignedHashCommitment { signature: Some(signature.to_owned()) };
    round.add_write(WriteKind::SignedHash, commitment.to_json(), block, &mut effects);
    state.effects.remove(&format!("{id}/sign_hash"));
    for effect in effects {
        state.effects.entry(effect.id()).or_insert(effect);
    }
    Ok(Reply::Applied)
}

pub(super) fn on_written(
    state: &mut State,
    id: RoundId,
    kind: WriteKind,
    status: WriteStatus,
) -> Result<Reply, Rejection> {
    let block = state.block;
    let effect = write_id(id, kind);
    let round = state.open_round(id)?;
    let Some(write) = round.writes.get_mut(&kind) else { return Ok(Reply::Ignored) };
    if write.status == status || write.status.state.is_terminal() {
        return Ok(Reply::Ignored);
    }
    write.status = status.clone();
    if status.state == WriteState::Failed {
        let detail = format!("{}: {}", kind.as_str(), status.reason);
        round.degrade(DegradationKind::WriteFailed, detail, block);
    }
    if status.state.is_terminal() {
        state.effects.remove(&effect);
    }
    Ok(Reply::Applied)
}
