//! How a merge ended: the outcome as a type, its reasons as data, and the file that keeps both.

use domain::{BlockHash, Hotkey, RoundId};
use merge::{Part, Proof, Terms};
use serde::{Deserialize, Serialize};
use store::ArtifactError;

use crate::{plan::Model, reduction::Influence};

/// How a merge ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// Several validators made the same model.
    Merged,
    /// This validator made one alone.
    Solo,
    /// The model stays the base.
    #[default]
    Failed,
}

impl Outcome {
    /// The word in statuses and metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Merged => "merged",
            Self::Solo => "solo",
            Self::Failed => "failed",
        }
    }
}

/// A validator or a miner that is not in the result, or is to blame, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LeftOut {
    /// Its hotkey.
    pub(crate) hotkey: Hotkey,
    /// Stable snake_case reason.
    pub(crate) reason: String,
    /// What happened, for a person.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) detail: String,
}

/// What members agreed on: kept before the new model is written, so that a restart need not agree
/// again (`rounds/<round>/reduced.json`), and part of the report.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Reduced {
    /// How it will have ended.
    pub(crate) outcome: Outcome,
    /// Hotkeys whose gradient is in the result, ascending.
    pub(crate) members: Vec<Hotkey>,
    /// Every validator that took part, ascending: those that gave no gradient too.
    pub(crate) participants: Vec<Hotkey>,
    /// Who signed the end, ascending.
    #[serde(default)]
    pub(crate) signers: Vec<Hotkey>,
    /// Digest of the reduced pseudo-gradient, hex; empty without one.
    pub(crate) digest: String,
    /// The slices that it was put together from.
    #[serde(default)]
    pub(crate) parts: Vec<Part>,
    /// Validators of the round whose gradient is not in the result.
    #[serde(default)]
    pub(crate) dropped: Vec<LeftOut>,
    /// Miners whose file is not in the local pseudo-gradient.
    pub(crate) skipped: Vec<LeftOut>,
    /// What each contributor did to the result.
    #[serde(default)]
    pub(crate) influence: Vec<Influence>,
    /// What shows that a member broke the rules, for anybody to check.
    #[serde(default)]
    pub(crate) proofs: Vec<Proof>,
}

impl Reduced {
    /// Name of the file among the round's.
    pub(crate) const FILE: &str = "reduced.json";
}

/// How the merge of a round ended: `rounds/<round>/merge.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// The round.
    pub(crate) round: RoundId,
    /// The block at which the round was frozen.
    pub(crate) block_hash: BlockHash,
    /// Stable reason of a failure; empty otherwise.
    pub(crate) reason: String,
    /// Why it failed; empty otherwise.
    pub(crate) why: String,
    /// What was offered to the others; left out where it did not come to that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) terms: Option<Terms>,
    /// The model after the round: the base when the merge failed.
    pub(crate) model: Model,
    /// What was agreed, as far as it came.
    #[serde(flatten)]
    pub(crate) reduced: Reduced,
}

impl Report {
    /// Name of the file among the round's.
    pub(crate) const FILE: &str = "merge.json";

    /// How it ended.
    pub(crate) fn outcome(&self) -> Outcome {
        self.reduced.outcome
    }

    /// Members that broke the rules.
    pub(crate) fn blamed(&self) -> Vec<LeftOut> {
        let blame = |proof: &Proof| LeftOut {
            hotkey: proof.against().clone(),
            reason: proof.reason().to_owned(),
            detail: String::new(),
        };
        let mut blamed: Vec<LeftOut> = self.reduced.proofs.iter().map(blame).collect();
        blamed.sort_by(|a, b| (&a.hotkey, &a.reason).cmp(&(&b.hotkey, &b.reason)));
        blamed.dedup();
        blamed
    }

    /// Why it failed and which submissions are not in it, for a person. Validators are named apart.
    pub(crate) fn detail(&self) -> String {
        let skipped: Vec<String> = self.reduced.skipped.iter().map(in_words).collect();
        match (self.why.as_str(), skipped.as_slice()) {
            (why, []) => why.to_owned(),
            ("", some) => format!("submissions skipped: {}", some.join(", ")),
            (why, some) => format!("{why}; submissions skipped: {}", some.join(", ")),
        }
    }
}

fn in_words(one: &LeftOut) -> String {
    match one.detail.is_empty() {
        true => format!("{} ({})", one.hotkey, one.reason),
        false => format!("{} ({}: {})", one.hotkey, one.reason, one.detail),
    }
}

/// Why a merge did not end in a new model.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Merge(#[from] merge::Failure),
    #[error("another service of this validator has taken the merge over")]
    TakenOver,
    #[error("the service is stopping")]
    Stopping,
    #[error("the base model cannot be used: {0}")]
    Base(String),
    #[error("the artifact store failed: {0}")]
    Store(#[from] ArtifactError),
    #[error("the state store failed: {0}")]
    Keep(#[from] crate::keep::KeepError),
    #[error("adding up the submissions failed: {0}")]
    Aggregate(String),
    #[error("a file of the round could not be kept: {0}")]
    Scratch(String),
    #[error("writing the new model failed: {0}")]
    Write(String),
    #[error("what an earlier run left is unreadable: {0}")]
    Resume(String),
}

impl Failure {
    /// Stable snake_case name of the reason.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Merge(failure) => failure.reason(),
            Self::TakenOver => "taken_over",
            Self::Stopping => "stopping",
            Self::Base(_) => "base_unusable",
            Self::Store(_) => "store_failed",
            Self::Keep(_) => "state_store_failed",
            Self::Aggregate(_) => "aggregation_failed",
            Self::Scratch(_) => "scratch_failed",
            Self::Write(_) => "write_failed",
            Self::Resume(_) => "unreadable",
        }
    }

    /// Whether the same may work a little later.
    pub(crate) fn passes(&self) -> bool {
        match self {
            Self::Store(ArtifactError::Engine { .. }) => true,
            Self::Keep(error) => !error.is_lost(),
            Self::Merge(_)
            | Self::TakenOver
            | Self::Stopping
            | Self::Base(_)
            | Self::Store(_)
            | Self::Aggregate(_)
            | Self::Scratch(_)
            | Self::Write(_)
            | Self::Resume(_) => false,
        }
    }
}
