//! Why a job has no measurement, and whose fault it is.

use checkpoint::{ManifestError, Refusal};
use data::DataError;
use domain::Reason;
use model::ModelError;
use store::ArtifactError;

use crate::lease::Interrupt;

/// Why a job has no measurement.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The submission is invalid: the miner's fault, and the end of the job.
    #[error("{detail}")]
    Invalid { reason: &'static str, detail: String },
    /// The validator's fault: another worker may do better.
    #[error("{0}")]
    Own(#[from] OwnFailure),
    /// The job was taken from this worker: nobody waits for the result.
    #[error("the lease is lost")]
    Lost,
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
    #[error("the model's slice in the cache or the store: {0}")]
    Slice(Refusal),
    #[error("load the model: {0}")]
    Load(ModelError),
    #[error("{0}")]
    Model(ModelError),
    #[error("{0}")]
    OutOfMemory(ModelError),
    #[error("the model is not loaded: {0}")]
    NoRoom(ModelError),
    #[error("data: {0}")]
    Data(DataError),
    #[error("the {place} panicked: {what}")]
    Panicked { place: &'static str, what: String },
    #[error(
        "the base model on the device has changed: its digest is {found} instead of {expected}"
    )]
    BaseChanged { expected: String, found: String },
    #[error("malformed job: {0}")]
    Job(String),
    #[error("not done when the job's deadline came")]
    Deadline,
    #[error("the evaluator is stopping")]
    Stopping,
}

impl OwnFailure {
    /// The stable reason, for the scheduler.
    pub(crate) fn reason(&self) -> Reason {
        match self {
            Self::Stopping => Reason::WorkerLost,
            Self::Deadline => Reason::Timeout,
            Self::OutOfMemory(_) | Self::NoRoom(_) => Reason::OutOfMemory,
            Self::Data(_) => Reason::DataUnavailable,
            Self::Artifacts(_)
            | Self::Manifest(_)
            | Self::OtherModel { .. }
            | Self::NoSlice(_)
            | Self::Stored(_)
            | Self::Slice(_)
            | Self::Load(_)
            | Self::Model(_)
            | Self::Panicked { .. }
            | Self::BaseChanged { .. }
            | Self::Job(_) => Reason::EvaluatorError,
        }
    }

    /// Whether what is on the device, or the device itself, can't be trusted after it: the model is
    /// dropped and loaded anew, and the process restarts when it happens again at once.
    pub(crate) fn spoils_the_device(&self) -> bool {
        match self {
            Self::OutOfMemory(_) | Self::Panicked { .. } | Self::BaseChanged { .. } => true,
            // The others are told by our own checks: the device has done what it was asked.
            Self::Model(error) => matches!(error, ModelError::Torch(_)),
            Self::Artifacts(_)
            | Self::Manifest(_)
            | Self::OtherModel { .. }
            | Self::NoSlice(_)
            | Self::Stored(_)
            | Self::Slice(_)
            | Self::Load(_)
            | Self::NoRoom(_)
            | Self::Data(_)
            | Self::Job(_)
            | Self::Deadline
            | Self::Stopping => false,
        }
    }

    /// An error of the model that is nobody else's.
    pub(crate) fn of_model(error: ModelError) -> Self {
        if error.is_out_of_memory() { Self::OutOfMemory(error) } else { Self::Model(error) }
    }
}

impl From<DataError> for OwnFailure {
    fn from(error: DataError) -> Self {
        Self::Data(error)
    }
}

impl From<DataError> for Failure {
    fn from(error: DataError) -> Self {
        Self::Own(error.into())
    }
}

impl From<Interrupt> for Failure {
    fn from(interrupt: Interrupt) -> Self {
        match interrupt {
            Interrupt::LeaseLost => Self::Lost,
            Interrupt::Deadline => Self::Own(OwnFailure::Deadline),
            Interrupt::Stopping => Self::Own(OwnFailure::Stopping),
        }
    }
}

impl Failure {
    /// Whose fault it is, for logs and metrics: `miner`, `validator`, or `nobody`.
    pub(crate) fn fault(&self) -> &'static str {
        match self {
            Self::Invalid { .. } => "miner",
            Self::Own(_) => "validator",
            Self::Lost => "nobody",
        }
    }

    /// The stable reason, for logs and metrics.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Invalid { reason, .. } => reason,
            Self::Own(failure) => failure.reason().as_str(),
            Self::Lost => "lease_lost",
        }
    }

    /// An error of reading or verifying a submission.
    pub(crate) fn of_file(refusal: Refusal) -> Self {
        if refusal.is_miners_fault() {
            Self::Invalid { reason: refusal.reason(), detail: refusal.to_string() }
        } else {
            Self::Own(OwnFailure::Stored(refusal.to_string()))
        }
    }

    /// An error of staging, overlaying or running a submission.
    pub(crate) fn of_submission(error: ModelError) -> Self {
        match error.submission_reason() {
            Some(reason) => Self::Invalid { reason, detail: error.to_string() },
            None => Self::Own(OwnFailure::of_model(error)),
        }
    }

    /// Whether the device can't be trusted after it.
    pub(crate) fn spoils_the_device(&self) -> bool {
        matches!(self, Self::Own(failure) if failure.spoils_the_device())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_whose_fault_it_was_by_a_reason_of_the_protocol() {
        let nan = ModelError::NonFinite { place: "the loss of batch 1".to_owned() };
        let of_submission = Failure::of_submission(nan);
        assert_eq!((of_submission.fault(), of_submission.reason()), ("miner", "non_finite"));
        let ours: [(OwnFailure, &str, bool); 5] = [
            (OwnFailure::Deadline, "timeout", false),
            (OwnFailure::Stopping, "worker_lost", false),
            (OwnFailure::Data(DataError::Corpus { why: "none".into() }), "data_unavailable", false),
            (
                OwnFailure::of_model(ModelError::OutOfMemory { why: "4 GiB".into() }),
                "out_of_memory",
                true,
            ),
            (
                OwnFailure::BaseChanged { expected: "1".into(), found: "2".into() },
                "evaluator_error",
                true,
            ),
        ];
        for (failure, reason, spoils) in ours {
            assert_eq!(failure.spoils_the_device(), spoils, "{failure}");
            assert!(!failure.reason().is_miners_fault());
            let failure = Failure::Own(failure);
            assert_eq!((failure.fault(), failure.reason()), ("validator", reason));
        }
    }

    #[test]
    fn memory_is_never_a_miners_fault() {
        let failure = Failure::of_submission(ModelError::OutOfMemory { why: String::new() });
        assert_eq!((failure.fault(), failure.reason()), ("validator", "out_of_memory"));
    }
}
