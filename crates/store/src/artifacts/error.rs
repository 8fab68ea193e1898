//! Why artifacts are refused.

use std::{io, path::Path};

/// Why [`Artifacts`](crate::Artifacts) could not do what they were asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArtifactError {
    /// The URL is of no engine that there is.
    #[error("artifacts url `{url}`: {reason}")]
    Url {
        /// The URL.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The key is malformed: absolute, with `..`, or with other characters than are allowed.
    #[error("`{key}` is not an artifact key")]
    Key {
        /// The key, or its beginning.
        key: String,
    },
    /// Nothing is there.
    #[error("there is no artifact `{key}`")]
    NotFound {
        /// The key.
        key: String,
    },
    /// It is larger than the caller wanted to read.
    #[error("artifact `{key}` has {len} bytes, more than {max}")]
    TooLarge {
        /// The key.
        key: String,
        /// Its size in bytes.
        len: u64,
        /// The caller's limit in bytes.
        max: u64,
    },
    /// Something else is there, and content never changes.
    #[error("artifact `{key}` is already there with other content")]
    Conflict {
        /// The key.
        key: String,
    },
    /// A file or folder of this host failed.
    #[error("{action} {path}: {reason}")]
    File {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: String,
        /// What the system said.
        reason: String,
    },
    /// The engine failed. Worth trying again.
    #[error("the artifact store failed at `{key}`: {reason}")]
    Engine {
        /// The key or prefix.
        key: String,
        /// What it said.
        reason: String,
    },
}

impl ArtifactError {
    /// Returns whether nothing is there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// Returns the stable reason, for metrics and clients.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Url { .. } => "artifact_url",
            Self::Key { .. } => "artifact_key",
            Self::NotFound { .. } => "artifact_not_found",
            Self::TooLarge { .. } => "artifact_too_large",
            Self::Conflict { .. } => "artifact_conflict",
            Self::File { .. } => "artifact_file",
            Self::Engine { .. } => "artifact_store_failed",
        }
    }

    pub(super) fn file(action: &'static str, path: &Path, error: &io::Error) -> Self {
        Self::File { action, path: path.display().to_string(), reason: error.to_string() }
    }

    pub(super) fn engine(key: impl ToString, error: object_store::Error) -> Self {
        let key = key.to_string();
        if matches!(error, object_store::Error::NotFound { .. }) {
            Self::NotFound { key }
        } else {
            Self::Engine { key, reason: error.to_string() }
        }
    }
}
