//! Every metric of the service, one function each.

use std::time::Duration;

use crate::report::Outcome;

/// A merge ended: `peer_merges_total`, and how long it took: `peer_merge_seconds`.
pub(crate) fn merge_ended(outcome: Outcome, took: Duration) {
    metrics::counter!("peer_merges_total", "outcome" => outcome.as_str()).increment(1);
    metrics::histogram!("peer_merge_seconds", "outcome" => outcome.as_str()).record(took);
}

/// Values of a slice went to another validator: `peer_bytes_total{direction="sent"}`.
pub(crate) fn bytes_sent(bytes: usize) {
    metrics::counter!("peer_bytes_total", "direction" => "sent").increment(bytes as u64);
}

/// Values of a slice came from another validator: `peer_bytes_total{direction="received"}`.
pub(crate) fn bytes_received(bytes: usize) {
    metrics::counter!("peer_bytes_total", "direction" => "received").increment(bytes as u64);
}

/// A message of another validator was refused: `peer_refused_total`.
pub(crate) fn refused(reason: &'static str) {
    metrics::counter!("peer_refused_total", "reason" => reason).increment(1);
}

/// Chunks of a model went to another validator: `peer_model_bytes_total{direction="sent"}`.
pub(crate) fn model_bytes_sent(bytes: usize) {
    metrics::counter!("peer_model_bytes_total", "direction" => "sent").increment(bytes as u64);
}

/// Chunks of a model came from another validator: `peer_model_bytes_total{direction="received"}`.
pub(crate) fn model_bytes_received(bytes: usize) {
    metrics::counter!("peer_model_bytes_total", "direction" => "received").increment(bytes as u64);
}

/// A resync ended: `peer_resyncs_total`, and how long it took: `peer_resync_seconds`.
pub(crate) fn resync_ended(outcome: &'static str, took: Duration) {
    metrics::counter!("peer_resyncs_total", "outcome" => outcome).increment(1);
    metrics::histogram!("peer_resync_seconds", "outcome" => outcome).record(took);
}

/// A holder of a model was found to be to blame: `peer_resync_blamed_total`.
pub(crate) fn resync_blamed(reason: &'static str) {
    metrics::counter!("peer_resync_blamed_total", "reason" => reason).increment(1);
}

/// A miner's file was left out of the local pseudo-gradient: `peer_skipped_total`.
pub(crate) fn skipped(reason: &'static str) {
    metrics::counter!("peer_skipped_total", "reason" => reason).increment(1);
}
