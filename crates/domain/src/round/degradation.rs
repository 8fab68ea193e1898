//! What did not go the normal way.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Round;
use crate::BlockNumber;

/// Longest text from outside that is kept, in characters.
const MAX_DETAIL: usize = 500;

/// Something that did not go the normal way. Nothing falls back silently.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Degradation {
    /// Stable kind.
    pub kind: DegradationKind,
    /// What happened, to what.
    pub detail: String,
    /// Block at which it was noticed.
    pub block: BlockNumber,
}

/// A word that is no kind of degradation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a kind of degradation")]
pub struct UnknownDegradation(pub String);

macro_rules! told_by {
    (chain) => {
        true
    };
    (round) => {
        false
    };
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $text:literal $by:ident,)*) => {
        /// Kinds of [`Degradation`].
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(rename_all = "snake_case")]
        pub enum DegradationKind {
            $($(#[$doc])* $name,)*
        }

        impl DegradationKind {
            /// Every kind there is.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The stable, snake_case name.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }

            /// Whether it is for the chain service to tell. The others are the round's own: some of
            /// them decide what it does.
            pub fn is_chains(self) -> bool {
                match self {
                    $(Self::$name => told_by!($by),)*
                }
            }
        }
    };
}

kinds! {
    /// The scheduler came too late to publish its seed.
    LateStart = "late_start" round,
    /// The scheduler came too late to take part in the round at all.
    RoundMissed = "round_missed" round,
    /// The inputs could not be read from the chain in time.
    FreezeFailed = "freeze_failed" round,
    /// This validator is not registered, or does not count as a validator.
    NotAValidator = "not_a_validator" round,
    /// No validator has published a seed: there is nothing to draw batches from, and no round.
    NoSeeds = "no_seeds" round,
    /// A submission was not evaluated: the validator's fault, nothing is written for its miner.
    NotEvaluated = "not_evaluated" round,
    /// A worker lost its lease and the job was given out again.
    JobRetried = "job_retried" round,
    /// A job failed on every worker that tried it.
    JobFailed = "job_failed" round,
    /// A worker measured on other batches than the round's.
    BatchesDiffer = "batches_differ" round,
    /// The merge did not end in time, or failed: the model stays as it was.
    MergeFailed = "merge_failed" round,
    /// A validator that should have been in the merge was not, or somebody's file was not.
    MergePartial = "merge_partial" round,
    /// Another validator was shown to have broken the rules.
    PeerBlamed = "peer_blamed" round,
    /// The stake majority has another model, and it could not be had before the round.
    BehindMajority = "behind_majority" round,
    /// This validator had another model than the stake majority, and has that one now.
    Resynced = "resynced" round,
    /// Which model the stake majority has is not known: none has it, or it could not be read.
    MajorityUnknown = "majority_unknown" round,
    /// Nobody earned a weight in this round.
    NoWeights = "no_weights" round,
    /// Weights of the stale guard instead of the round's own.
    StaleGuard = "stale_guard" round,
    /// Weights were held back by policy.
    WeightsHeld = "weights_held" round,
    /// A write to the chain failed for good.
    WriteFailed = "write_failed" round,
    /// The round ended with something left undone.
    Unfinished = "unfinished" round,
    /// The block at which the inputs were frozen was taken back afterwards.
    Reorganised = "reorganised" round,
    /// Another node of the chain is asked than before.
    EndpointSwitched = "endpoint_switched" chain,
    /// Nodes of the chain say different things of one block.
    EndpointDisagrees = "endpoint_disagrees" chain,
    /// Nodes of the chain did not agree, and policy took the best-ranked one's word.
    NoQuorum = "no_quorum" chain,
    /// A snapshot was missed, and an archive node had to be asked.
    ArchiveUsed = "archive_used" chain,
    /// Weights that were committed could not be revealed.
    RevealSkipped = "reveal_skipped" chain,
    /// The chain's runtime lacks something that is used.
    RuntimeLacks = "runtime_lacks" chain,
    /// A block that was final is not on the chain any more.
    FinalityBroken = "finality_broken" chain,
    /// The scheduler was away for longer than what has happened since is told: whether one of the
    /// blocks that it has seen was taken back is, and nothing else.
    BlocksSkipped = "blocks_skipped" chain,
    /// Anything else that the chain service tells: the detail begins with its word for it.
    ChainDegraded = "chain_degraded" chain,
}

impl FromStr for DegradationKind {
    type Err = UnknownDegradation;

    fn from_str(text: &str) -> Result<Self, UnknownDegradation> {
        let known = Self::ALL.iter().copied().find(|kind| kind.as_str() == text);
        known.ok_or_else(|| UnknownDegradation(text.chars().take(64).collect()))
    }
}

impl Degradation {
    /// What the chain service told, by its own word. One that is not the chain's to tell becomes
    /// [`DegradationKind::ChainDegraded`].
    pub fn from_chain(kind: &str, detail: &str, block: BlockNumber) -> Self {
        match kind.parse::<DegradationKind>() {
            Ok(kind) if kind.is_chains() => Self { kind, detail: bounded(detail), block },
            Ok(_) | Err(_) => {
                let detail = bounded(&format!("{kind}: {detail}"));
                Self { kind: DegradationKind::ChainDegraded, detail, block }
            }
        }
    }
}

/// As much of a text from outside as is kept.
pub(super) fn bounded(text: &str) -> String {
    match text.char_indices().nth(MAX_DETAIL) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
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
