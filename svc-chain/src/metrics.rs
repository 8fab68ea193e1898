//! Every metric of the service, one function each.

use metrics::{counter, gauge};

/// Height of the newest block that was seen.
pub(crate) fn head(number: u64) {
    gauge!("chain_head").set(number as f64);
}

/// Version of the runtime at the newest block that was read.
pub(crate) fn spec_version(version: u32) {
    gauge!("chain_spec_version").set(f64::from(version));
}

/// Blocks whose parent was not the block before, or that came in place of another.
pub(crate) fn reorganised() {
    counter!("chain_reorganisations_total").increment(1);
}

/// The block subscription ended, or brought nothing for too long, and was made again.
pub(crate) fn resubscribed() {
    counter!("chain_resubscriptions_total").increment(1);
}

/// A connection to an endpoint was made; `rank` 0 is the first of the configuration.
pub(crate) fn connected(rank: usize) {
    counter!("chain_connections_total", "rank" => rank.to_string()).increment(1);
}

/// A call to a node failed: `unreachable`, `timeout`, `refused` or `wrong_genesis`.
pub(crate) fn rpc_error(reason: &'static str) {
    counter!("chain_rpc_errors_total", "reason" => reason).increment(1);
}

/// A commitment was left out: `not_raw` (no raw bytes in its first field) or `unreadable`.
pub(crate) fn commitment_skipped(reason: &'static str) {
    counter!("chain_commitments_skipped_total", "reason" => reason).increment(1);
}

/// An intent entered a state.
pub(crate) fn intent(kind: &'static str, state: &'static str) {
    counter!("chain_intents_total", "kind" => kind, "state" => state).increment(1);
}

/// An intent was put off or failed.
pub(crate) fn intent_failure(kind: &'static str, reason: &'static str) {
    counter!("chain_intent_failures_total", "kind" => kind, "reason" => reason).increment(1);
}

/// Intents that are not finished.
pub(crate) fn intents_open(count: usize) {
    gauge!("chain_intents_open").set(count as f64);
}

/// Whether this process owns the nonce of the hotkey.
pub(crate) fn nonce_owner(owner: bool) {
    gauge!("chain_nonce_owner").set(if owner { 1.0 } else { 0.0 });
}

/// A signature was refused: `unauthenticated` or `limit`.
pub(crate) fn signature_refused(purpose: &'static str, reason: &'static str) {
    counter!("chain_signatures_refused_total", "purpose" => purpose, "reason" => reason)
        .increment(1);
}

/// A signature was given for a named purpose.
pub(crate) fn signed(purpose: &'static str) {
    counter!("chain_signatures_total", "purpose" => purpose).increment(1);
}
