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
    /// The router sent tokens to experts that are not loaded, which only probabilities that are not
    /// numbers can do.
    #[error("{tokens} choices of the router fell on experts that are not loaded")]
    NoExpert { tokens: i64 },
    /// The texts or batches are not usable.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The tokenizer could not be trained.
    #[error("tokenizer: {why}")]
    Tokenizer { why: String },
    /// The caller's stop signal was seen between two batches.
    #[error("stopped")]
    Stopped,
    /// A staged submission was made for a model of another layout, type or device.
    #[error("the submission was staged for another model")]
    Staged,
    /// The plan does not fit: nothing was loaded.
    #[error("{needed} bytes of the {place}'s memory are needed, {available} are available")]
    NotEnough { place: crate::Place, needed: u64, available: u64 },
    /// The processor's or the device's memory did not suffice. The model itself is as it was.
    #[error("out of memory: {why}")]
    OutOfMemory { why: String },
    /// libtorch failed otherwise: no such device, an error of the driver.
    #[error("libtorch: {0}")]
    Torch(tch::TchError),
}

/// How libtorch says that memory was short: its allocators of the processor and of CUDA, the standard
/// library's, CUDA's own and its libraries'. There is no code to tell it by.
const OUT_OF_MEMORY: [&str; 7] = [
    "can't allocate memory",
    "not enough memory: you tried to allocate",
    "std::bad_alloc",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "cudaErrorMemoryAllocation",
    "STATUS_ALLOC_FAILED",
];

impl From<tch::TchError> for ModelError {
    fn from(error: tch::TchError) -> Self {
        let text = error.to_string();
        if !OUT_OF_MEMORY.iter().any(|sign| text.contains(sign)) {
            return Self::Torch(error);
        }
        // The rest is a trace of libtorch's calls.
        let why = text.lines().next().unwrap_or_default().to_owned();
        Self::OutOfMemory { why }
    }
}

impl ModelError {
    /// A failure at `path`.
    pub(crate) fn file(path: &std::path::Path, why: impl std::fmt::Display) -> Self {
        Self::File { path: path.to_owned(), why: why.to_string() }
    }

    /// Whether libtorch's memory was short in a run. Nothing is lost but the run: the caller may free
    /// memory and try again, or, where it happens again, restart: libtorch's interface has no way to
    /// make its allocator give back what it keeps of a GPU.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::OutOfMemory { .. })
    }

    /// The stable reason to refuse a submission for, when the error is the submission's doing;
    /// `None` when it is ours. Meant for errors of overlaying a submission and running it: the
    /// same error of the base model is always ours.
    pub fn submission_reason(&self) -> Option<&'static str> {
        match self {
            Self::NonFinite { .. } | Self::NoExpert { .. } => Some("non_finite"),
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
            | Self::Staged
            | Self::NotEnough { .. }
            | Self::OutOfMemory { .. }
            | Self::Torch(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::{Kind, TchError, Tensor};

    use super::*;
    use crate::Device;

    #[test]
    fn memory_that_does_not_suffice_is_told_from_other_failures() {
        // On the device that `CONNITO_DEVICE` names, if it does: 64 tebibytes.
        let device: Device =
            std::env::var("CONNITO_DEVICE").map_or(Device::Cpu, |name| name.parse().unwrap());
        let error = Tensor::f_empty([1 << 44], (Kind::Float, device.tch())).unwrap_err();
        let error = ModelError::from(error);
        assert!(error.is_out_of_memory(), "{error}");
        assert_eq!(error.submission_reason(), None, "never a miner's fault");
        for text in [
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB",
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        ] {
            assert!(ModelError::from(TchError::Torch(text.to_owned())).is_out_of_memory());
        }
        let other = Tensor::from_slice(&[1f32]).f_matmul(&Tensor::from_slice(&[1f32, 2.0]));
        assert!(!ModelError::from(other.unwrap_err()).is_out_of_memory());
    }
}
