//! Every refusal says the same to the client, to the log and to the metrics, and when to come again.

use std::collections::BTreeSet;

use axum::body::to_bytes;
use serde_json::Value;

use super::*;

#[tokio::test]
async fn every_refusal_has_its_reason_in_the_body_and_for_log_and_metrics_and_in_the_document() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reasons.md");
    let page = std::fs::read_to_string(page).unwrap();
    for error in samples::all() {
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
}

#[test]
fn every_429_and_503_says_when_to_come_again_and_so_does_a_409_that_passes() {
    let mut statuses = BTreeSet::new();
    for error in samples::all() {
        let passing = matches!(error, Error::UploadInProgress { .. } | Error::UploadLocked);
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
