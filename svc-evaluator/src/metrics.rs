//! Every metric of the service, one function each.

use std::time::Duration;

/// Counts a finished job; `outcome` is `measured`, `invalid`, `failed` or `lost`.
pub(crate) fn job_finished(kind: &'static str, outcome: &'static str, took: Duration) {
    metrics::counter!("evaluator_jobs_total", "kind" => kind, "outcome" => outcome).increment(1);
    metrics::histogram!("evaluator_job_seconds", "kind" => kind).record(took.as_secs_f64());
}

/// Counts a refused submission by its stable reason.
pub(crate) fn submission_invalid(reason: &'static str) {
    metrics::counter!("evaluator_invalid_submissions_total", "reason" => reason).increment(1);
}

/// Counts a job without a measurement; `fault` is `miner`, `validator` or `nobody`.
pub(crate) fn job_failed(reason: &'static str, fault: &'static str) {
    metrics::counter!("evaluator_failures_total", "reason" => reason, "fault" => fault)
        .increment(1);
}

/// Counts a submission that was stopped early, with the batches that were saved.
pub(crate) fn stopped_early(batches: usize) {
    metrics::counter!("evaluator_out_of_reach_total").increment(1);
    metrics::counter!("evaluator_batches_saved_total").increment(batches as u64);
}

/// How long a step of a job took: `fetch_model`, `draw`, `fetch`, `verify`, `sketch`, `stage`,
/// `wait`, `load`, `run` or `tell`.
pub(crate) fn step(step: &'static str, took: Duration) {
    metrics::histogram!("evaluator_step_seconds", "step" => step).record(took.as_secs_f64());
}

/// Counts a job that came to the device; `staged` says whether all was ready when it was free.
pub(crate) fn handed_over(staged: bool) {
    let ahead = if staged { "yes" } else { "no" };
    metrics::counter!("evaluator_handed_over_total", "ahead" => ahead).increment(1);
}

/// How long the device had nothing to do between two jobs while the next one was being prepared.
pub(crate) fn device_waited(time: Duration) {
    metrics::histogram!("evaluator_device_wait_seconds").record(time.as_secs_f64());
}

/// Whether a job is on the device.
pub(crate) fn busy(busy: bool) {
    metrics::gauge!("evaluator_busy").set(if busy { 1.0 } else { 0.0 });
}

/// Counts tokens that went through the model, and how fast.
pub(crate) fn tokens(count: u64, took: Duration) {
    metrics::counter!("evaluator_tokens_total").increment(count);
    if !took.is_zero() {
        metrics::gauge!("evaluator_tokens_per_second").set(count as f64 / took.as_secs_f64());
    }
}

/// Counts a base model that was loaded.
pub(crate) fn model_loaded() {
    metrics::counter!("evaluator_model_loads_total").increment(1);
}

/// What the model on the device was planned to need.
pub(crate) fn planned(place: &'static str, bytes: u64) {
    metrics::gauge!("evaluator_planned_memory", "place" => place).set(bytes as f64);
}

/// Counts what was fetched from the artifact store; nothing copied is a hit.
pub(crate) fn fetched(what: &'static str, copied: u64) {
    let cache = if copied == 0 { "hit" } else { "miss" };
    metrics::counter!("evaluator_fetches_total", "what" => what, "cache" => cache).increment(1);
    metrics::counter!("evaluator_fetched_bytes_total", "what" => what).increment(copied);
}

/// Counts memory that did not suffice.
pub(crate) fn out_of_memory() {
    metrics::counter!("evaluator_out_of_memory_total").increment(1);
}

/// Counts a base model that a run has changed.
pub(crate) fn base_changed() {
    metrics::counter!("evaluator_base_changed_total").increment(1);
}

/// Counts a device whose model was dropped, to be loaded anew.
pub(crate) fn device_reset() {
    metrics::counter!("evaluator_device_resets_total").increment(1);
}

/// Counts a call to the scheduler that failed.
pub(crate) fn scheduler_call_failed(method: &'static str) {
    metrics::counter!("evaluator_scheduler_errors_total", "method" => method).increment(1);
}
