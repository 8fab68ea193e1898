//! One refusal of every kind, for tests that look at all of them.

use domain::Phase;

use super::*;

/// One of each, and one for each reason that a kind can have.
pub(crate) fn all() -> Vec<Error> {
    let hotkey = Hotkey::from_public_key([7; 32]);
    let (round, origin) = (RoundId(336), BlockNumber(340));
    let hash = |byte| ModelHash([byte; 24]);
    let mut all = vec![
        Error::TokenMissing,
        Error::TokenWrong,
        Error::NoRoute,
        Error::NoMethod,
        Error::RateLimited { retry: Duration::from_secs(3) },
        Error::Crowded { limit: 128 },
        Error::Busy,
        Error::NoRoom,
        Error::NotReady,
        Error::StaleView { age: Duration::from_secs(91) },
        Error::Stopping,
        Error::NoCheckpoint,
        Error::NoSlice { slice: "9".into(), format: "pt".into() },
        Error::RangeUnsatisfiable { len: 10 },
        Error::SeveralRanges { len: 10 },
        Error::PreconditionFailed,
        Error::Checking,
        Error::MissingField { field: "signature" },
        Error::RepeatedField { field: "signature".into() },
        Error::InvalidField { field: "signature", why: "it is not 64 bytes".into() },
        Error::MissingFile,
        Error::Form(MultipartError::ContentType),
        Error::TooLarge { limit: 10 },
        Error::TooSlow { limit: Duration::from_secs(300) },
        Error::Crawling(pace::Crawling { rate: 65_536, window: Duration::from_secs(30) }),
        Error::BrokenOff { why: "the form ended before its closing boundary".into() },
        Error::WrongTarget { target: hotkey.clone(), hotkey: hotkey.clone() },
        Error::RequestSignature { hotkey: hotkey.clone(), message: "block message" },
        Error::SignatureReused,
        Error::OriginBlock { origin, first: BlockNumber(336), last: BlockNumber(355) },
        Error::BlockHex { origin },
        Error::NotSubmissionPhase { block: BlockNumber(1), phase: Phase::Distribute },
        Error::UploadsClosed,
        Error::RoundClosed { round },
        Error::NotOnRoster { hotkey: hotkey.clone(), round },
        Error::NotAssigned { hotkey: hotkey.clone(), detail: String::new() },
        Error::NothingCommitted { hotkey: hotkey.clone(), round },
        Error::NotCommittedHash { given: hash(1), committed: hash(2) },
        Error::CommittedSignature { hotkey: hotkey.clone() },
        Error::UnsafeFileName { why: "it is missing" },
        Error::Extension,
        Error::UnknownRound { round },
        Error::NotYours { hotkey: hotkey.clone() },
        Error::AlreadySubmitted { hotkey: hotkey.clone(), round },
        Error::UploadInProgress { hotkey: hotkey.clone() },
        Error::Unavailable { doing: "store the file" },
        Error::InvalidHeader { header: "Upload-Length", why: "is missing" },
        Error::LengthDeferred,
        Error::TusVersion,
        Error::MediaType,
        Error::ChecksumAlgorithm,
        Error::ChecksumMismatch,
        Error::OffsetMismatch { offset: 7 },
        Error::UploadLocked,
        Error::NoUpload,
        Error::UploadElsewhere,
    ];
    for why in [Gone::Expired, Gone::Replaced, Gone::Terminated, Gone::Lost] {
        // A new one does not compile here before it has its place above.
        match why {
            Gone::Expired | Gone::Replaced | Gone::Terminated | Gone::Lost => {}
        }
        all.push(Error::UploadGone { why });
    }
    for reason in ["commitment_incomplete", "version_out_of_range", "wrong_group"] {
        let (hotkey, reason) = (hotkey.clone(), reason.to_owned());
        all.push(Error::UnusableCommitment { hotkey, reason, detail: String::new() });
    }
    all.extend(hub_faults().into_iter().map(Error::Hub));
    all.extend(contents().into_iter().map(Error::Content));
    let found: std::collections::BTreeSet<usize> = all.iter().map(kind).collect();
    assert_eq!(found, (0..KINDS).collect(), "a kind of refusal has no sample");
    all
}

/// One of every kind of wrong place on a hub.
fn hub_faults() -> Vec<Fault> {
    let (repo, digits) = (|| "miner/model".to_owned(), || "0123abc".to_owned());
    let all = vec![
        Fault::Place { why: "it is not `owner/name`" },
        Fault::Missing { repo: repo() },
        Fault::NoCommit { repo: repo(), digits: digits() },
        Fault::SeveralCommits { repo: repo(), digits: digits() },
        Fault::NoFile { repo: repo(), commit: "0".repeat(40), why: "no file".into() },
    ];
    for fault in &all {
        // A new kind does not compile here before it has a sample above.
        match fault {
            Fault::Place { .. }
            | Fault::Missing { .. }
            | Fault::NoCommit { .. }
            | Fault::SeveralCommits { .. }
            | Fault::NoFile { .. } => {}
        }
    }
    all
}

/// One of every kind of refusal of a file's content.
fn contents() -> Vec<Refusal> {
    let name = || "model.layers.1.mlp.experts.0.down_proj".to_owned();
    let all = vec![
        Refusal::Malformed { flaw: checkpoint::Flaw::EmptyFile, detail: "no bytes".into() },
        Refusal::ForbiddenPickle { what: "os.system".into() },
        Refusal::MissingTensor { name: name() },
        Refusal::ForeignTensor { name: name() },
        Refusal::WrongShape { name: name(), expected: vec![2], found: vec![3] },
        Refusal::WrongDtype { name: name(), found: checkpoint::Dtype::F64 },
        Refusal::SharedWeights { name: name() },
        Refusal::NonFinite { name: name(), index: 0, value: "NaN".into() },
        Refusal::HashMismatch { expected: ModelHash([1; 24]), found: ModelHash([2; 24]) },
        Refusal::Unreadable { path: "/spool/x".into(), why: "gone".into() },
    ];
    for refusal in &all {
        // A new kind does not compile here before it has a sample above.
        match refusal {
            Refusal::Malformed { .. }
            | Refusal::ForbiddenPickle { .. }
            | Refusal::MissingTensor { .. }
            | Refusal::ForeignTensor { .. }
            | Refusal::WrongShape { .. }
            | Refusal::WrongDtype { .. }
            | Refusal::SharedWeights { .. }
            | Refusal::NonFinite { .. }
            | Refusal::HashMismatch { .. }
            | Refusal::Unreadable { .. } => {}
        }
    }
    all
}

/// How many kinds [`kind`] tells apart.
const KINDS: usize = 60;

/// A number for every kind: a new one does not compile before it has one, and a sample above.
fn kind(error: &Error) -> usize {
    match error {
        Error::TokenMissing => 0,
        Error::TokenWrong => 1,
        Error::NoRoute => 2,
        Error::NoMethod => 3,
        Error::RateLimited { .. } => 4,
        Error::Busy => 5,
        Error::NotReady => 6,
        Error::StaleView { .. } => 7,
        Error::Stopping => 8,
        Error::NoCheckpoint => 9,
        Error::NoSlice { .. } => 10,
        Error::RangeUnsatisfiable { .. } => 11,
        Error::SeveralRanges { .. } => 12,
        Error::PreconditionFailed => 13,
        Error::Checking => 14,
        Error::MissingField { .. } => 15,
        Error::RepeatedField { .. } => 16,
        Error::InvalidField { .. } => 17,
        Error::MissingFile => 18,
        Error::Form(_) => 19,
        Error::TooLarge { .. } => 20,
        Error::TooSlow { .. } => 21,
        Error::BrokenOff { .. } => 22,
        Error::WrongTarget { .. } => 23,
        Error::RequestSignature { .. } => 24,
        Error::SignatureReused => 25,
        Error::OriginBlock { .. } => 26,
        Error::BlockHex { .. } => 27,
        Error::NotSubmissionPhase { .. } => 28,
        Error::UploadsClosed => 29,
        Error::RoundClosed { .. } => 30,
        Error::NotOnRoster { .. } => 31,
        Error::NotAssigned { .. } => 32,
        Error::NothingCommitted { .. } => 33,
        Error::UnusableCommitment { .. } => 34,
        Error::NotCommittedHash { .. } => 35,
        Error::CommittedSignature { .. } => 36,
        Error::UnsafeFileName { .. } => 37,
        Error::Extension => 38,
        Error::UnknownRound { .. } => 39,
        Error::NotYours { .. } => 40,
        Error::AlreadySubmitted { .. } => 41,
        Error::UploadInProgress { .. } => 42,
        Error::Content(_) => 43,
        Error::Unavailable { .. } => 44,
        Error::InvalidHeader { .. } => 45,
        Error::LengthDeferred => 46,
        Error::TusVersion => 47,
        Error::MediaType => 48,
        Error::ChecksumAlgorithm => 49,
        Error::ChecksumMismatch => 50,
        Error::OffsetMismatch { .. } => 51,
        Error::UploadLocked => 52,
        Error::NoUpload => 53,
        Error::UploadElsewhere => 54,
        Error::UploadGone { .. } => 55,
        Error::Hub(_) => 56,
        Error::Crowded { .. } => 57,
        Error::NoRoom => 58,
        Error::Crawling(_) => 59,
    }
}
