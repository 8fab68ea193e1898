use std::path::PathBuf;

use checkpoint::Refusal;
use data::DataError;

/// Why a model could not be loaded, overlaid, run or trained.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// `config.json` asks for something that is wrong or that this port does not do.
    #[error("config.json: `{field}`: {why}")]
    Config { field: &'static str, why: String },
    /// A file or folder could not be read or written.
    #[error("{path}: {why}")]
    File { path: PathBuf, why: String },
    /// Reading or writing a checkpoint failed.
    #[error(transparent)]
    Checkpoint(#[from] Refusal),
    /// A parameter that the architecture needs is not there.
    #[error("tensor `{name}` is missing")]
    Missing { name: String },
    /// A tensor that is no parameter of the overlaid experts.
    #[error("tensor `{name}` does not belong to the expert group")]
    Foreign { name: String },
    /// A parameter has the wrong shape.
    #[error("tensor `{name}` has shape {found:?} instead of {expected:?}")]
    Shape { name: String, expected: Vec<i64>, found: Vec<usize> },
    /// A parameter is not of a floating type that models are made of.
    #[error("tensor `{name}` has type {dtype}")]
    Dtype { name: String, dtype: String },
    /// A weight, an activation or a loss is NaN or infinite: the model is invalid, whatever its
    /// other losses are (protocol, section 6).
    #[error("{place} is not finite")]
    NonFinite { place: String },
    /// The texts or batches are not usable.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The tokenizer could not be trained.
    #[error("tokenizer: {why}")]
    Tokenizer { why: String },
    /// The caller's stop signal was seen between two batches.
    #[error("stopped")]
    Stopped,
    /// libtorch failed: out of memory, no such device.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}

impl ModelError {
    /// A failure at `path`.
    pub(crate) fn file(path: &std::path::Path, why: impl std::fmt::Display) -> Self {
        Self::File { path: path.to_owned(), why: why.to_string() }
    }

    /// The stable reason to refuse a submission for, when the error is the submission's doing;
    /// `None` when it is ours. Meant for errors of overlaying a submission and running it: the
    /// same error of the base model is always ours.
    pub fn submission_reason(&self) -> Option<&'static str> {
        match self {
            Self::NonFinite { .. } => Some("non_finite"),
            Self::Missing { .. } => Some("missing_tensor"),
            Self::Foreign { .. } => Some("foreign_tensor"),
            Self::Shape { .. } => Some("wrong_shape"),
            Self::Dtype { .. } => Some("wrong_dtype"),
            Self::Checkpoint(refusal) if refusal.is_miners_fault() => Some(refusal.reason()),
            Self::Checkpoint(_)
            | Self::Config { .. }
            | Self::File { .. }
            | Self::Data(_)
            | Self::Tokenizer { .. }
            | Self::Stopped
            | Self::Torch(_) => None,
        }
    }
}
