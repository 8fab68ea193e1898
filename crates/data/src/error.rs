use std::path::PathBuf;

/// Why there is no data to measure on.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file or folder could not be read.
    #[error("{path}: {why}")]
    File { path: PathBuf, why: String },
    /// A batch that cannot be run: a token id beyond the vocabulary, lengths that do not agree, no
    /// token to predict.
    #[error("batch: {why}")]
    Batch { why: String },
    /// The texts do not suffice for what was asked of them.
    #[error("corpus: {why}")]
    Corpus { why: String },
    /// The tokenizer's file or a text is not usable.
    #[error("tokenizer: {why}")]
    Tokenizer { why: String },
}

impl DataError {
    /// A failure at `path`.
    pub(crate) fn file(path: &std::path::Path, why: impl std::fmt::Display) -> Self {
        Self::File { path: path.to_owned(), why: why.to_string() }
    }
}
