//! Why a request is refused: reasons to HTTP codes (protocol, section 8).
//!
//! Every body is `{"detail": "<sentence>", "reason": "<stable code>"}`.

use std::time::Duration;

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use checkpoint::Refusal;
use domain::{BlockNumber, Hotkey, ModelHash, Phase, RoundId};
use serde_json::json;

use crate::multipart::MultipartError;

/// What a request can be refused for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("a bearer token is needed")]
    TokenMissing,
    #[error("the bearer token is wrong")]
    TokenWrong,
    #[error("there is no such route")]
    NoRoute,
    #[error("this route does not take this method")]
    NoMethod,
    #[error("too many requests: try again in {} s", seconds(.retry))]
    RateLimited { retry: Duration },
    #[error("the gateway serves as many requests of this kind as it may; try again")]
    Busy,
    #[error("the gateway does not know the state of the chain yet")]
    NotReady,
    #[error("the state of the chain is {age:?} old; nothing is taken until it is known again")]
    StaleView { age: Duration },
    #[error("the gateway is stopping")]
    Stopping,
    #[error("there is no checkpoint yet")]
    NoCheckpoint,
    #[error("there is no slice `{slice}` in format {format}")]
    NoSlice { slice: String, format: String },
    #[error("the range lies outside the file of {len} bytes")]
    RangeUnsatisfiable { len: u64 },
    #[error("one range at a time: the file of {len} bytes is not sent in several parts at once")]
    SeveralRanges { len: u64 },
    #[error("the file is not, or no longer, the one that was asked for")]
    PreconditionFailed,
    #[error("the file is being compared with its manifest; try again")]
    Checking,
    #[error("the field `{field}` is missing; every field comes before the file")]
    MissingField { field: &'static str },
    #[error("the field `{field}` is given twice")]
    RepeatedField { field: String },
    #[error("the field `{field}` is not valid: {why}")]
    InvalidField { field: &'static str, why: String },
    #[error("the form ends without a file")]
    MissingFile,
    #[error("{0}")]
    Form(MultipartError),
    #[error("the body is too large: at most {limit} bytes are taken")]
    TooLarge { limit: u64 },
    #[error("the body took longer than {limit:?}")]
    TooSlow { limit: Duration },
    #[error("the upload broke off: {why}")]
    BrokenOff { why: String },
    #[error("the target {target} is not this validator, {hotkey}")]
    WrongTarget { target: Hotkey, hotkey: Hotkey },
    #[error("the signature is not {hotkey}'s over the {message}")]
    RequestSignature { hotkey: Hotkey, message: &'static str },
    #[error("this signature was used before; sign again")]
    SignatureReused,
    #[error("origin block {origin} is outside blocks {first} to {last}")]
    OriginBlock { origin: BlockNumber, first: BlockNumber, last: BlockNumber },
    #[error("block_hex is not the block message of the target and origin block {origin}")]
    BlockHex { origin: BlockNumber },
    #[error("uploads are taken in the Submission phase; block {block} is in {phase}")]
    NotSubmissionPhase { block: BlockNumber, phase: Phase },
    #[error("uploads are closed now")]
    UploadsClosed,
    #[error("round {round} takes no more submissions")]
    RoundClosed { round: RoundId },
    #[error("{hotkey} is not on the roster of round {round}")]
    NotOnRoster { hotkey: Hotkey, round: RoundId },
    #[error("{hotkey} may not upload here{}", because(.detail))]
    NotAssigned { hotkey: Hotkey, detail: String },
    #[error("{hotkey} committed nothing on chain for round {round}")]
    NothingCommitted { hotkey: Hotkey, round: RoundId },
    #[error("the commitment of {hotkey} is not usable: {reason}{}", because(.detail))]
    UnusableCommitment { hotkey: Hotkey, reason: String, detail: String },
    #[error("model_hex is {given}, the hash committed on chain is {committed}")]
    NotCommittedHash { given: ModelHash, committed: ModelHash },
    #[error("the signature that {hotkey} committed is not over the hash that it revealed")]
    CommittedSignature { hotkey: Hotkey },
    #[error("the file name is not safe: {why}")]
    UnsafeFileName { why: &'static str },
    #[error("files end in one of {}", crate::admit::EXTENSIONS.join(", "))]
    Extension,
    #[error("{hotkey} has submitted in round {round} already")]
    AlreadySubmitted { hotkey: Hotkey, round: RoundId },
    #[error("another upload of {hotkey} is under way")]
    UploadInProgress { hotkey: Hotkey },
    #[error("the header {header} {why}")]
    InvalidHeader { header: &'static str, why: &'static str },
    #[error("the length of an upload must be told when it is created")]
    LengthDeferred,
    #[error("only version {} of tus is spoken", crate::tus::VERSION)]
    TusVersion,
    #[error("the body of this request must be application/offset+octet-stream")]
    MediaType,
    #[error("checksums are taken of {}", crate::tus::ALGORITHMS)]
    ChecksumAlgorithm,
    #[error("the body does not fit its checksum; nothing of it was taken")]
    ChecksumMismatch,
    #[error("the upload goes on at byte {offset}")]
    OffsetMismatch { offset: u64 },
    #[error("another request is writing to this upload")]
    UploadLocked,
    #[error("there is no such upload")]
    NoUpload,
    #[error("this upload is not here, and no other address is known of the gateway that has it")]
    UploadElsewhere,
    #[error("{}", .why.as_str())]
    UploadGone { why: Gone },
    #[error("{0}")]
    Content(#[from] Refusal),
    #[error("the gateway could not {doing}; try again")]
    Unavailable { doing: &'static str },
}

/// Why an upload cannot be gone on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gone {
    Expired,
    Replaced,
    Terminated,
    Lost,
}

impl Gone {
    fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "the upload has expired",
            Self::Replaced => "its sender has begun another upload instead of this one",
            Self::Terminated => "its sender has ended the upload",
            Self::Lost => "what had come of the upload is lost; begin again",
        }
    }

    fn reason(self) -> &'static str {
        match self {
            Self::Expired => "upload_expired",
            Self::Replaced => "upload_replaced",
            Self::Terminated => "upload_terminated",
            Self::Lost => "upload_lost",
        }
    }
}

impl Error {
    /// Something of ours failed. The client is not told why, the log is.
    pub(crate) fn unavailable(doing: &'static str, why: impl std::fmt::Display) -> Self {
        tracing::warn!(%why, "could not {doing}");
        Self::Unavailable { doing }
    }

    /// The status code.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::MissingField { .. }
            | Self::RepeatedField { .. }
            | Self::InvalidField { .. }
            | Self::MissingFile
            | Self::Form(_)
            | Self::BrokenOff { .. }
            | Self::OriginBlock { .. }
            | Self::BlockHex { .. }
            | Self::NothingCommitted { .. }
            | Self::UnusableCommitment { .. }
            | Self::NotCommittedHash { .. }
            | Self::CommittedSignature { .. }
            | Self::UnsafeFileName { .. }
            | Self::Extension
            | Self::InvalidHeader { .. }
            | Self::LengthDeferred
            | Self::ChecksumAlgorithm => StatusCode::BAD_REQUEST,
            // A code of tus: it has no name.
            Self::ChecksumMismatch => StatusCode::from_u16(460).unwrap_or(StatusCode::BAD_REQUEST),
            Self::MediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::UploadLocked => StatusCode::LOCKED,
            Self::UploadGone { .. } => StatusCode::GONE,
            Self::TokenMissing => StatusCode::UNAUTHORIZED,
            Self::TokenWrong
            | Self::WrongTarget { .. }
            | Self::RequestSignature { .. }
            | Self::SignatureReused
            | Self::NotOnRoster { .. }
            | Self::NotAssigned { .. } => StatusCode::FORBIDDEN,
            Self::NoRoute | Self::NoSlice { .. } | Self::NoUpload | Self::UploadElsewhere => {
                StatusCode::NOT_FOUND
            }
            Self::NoMethod => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooSlow { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::NotSubmissionPhase { .. }
            | Self::UploadsClosed
            | Self::RoundClosed { .. }
            | Self::AlreadySubmitted { .. }
            | Self::UploadInProgress { .. }
            | Self::OffsetMismatch { .. } => StatusCode::CONFLICT,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::RangeUnsatisfiable { .. } | Self::SeveralRanges { .. } => {
                StatusCode::RANGE_NOT_SATISFIABLE
            }
            Self::PreconditionFailed | Self::TusVersion => StatusCode::PRECONDITION_FAILED,
            Self::RateLimited { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Busy
            | Self::NotReady
            | Self::StaleView { .. }
            | Self::Stopping
            | Self::NoCheckpoint
            | Self::Checking
            | Self::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Content(refusal) if refusal.is_miners_fault() => StatusCode::BAD_REQUEST,
            Self::Content(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The stable code, for clients, metrics and records.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::TokenMissing => "token_missing",
            Self::TokenWrong => "token_wrong",
            Self::NoRoute => "no_route",
            Self::NoMethod => "no_method",
            Self::RateLimited { .. } => "rate_limited",
            Self::Busy => "busy",
            Self::NotReady => "not_ready",
            Self::StaleView { .. } => "stale_view",
            Self::Stopping => "stopping",
            Self::NoCheckpoint => "no_checkpoint",
            Self::NoSlice { .. } => "no_slice",
            Self::Checking => "checking",
            Self::RangeUnsatisfiable { .. } => "range_unsatisfiable",
            Self::SeveralRanges { .. } => "several_ranges",
            Self::PreconditionFailed => "precondition_failed",
            Self::MissingField { .. } => "missing_field",
            Self::RepeatedField { .. } => "repeated_field",
            Self::InvalidField { .. } => "invalid_field",
            Self::MissingFile => "missing_file",
            Self::Form(_) => "malformed_form",
            Self::TooLarge { .. } => "too_large",
            Self::TooSlow { .. } => "too_slow",
            Self::BrokenOff { .. } => "broken_off",
            Self::WrongTarget { .. } => "wrong_target",
            Self::RequestSignature { .. } => "request_signature",
            Self::SignatureReused => "signature_reused",
            Self::OriginBlock { .. } => "origin_block",
            Self::BlockHex { .. } => "block_hex",
            Self::NotSubmissionPhase { .. } => "not_submission_phase",
            Self::UploadsClosed => "uploads_closed",
            Self::RoundClosed { .. } => "round_closed",
            Self::NotOnRoster { .. } => "not_on_roster",
            Self::NotAssigned { .. } => "not_assigned",
            Self::NothingCommitted { .. } => "nothing_committed",
            Self::UnusableCommitment { reason, .. } => crate::admit::commitment_reason(reason),
            Self::NotCommittedHash { .. } => "hash_mismatch",
            Self::CommittedSignature { .. } => "bad_signature",
            Self::UnsafeFileName { .. } => "unsafe_file_name",
            Self::Extension => "unknown_extension",
            Self::AlreadySubmitted { .. } => "already_submitted",
            Self::UploadInProgress { .. } => "upload_in_progress",
            Self::InvalidHeader { .. } => "invalid_header",
            Self::LengthDeferred => "length_deferred",
            Self::TusVersion => "tus_version",
            Self::MediaType => "media_type",
            Self::ChecksumAlgorithm => "checksum_algorithm",
            Self::ChecksumMismatch => "checksum_mismatch",
            Self::OffsetMismatch { .. } => "offset_mismatch",
            Self::UploadLocked => "upload_locked",
            Self::NoUpload => "no_upload",
            Self::UploadElsewhere => "upload_elsewhere",
            Self::UploadGone { why } => why.reason(),
            Self::Content(refusal) if refusal.is_miners_fault() => refusal.reason(),
            Self::Content(_) | Self::Unavailable { .. } => "unavailable",
        }
    }

    /// Whether the connection, and not what the client sent, is to blame: the same request may be
    /// repeated as it is.
    pub(crate) fn is_transport(&self) -> bool {
        matches!(
            self,
            Self::TooSlow { .. }
                | Self::BrokenOff { .. }
                | Self::Unavailable { .. }
                | Self::Stopping
        )
    }

    fn retry_after(&self) -> Option<Duration> {
        const SOON: Duration = Duration::from_secs(5);
        if let Self::RateLimited { retry } = self {
            return Some(*retry);
        }
        let passing = self.status() == StatusCode::SERVICE_UNAVAILABLE
            || matches!(self, Self::UploadInProgress { .. } | Self::UploadLocked);
        passing.then_some(SOON)
    }
}

impl From<MultipartError> for Error {
    fn from(error: MultipartError) -> Self {
        match error {
            MultipartError::Truncated => Self::BrokenOff { why: error.to_string() },
            MultipartError::Body(why) => Self::BrokenOff { why },
            MultipartError::ContentType | MultipartError::Malformed(_) => Self::Form(error),
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let body = json!({ "detail": self.to_string(), "reason": self.reason() });
        let mut response = (self.status(), Json(body)).into_response();
        let headers = response.headers_mut();
        if let Some(retry) = self.retry_after() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds(&retry)));
        }
        if let Self::RangeUnsatisfiable { len } | Self::SeveralRanges { len } = self
            && let Ok(value) = HeaderValue::try_from(format!("bytes */{len}"))
        {
            headers.insert(header::CONTENT_RANGE, value);
        }
        if let Self::OffsetMismatch { offset } = self {
            headers.insert("upload-offset", HeaderValue::from(offset));
        }
        if matches!(self, Self::TokenMissing) {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(Reason(self.reason()));
        response
    }
}

/// The reason of a refusal, for the layers around the handlers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reason(pub(crate) &'static str);

/// Whole seconds, at least one.
fn seconds(duration: &Duration) -> u64 {
    duration.as_secs_f64().ceil().max(1.0) as u64
}

fn because(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(": {detail}") }
}
