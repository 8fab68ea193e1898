//! The loop that owns the device: lease a job, do it while the lease is kept alive, tell the result.

use std::{
    fmt,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use backon::{ExponentialBuilder, Retryable as _};
use kit::Shutdown;
use tokio::{
    sync::watch,
    task::JoinError,
    time::{Instant, sleep},
};
use tracing::{Instrument as _, Span, info, info_span, warn};

use crate::{
    bench::{Bench, Setup},
    error::{Failure, OwnFailure},
    fetch::{Fetcher, Files},
    job::{Job, Measured, Work},
    metrics,
    scheduler::{CallError, Claim, Leased, Scheduler},
    status::Status,
};

/// The longest pause between two questions to a scheduler that can't be reached.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// What a result may take to be told once the evaluator is to stop.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Everything that the loop owns.
pub(crate) struct Worker {
    pub(crate) scheduler: Scheduler,
    pub(crate) fetcher: Fetcher,
    pub(crate) setup: Setup,
    /// Away while a job runs.
    pub(crate) bench: Option<Bench>,
    /// Pause when there is nothing to do.
    pub(crate) idle: Duration,
    pub(crate) progress: watch::Sender<Status>,
    /// Told whether the scheduler answers.
    pub(crate) ready: Box<dyn Fn(bool) + Send + Sync>,
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("scheduler", &self.scheduler).finish_non_exhaustive()
    }
}

/// Why a job was dropped before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Interrupt {
    LeaseLost,
    Stopping,
}

impl Worker {
    /// Pulls and does jobs until `shutdown`.
    pub(crate) async fn run(mut self, shutdown: Shutdown) {
        let mut pause = self.idle;
        let mut unreachable = false;
        loop {
            let leased = tokio::select! {
                () = shutdown.cancelled() => return,
                leased = self.scheduler.lease() => leased,
            };
            (self.ready)(leased.is_ok());
            match leased {
                Ok(leased) => {
                    pause = self.idle;
                    if std::mem::take(&mut unreachable) {
                        info!("the scheduler answers again");
                    }
                    if let Some(leased) = leased {
                        self.take(leased, &shutdown).await;
                        continue;
                    }
                }
                Err(error) => {
                    if !std::mem::replace(&mut unreachable, true) {
                        warn!(%error, "the scheduler gives no jobs, asking again");
                    }
                    pause = (pause * 2).min(LONGEST_PAUSE).max(self.idle);
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = sleep(pause) => {}
            }
        }
    }

    /// Does one job and tells its end.
    async fn take(&mut self, leased: Leased, shutdown: &Shutdown) {
        let Leased { claim, job } = leased;
        let job = match job {
            Ok(job) => job,
            Err(invalid) => {
                warn!(job = claim.job_id, error = %invalid, "malformed job");
                let outcome = Err(Failure::Own(OwnFailure::Job(invalid.to_string())));
                tell(&self.scheduler, &claim, &outcome, Duration::ZERO, LAST_WORDS, shutdown).await;
                return;
            }
        };
        let hotkey = match &job.work {
            Work::Score(submission) => submission.hotkey.as_str(),
            Work::Baseline | Work::HeldOut => "",
        };
        let span = info_span!(
            "job",
            job = job.id,
            kind = job.work.name(),
            round = job.round.0,
            attempt = job.attempt,
            hotkey
        );
        kit::trace::attach(&span, &job.traceparent);
        self.do_job(&claim, job, shutdown).instrument(span).await;
    }

    async fn do_job(&mut self, claim: &Claim, job: Job, shutdown: &Shutdown) {
        let (kind, lease, started) = (job.work.name(), job.lease, Instant::now());
        metrics::busy(true);
        self.progress.send_modify(|status| status.job = Some(job.id.clone()));

        let outcome = self.measure(claim, job, shutdown).await;

        let took = started.elapsed();
        self.report(kind, &outcome, took);
        tell(&self.scheduler, claim, &outcome, took, lease, shutdown).await;
        metrics::busy(false);
        let base = self.bench.as_ref().and_then(Bench::base);
        let failed = matches!(outcome, Err(Failure::Own(_)));
        self.progress.send_modify(|status| {
            status.job = None;
            status.base = base;
            status.failed += u64::from(failed);
            status.finished += u64::from(!failed && !matches!(outcome, Err(Failure::Stopped)));
        });
    }

    /// Logs and counts how a job ended.
    fn report(&self, kind: &'static str, outcome: &Result<Measured, Failure>, took: Duration) {
        let word = match outcome {
            Ok(measured) => {
                let loss = model::mean_loss(match measured {
                    Measured { submission, .. } if !submission.is_empty() => submission,
                    Measured { baseline, .. } if !baseline.is_empty() => baseline,
                    Measured { held_out, .. } => held_out,
                });
                info!(kind, loss, ?took, "measured");
                "measured"
            }
            Err(Failure::Invalid { reason, detail }) => {
                info!(kind, reason, detail, "the submission is invalid");
                metrics::submission_invalid(reason);
                "invalid"
            }
            Err(Failure::Own(failure)) => {
                warn!(kind, error = %failure, "the job failed here");
                "failed"
            }
            Err(Failure::Stopped) => {
                warn!(kind, "the lease was lost, the job is dropped");
                "lost"
            }
        };
        metrics::job_finished(kind, word, took);
    }

    /// Fetches and measures while the lease is renewed; gives up when it is lost.
    async fn measure(
        &mut self,
        claim: &Claim,
        job: Job,
        shutdown: &Shutdown,
    ) -> Result<Measured, Failure> {
        let lease = job.lease;
        let mut interrupt = pin!(async {
            tokio::select! {
                () = keep_alive(&self.scheduler, claim, lease) => Interrupt::LeaseLost,
                () = shutdown.cancelled() => Interrupt::Stopping,
            }
        });
        let files = tokio::select! {
            files = self.fetcher.fetch(&job).instrument(info_span!("fetch")) => files?,
            why = &mut interrupt => return Err(why.into()),
        };

        let stop = Arc::new(AtomicBool::new(false));
        let bench = self.bench.take().unwrap_or_else(|| Bench::new(self.setup.clone()));
        let span = info_span!("measure");
        let mut blocking = tokio::task::spawn_blocking({
            let stop = Arc::clone(&stop);
            move || run_blocking(bench, &job, &files, &stop, &span)
        });
        let (joined, interrupted) = tokio::select! {
            joined = &mut blocking => (joined, None),
            why = &mut interrupt => {
                // It ends after the batch that it is at; the device is not free before.
                stop.store(true, Ordering::Relaxed);
                (blocking.await, Some(why))
            }
        };
        let outcome = match joined {
            Ok((bench, outcome)) => {
                self.bench = Some(bench);
                outcome
            }
            // What it left on the device is unknown: the next job begins anew.
            Err(error) => Err(Failure::Own(OwnFailure::Panicked(panic_text(error)))),
        };
        match interrupted {
            Some(why) if !matches!(outcome, Err(Failure::Own(_))) => Err(why.into()),
            Some(_) | None => outcome,
        }
    }
}

impl From<Interrupt> for Failure {
    fn from(interrupt: Interrupt) -> Self {
        match interrupt {
            Interrupt::LeaseLost => Self::Stopped,
            Interrupt::Stopping => Self::Own(OwnFailure::Stopping),
        }
    }
}

/// Tells the scheduler how the job ended, again and again for as long as it could still be this
/// worker's.
async fn tell(
    scheduler: &Scheduler,
    claim: &Claim,
    outcome: &Result<Measured, Failure>,
    took: Duration,
    lease: Duration,
    shutdown: &Shutdown,
) {
    let retries = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(Duration::from_secs(2))
        .with_total_delay(Some(lease))
        .without_max_times();
    let finish = || scheduler.finish(claim, outcome, took);
    let telling = finish.retry(retries).when(|error| matches!(error, CallError::Unavailable(_)));
    let last_words = async {
        shutdown.cancelled().await;
        sleep(LAST_WORDS).await;
    };
    tokio::select! {
        told = telling => if let Err(error) = told {
            warn!(job = claim.job_id, %error, "the result was not taken");
        },
        () = last_words => warn!(job = claim.job_id, "stopping, the result is not told"),
    }
}

/// Renews the lease at a third of its time; returns once it is lost, or has not been renewed for as
/// long as it lasts.
async fn keep_alive(scheduler: &Scheduler, claim: &Claim, lease: Duration) {
    let third = lease / 3;
    let mut renewed = Instant::now();
    loop {
        sleep(third).await;
        match scheduler.renew(claim, third).await {
            Ok(()) => renewed = Instant::now(),
            Err(CallError::LeaseLost(_)) => return,
            Err(CallError::Unavailable(_) | CallError::Refused(_))
                if renewed.elapsed() >= lease =>
            {
                return;
            }
            Err(CallError::Unavailable(_) | CallError::Refused(_)) => {}
        }
    }
}

fn run_blocking(
    mut bench: Bench,
    job: &Job,
    files: &Files,
    stop: &AtomicBool,
    span: &Span,
) -> (Bench, Result<Measured, Failure>) {
    let _entered = span.enter();
    let outcome = bench.measure(job, files, &|| stop.load(Ordering::Relaxed));
    (bench, outcome)
}

fn panic_text(error: JoinError) -> String {
    match error.try_into_panic() {
        Ok(panic) => panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "no message".to_owned()),
        Err(error) => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_of_the_blocking_part_is_told_by_its_message() {
        for text in ["a plain message", "another"] {
            let panicking = tokio::task::spawn_blocking(move || {
                assert!(text.is_empty(), "{text}");
            });
            assert_eq!(panic_text(panicking.await.unwrap_err()), text);
        }
    }
}
