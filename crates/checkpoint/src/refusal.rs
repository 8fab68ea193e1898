//! Why a checkpoint is refused: a stable reason for clients, and what exactly was found for people.

use std::{fmt, path::PathBuf};

use domain::ModelHash;

use crate::dtype::Dtype;

/// A checkpoint that cannot be used. All but [`Refusal::Unreadable`] are the fault of whoever made the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not a file that the readers understand.
    #[error("malformed: {flaw}: {detail}")]
    Malformed { flaw: Flaw, detail: String },
    /// A pickle that asks for more than a plain dictionary of tensors. Nothing of it was executed.
    #[error("forbidden_pickle: {what}")]
    ForbiddenPickle { what: String },
    #[error("missing_tensor: {name}")]
    MissingTensor { name: String },
    /// A tensor that is not of this slice, such as an expert of another group.
    #[error("foreign_tensor: {name}")]
    ForeignTensor { name: String },
    #[error("wrong_shape: {name} is {found:?}, not {expected:?}")]
    WrongShape { name: String, expected: Vec<usize>, found: Vec<usize> },
    #[error("wrong_dtype: {name} is {found}, not one of F32, BF16, F16")]
    WrongDtype { name: String, found: Dtype },
    /// A parameter that all groups share, which a miner must not send.
    #[error("shared_weights: contains the shared parameter {name}")]
    SharedWeights { name: String },
    /// `index` counts elements of the tensor in row-major order; `value` is `NaN`, `inf` or `-inf`.
    #[error("non_finite: {name}[{index}] is {value}")]
    NonFinite { name: String, index: usize, value: String },
    #[error("hash_mismatch: the file's model hash is {found}, committed was {expected}")]
    HashMismatch { expected: ModelHash, found: ModelHash },
    /// The file could not be opened here: not the miner's fault.
    #[error("evaluator_error: cannot read {}: {why}", path.display())]
    Unreadable { path: PathBuf, why: String },
}

impl Refusal {
    /// The stable reason: what clients, records and metrics show.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Malformed { .. } => "malformed",
            Self::ForbiddenPickle { .. } => "forbidden_pickle",
            Self::MissingTensor { .. } => "missing_tensor",
            Self::ForeignTensor { .. } => "foreign_tensor",
            Self::WrongShape { .. } => "wrong_shape",
            Self::WrongDtype { .. } => "wrong_dtype",
            Self::SharedWeights { .. } => "shared_weights",
            Self::NonFinite { .. } => "non_finite",
            Self::HashMismatch { .. } => "hash_mismatch",
            Self::Unreadable { .. } => "evaluator_error",
        }
    }

    /// Whether a miner scores 0 for it; otherwise nothing may be recorded against the miner.
    pub fn is_miners_fault(&self) -> bool {
        !matches!(self, Self::Unreadable { .. })
    }

    /// What is wrong with the file, where it is malformed.
    pub fn flaw(&self) -> Option<Flaw> {
        let Self::Malformed { flaw, .. } = self else { return None };
        Some(*flaw)
    }

    pub(crate) fn missing(name: &str) -> Self {
        Self::MissingTensor { name: clip(name) }
    }

    pub(crate) fn unreadable(path: &std::path::Path, why: impl fmt::Display) -> Self {
        Self::Unreadable { path: path.to_owned(), why: why.to_string() }
    }
}

/// What is wrong with a malformed file; each has a stable name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Flaw {
    /// Zero bytes.
    EmptyFile,
    /// Larger than the limit.
    FileTooLarge,
    /// Not as long as was announced before it came.
    WrongLength,
    /// Neither a zip archive nor a safetensors file.
    NotACheckpoint,
    /// Ends before what it announces.
    Truncated,
    /// A checkpoint without a single tensor.
    NoTensors,
    TooManyTensors,
    /// Dimensions whose product is not a size.
    HugeShape,
    TooManyDimensions,
    DuplicateTensor,
    UnknownDtype,
    /// The tensors' sizes add up to much more than the file.
    StorageBomb,
    /// safetensors: announces a header beyond the limit or the file.
    HeaderTooLarge,
    /// safetensors: a header that is not the JSON it must be.
    BadHeader,
    /// safetensors: data that do not lie end to end from 0 to the end of the file.
    BadOffsets,
    /// zip: a directory or a local header that does not hold together.
    BadArchive,
    CompressedEntry,
    EncryptedEntry,
    DuplicateEntry,
    OverlappingEntries,
    /// zip: not exactly one `<folder>/data.pkl`, or a tensor's storage is not in the archive.
    MissingEntry,
    BigEndian,
    PickleTooLarge,
    /// pickle: an instruction that its stack or its arguments do not allow.
    BadPickle,
    /// pickle: no `model_state_dict` that is a dictionary of tensors by name.
    NotAStateDict,
    /// A tensor that reaches outside its storage.
    OutOfStorage,
    /// Several elements in one place.
    OverlappingStrides,
}

impl Flaw {
    /// The stable name, snake case.
    pub fn name(self) -> &'static str {
        match self {
            Self::EmptyFile => "empty_file",
            Self::FileTooLarge => "file_too_large",
            Self::WrongLength => "wrong_length",
            Self::NotACheckpoint => "not_a_checkpoint",
            Self::Truncated => "truncated",
            Self::NoTensors => "no_tensors",
            Self::TooManyTensors => "too_many_tensors",
            Self::HugeShape => "huge_shape",
            Self::TooManyDimensions => "too_many_dimensions",
            Self::DuplicateTensor => "duplicate_tensor",
            Self::UnknownDtype => "unknown_dtype",
            Self::StorageBomb => "storage_bomb",
            Self::HeaderTooLarge => "header_too_large",
            Self::BadHeader => "bad_header",
            Self::BadOffsets => "bad_offsets",
            Self::BadArchive => "bad_archive",
            Self::CompressedEntry => "compressed_entry",
            Self::EncryptedEntry => "encrypted_entry",
            Self::DuplicateEntry => "duplicate_entry",
            Self::OverlappingEntries => "overlapping_entries",
            Self::MissingEntry => "missing_entry",
            Self::BigEndian => "big_endian",
            Self::PickleTooLarge => "pickle_too_large",
            Self::BadPickle => "bad_pickle",
            Self::NotAStateDict => "not_a_state_dict",
            Self::OutOfStorage => "out_of_storage",
            Self::OverlappingStrides => "overlapping_strides",
        }
    }

    /// The refusal of this flaw.
    pub(crate) fn with(self, detail: impl fmt::Display) -> Refusal {
        Refusal::Malformed { flaw: self, detail: clip(&detail.to_string()) }
    }
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Strangers' text in our messages: printable and short.
pub(crate) fn clip(text: &str) -> String {
    let shown = |c: char| if c.is_control() { '?' } else { c };
    text.chars().take(200).map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strangers_text_is_cut_and_cleaned() {
        let refusal = Flaw::BadHeader.with(format!("a\n{}", "x".repeat(1000)));
        let text = refusal.to_string();
        assert!(text.starts_with("malformed: bad_header: a?xxx"), "{text}");
        assert!(text.len() < 300);
    }

    #[test]
    fn only_an_unreadable_file_is_our_own_fault() {
        assert!(Flaw::Truncated.with("").is_miners_fault());
        let ours = Refusal::unreadable(std::path::Path::new("f"), "no such file");
        assert!(!ours.is_miners_fault());
        assert_eq!(ours.reason(), "evaluator_error");
    }
}
