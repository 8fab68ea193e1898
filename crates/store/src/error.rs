//! Why the store refuses.

/// Why a [`Store`](crate::Store) could not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The URL is of no engine that there is. It may hold a password, so it is not repeated.
    #[error("store url: {reason}")]
    Url {
        /// What is wrong with it.
        reason: String,
    },
    /// A namespace, lease name or key has characters or a length that are not allowed.
    #[error("`{name}` is not a name for the store: 1 to 512 visible ASCII characters, no braces")]
    Name {
        /// The name.
        name: String,
    },
    /// A guarded write was refused: the lease ended, or someone else has had it since.
    #[error("lease `{lease}` with fence {held} was lost; the newest fence is {newest}")]
    Fenced {
        /// Name of the lease.
        lease: String,
        /// The fence that the write carried.
        held: u64,
        /// The newest fence given out.
        newest: u64,
    },
    /// The engine can't be reached or did not answer in time. A write may or may not have
    /// happened. Worth trying again.
    #[error("the store is unavailable: {reason}")]
    Unavailable {
        /// What the connection said.
        reason: String,
    },
    /// The engine answered with an error.
    #[error("the store failed: {reason}")]
    Engine {
        /// What it answered.
        reason: String,
    },
}

impl StoreError {
    /// Returns whether trying again later may help.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    /// Returns whether a guarded write came too late.
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        matches!(self, Self::Fenced { .. })
    }

    /// Returns the stable reason, for metrics and clients.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Url { .. } => "store_url",
            Self::Name { .. } => "store_name",
            Self::Fenced { .. } => "fenced",
            Self::Unavailable { .. } => "store_unavailable",
            Self::Engine { .. } => "store_failed",
        }
    }
}
