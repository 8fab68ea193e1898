use checkpoint::{ManifestError, Refusal};
use data::DataError;
use domain::Reason;
use model::ModelError;
use store::ArtifactError;

/// Why a job has no measurement.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The submission is invalid: the miner's fault, and the end of the job.
    #[error("{detail}")]
    Invalid { reason: &'static str, detail: String },
    /// The validator's fault: another worker may do better.
    #[error("{0}")]
    Own(#[from] OwnFailure),
    /// The job was taken from this worker, or it is to stop: nobody waits for the result.
    #[error("stopped")]
    Stopped,
}

/// What went wrong on our side.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OwnFailure {
    #[error("artifact store: {0}")]
    Artifacts(#[from] ArtifactError),
    #[error("manifest of the model: {0}")]
    Manifest(#[from] ManifestError),
    #[error("the manifest of the model says {found}, the job {expected}")]
    OtherModel { expected: String, found: String },
    #[error("the model has no {0}")]
    NoSlice(String),
    #[error("stored submission: {0}")]
    Stored(String),
    #[error("{0}")]
    Model(ModelError),
    #[error("data: {0}")]
    Data(#[from] DataError),
    #[error("the model panicked: {0}")]
    Panicked(String),
    #[error("malformed job: {0}")]
    Job(String),
    #[error("the evaluator is stopping")]
    Stopping,
}

impl OwnFailure {
    /// The stable reason, for the scheduler.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Stopping => Reason::WorkerLost.as_str(),
            Self::Data(_) => Reason::DataUnavailable.as_str(),
            Self::Artifacts(_)
            | Self::Manifest(_)
            | Self::OtherModel { .. }
            | Self::NoSlice(_)
            | Self::Stored(_)
            | Self::Model(_)
            | Self::Panicked(_)
            | Self::Job(_) => Reason::EvaluatorError.as_str(),
        }
    }
}

impl From<ModelError> for Failure {
    /// An error of loading or running the base model: ours.
    fn from(error: ModelError) -> Self {
        if matches!(error, ModelError::Stopped) {
            return Self::Stopped;
        }
        Self::Own(OwnFailure::Model(error))
    }
}

impl From<DataError> for Failure {
    fn from(error: DataError) -> Self {
        Self::Own(error.into())
    }
}

impl Failure {
    /// An error of reading or verifying a submission.
    pub(crate) fn of_file(refusal: Refusal) -> Self {
        if refusal.is_miners_fault() {
            Self::Invalid { reason: refusal.reason(), detail: refusal.to_string() }
        } else {
            Self::Own(OwnFailure::Model(refusal.into()))
        }
    }

    /// An error of overlaying or running a submission.
    pub(crate) fn of_submission(error: ModelError) -> Self {
        match error.submission_reason() {
            Some(reason) => Self::Invalid { reason, detail: error.to_string() },
            None => error.into(),
        }
    }
}
