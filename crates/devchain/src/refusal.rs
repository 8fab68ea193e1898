//! Why an extrinsic did not get into the pool, in the codes and words of a live node.

use jsonrpsee::types::ErrorObjectOwned;

/// An extrinsic that was refused at submission. Codes are the node's JSON-RPC codes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// The bytes are not an extrinsic.
    #[error("Extrinsic has invalid format: {0}")]
    Format(&'static str),
    /// An extrinsic whose call does not decode: the live runtime traps on it.
    #[error("Verification Error: Runtime error: Execution failed: {0}")]
    Call(String),
    #[error("Transaction has a bad signature")]
    BadSignature,
    #[error("Transaction is outdated")]
    Stale,
    #[error("Transaction has an ancient birth block")]
    AncientBirth,
    #[error("Transaction call is not expected")]
    Unexpected,
    #[error("Transaction would exhaust the block limits")]
    TooLarge,
    /// A refusal by the chain's own rules (`CustomTransactionError`).
    #[error("Custom error: {}", .0.code())]
    Custom(Custom),
    #[error("Transaction is temporarily banned")]
    Banned,
    #[error("Transaction Already Imported")]
    AlreadyImported,
    #[error(
        "The transaction has too low priority to replace another transaction already in the pool."
    )]
    TooLowPriority,
    #[error("The transaction couldn't enter the pool because of the limit")]
    Dropped,
}

/// Subtensor's own refusals, as numbered on chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Custom {
    StakeTooLow = 1,
    RateLimit = 6,
    NotRegistered = 10,
    BadAddress = 11,
    ServingTooOften = 12,
    BadPort = 13,
    BadRequest = 255,
}

impl Custom {
    fn code(self) -> u8 {
        self as u8
    }
}

impl From<Refusal> for ErrorObjectOwned {
    fn from(refusal: Refusal) -> Self {
        let text = refusal.to_string();
        let (code, message, data) = match refusal {
            Refusal::Format(_) => (1001, text, None),
            Refusal::Call(_) => (1002, text, None),
            Refusal::BadSignature
            | Refusal::Stale
            | Refusal::AncientBirth
            | Refusal::Unexpected
            | Refusal::TooLarge
            | Refusal::Custom(_) => (1010, "Invalid Transaction".to_owned(), Some(text)),
            Refusal::Banned => (1012, text, None),
            Refusal::AlreadyImported => (1013, text, None),
            Refusal::TooLowPriority => (1014, "Priority is too low".to_owned(), Some(text)),
            Refusal::Dropped => (1016, "Immediately Dropped".to_owned(), Some(text)),
        };
        ErrorObjectOwned::owned(code, message, data)
    }
}
