//! What a call can fail with, and the code that it answers.

use tonic::{Code, Status};

/// What can go wrong with reading or writing the chain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// No connection yet, or no longer.
    #[error("the chain cannot be reached: {0}")]
    Unreachable(String),
    /// Every endpoint is of another chain than the configured one.
    #[error("{0}")]
    WrongChain(String),
    #[error("block {0} is not on this chain")]
    NoSuchBlock(String),
    #[error(
        "the node no longer holds the state of block {0}; ask while it is fresh, or of an archive node"
    )]
    StateDiscarded(String),
    /// Too few endpoints answered: the same question may be answered a moment later.
    #[error("{what}: {wanted} endpoints must agree, and {got} answered: {why}")]
    NoQuorum { what: &'static str, wanted: usize, got: usize, why: String },
    /// Endpoints answered otherwise, and policy holds what depends on it.
    #[error("{what}: {wanted} endpoints must agree, and they do not: {told}")]
    Disagreement { what: &'static str, wanted: usize, told: String },
    #[error("an endpoint says what cannot be true: {0}")]
    Lie(String),
    #[error("{what} cannot be read: {why}")]
    Unreadable { what: &'static str, why: String },
    #[error("subnet {0} does not exist")]
    NoSuchSubnet(u16),
    #[error("the runtime of spec {spec} lacks what this service uses: {}", missing.join("; "))]
    Runtime { spec: u32, missing: Vec<String> },
    #[error("the store failed: {0}")]
    Store(String),
    /// Another process owns the nonce of the hotkey now.
    #[error("the right to send extrinsics was lost: {0}")]
    Fenced(String),
    #[error("intent {key} was recorded with another payload")]
    OtherPayload { key: String },
    #[error("intent {key} comes after the newer {by}, which takes its place")]
    Superseded { key: String, by: String },
    #[error(
        "intent {key} holds weights of the stale guard, and a round's own are on their way: {own}"
    )]
    Guarded { key: String, own: String },
    #[error(
        "signed for the purpose `{purpose}` too often in a minute: ask again in some seconds, or raise the limit in [chain]"
    )]
    SignLimit { purpose: &'static str },
    #[error("intent {0} was sent before and its record is forgotten: it is not sent again")]
    Forgotten(String),
    #[error("intent {0} was never recorded")]
    NoSuchIntent(String),
    #[error("intent {key} as stored cannot be read: {why}")]
    StoredIntent { key: String, why: String },
    #[error(transparent)]
    Field(#[from] proto::InvalidField),
}

impl Error {
    /// Stable, snake_case.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::WrongChain(_) => "wrong_chain",
            Self::NoSuchBlock(_) => "no_such_block",
            Self::StateDiscarded(_) => "state_discarded",
            Self::NoQuorum { .. } => "no_quorum",
            Self::Disagreement { .. } => "disagreement",
            Self::Lie(_) => "endpoint_lies",
            Self::Unreadable { .. } => "unreadable",
            Self::NoSuchSubnet(_) => "no_such_subnet",
            Self::Runtime { .. } => "runtime",
            Self::Store(_) => "store",
            Self::Fenced(_) => "fenced",
            Self::OtherPayload { .. } => "other_payload",
            Self::Superseded { .. } => "superseded",
            Self::Guarded { .. } => "guarded",
            Self::Forgotten(_) => "forgotten",
            Self::SignLimit { .. } => "sign_limit",
            Self::NoSuchIntent(_) => "no_such_intent",
            Self::StoredIntent { .. } => "stored_intent",
            Self::Field(_) => "invalid_field",
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::Unreachable(_)
            | Self::NoQuorum { .. }
            | Self::Lie(_)
            | Self::Store(_)
            | Self::Fenced(_) => Code::Unavailable,
            Self::NoSuchBlock(_) | Self::NoSuchSubnet(_) | Self::NoSuchIntent(_) => Code::NotFound,
            Self::StateDiscarded(_)
            | Self::Disagreement { .. }
            | Self::Superseded { .. }
            | Self::Guarded { .. }
            | Self::Forgotten(_)
            | Self::Runtime { .. }
            | Self::WrongChain(_) => Code::FailedPrecondition,
            Self::Unreadable { .. } | Self::StoredIntent { .. } => Code::Internal,
            Self::OtherPayload { .. } => Code::AlreadyExists,
            Self::SignLimit { .. } => Code::ResourceExhausted,
            Self::Field(_) => Code::InvalidArgument,
        }
    }

    /// From an error of `subxt` while reading `what` at `block`. Most of its errors tell of their
    /// cause in text alone.
    pub(crate) fn reading(
        what: &'static str,
        block: impl std::fmt::Display,
        error: impl std::error::Error,
    ) -> Self {
        let text = error.to_string();
        let lower = text.to_lowercase();
        let has = |part| lower.contains(part);
        if crate::nodes::is_unreachable(&text) {
            Self::Unreachable(text)
        } else if has("state already discarded") || has("state discarded") {
            Self::StateDiscarded(block.to_string())
        } else if has("unknownblock")
            || has("unknown block")
            || has("header was not found")
            || has("cannot find the block header")
            || (has("block number") && has("not found"))
        {
            Self::NoSuchBlock(block.to_string())
        } else {
            Self::Unreadable { what, why: text }
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Self::new(error.code(), format!("{}: {error}", error.reason()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Text(&'static str);

    #[test]
    fn a_nodes_errors_are_told_apart_by_what_they_say() {
        let of = |text| Error::reading("weights", 7, Text(text)).reason();
        assert_eq!(
            of("User error: Client error: UnknownBlock: State already discarded for 0x12"),
            "state_discarded"
        );
        assert_eq!(
            of("User error: Client error: UnknownBlock: Header was not found"),
            "no_such_block"
        );
        assert_eq!(
            of("RPC error: client error: no chain endpoint can be reached: ws://a: refused"),
            "unreachable"
        );
        assert_eq!(of("Cannot decode storage value"), "unreadable");
    }

    #[test]
    fn a_status_begins_with_the_stable_reason() {
        let status = Status::from(Error::StateDiscarded("7".to_owned()));
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().starts_with("state_discarded: "), "{}", status.message());
    }
}
