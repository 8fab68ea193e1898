//! How jobs end: told to the scheduler, logged, counted; and when a process has failed too often.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use backon::{ExponentialBuilder, Retryable as _};
use kit::Shutdown;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tracing::{Span, info, warn};

use crate::{
    error::{Failure, OwnFailure},
    job::Measured,
    lease::Lease,
    metrics,
    scheduler::{CallError, Claim, Scheduler},
    status::Status,
};

/// What a result may take to be told once the evaluator is to stop.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Failures of the device or of memory in a row after which the process ends.
const MOST_TROUBLES: u32 = 2;

/// A job in this worker's hands.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) claim: Claim,
    pub(crate) kind: &'static str,
    pub(crate) lease: Lease,
    /// How long a result can still be told once renewals end.
    pub(crate) lasts: Duration,
    pub(crate) since: Instant,
    pub(crate) span: Span,
}

/// Tells how jobs end. Clones share their counts.
#[derive(Debug, Clone)]
pub(crate) struct Reporter {
    scheduler: Scheduler,
    progress: watch::Sender<Status>,
    stop: Shutdown,
    troubles: Arc<AtomicU32>,
}

impl Reporter {
    pub(crate) fn new(
        scheduler: Scheduler,
        progress: watch::Sender<Status>,
        stop: Shutdown,
    ) -> Self {
        Self { scheduler, progress, stop, troubles: Arc::default() }
    }

    /// Changes what others see of the worker.
    pub(crate) fn show(&self, change: impl FnOnce(&mut Status)) {
        self.progress.send_modify(change);
    }

    /// Whether the device or the memory has failed too often in a row: this process can't go on.
    pub(crate) fn is_broken(&self) -> bool {
        self.troubles.load(Ordering::SeqCst) >= MOST_TROUBLES
    }

    /// Logs, counts and tells how a job ended. When it was one trouble too many, everything stops.
    pub(crate) async fn finish(&self, held: Held, outcome: Result<Measured, Failure>) {
        let took = held.since.elapsed();
        note(held.kind, &outcome, took);
        let began = Instant::now();
        self.tell(&held.claim, &outcome, took, held.lasts).await;
        metrics::step("tell", began.elapsed());
        drop(held);

        let failed = matches!(outcome, Err(Failure::Own(_)));
        let lost = matches!(outcome, Err(Failure::Lost));
        self.show(|status| {
            status.failed += u64::from(failed);
            status.finished += u64::from(!failed && !lost);
            if let Ok(measured) = &outcome {
                status.batches_digest.clone_from(&measured.batches_digest);
            }
        });
        match &outcome {
            Err(failure) if failure.spoils_the_device() => {
                self.troubles.fetch_add(1, Ordering::SeqCst);
            }
            Ok(_) => self.troubles.store(0, Ordering::SeqCst),
            Err(_) => {}
        }
        if self.is_broken() {
            self.stop.cancel();
        }
    }

    /// A job that can't be read: the validator's fault.
    pub(crate) async fn refuse(&self, claim: &Claim, why: String) {
        warn!(job = claim.job_id, error = why, "malformed job");
        let outcome = Err(Failure::Own(OwnFailure::Job(why)));
        self.tell(claim, &outcome, Duration::ZERO, LAST_WORDS).await;
    }

    /// Tells the scheduler how the job ended, again and again for as long as it could still be this
    /// worker's.
    async fn tell(
        &self,
        claim: &Claim,
        outcome: &Result<Measured, Failure>,
        took: Duration,
        lasts: Duration,
    ) {
        let retries = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(100))
            .with_max_delay(Duration::from_secs(2))
            .with_total_delay(Some(lasts))
            .without_max_times();
        let finish = || self.scheduler.finish(claim, outcome, took);
        let telling =
            finish.retry(retries).when(|error| matches!(error, CallError::Unavailable(_)));
        let last_words = async {
            self.stop.cancelled().await;
            sleep(LAST_WORDS).await;
        };
        tokio::select! {
            told = telling => if let Err(error) = told {
                warn!(job = claim.job_id, %error, "the result was not taken");
            },
            () = last_words => warn!(job = claim.job_id, "stopping, the result is not told"),
        }
    }
}

/// Logs and counts how a job ended.
fn note(kind: &'static str, outcome: &Result<Measured, Failure>, took: Duration) {
    let word = match outcome {
        Ok(measured) => {
            let loss = model::mean_loss(match measured {
                Measured { submission, .. } if !submission.is_empty() => submission,
                Measured { baseline, .. } if !baseline.is_empty() => baseline,
                Measured { held_out, .. } => held_out,
            });
            let out_of_reach = measured.out_of_reach;
            info!(kind, loss, out_of_reach, ?took, "measured");
            "measured"
        }
        Err(failure) => {
            let (reason, fault) = (failure.reason(), failure.fault());
            metrics::job_failed(reason, fault);
            match failure {
                Failure::Invalid { detail, .. } => {
                    metrics::submission_invalid(reason);
                    info!(kind, reason, fault, detail, "the submission is invalid");
                    "invalid"
                }
                Failure::Own(own) => {
                    if matches!(own, OwnFailure::OutOfMemory(_) | OwnFailure::NoRoom(_)) {
                        metrics::out_of_memory();
                    }
                    warn!(kind, reason, fault, error = %own, "the job failed here");
                    "failed"
                }
                Failure::Lost => {
                    warn!(kind, reason, fault, "the job is dropped");
                    "lost"
                }
            }
        }
    };
    metrics::job_finished(kind, word, took);
}
