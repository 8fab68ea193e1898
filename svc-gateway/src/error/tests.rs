//! Every refusal says the same to the client, to the log and to the metrics, and when to come again.

use std::collections::BTreeSet;

use axum::body::to_bytes;
use serde_json::Value;

use super::*;

/// One example of every variant: one that has none does not compile.
macro_rules! examples {
    ($($variant:ident $({ $($field:ident: $value:expr),* })? $(($inner:expr))?,)*) => {
        fn every() -> Vec<Error> {
            vec![$(Error::$variant $({ $($field: $value),* })? $(($inner))?),*]
        }

        fn number(error: &Error) -> usize {
            let variants = [$(stringify!($variant)),*];
            let name = match error { $(Error::$variant { .. } => stringify!($variant)),* };
            variants.iter().position(|variant| *variant == name).unwrap()
        }
    };
}

fn hotkey() -> Hotkey {
    Hotkey::from_public_key([1; 32])
}

const BLOCK: BlockNumber = BlockNumber(7);
const ROUND: RoundId = RoundId(7);

examples! {
    TokenMissing,
    TokenWrong,
    NoRoute,
    NoMethod,
    RateLimited { retry: Duration::from_millis(1) },
    Crowded { limit: 1 },
    Busy,
    NoRoom,
    NotReady,
    StaleView { age: Duration::from_secs(1) },
    Stopping,
    NoCheckpoint,
    NoSlice { slice: "9".into(), format: "pt".into() },
    RangeUnsatisfiable { len: 1 },
    SeveralRanges { len: 1 },
    PreconditionFailed,
    Checking,
    MissingField { field: "signature" },
    RepeatedField { field: "signature".into() },
    InvalidField { field: "signature", why: "it is short".into() },
    MissingFile,
    Form(MultipartError::ContentType),
    TooLarge { limit: 1 },
    TooSlow { limit: Duration::from_secs(1) },
    Crawling(pace::Crawling { rate: 1, window: Duration::from_secs(1) }),
    BrokenOff { why: "it did".into() },
    WrongTarget { target: hotkey(), hotkey: hotkey() },
    RequestSignature { hotkey: hotkey(), message: "block message" },
    SignatureReused,
    OriginBlock { origin: BLOCK, first: BLOCK, last: BLOCK },
    BlockHex { origin: BLOCK },
    NotSubmissionPhase { block: BLOCK, phase: Phase::Validate },
    UploadsClosed,
    RoundClosed { round: ROUND },
    NotOnRoster { hotkey: hotkey(), round: ROUND },
    NotAssigned { hotkey: hotkey(), detail: String::new() },
    NothingCommitted { hotkey: hotkey(), round: ROUND },
    UnusableCommitment { hotkey: hotkey(), reason: "wrong_group".into(), detail: String::new() },
    NotCommittedHash { given: ModelHash([1; 24]), committed: ModelHash([2; 24]) },
    CommittedSignature { hotkey: hotkey() },
    UnsafeFileName { why: "it is missing" },
    Extension,
    AlreadySubmitted { hotkey: hotkey(), round: ROUND },
    UploadInProgress { hotkey: hotkey() },
    Content(Refusal::MissingTensor { name: "a".into() }),
    Unavailable { doing: "do it" },
}

#[tokio::test]
async fn every_refusal_has_its_reason_in_the_body_and_for_log_and_metrics_and_in_the_document() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reasons.md");
    let page = std::fs::read_to_string(page).unwrap();
    let mut seen = BTreeSet::new();
    for error in every() {
        seen.insert(number(&error));
        let (reason, detail) = (error.reason(), error.to_string());
        assert!(!reason.is_empty() && reason.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'));
        assert!(page.contains(&format!("`{reason}`")), "{reason} is not in the document");
        let response = error.into_response();
        let Reason(told) = response.extensions().get().copied().unwrap();
        assert_eq!(told, reason);
        let body = to_bytes(response.into_body(), 10_000).await.unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body, json!({ "detail": detail, "reason": reason }));
        assert!(!detail.is_empty());
    }
    assert_eq!(seen.len(), every().len());
}

#[test]
fn every_429_and_503_says_when_to_come_again_and_so_does_a_409_that_passes() {
    let mut statuses = BTreeSet::new();
    for error in every() {
        let passing = matches!(error, Error::UploadInProgress { .. });
        let response = error.into_response();
        let status = response.status().as_u16();
        statuses.insert(status);
        let retry = response.headers().get(header::RETRY_AFTER);
        let retry = retry.map(|value| value.to_str().unwrap().parse::<u64>().unwrap());
        assert_eq!(retry.is_some(), passing || [429, 503].contains(&status), "{status}");
        assert!(retry.is_none_or(|seconds| seconds > 0));
    }
    assert!(statuses.is_superset(&[408, 413, 429, 503].into()), "{statuses:?}");
}

#[test]
fn a_full_disk_is_no_room_whatever_the_system_calls_it_and_other_failures_are_not() {
    for errno in [rustix::io::Errno::NOSPC, rustix::io::Errno::DQUOT, rustix::io::Errno::FBIG] {
        assert_eq!(Error::spooling(errno.into()).reason(), "no_room", "{errno}");
    }
    let error = Error::spooling(rustix::io::Errno::IO.into());
    assert_eq!(error.reason(), "unavailable");
    assert!(error.is_transport() && Error::NoRoom.is_transport());
}
