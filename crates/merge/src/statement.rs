//! What members say: statements, each signed once and then shown to everybody by anybody.
//!
//! A signature is over the bytes of [`Said::bytes`]: kind, round, author and every field, in the
//! encoding of `bytes.rs`. A statement's name is the digest of these bytes, not of its signature: sr25519
//! signs the same thing differently each time. How statements travel is in [`crate::Exchange`].

use std::fmt;

use domain::{Hotkey, RoundId};
use serde::{Deserialize, Serialize, de};

use crate::{
    bytes::{Bytes, Digest},
    terms::{MAX_ROSTER, MAX_TEXT, Offer},
};

/// No statement lists more things.
pub const MAX_ITEMS: usize = 1024;

/// What a choice is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Which offers make the group.
    Group,
    /// Which slices make the result of the group with this digest.
    Result(Digest),
}

impl Stage {
    fn write(self, bytes: Bytes) -> Bytes {
        match self {
            Self::Group => bytes.byte(0),
            Self::Result(group) => bytes.byte(1).digest(&group),
        }
    }
}

/// A reduced slice, and who answers for its bits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slice {
    /// Digest of the group.
    pub group: Digest,
    /// Which slice.
    pub slice: u16,
    /// How many owners before its author did not reduce it.
    pub attempt: u16,
    /// Whose gradients are in it, ascending.
    pub contributors: Vec<Hotkey>,
    /// [`Digest::of_chunks`] of the result's chunks.
    pub chunks: Digest,
}

/// That one chunk of a slice is not what its contributors' chunks reduce to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// The statement of the slice.
    pub statement: Digest,
    /// Which chunk of the whole vector.
    pub chunk: u32,
}

/// A choice of statements.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Choice {
    /// What is chosen.
    pub stage: Stage,
    /// The chosen: offers ascending by their author's hotkey, or one slice after the other.
    pub items: Vec<Digest>,
}

impl Choice {
    /// The choice's name.
    pub fn digest(&self) -> Digest {
        self.write(Bytes::new("choice")).hash()
    }

    fn write(&self, bytes: Bytes) -> Bytes {
        self.stage.write(bytes).list(&self.items, |bytes, item| bytes.digest(item))
    }
}

/// What can be said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Statement {
    /// I take part, and bring this.
    Offer(Offer),
    /// I have reduced this slice.
    Slice(Slice),
    /// This slice is reduced wrongly, and I hold what shows it.
    Claim(Claim),
    /// I have taken these in when they counted, hold their bytes, and give them to whoever asks.
    Vouch(Vec<Digest>),
    /// I have seen everything that I wait for, and this is what I would choose.
    Ready(Choice),
    /// This is what I have chosen. Said once.
    Final(Choice),
}

/// A statement with its author.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Said {
    /// The round that it is of.
    pub round: RoundId,
    /// Who says it.
    pub author: Hotkey,
    /// What.
    pub what: Statement,
}

/// Of the statements with the same slot an honest member says one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Slot {
    Offer,
    Slice { group: Digest, slice: u16, attempt: u16 },
    Ready(Stage),
    Final(Stage),
}

impl Said {
    /// The bytes to sign.
    pub fn bytes(&self) -> Vec<u8> {
        self.written().into_vec()
    }

    /// The statement's name.
    pub fn digest(&self) -> Digest {
        self.written().hash()
    }

    /// Nothing in it is longer than anything honest can be.
    pub fn is_bounded(&self) -> bool {
        match &self.what {
            Statement::Offer(offer) => {
                offer.terms.codec.len() <= MAX_TEXT && offer.terms.reduction.len() <= MAX_TEXT
            }
            Statement::Slice(slice) => slice.contributors.len() <= MAX_ROSTER,
            Statement::Claim(_) => true,
            Statement::Vouch(items) => items.len() <= MAX_ITEMS,
            Statement::Ready(choice) | Statement::Final(choice) => choice.items.len() <= MAX_ITEMS,
        }
    }

    fn written(&self) -> Bytes {
        let begin = |kind| Bytes::new(kind).number(self.round.0).hotkey(&self.author);
        match &self.what {
            Statement::Offer(offer) => offer.write(begin("offer")),
            Statement::Slice(Slice { group, slice, attempt, contributors, chunks }) => {
                begin("slice")
                    .digest(group)
                    .number((*slice).into())
                    .number((*attempt).into())
                    .list(contributors, |bytes, hotkey| bytes.hotkey(hotkey))
                    .digest(chunks)
            }
            Statement::Claim(Claim { statement, chunk }) => {
                begin("claim").digest(statement).number((*chunk).into())
            }
            Statement::Vouch(items) => begin("vouch").list(items, |bytes, item| bytes.digest(item)),
            Statement::Ready(choice) => choice.write(begin("ready")),
            Statement::Final(choice) => choice.write(begin("final")),
        }
    }

    pub(crate) fn slot(&self) -> Option<Slot> {
        match &self.what {
            Statement::Offer(_) => Some(Slot::Offer),
            Statement::Slice(Slice { group, slice, attempt, .. }) => {
                Some(Slot::Slice { group: *group, slice: *slice, attempt: *attempt })
            }
            Statement::Ready(choice) => Some(Slot::Ready(choice.stage)),
            Statement::Final(choice) => Some(Slot::Final(choice.stage)),
            Statement::Claim(_) | Statement::Vouch(_) => None,
        }
    }
}

/// An sr25519 signature, written as hex.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature(pub [u8; 64]);

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Serialize for Signature {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&format_args!("{self:?}"))
    }
}

impl<'de> Deserialize<'de> for Signature {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        let halves = text.split_at_checked(64).ok_or_else(|| de::Error::custom("too short"))?;
        let half = |text: &str| text.parse::<Digest>().map_err(de::Error::custom);
        let mut bytes = [0; 64];
        bytes[..32].copy_from_slice(&half(halves.0)?.0);
        bytes[32..].copy_from_slice(&half(halves.1)?.0);
        Ok(Self(bytes))
    }
}

/// A statement and what should be its author's signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signed {
    /// What is said, by whom.
    pub said: Said,
    /// Over [`Said::bytes`].
    pub signature: Signature,
}

/// Knows whether a signature is somebody's.
pub trait Verify {
    /// Whether `signature` is `author`'s over `bytes`.
    fn verify(&self, author: &Hotkey, bytes: &[u8], signature: &Signature) -> bool;
}

/// Why something that was signed, or should be, is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Larger than anything honest.
    #[error("larger than any honest statement")]
    TooLarge,
    /// Not its author's signature.
    #[error("the signature is not the author's")]
    BadSignature,
}

impl Refused {
    /// Stable snake_case name of the reason.
    pub fn reason(self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::BadSignature => "bad_signature",
        }
    }
}

/// A statement that its author has signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    signed: Signed,
    digest: Digest,
}

impl Verified {
    /// Checks bounds and signature.
    pub fn new(signed: Signed, keys: &impl Verify) -> Result<Self, Refused> {
        if !signed.said.is_bounded() {
            return Err(Refused::TooLarge);
        }
        let bytes = signed.said.bytes();
        if !keys.verify(&signed.said.author, &bytes, &signed.signature) {
            return Err(Refused::BadSignature);
        }
        Ok(Self { digest: Digest::of(&bytes), signed })
    }

    /// What is said, by whom.
    pub fn said(&self) -> &Said {
        &self.signed.said
    }

    /// The statement's name.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The statement with its signature, to be shown to others.
    pub fn signed(&self) -> &Signed {
        &self.signed
    }
}
