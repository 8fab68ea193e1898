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

/// A request was refused.
pub(crate) fn refusal(route: String, reason: &'static str) {
    counter!("gateway_refusals_total", "route" => route, "reason" => reason).increment(1);
}

/// Connections open.
pub(crate) fn connections(connections: usize) {
    gauge!("gateway_connections").set(connections as f64);
}

/// A connection got no place, or lost the one that it had; `why` is a reason, or `shed`.
pub(crate) fn connection_refused(why: &'static str) {
    counter!("gateway_connections_refused_total", "why" => why).increment(1);
}

/// Bytes that are set aside for uploads.
pub(crate) fn spool_reserved(bytes: u64) {
    gauge!("gateway_spool_reserved_bytes").set(bytes as f64);
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

/// A pull from the hub ended; `outcome` is `stored`, `refused`, `failed` or `yielded`, `reason` is empty
/// for the first and the last.
pub(crate) fn hub_pull(outcome: &'static str, reason: &'static str) {
    counter!("gateway_hub_pulls_total", "outcome" => outcome, "reason" => reason).increment(1);
}

/// Pulls in progress.
pub(crate) fn hub_pulls_in_progress(pulls: usize) {
    gauge!("gateway_hub_pulls_in_progress").set(pulls as f64);
}

/// Miners of the round whose file is on the hub and not stored yet.
pub(crate) fn hub_waiting(miners: usize) {
    gauge!("gateway_hub_waiting").set(miners as f64);
}

/// Bytes of files received from the hub, whatever became of them.
pub(crate) fn hub_bytes(bytes: u64) {
    counter!("gateway_hub_bytes_total").increment(bytes);
}

/// A file of the hub broke off.
pub(crate) fn hub_break() {
    counter!("gateway_hub_breaks_total").increment(1);
}

/// Whether the hub gave what it was asked for, the last time.
pub(crate) fn hub_reached(reached: bool) {
    gauge!("gateway_hub_reached").set(if reached { 1.0 } else { 0.0 });
}
