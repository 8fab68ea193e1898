//! How a merge ends, as a type.

use std::collections::BTreeMap;

use domain::Hotkey;
use serde::{Deserialize, Serialize};

use crate::{bytes::Digest, group::LeftOut, proof::Proof};

/// A slice of the result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Who reduced it.
    pub owner: Hotkey,
    /// The statement that its owner signed.
    pub statement: Digest,
    /// Digest of its chunks' digests.
    pub chunks: Digest,
    /// Whose gradients are in it.
    pub contributors: Vec<Hotkey>,
}

/// What the members of a merge have agreed on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Merged {
    /// Digest over the parts' digests: who has this has the same bits.
    pub digest: Digest,
    /// Digest of the group.
    pub group: Digest,
    /// In how many of the parts each member's gradient is: those with any.
    pub members: BTreeMap<Hotkey, u16>,
    /// Everybody who was agreed to take part, ascending.
    pub participants: Vec<Hotkey>,
    /// Who has signed the end, ascending: the rest of the participants may have failed.
    pub signers: Vec<Hotkey>,
    /// The slices, in their order.
    pub parts: Vec<Part>,
}

/// Why no model was made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// The caller gave it up.
    #[error("given up")]
    Cancelled,
    /// Too few with the same terms.
    #[error("{met} validators with the same terms, and {needed} are needed")]
    TooFew {
        /// This validator and those like it.
        met: usize,
        /// The least number.
        needed: usize,
    },
    /// Nobody else, and the policy does not let it go alone.
    #[error("left alone, and the policy does not allow a step alone")]
    LeftAlone,
    /// The others merge without it.
    #[error("the others have merged without this validator: {reason}")]
    LeftOut {
        /// Stable reason.
        reason: String,
    },
    /// No majority signed the same group in time.
    #[error("{signed} of the needed {needed} members signed the same group in time")]
    NoAgreement {
        /// Those that did.
        signed: usize,
        /// The quorum.
        needed: usize,
    },
    /// None of the members has a gradient.
    #[error("no member has a gradient")]
    NoGradients,
    /// Nobody can be called, so that nobody can own a slice.
    #[error("none of the members can be called")]
    NobodyCallable,
    /// No owner of a slice reduced it, or none did it right.
    #[error("slice {slice} was not reduced by any of its owners")]
    SliceMissing {
        /// Which.
        slice: u16,
    },
    /// This validator knows a result that too few others have signed.
    #[error("{signed} of the needed {needed} members signed the same result in time")]
    NotConfirmed {
        /// Those that did.
        signed: usize,
        /// The quorum.
        needed: usize,
    },
    /// Most members have signed a result that this validator could not get.
    #[error("most members have signed a result that could not be had here in time")]
    Behind,
}

impl Failure {
    /// Stable snake_case name of the reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Cancelled => "cancelled",
            Self::TooFew { .. } => "too_few",
            Self::LeftAlone => "left_alone",
            Self::LeftOut { .. } => "left_out",
            Self::NoAgreement { .. } => "no_agreement",
            Self::NoGradients => "no_gradients",
            Self::NobodyCallable => "nobody_callable",
            Self::SliceMissing { .. } => "slice_missing",
            Self::NotConfirmed { .. } => "not_confirmed",
            Self::Behind => "behind",
        }
    }
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// More than half of the group, and at least `min_group`, have signed the same bits.
    Merged(Merged),
    /// Nobody else was there, and the policy allows a step alone.
    Solo,
    /// The model stays.
    Failed(Failure),
}

/// How it ended, and who is not in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// How.
    pub ended: Ended,
    /// Validators of the round whose gradient is not in the result, with the reason. No blame.
    pub dropped: Vec<LeftOut>,
    /// Members that broke the rules, each with what convinces a third party.
    pub proofs: Vec<Proof>,
}
