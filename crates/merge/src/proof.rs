//! Proofs that somebody broke the rules: what it signed, kept so that a third party who was not
//! there is convinced too.
//!
//! Nothing else blames. Who was silent, slow, or sent bytes that did not fit is left out, which
//! shows in the outcome, and may as well have had a bad network.

use domain::Hotkey;
use serde::{Deserialize, Serialize};

use crate::{
    bytes::Digest,
    group::group_digest,
    statement::{Claim, Said, Signed, Slice, Statement, Verify},
    terms::Offer,
};

/// Evidence against one member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Proof {
    /// It said two different things where one may be said.
    Equivocation {
        /// One.
        first: Box<Signed>,
        /// The other.
        second: Box<Signed>,
    },
    /// A chunk of the slice is not what the contributors' committed chunks reduce to.
    WrongReduction {
        /// The slice.
        slice: Box<Signed>,
        /// What the slice was to be reduced from.
        inputs: Inputs,
        /// The chunk, counted in the whole vector.
        chunk: u32,
    },
    /// It claimed that a chunk is wrong which is right.
    FalseClaim {
        /// The claim.
        claim: Box<Signed>,
        /// The slice that it is about.
        slice: Box<Signed>,
        /// What the slice was to be reduced from.
        inputs: Inputs,
    },
}

/// The commitments that fix what a slice has to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inputs {
    /// Digests of the offers of all members: the group that the slice names. A contributor with two
    /// offers could otherwise bring an honest owner to fall with the other one.
    pub group: Vec<Digest>,
    /// The offers of the slice's contributors, in their order.
    pub offers: Vec<Signed>,
}

/// Has the bytes that a proof is about: those of a reduced chunk, and of what it was reduced from.
pub trait Recompute {
    /// Whether the chunk of `slice` is what the chunks of `offers` reduce to; `None` where the bytes
    /// are not at hand, or do not fit what was committed to.
    fn is_right(&self, slice: &Slice, offers: &[&Offer], chunk: u32) -> Option<bool>;
}

/// Why a proof proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unproven {
    /// A signature is missing.
    #[error("a statement is not signed by its author")]
    BadSignature,
    /// The two may both be said.
    #[error("an honest member may say both")]
    NoConflict,
    /// The parts are about different things.
    #[error("the statements are not about each other")]
    Unrelated,
    /// The bytes are not there.
    #[error("the bytes to check it with are not at hand")]
    NoEvidence,
    /// The bytes say otherwise.
    #[error("the bytes show otherwise")]
    Refuted,
}

impl Proof {
    /// Stable snake_case name of what was done.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Equivocation { first, .. } => match first.said.what {
                Statement::Offer(_) => "two_offers",
                Statement::Slice(_) => "two_slices",
                Statement::Ready(_) | Statement::Final(_) => "two_choices",
                Statement::Claim(_) | Statement::Vouch(_) => "equivocation",
            },
            Self::WrongReduction { .. } => "wrong_reduction",
            Self::FalseClaim { .. } => "false_claim",
        }
    }

    /// Whom it is against, verified or not.
    pub fn against(&self) -> &Hotkey {
        match self {
            Self::Equivocation { first: one, .. }
            | Self::WrongReduction { slice: one, .. }
            | Self::FalseClaim { claim: one, .. } => &one.said.author,
        }
    }

    /// Checks the proof without anything but keys and, for a reduction, the bytes of one chunk.
    pub fn verify(&self, keys: &impl Verify, bytes: &impl Recompute) -> Result<&Hotkey, Unproven> {
        let signed = |one: &Signed| {
            one.said.is_bounded()
                && keys.verify(&one.said.author, &one.said.bytes(), &one.signature)
        };
        match self {
            Self::Equivocation { first, second } => {
                if !signed(first) || !signed(second) {
                    return Err(Unproven::BadSignature);
                }
                if !conflict(&first.said, &second.said) {
                    return Err(Unproven::NoConflict);
                }
            }
            Self::WrongReduction { slice, inputs, chunk } => {
                if !signed(slice) || !inputs.offers.iter().all(signed) {
                    return Err(Unproven::BadSignature);
                }
                if recompute(slice, inputs, *chunk, bytes)? {
                    return Err(Unproven::Refuted);
                }
            }
            Self::FalseClaim { claim, slice, inputs } => {
                if !signed(claim) || !signed(slice) || !inputs.offers.iter().all(signed) {
                    return Err(Unproven::BadSignature);
                }
                let Statement::Claim(Claim { statement, chunk }) = &claim.said.what else {
                    return Err(Unproven::Unrelated);
                };
                if *statement != slice.said.digest() || claim.said.round != slice.said.round {
                    return Err(Unproven::Unrelated);
                }
                if !recompute(slice, inputs, *chunk, bytes)? {
                    return Err(Unproven::Refuted);
                }
            }
        }
        Ok(self.against())
    }
}

/// Whether no honest member says both.
pub(crate) fn conflict(first: &Said, second: &Said) -> bool {
    first.author == second.author
        && first.round == second.round
        && first.slot().is_some()
        && first.slot() == second.slot()
        && first.digest() != second.digest()
}

fn recompute(
    slice: &Signed,
    inputs: &Inputs,
    chunk: u32,
    bytes: &impl Recompute,
) -> Result<bool, Unproven> {
    let Inputs { group, offers } = inputs;
    let Statement::Slice(stated) = &slice.said.what else { return Err(Unproven::Unrelated) };
    let same_round = offers.iter().all(|offer| offer.said.round == slice.said.round);
    let given: Option<Vec<&Offer>> = offers
        .iter()
        .map(|offer| match &offer.said.what {
            Statement::Offer(offer) => Some(offer),
            Statement::Slice(_)
            | Statement::Claim(_)
            | Statement::Vouch(_)
            | Statement::Ready(_)
            | Statement::Final(_) => None,
        })
        .collect();
    let Some(given) = given.filter(|_| same_round) else { return Err(Unproven::Unrelated) };
    let authors = offers.iter().map(|offer| &offer.said.author);
    let in_group = offers.iter().all(|offer| group.contains(&offer.said.digest()));
    if group_digest(group) != stated.group || !in_group || !authors.eq(&stated.contributors) {
        return Err(Unproven::Unrelated);
    }
    if given.iter().any(|offer| offer.gradient.is_none()) {
        return Err(Unproven::Unrelated);
    }
    bytes.is_right(stated, &given, chunk).ok_or(Unproven::NoEvidence)
}
