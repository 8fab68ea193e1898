//! Why a call is refused, with one exhaustive match to a code and one to a stable reason.

use domain::BlockHash;
use proto::InvalidField;
use tonic::{Code, Status};

pub use crate::chunks::Garbage;

/// Why a message from another validator, or a call of the scheduler, is refused.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error(transparent)]
    Malformed(#[from] InvalidField),
    #[error("the signature is not the sender's")]
    BadSignature,
    #[error("meant for another validator")]
    WrongReceiver,
    #[error("signed by another validator than the one that was asked")]
    WrongSender,
    #[error("belongs to another round")]
    WrongRound,
    #[error("this message came before")]
    Replayed,
    #[error("the sender is no validator of the round")]
    NotAValidator,
    #[error("the sender has asked too often in this round")]
    TooMany,
    #[error("the sender has {most} streams already")]
    TooManyStreams { most: usize },
    #[error("a statement is not its author's: {0}")]
    BadStatement(merge::Refused),
    #[error("these bytes are not here")]
    NotHere,
    #[error("these bytes are not wanted")]
    NotWanted,
    #[error("the bytes are not what was signed: {0}")]
    Garbage(#[from] Garbage),
    #[error("the answer is longer than any message")]
    TooLong,
    #[error("the stream was cut short")]
    CutShort,
    #[error("the other side has stalled")]
    Stalled,
    #[error("the round has not started here")]
    NotStarted,
    #[error("a newer round, {newer}, has started here")]
    OldRound { newer: u64 },
    #[error("not ready yet: {what}")]
    NotReady { what: &'static str },
    #[error("the sender is no member of the merge")]
    NotAMember,
    #[error("the merge is over here")]
    Over,
    #[error(
        "a merge of this round was kept for another chain (block {found}, not {expected}): give each chain an artifact store of its own"
    )]
    OtherChain { found: BlockHash, expected: BlockHash },
    #[error("the chain service did not sign: {detail}")]
    NotSigned { detail: String },
    #[error("the store failed: {0}")]
    Store(#[from] store::StoreError),
    #[error("round {round} was never started here")]
    UnknownRound { round: u64 },
    #[error("the model was never asked for here: {model}")]
    UnknownResync { model: domain::ModelHash },
    #[error("this model, or this file of it, is not here")]
    NoModel,
    #[error("what is kept here cannot be read: {detail}")]
    Unreadable { detail: String },
    #[error("the service is stopping")]
    Stopping,
}

impl Refused {
    /// Stable snake_case name of the reason, for other validators, logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::BadSignature => "bad_signature",
            Self::WrongReceiver => "wrong_receiver",
            Self::WrongSender => "wrong_sender",
            Self::WrongRound => "wrong_round",
            Self::Replayed => "replayed",
            Self::NotAValidator => "not_a_validator",
            Self::TooMany => "too_many",
            Self::TooManyStreams { .. } => "too_many_streams",
            Self::BadStatement(_) => "bad_statement",
            Self::NotHere => "not_here",
            Self::NotWanted => "not_wanted",
            Self::Garbage(_) => "garbage",
            Self::TooLong => "too_long",
            Self::CutShort => "cut_short",
            Self::Stalled => "stalled",
            Self::NotStarted => "not_started",
            Self::OldRound { .. } => "old_round",
            Self::NotReady { .. } => "not_ready",
            Self::NotAMember => "not_a_member",
            Self::Over => "over",
            Self::OtherChain { .. } => "other_chain",
            Self::NotSigned { .. } => "not_signed",
            Self::Store(_) => "store_failed",
            Self::UnknownRound { .. } => "unknown_round",
            Self::UnknownResync { .. } => "unknown_resync",
            Self::NoModel => "no_model",
            Self::Unreadable { .. } => "unreadable",
            Self::Stopping => "stopping",
        }
    }

    /// The code that says whether asking again helps: only `UNAVAILABLE` does.
    pub fn code(&self) -> Code {
        match self {
            Self::Malformed(_) | Self::BadStatement(_) | Self::Garbage(_) => Code::InvalidArgument,
            Self::BadSignature => Code::Unauthenticated,
            Self::WrongReceiver
            | Self::WrongSender
            | Self::WrongRound
            | Self::Replayed
            | Self::NotAValidator
            | Self::NotAMember => Code::PermissionDenied,
            Self::TooMany | Self::TooManyStreams { .. } | Self::TooLong => Code::ResourceExhausted,
            Self::CutShort | Self::Stalled => Code::Aborted,
            Self::OldRound { .. } | Self::Over | Self::NotWanted | Self::OtherChain { .. } => {
                Code::FailedPrecondition
            }
            Self::NotStarted
            | Self::NotReady { .. }
            | Self::NotSigned { .. }
            | Self::Store(_)
            | Self::Unreadable { .. }
            | Self::Stopping => Code::Unavailable,
            Self::UnknownRound { .. }
            | Self::UnknownResync { .. }
            | Self::NoModel
            | Self::NotHere => Code::NotFound,
        }
    }
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        Self::new(refused.code(), format!("{}: {refused}", refused.reason()))
    }
}

/// The reason that a [`Refused`] of another peer service was made from, `other` where it has none.
pub fn reason_of(status: &Status) -> &str {
    match status.message().split_once(':') {
        Some((reason, _)) if is_reason(reason) => reason,
        _ => "other",
    }
}

fn is_reason(text: &str) -> bool {
    (1..=32).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
}
