//! How a merge ended: the outcome as a type, its reasons as data, and the file that keeps both.

use domain::{Hotkey, RoundId};
use serde::{Deserialize, Serialize};
use store::ArtifactError;

use crate::plan::Model;

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

/// A validator or a miner that is not in the result, and why.
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

/// A slice of the reduced vector, and who answers for its bits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SliceDigest {
    /// The member that reduced it.
    pub(crate) owner: Hotkey,
    /// BLAKE3 of its bytes, hex.
    pub(crate) digest: String,
}

/// How the merge of a round ended: `rounds/<round>/merge.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// The round.
    pub(crate) round: RoundId,
    /// How it ended.
    pub(crate) outcome: Outcome,
    /// Why it failed; empty otherwise.
    pub(crate) why: String,
    /// Hotkeys whose gradient is in the result, ascending.
    pub(crate) members: Vec<Hotkey>,
    /// Every validator that took part, ascending: those that gave no gradient too.
    pub(crate) participants: Vec<Hotkey>,
    /// BLAKE3 of the reduced pseudo-gradient, hex; empty without one.
    pub(crate) digest: String,
    /// The slices that it was put together from.
    pub(crate) slices: Vec<SliceDigest>,
    /// The model after the round: the base when the merge failed.
    pub(crate) model: Model,
    /// Validators of the round that did not take part.
    pub(crate) missing: Vec<LeftOut>,
    /// Members whose gradient this validator could not take into its slice.
    pub(crate) dropped: Vec<LeftOut>,
    /// Miners whose file is not in the local pseudo-gradient.
    pub(crate) skipped: Vec<LeftOut>,
}

impl Report {
    /// Name of the file among the round's.
    pub(crate) const FILE: &str = "merge.json";

    /// Why it failed and whom it left out, for a person.
    pub(crate) fn detail(&self) -> String {
        let mut parts = Vec::new();
        if !self.why.is_empty() {
            parts.push(self.why.clone());
        }
        for (what, left_out) in [
            ("validators missing", &self.missing),
            ("gradients dropped", &self.dropped),
            ("submissions skipped", &self.skipped),
        ] {
            if !left_out.is_empty() {
                let named: Vec<String> =
                    left_out.iter().map(|one| format!("{} ({})", one.hotkey, one.reason)).collect();
                parts.push(format!("{what}: {}", named.join(", ")));
            }
        }
        parts.join("; ")
    }
}

/// What was agreed before the new model was written, so that a restart need not reduce again:
/// `rounds/<round>/reduced.json`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Reduced {
    /// How it will have ended.
    pub(crate) outcome: Outcome,
    /// See [`Report::members`].
    pub(crate) members: Vec<Hotkey>,
    /// See [`Report::participants`].
    pub(crate) participants: Vec<Hotkey>,
    /// See [`Report::digest`].
    pub(crate) digest: String,
    /// See [`Report::slices`].
    pub(crate) slices: Vec<SliceDigest>,
    /// See [`Report::missing`].
    pub(crate) missing: Vec<LeftOut>,
    /// See [`Report::dropped`].
    pub(crate) dropped: Vec<LeftOut>,
    /// See [`Report::skipped`].
    pub(crate) skipped: Vec<LeftOut>,
}

impl Reduced {
    /// Name of the file among the round's.
    pub(crate) const FILE: &str = "reduced.json";
}

/// Why a merge did not end in a new model.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("no gradients: neither this validator nor another has one")]
    NoGradients,
    #[error("left alone, and the policy does not allow a step alone")]
    LeftAlone,
    #[error("the validators did not agree on the members in time; met {met} of {expected} others")]
    NoAgreement { met: usize, expected: usize },
    #[error("no member's gradient could be had for slice {slice}")]
    SliceEmpty { slice: usize },
    #[error("slice {slice} of {owner} could not be had: {why}")]
    SliceMissing { slice: usize, owner: Hotkey, why: String },
    #[error("{member} did not confirm in time: {why}")]
    NotConfirmed { member: Hotkey, why: String },
    #[error("{member} has reduced to {theirs} and this validator to {ours}")]
    DigestsDiffer { member: Hotkey, ours: String, theirs: String },
    #[error("the base model cannot be used: {0}")]
    Base(String),
    #[error("the artifact store failed: {0}")]
    Store(#[from] ArtifactError),
    #[error("adding up the submissions failed: {0}")]
    Aggregate(String),
    #[error("a file of the round could not be kept: {0}")]
    Scratch(String),
    #[error("writing the new model failed: {0}")]
    Write(String),
    #[error("the members of an earlier run are unreadable: {0}")]
    Resume(String),
}

impl Failure {
    /// Whether the same may work a little later.
    pub(crate) fn passes(&self) -> bool {
        matches!(self, Self::Store(ArtifactError::Engine { .. }))
    }
}
