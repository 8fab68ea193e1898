//! What goes into the machine and what comes out of it.

use serde::{Deserialize, Serialize};

use super::{
    Cause, DegradationKind, Finished, FreezeInputs, JobGrant, LeftOut, MergeOutcome, MergePlan,
    ModelRef, Payload, Record, ResyncPlan, Reveals, Submission, WriteKind, WriteStatus, resync,
};
use crate::{BlockHash, BlockNumber, CycleIndex, Hotkey, ModelHash, Rival, RoundId};

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
    /// Blocks were taken back.
    Reorganised {
        /// Newest block that stays.
        ancestor: BlockNumber,
        /// Its hash.
        ancestor_hash: BlockHash,
        /// Newest block that was taken back.
        abandoned: BlockNumber,
    },
    /// The chain service told that something did not go the normal way.
    Degraded {
        /// What.
        kind: DegradationKind,
        /// What happened, to what.
        detail: String,
        /// Block at which it was noticed.
        block: BlockNumber,
    },
    /// The inputs of a round could not be read; it is tried again.
    Held {
        /// Which round.
        round: RoundId,
        /// Why.
        why: String,
    },
    /// The inputs of a round were read.
    Frozen {
        /// Which round.
        round: RoundId,
        /// The branch for which they were asked: [`Effect::Freeze`]'s.
        branch: u64,
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
    /// What the validators have revealed at the end of a cycle was read.
    Revealed {
        /// Which cycle.
        cycle: CycleIndex,
        /// The look for which it was read: [`Effect::Reveals`]'s.
        asked: u64,
        /// What was read.
        reveals: Box<Reveals>,
    },
    /// The stake majority's model is here.
    Resynced {
        /// Cycle in which it was revealed.
        cycle: CycleIndex,
        /// The model.
        model: ModelRef,
        /// Validators that gave bytes that were not what they had signed.
        blamed: Vec<LeftOut>,
    },
    /// What was revealed could not be read, or the model not be fetched; it is tried again.
    ResyncFailed {
        /// Which cycle.
        cycle: CycleIndex,
        /// Why.
        cause: Cause,
        /// Validators that gave bytes that were not what they had signed.
        blamed: Vec<LeftOut>,
    },
    /// A validator without a model was given its first one.
    ModelFound {
        /// The model.
        model: ModelRef,
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
        /// [`super::Round::branch`] when it was asked for.
        #[serde(default)]
        branch: u64,
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
    /// Read what the validators have revealed at the end of a cycle, answer with
    /// [`Event::Revealed`].
    Reveals {
        /// Which cycle.
        cycle: CycleIndex,
        /// Names this look.
        asked: u64,
        /// Trace context.
        traceparent: String,
    },
    /// Have a model fetched from other validators, answer with [`Event::Resynced`].
    Resync(ResyncPlan),
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
            Self::Reveals { cycle, .. } => resync::reveals_id(*cycle),
            Self::Resync(plan) => resync::resync_id(plan.cycle),
        }
    }
}

/// Name of the effect that carries a write out.
pub(super) fn write_id(round: RoundId, kind: WriteKind) -> String {
    format!("{round}/write/{}", kind.as_str())
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
    /// The answer to [`Event::Renew`]: what the submission must beat now, where there is such a one.
    Renewed(Option<Box<Rival>>),
}

/// Why an event was not taken in. The state is unchanged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    #[error("round {asked} is not the open round")]
    NotThisRound { asked: RoundId },
    #[error("the inputs of round {round} are of a branch that was abandoned")]
    OtherBranch { round: RoundId },
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
