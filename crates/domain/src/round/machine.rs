//! Events in, state and effects out.

use serde::{Deserialize, Serialize};

use super::{
    Cause, Degradation, DegradationKind, Finished, FreezeInputs, JobGrant, JobKind, MergeOutcome,
    ModelRef, Payload, Policy, Record, Round, Stage, State, Submission, WriteKind, WriteStatus,
    finalise, freeze, jobs, writes,
};
use crate::{BlockHash, BlockNumber, GlobalVersion, Hotkey, ModelHash, Phase, RoundId};

/// Something that has happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A block arrived. `entropy` and `traceparent` are used when a round opens on it.
    Block {
        /// Height.
        number: BlockNumber,
        /// Hash of the header.
        hash: BlockHash,
        /// A fresh random number.
        entropy: u64,
        /// A fresh trace context.
        traceparent: String,
    },
    /// The inputs of a round were read.
    Frozen {
        /// Which round.
        round: RoundId,
        /// What was read.
        inputs: Box<FreezeInputs>,
    },
    /// The gateway stored a verified submission.
    Stored {
        /// Which round.
        round: RoundId,
        /// The file.
        submission: Submission,
    },
    /// The gateway refused an upload.
    Refused {
        /// Which round.
        round: RoundId,
        /// Whose.
        hotkey: Hotkey,
        /// Why.
        cause: Cause,
    },
    /// A worker asks for a job.
    Lease {
        /// Its name.
        worker: String,
    },
    /// A worker still works on its job.
    Renew {
        /// Name of the job.
        job: String,
        /// Token of its lease.
        fence: u64,
    },
    /// A worker is done with its job.
    Finish {
        /// Name of the job.
        job: String,
        /// Token of its lease.
        fence: u64,
        /// What came out.
        result: Finished,
    },
    /// The merge of a round is over.
    Merged {
        /// Which round.
        round: RoundId,
        /// How it ended.
        outcome: MergeOutcome,
    },
    /// The chain service signed the hash of the round's model.
    HashSigned {
        /// Which round.
        round: RoundId,
        /// URL-safe base64 without padding.
        signature: String,
    },
    /// A write to the chain has got somewhere.
    Written {
        /// Which round.
        round: RoundId,
        /// Which write.
        kind: WriteKind,
        /// Where it stands.
        status: WriteStatus,
    },
    /// An effect without a result of its own is done.
    EffectDone {
        /// Its name.
        effect: String,
    },
}

/// Work outside, to be done at least once, by name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// Read the inputs of a round as of `block`, answer with [`Event::Frozen`].
    Freeze {
        /// Which round.
        round: RoundId,
        /// Its first block of Submission.
        block: BlockNumber,
    },
    /// Have the merge done, answer with [`Event::Merged`].
    Merge(MergePlan),
    /// Have a model hash signed, answer with [`Event::HashSigned`].
    SignHash {
        /// Which round.
        round: RoundId,
        /// What to sign.
        model_hash: ModelHash,
    },
    /// Write the round's payload of this kind, answer with [`Event::Written`].
    Write {
        /// Which round.
        round: RoundId,
        /// Which write.
        kind: WriteKind,
        /// What.
        payload: Payload,
    },
    /// Sign and store the record of a round.
    Record(Box<Record>),
}

impl Effect {
    /// Its name: the same work has the same name.
    pub fn id(&self) -> String {
        match self {
            Self::Freeze { round, .. } => format!("{round}/freeze"),
            Self::Merge(plan) => format!("{}/merge", plan.round),
            Self::SignHash { round, .. } => format!("{round}/sign_hash"),
            Self::Write { round, kind, .. } => write_id(*round, *kind),
            Self::Record(record) => format!("{}/record", record.round),
        }
    }
}

/// Name of the effect that carries a write out.
pub(super) fn write_id(round: RoundId, kind: WriteKind) -> String {
    format!("{round}/write/{}", kind.as_str())
}

/// What the peer service needs to know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MergePlan {
    /// Which round.
    pub round: RoundId,
    /// The model that the pseudo-gradients are relative to.
    pub base: ModelRef,
    /// Version of the model to be made.
    pub new_version: GlobalVersion,
    /// Files that go in, with their share.
    pub contributions: Vec<(Submission, f64)>,
    /// The other validators and their addresses.
    pub validators: Vec<(Hotkey, String)>,
    /// First block at which it is too late.
    pub until: BlockNumber,
}

/// What an event gets back.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// Taken in.
    Applied,
    /// Nothing new: the event was known, or is of no consequence any more.
    Ignored,
    /// The answer to [`Event::Lease`].
    Granted(Option<Box<JobGrant>>),
}

/// Why an event was not taken in. The state is unchanged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    #[error("round {asked} is not the open round")]
    NotThisRound { asked: RoundId },
    #[error("{hotkey} is not on the roster of round {round}")]
    NotOnRoster { hotkey: Hotkey, round: RoundId },
    #[error("{hotkey} has another submission in round {round} already")]
    AlreadySubmitted { hotkey: Hotkey, round: RoundId },
    #[error("round {round} takes no submissions any more")]
    UploadsClosed { round: RoundId },
    #[error("the lease on job `{job}` is lost")]
    LeaseLost { job: String },
    #[error("the result of job `{job}` is unusable: {why}")]
    BadResult { job: String, why: String },
}

/// Takes `event` in.
///
/// On a [`Rejection`] the state is as it was. The driver saves the state before it runs any effect
/// and before it answers whoever sent the event.
pub fn apply(state: &mut State, event: Event, policy: &Policy) -> Result<Reply, Rejection> {
    let reply = match event {
        Event::Block { number, hash: _, entropy, traceparent } => {
            on_block(state, number, entropy, traceparent, policy)
        }
        Event::Frozen { round, inputs } => on_frozen(state, round, *inputs, policy),
        Event::Stored { round, submission } => jobs::on_stored(state, round, submission, policy),
        Event::Refused { round, hotkey, cause } => jobs::on_refused(state, round, hotkey, cause),
        Event::Lease { worker } => Ok(jobs::on_lease(state, worker, policy)),
        Event::Renew { job, fence } => jobs::on_renew(state, &job, fence, policy),
        Event::Finish { job, fence, result } => jobs::on_finish(state, job, fence, result, policy),
        Event::Merged { round, outcome } => on_merged(state, round, outcome),
        Event::HashSigned { round, signature } => writes::on_signed(state, round, &signature),
        Event::Written { round, kind, status } => writes::on_written(state, round, kind, status),
        Event::EffectDone { effect } => Ok(match state.effects.remove(&effect) {
            Some(_) => Reply::Applied,
            None => Reply::Ignored,
        }),
    }?;
    if reply != Reply::Ignored && reply != Reply::Granted(None) {
        progress(state, policy);
        state.revision += 1;
    }
    Ok(reply)
}

fn on_block(
    state: &mut State,
    number: BlockNumber,
    entropy: u64,
    traceparent: String,
    policy: &Policy,
) -> Result<Reply, Rejection> {
    let first = state.revision == 0;
    if number <= state.block && !first {
        return Ok(Reply::Ignored);
    }
    state.block = number;
    let at = policy.schedule.phase_at(number);
    let (phase, cycle) = (at.phase_name, at.cycle_index);
    let id = policy.schedule.round_id(cycle);
    let newest = state.round.as_ref().map(|round| round.id);
    if phase >= Phase::MinerCommit1 && newest.is_none_or(|newest| newest < id) {
        close(state, policy);
        let missed = phase > Phase::Submission;
        let late = phase > Phase::MinerCommit1;
        let mut round = Round {
            id,
            cycle,
            stage: if missed { Stage::Committing } else { Stage::Open },
            traceparent,
            own_seed: entropy,
            base: state.base.clone(),
            history_before: state.history.clone(),
            frozen: None,
            miners: Default::default(),
            jobs: Default::default(),
            baseline: None,
            held_out_after: None,
            merge: None,
            weights: Vec::new(),
            writes: Default::default(),
            degradations: Vec::new(),
        };
        if missed {
            let detail = format!("came in {phase} of cycle {cycle}: nothing to do in it");
            round.degrade(DegradationKind::RoundMissed, detail, number);
        } else if late {
            let detail = format!("came in {phase}: no seed published");
            round.degrade(DegradationKind::LateStart, detail, number);
        }
        state.round = Some(round);
    }
    if let Some(round) = &mut state.round {
        jobs::expire(round, number, policy);
    }
    Ok(Reply::Applied)
}

fn on_frozen(
    state: &mut State,
    id: RoundId,
    inputs: FreezeInputs,
    policy: &Policy,
) -> Result<Reply, Rejection> {
    let (me, group) = (state.hotkey.clone(), state.expert_group);
    let (history, previous) = (state.history.clone(), state.last_weights.clone());
    let round = state.open_round(id)?;
    if round.stage != Stage::Open {
        return Ok(Reply::Ignored);
    }
    freeze::freeze(round, &me, group, &history, &previous, inputs, policy);
    round.stage = Stage::Evaluating;
    round.add_job(JobKind::Baseline);
    let frozen = round.frozen.as_ref();
    state.validators =
        frozen.map(|f| f.validators.iter().map(|v| v.hotkey.clone()).collect()).unwrap_or_default();
    state.effects.remove(&format!("{id}/freeze"));
    Ok(Reply::Applied)
}

fn on_merged(state: &mut State, id: RoundId, outcome: MergeOutcome) -> Result<Reply, Rejection> {
    let block = state.block;
    let round = state.open_round(id)?;
    if round.merge.is_some() || round.stage != Stage::Merging {
        return Ok(Reply::Ignored);
    }
    match &outcome {
        MergeOutcome::Failed { why } => {
            round.degrade(DegradationKind::MergeFailed, why.clone(), block);
        }
        MergeOutcome::Merged(result) | MergeOutcome::Solo(result) => {
            if !result.detail.is_empty() {
                round.degrade(DegradationKind::MergePartial, result.detail.clone(), block);
            }
            round.add_job(JobKind::HeldOut);
        }
    }
    round.merge = Some(outcome);
    round.stage = Stage::Committing;
    state.effects.remove(&format!("{id}/merge"));
    Ok(Reply::Applied)
}

/// Does whatever has become due: called after every change.
fn progress(state: &mut State, policy: &Policy) {
    let block = state.block;
    let Some(round) = &mut state.round else { return };
    let cycle = round.cycle;
    let phases = |phase| policy.schedule.phase_range(cycle, phase);
    let started = |phase| block >= phases(phase).0;
    let mut effects = Vec::new();

    if round.stage == Stage::Open && started(Phase::Submission) {
        effects.push(Effect::Freeze { round: round.id, block: BlockNumber(round.id.0) });
    }
    if round.stage == Stage::Open && started(Phase::Merge) {
        let detail = "the inputs of the round could not be read before Merge".to_owned();
        round.degrade(DegradationKind::FreezeFailed, detail, block);
        round.stage = Stage::Committing;
        state.effects.remove(&format!("{}/freeze", round.id));
        effects.clear();
    }
    if round.stage == Stage::Evaluating && started(Phase::Merge) {
        finalise::finalise(round, &mut state.history, &mut state.last_weights, block, policy);
        let until = phases(Phase::ValidatorCommit1).1;
        effects.push(Effect::Merge(finalise::merge_plan(round, &state.hotkey, until, policy)));
        round.stage = Stage::Merging;
    }
    if round.stage == Stage::Merging && started(Phase::ValidatorCommit2) {
        let why = "the merge did not end before ValidatorCommit2".to_owned();
        round.degrade(DegradationKind::MergeFailed, why.clone(), block);
        round.merge = Some(MergeOutcome::Failed { why });
        round.stage = Stage::Committing;
        state.effects.remove(&format!("{}/merge", round.id));
    }
    writes::due(round, state.expert_group, &state.base, block, policy, &mut effects);
    for effect in effects {
        state.effects.entry(effect.id()).or_insert(effect);
    }
    if writes::revealed(round)
        && let Some(model) = round.merge.as_ref().and_then(MergeOutcome::model)
    {
        state.base = model.clone();
    }
    if round.stage == Stage::Committing && started(Phase::ValidatorCommit2) && is_finished(round) {
        close(state, policy);
    }
}

fn is_finished(round: &Round) -> bool {
    let missed = round.degradations.iter().any(|d| d.kind == DegradationKind::RoundMissed);
    let written = |kind| {
        round.writes.get(&kind).is_some_and(|write: &super::Write| write.status.state.is_terminal())
    };
    let weights = round.weights.is_empty() || written(WriteKind::Weights);
    missed || (written(WriteKind::ModelHash) && weights && round.jobs_are_over())
}

/// Ends the round, finished or not, and has its record written.
fn close(state: &mut State, policy: &Policy) {
    let block = state.block;
    let Some(round) = &mut state.round else { return };
    if round.stage == Stage::Closed {
        return;
    }
    let mut left = Vec::new();
    state.effects.retain(|id, effect| {
        let keep = matches!(effect, Effect::Record(_));
        if !keep {
            left.push(id.clone());
        }
        keep
    });
    if !left.is_empty() {
        round.degrade(
            DegradationKind::Unfinished,
            format!("left undone: {}", left.join(", ")),
            block,
        );
    }
    if let Some(model) = round.merge.as_ref().and_then(MergeOutcome::model) {
        state.base = model.clone();
    }
    round.stage = Stage::Closed;
    let record =
        Effect::Record(Box::new(Record::of(round, &state.hotkey, &state.history, policy, block)));
    state.effects.insert(record.id(), record);
}

impl Round {
    /// Notes that something did not go the normal way; once per kind and detail.
    pub(super) fn degrade(&mut self, kind: DegradationKind, detail: String, block: BlockNumber) {
        let known = self.degradations.iter().any(|d| d.kind == kind && d.detail == detail);
        if !known {
            self.degradations.push(Degradation { kind, detail, block });
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
