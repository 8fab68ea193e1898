//! Every metric of the scheduler, one function each.

use domain::{Degradation, JobKind, ResyncStage, Stage};

/// The newest block.
pub(crate) fn block(number: u64) {
    metrics::gauge!("scheduler_block").set(number as f64);
}

/// Whether this scheduler leads.
pub(crate) fn leads(leads: bool) {
    metrics::gauge!("scheduler_leads").set(if leads { 1.0 } else { 0.0 });
}

/// Where the round stands, 0 (open) to 4 (closed).
pub(crate) fn stage(stage: Stage) {
    metrics::gauge!("scheduler_round_stage").set(f64::from(stage as u8));
}

/// A degradation was noticed.
pub(crate) fn degraded(degradation: &Degradation) {
    let kind = degradation.kind.as_str();
    metrics::counter!("scheduler_degradations_total", "kind" => kind).increment(1);
}

/// The look at the stake majority's model has come this far.
pub(crate) fn resync(stage: &ResyncStage) {
    metrics::counter!("scheduler_resyncs_total", "stage" => stage.as_str()).increment(1);
}

/// A job was given to a worker.
pub(crate) fn job_leased(kind: &JobKind) {
    metrics::counter!("scheduler_jobs_leased_total", "kind" => job_kind(kind)).increment(1);
}

/// A job ended: `measured`, `out_of_reach`, `invalid` or `failed`.
pub(crate) fn job_finished(result: &'static str) {
    metrics::counter!("scheduler_jobs_finished_total", "result" => result).increment(1);
}

/// A submission was stored (`stored`) or refused (`refused`).
pub(crate) fn submission(outcome: &'static str) {
    metrics::counter!("scheduler_submissions_total", "outcome" => outcome).increment(1);
}

/// Work outside was tried and has to be tried again.
pub(crate) fn effect_retried(effect: &'static str) {
    metrics::counter!("scheduler_effect_retries_total", "effect" => effect).increment(1);
}

/// A state was saved, with this size.
pub(crate) fn state_saved(bytes: usize) {
    metrics::histogram!("scheduler_state_bytes").record(bytes as f64);
}

fn job_kind(kind: &JobKind) -> &'static str {
    match kind {
        JobKind::Baseline => "baseline",
        JobKind::Score(_) => "score",
        JobKind::HeldOut => "held_out",
    }
}
