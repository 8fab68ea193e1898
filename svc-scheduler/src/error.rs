//! Reasons to codes.

use domain::Rejection;
use proto::InvalidField;
use tonic::{Code, Status};

/// What a call can fail with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Field(#[from] InvalidField),
    #[error(transparent)]
    Rejected(#[from] Rejection),
    #[error("this scheduler stands by: {0}")]
    Standby(String),
    #[error("the state could not be saved: {0}")]
    Unsaved(String),
    #[error("round {0} has no record")]
    NoRecord(u64),
    #[error("the artifact store failed: {0}")]
    Artifacts(String),
}

impl Error {
    /// The lead was lost while an event waited.
    pub(crate) fn lost() -> Self {
        Self::Standby("it has lost the lead".to_owned())
    }

    fn code(&self) -> Code {
        match self {
            Self::Field(_) => Code::InvalidArgument,
            Self::Rejected(Rejection::NotOnRoster { .. }) => Code::PermissionDenied,
            Self::Rejected(Rejection::AlreadySubmitted { .. }) => Code::AlreadyExists,
            Self::Rejected(Rejection::BadResult { .. }) => Code::InvalidArgument,
            Self::Rejected(
                Rejection::NotThisRound { .. }
                | Rejection::OtherBranch { .. }
                | Rejection::UploadsClosed { .. }
                | Rejection::LeaseLost { .. },
            ) => Code::FailedPrecondition,
            Self::Standby(_) | Self::Unsaved(_) | Self::Artifacts(_) => Code::Unavailable,
            Self::NoRecord(_) => Code::NotFound,
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Self::new(error.code(), error.to_string())
    }
}
