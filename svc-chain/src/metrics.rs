//! Every metric of the service, one function each.

use metrics::{counter, gauge};

use crate::nodes::State;

/// Height of the newest block that was seen.
pub(crate) fn head(number: u64) {
    gauge!("chain_head").set(number as f64);
}

/// Height of the newest final block that was seen.
pub(crate) fn finalized(number: u64) {
    gauge!("chain_finalized").set(number as f64);
}

/// Version of the runtime at the newest block that was read.
pub(crate) fn spec_version(version: u32) {
    gauge!("chain_spec_version").set(f64::from(version));
}

/// How many things that are used the runtime lacks.
pub(crate) fn runtime_missing(count: usize) {
    gauge!("chain_runtime_missing").set(count as f64);
}

/// Blocks that were told of were taken back, so many of them.
pub(crate) fn reorganised(finality: &'static str, depth: u64) {
    counter!("chain_reorganisations_total", "finality" => finality).increment(1);
    gauge!("chain_reorganisation_depth", "finality" => finality).set(depth as f64);
}

/// The block subscription ended, or brought nothing for too long, and was made again.
pub(crate) fn resubscribed() {
    counter!("chain_resubscriptions_total").increment(1);
}

/// A connection to an endpoint was made; `rank` 0 is the first of the configuration.
pub(crate) fn connected(rank: String) {
    counter!("chain_connections_total", "rank" => rank).increment(1);
}

/// How an endpoint stands (`ok`, `lagging`, …: 1 for the one that holds), and how many blocks it is
/// behind.
pub(crate) fn endpoint(rank: String, state: State, lag: u64) {
    for other in State::ALL {
        let holds = if other == state { 1.0 } else { 0.0 };
        gauge!("chain_endpoint_state", "rank" => rank.clone(), "state" => other.as_str())
            .set(holds);
    }
    gauge!("chain_endpoint_lag", "rank" => rank).set(lag as f64);
}

/// Rank of the endpoint in use.
pub(crate) fn endpoint_in_use(rank: usize) {
    gauge!("chain_endpoint_in_use").set(rank as f64);
}

/// Another endpoint is in use.
pub(crate) fn endpoint_switched() {
    counter!("chain_endpoint_switches_total").increment(1);
}

/// Something did not go the normal way.
pub(crate) fn degraded(kind: &'static str) {
    counter!("chain_degradations_total", "kind" => kind).increment(1);
}

/// What decides money was asked of several endpoints: `agreed`, `no_quorum` or `disagreement`.
pub(crate) fn quorum(outcome: &'static str) {
    counter!("chain_quorum_reads_total", "outcome" => outcome).increment(1);
}

/// Snapshots of commitments: `taken`, `retaken` (the block was another one), `archive` (recovered)
/// or `missed`.
pub(crate) fn snapshot(what: &'static str) {
    counter!("chain_snapshots_total", "what" => what).increment(1);
}

/// Commitments of the newest snapshot, by what the protocol reads in them.
pub(crate) fn commitments(kind: &'static str, count: u32) {
    gauge!("chain_commitments", "kind" => kind).set(f64::from(count));
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
