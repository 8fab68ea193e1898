//! The round as a state machine: an event goes in, the new state and the work to be done come out.
//!
//! [`State`] is everything that must survive a crash; [`apply`] is the only thing that changes it.
//! It is pure: blocks are its clock, and chance comes in with the events. Work outside is named by
//! [`Effect`]s, which are part of the state until an event says that they are done: so the driver
//! saves the state first, runs the effects after, and runs them again after a crash. Effects are
//! idempotent by name.
//!
//! It does not know how anything is read, written, sent or evaluated.

mod chain;
mod degradation;
mod events;
mod finalise;
mod freeze;
mod jobs;
mod machine;
mod merge;
mod policy;
mod ranking;
mod record;
mod results;
mod resync;
mod reveals;
mod state;
#[cfg(test)]
mod tests;
mod writes;

pub use degradation::{Degradation, DegradationKind, UnknownDegradation};
pub use events::{Effect, Event, Rejection, Reply};
pub use freeze::{FreezeInputs, Frozen, FrozenValidator, RawCommitment};
pub use jobs::JobGrant;
pub use machine::apply;
pub use merge::{Influence, LeftOut, MergeFailure, MergeOutcome, MergePlan, MergeResult};
pub use policy::{EarlyStop, OwnDataPolicy, Policy, PolicyError, Terms, WeightPolicy};
pub use record::{MinerRecord, Record};
pub use results::{Finished, Measured};
pub use resync::{Resync, ResyncPlan, ResyncStage};
pub use reveals::Reveals;
pub use state::{
    Baseline, Cause, Committed, HubPlace, Job, JobKind, JobState, Miner, ModelRef, OwnMeasured,
    Round, Stage, State, Submission, Verdict,
};
pub use writes::{Payload, WeightsOrigin, Write, WriteKind, WriteState, WriteStatus};
