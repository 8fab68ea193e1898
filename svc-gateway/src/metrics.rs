//! Every metric of the service, one function each.

use std::time::Duration;

use axum::http::StatusCode;
use metrics::{counter, gauge, histogram};

/// An HTTP request was answered; `route` is the matched pattern.
pub(crate) fn request(route: String, status: StatusCode, elapsed: Duration) {
    let status = status.as_u16().to_string();
    counter!("gateway_requests_total", "route" => route.clone(), "status" => status).increment(1);
    histogram!("gateway_request_seconds", "route" => route).record(elapsed);
}

/// An upload ended; `outcome` is `stored` or `refused`, `reason` is empty when it was stored.
pub(crate) fn upload(outcome: &'static str, reason: &'static str) {
    counter!("gateway_uploads_total", "outcome" => outcome, "reason" => reason).increment(1);
}

/// Bytes of files received, whatever became of them.
pub(crate) fn upload_bytes(bytes: u64) {
    counter!("gateway_upload_bytes_total").increment(bytes);
}

/// Uploads in progress.
pub(crate) fn uploads_in_progress(uploads: usize) {
    gauge!("gateway_uploads_in_progress").set(uploads as f64);
}

/// Uploads by `/files` that are not at their end.
pub(crate) fn tus_unfinished(uploads: usize) {
    gauge!("gateway_tus_unfinished").set(uploads as f64);
}

/// An upload by `/files` came to its end; `how` is `stored`, `refused`, `expired`, `replaced`, `terminated`
/// or `lost`.
pub(crate) fn tus_ended(how: &'static str) {
    counter!("gateway_tus_ended_total", "how" => how).increment(1);
}

/// Bytes that were read again to go on with an upload.
pub(crate) fn tus_replayed(bytes: u64) {
    counter!("gateway_tus_replayed_bytes_total").increment(bytes);
}

/// A download was begun; `answer` is `whole`, `part`, `not_modified` or `redirect`.
pub(crate) fn download(slice: String, format: &'static str, answer: &'static str) {
    counter!("gateway_downloads_total", "slice" => slice, "format" => format, "answer" => answer)
        .increment(1);
}

/// Bytes of files sent.
pub(crate) fn download_bytes(bytes: u64) {
    counter!("gateway_download_bytes_total").increment(bytes);
}

/// How long verifying a file took.
pub(crate) fn verification(elapsed: Duration) {
    histogram!("gateway_verification_seconds").record(elapsed);
}

/// The scheduler's stream of views broke.
pub(crate) fn watch_broken() {
    counter!("gateway_watch_broken_total").increment(1);
}

/// Newest block known.
pub(crate) fn block(block: u64) {
    gauge!("gateway_block").set(block as f64);
}
