//! The rules of the network: values and pure functions, no I/O, no clock, no runtime.

mod assignment;
mod cohorts;
mod commitments;
mod duplicates;
mod early_stop;
mod history;
mod ids;
mod join;
mod majority;
mod messages;
mod metagraph;
mod paired;
mod reason;
mod round;
mod schedule;
mod score;
mod sketch;
mod weights;

pub use assignment::{
    assign, combined_seed, evaluation_seed, foreground_cut, h256, rank_by_incentive,
};
pub use cohorts::{CohortConfig, CohortValidator, Cohorts, Tally, background, cohorts, tally};
pub use commitments::{
    CommitmentError, CommitmentKind, MAX_COMMITMENT_BYTES, MinerCommitment, SignedHashCommitment,
    ValidatorCommitment,
};
pub use duplicates::{Compared, DuplicateGroup, DuplicatePolicy, Keep, duplicates};
pub use early_stop::Rival;
pub use history::{HISTORY_ROUNDS, History, MinerHistory, ScoreRecord};
pub use ids::{
    BlockHash, BlockNumber, CombinedSeed, CycleIndex, ExpertGroup, GlobalVersion, Hotkey,
    ModelHash, NetUid, ParseIdError, RoundId, Seed, Uid,
};
pub use join::{
    Checkpoint, Garbage, Joined, Slots, Unusable, ValidatorSet, VersionWindow, authoritative,
    join_miners, join_validators, round_validators, validator_seeds,
};
pub use majority::{Backed, Holder, most_backed};
pub use messages::{block_message, model_hash_message, submission_message};
pub use metagraph::{Metagraph, Neuron, WeightRow};
pub use paired::{Improvement, MeasuredOn, OwnData};
pub use reason::{Reason, UnknownReason};
pub use round::{
    Baseline, Cause, Committed, Degradation, DegradationKind, EarlyStop, Effect, Event, Finished,
    FreezeInputs, Frozen, FrozenValidator, HubPlace, Influence, Job, JobGrant, JobKind, JobState,
    LeftOut, Measured, MergeFailure, MergeOutcome, MergePlan, MergeResult, Miner, MinerRecord,
    ModelRef, OwnDataPolicy, OwnMeasured, Payload, Policy, PolicyError, RawCommitment, Record,
    Rejection, Reply, Resync, ResyncPlan, ResyncStage, Reveals, Round, Stage, State, Submission,
    Terms, UnknownDegradation, Verdict, WeightPolicy, WeightsOrigin, Write, WriteKind, WriteState,
    WriteStatus, apply,
};
pub use schedule::{
    NextOccurrence, Phase, PhaseRecord, PhaseTable, PreviousOccurrence, Schedule, ScheduleError,
};
pub use score::{
    Comparison, Judgement, RANK_SCORES, RoundScores, ScoreError, compare, delta, mean, rank_round,
    raw_score,
};
pub use sketch::Sketch;
pub use weights::{
    BURN_UID, Fallback, TopK, TwoGroups, WeightGroups, Weights, averages, fallback, is_stale,
    share_out, to_u16,
};
