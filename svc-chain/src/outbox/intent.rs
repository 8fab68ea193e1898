//! An intent as it is stored: what to write, and how far that has come.
//!
//! Everything that decides whether an extrinsic may be sent is in the record before one is sent,
//! the signed bytes included. What is lost in a crash is never more than an answer.

use std::{fmt, net::IpAddr, str::FromStr};

use domain::{BlockHash, RoundId};
use serde::{Deserialize, Serialize};

use crate::{
    failure::Failure,
    weights::{Commit, Reveal, Row},
};

/// What is written, in the order in which one round writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    Seed,
    SignedHash,
    ModelHash,
    Weights,
    /// What makes committed weights known; recorded by the outbox itself.
    Reveal,
    Axon,
}

/// What intents of one slot overwrite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slot {
    Commitment,
    Weights,
    Reveal,
    Axon,
}

impl Kind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Seed => "seed",
            Self::SignedHash => "signed_hash",
            Self::ModelHash => "model_hash",
            Self::Weights => "weights",
            Self::Reveal => "reveal",
            Self::Axon => "axon",
        }
    }

    pub(crate) fn slot(self) -> Slot {
        match self {
            Self::Seed | Self::SignedHash | Self::ModelHash => Slot::Commitment,
            Self::Weights => Slot::Weights,
            Self::Reveal => Slot::Reveal,
            Self::Axon => Slot::Axon,
        }
    }
}

/// A text that names no kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not one of seed, signed_hash, model_hash, weights, reveal, axon")]
pub(crate) struct UnknownKind(String);

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        use Kind::{Axon, ModelHash, Reveal, Seed, SignedHash, Weights};
        [Seed, SignedHash, ModelHash, Weights, Reveal, Axon]
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| UnknownKind(text.chars().take(32).collect()))
    }
}

/// Names an intent; ordered as the chain should see them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Key {
    pub(crate) round: RoundId,
    pub(crate) kind: Kind,
}

impl Key {
    /// Its key in the store.
    pub(crate) fn path(self) -> String {
        format!("{PREFIX}{self}")
    }
}

/// What the keys of all intents begin with.
pub(crate) const PREFIX: &str = "outbox/";

impl Slot {
    /// Key in the store of the newest intent that was ever signed for or found carried out: the fence
    /// against older ones. `None` where every intent stands for itself.
    pub(crate) fn mark(self) -> Option<&'static str> {
        match self {
            Self::Commitment => Some("outbox-newest/commitment"),
            Self::Weights => Some("outbox-newest/weights"),
            Self::Axon => Some("outbox-newest/axon"),
            Self::Reveal => None,
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.round, self.kind.as_str())
    }
}

/// What to write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub(crate) enum Payload {
    Commitment {
        #[serde(with = "hex::serde")]
        data: Vec<u8>,
    },
    Weights {
        weights: Row,
        /// Whether they are the stale guard's and not a round's own.
        #[serde(default)]
        stale_guard: bool,
    },
    /// Weights that were committed and are to become known.
    Reveal(Reveal),
    Axon {
        ip: IpAddr,
        port: u16,
    },
}

impl Payload {
    /// BLAKE2b-256 of its JSON as it is stored: the same payload has the same digest.
    pub(crate) fn digest(&self) -> [u8; 32] {
        use subxt::config::{Hasher as _, substrate::BlakeTwo256};
        BlakeTwo256.hash(&serde_json::to_vec(self).unwrap_or_default()).0
    }

    /// Whether these are weights of the stale guard.
    pub(crate) fn is_stale_guard(&self) -> bool {
        match self {
            Self::Weights { stale_guard, .. } => *stale_guard,
            Self::Reveal(reveal) => reveal.stale_guard,
            Self::Commitment { .. } | Self::Axon { .. } => false,
        }
    }
}

/// An extrinsic that was signed for an intent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attempt {
    /// BLAKE2b-256 of its bytes.
    pub(crate) hash: BlockHash,
    pub(crate) nonce: u64,
    /// The block that its life begins at: no block up to it can hold the extrinsic.
    pub(crate) birth: u64,
    /// Blocks that it lives.
    pub(crate) period: u64,
    /// Spec version of the runtime that it was signed for.
    pub(crate) spec: u32,
    /// The extrinsic itself: sending the same bytes again can never make two of it.
    #[serde(with = "hex::serde")]
    pub(crate) bytes: Vec<u8>,
}

impl Attempt {
    /// Height of the last block that can hold it.
    pub(crate) fn last_block(&self) -> u64 {
        self.birth + self.period - 1
    }
}

/// What an extrinsic did in the block that holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub(crate) enum Outcome {
    Success,
    Failed {
        failure: Failure,
    },
    /// The node no longer holds the block's events.
    Unknown,
}

/// How far an intent has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub(crate) enum State {
    /// Nothing of it can land. An extrinsic may be signed once the best block is `not_before`.
    Recorded { not_before: u64 },
    /// `attempt` may land, and nothing else may be sent for it.
    Submitted { attempt: Attempt },
    /// In a block of the best chain.
    Included { attempt: Option<Attempt>, block: u64, block_hash: BlockHash, outcome: Outcome },
    /// Final, and read back.
    Done { block: u64, note: String },
    /// Refused for good; the intent's `last` failure says why.
    Failed { block: u64, note: String },
}

impl State {
    /// Stable name, for metrics and logs.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Recorded { .. } => "recorded",
            Self::Submitted { .. } => "submitted",
            Self::Included { .. } => "included",
            Self::Done { .. } => "done",
            Self::Failed { .. } => "failed",
        }
    }

    /// Whether nothing more will happen.
    pub(crate) fn is_finished(&self) -> bool {
        matches!(self, Self::Done { .. } | Self::Failed { .. })
    }

    /// Height of the block that holds it; 0 before inclusion.
    pub(crate) fn block(&self) -> u64 {
        match self {
            Self::Recorded { .. } | Self::Submitted { .. } => 0,
            Self::Included { block, .. }
            | Self::Done { block, .. }
            | Self::Failed { block, .. } => *block,
        }
    }
}

/// A record of the outbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Intent {
    pub(crate) key: Key,
    pub(crate) payload: Payload,
    /// Best block when it was recorded.
    pub(crate) recorded_at: u64,
    /// Trace that it belongs to, as a W3C `traceparent`.
    pub(crate) trace: Option<String>,
    pub(crate) state: State,
    /// The last extrinsic that was signed for it.
    pub(crate) extrinsic: Option<BlockHash>,
    /// How weights went, chosen when the last extrinsic was signed.
    #[serde(default)]
    pub(crate) how: Option<Commit>,
    /// Extrinsics that were handed to a node for it.
    pub(crate) attempts: u32,
    /// The last thing that went wrong.
    pub(crate) last: Option<Failure>,
}

impl Intent {
    /// The block from which the next extrinsic may be sent; 0 where none is waited for.
    pub(crate) fn not_before(&self) -> u64 {
        match self.state {
            State::Recorded { not_before } => not_before,
            State::Submitted { .. }
            | State::Included { .. }
            | State::Done { .. }
            | State::Failed { .. } => 0,
        }
    }

    /// A new one, of which nothing was sent.
    pub(crate) fn new(key: Key, payload: Payload, recorded_at: u64, trace: Option<String>) -> Self {
        Self {
            key,
            payload,
            recorded_at,
            trace,
            state: State::Recorded { not_before: 0 },
            extrinsic: None,
            how: None,
            attempts: 0,
            last: None,
        }
    }

    /// What happened last, for a person.
    pub(crate) fn detail(&self) -> String {
        match &self.state {
            State::Done { note, .. } | State::Failed { note, .. } => note.clone(),
            State::Recorded { not_before } => match (&self.last, &self.payload) {
                (Some(failure), _) => format!("{failure}; to be sent from block {not_before} on"),
                (None, Payload::Reveal(reveal)) => {
                    format!("to be revealed in blocks {} to {}", reveal.opens, reveal.closes)
                }
                (None, _) => String::new(),
            },
            State::Submitted { attempt } => {
                format!("nonce {}, valid until block {}", attempt.nonce, attempt.last_block())
            }
            State::Included { block, .. } => format!("block {block} is not final yet"),
        }
    }
}
