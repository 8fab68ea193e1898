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

/// Whether a job is in progress.
pub(crate) fn busy(busy: bool) {
    metrics::gauge!("evaluator_busy").set(if busy { 1.0 } else { 0.0 });
}

/// Counts a base model that was loaded.
pub(crate) fn model_loaded() {
    metrics::counter!("evaluator_model_loads_total").increment(1);
}

/// Counts a call to the scheduler that failed.
pub(crate) fn scheduler_call_failed(method: &'static str) {
    metrics::counter!("evaluator_scheduler_errors_total", "method" => method).increment(1);
}
