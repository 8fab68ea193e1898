//! Why a call is refused, with one exhaustive match to a code and one to a stable reason.

use proto::InvalidField;
use tonic::{Code, Status};

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
    #[error("the round has not started here")]
    NotStarted,
    #[error("a newer round, {newer}, has started here")]
    OldRound { newer: u64 },
    #[error("not ready yet: {what}")]
    NotReady { what: &'static str },
    #[error("the members differ: {ours} are agreed here")]
    MembersDiffer { ours: String },
    #[error("the merge has failed here: {why}")]
    Failed { why: String },
    #[error("slice {slice} is not {whose}")]
    ForeignSlice { slice: usize, whose: &'static str },
    #[error("there is no gradient to give")]
    NoGradient,
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
            Self::NotStarted => "not_started",
            Self::OldRound { .. } => "old_round",
            Self::NotReady { .. } => "not_ready",
            Self::MembersDiffer { .. } => "members_differ",
            Self::Failed { .. } => "merge_failed",
            Self::ForeignSlice { .. } => "foreign_slice",
            Self::NoGradient => "no_gradient",
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
            Self::Malformed(_) | Self::ForeignSlice { .. } => Code::InvalidArgument,
            Self::BadSignature => Code::Unauthenticated,
            Self::WrongReceiver
            | Self::WrongSender
            | Self::WrongRound
            | Self::Replayed
            | Self::NotAValidator => Code::PermissionDenied,
            Self::TooMany => Code::ResourceExhausted,
            Self::OldRound { .. }
            | Self::MembersDiffer { .. }
            | Self::Failed { .. }
            | Self::NoGradient => Code::FailedPrecondition,
            Self::NotStarted
            | Self::NotReady { .. }
            | Self::NotSigned { .. }
            | Self::Store(_)
            | Self::Unreadable { .. }
            | Self::Stopping => Code::Unavailable,
            Self::UnknownRound { .. } | Self::UnknownResync { .. } | Self::NoModel => {
                Code::NotFound
            }
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
