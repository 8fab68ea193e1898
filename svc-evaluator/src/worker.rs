//! The pipeline. One loop leases jobs and prepares them, another one runs them on the device: while
//! one job runs, the next is fetched, verified and staged. So a worker has two jobs at most.

use std::{fmt, time::Duration};

use kit::Shutdown;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep},
};
use tracing::{Instrument as _, info, info_span, warn};

use crate::{
    bench::{Loaded, Setup},
    device::Device,
    error::{Failure, OwnFailure},
    job::{Job, Measured},
    lease::Lease,
    metrics,
    prepare::{Prepared, Preparer},
    report::{Held, Reporter},
    scheduler::{Leased, Scheduler},
};

/// The longest pause between two questions to a scheduler that can't be reached.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The process can't go on: whoever supervises it starts it again.
#[derive(Debug, thiserror::Error)]
#[error("the device or its memory failed on two jobs in a row; restart the evaluator")]
pub(crate) struct Broken;

/// What the pipeline is made of.
pub(crate) struct Worker {
    pub(crate) scheduler: Scheduler,
    pub(crate) preparer: Preparer,
    pub(crate) setup: Setup,
    pub(crate) reporter: Reporter,
    /// Pause when there is nothing to do.
    pub(crate) idle: Duration,
    /// Told whether the scheduler answers.
    pub(crate) ready: Box<dyn Fn(bool) + Send + Sync>,
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("scheduler", &self.scheduler).finish_non_exhaustive()
    }
}

impl Worker {
    /// Pulls and does jobs until `stop`.
    pub(crate) async fn run(self, stop: Shutdown) -> Result<(), Broken> {
        let Self { scheduler, preparer, setup, reporter, idle, ready } = self;
        let device = Device::start(setup);
        let (jobs, ready_jobs) = mpsc::channel(1);
        let (freed, device_free) = mpsc::channel(1);
        let puller = Puller {
            scheduler,
            preparer,
            reporter: reporter.clone(),
            idle,
            ready,
            stop: stop.clone(),
            loaded: device.loaded(),
            jobs,
            device_free,
            free_since: Some(Instant::now()),
        };
        let runner = Runner { device, reporter: reporter.clone(), jobs: ready_jobs, freed };
        tokio::join!(puller.run(), runner.run());
        if reporter.is_broken() { Err(Broken) } else { Ok(()) }
    }
}

/// A job on its way to the device.
#[derive(Debug)]
struct Ready {
    held: Held,
    prepared: Prepared,
}

/// Leases and prepares.
struct Puller {
    scheduler: Scheduler,
    preparer: Preparer,
    reporter: Reporter,
    idle: Duration,
    ready: Box<dyn Fn(bool) + Send + Sync>,
    stop: Shutdown,
    loaded: watch::Receiver<Loaded>,
    jobs: mpsc::Sender<Ready>,
    device_free: mpsc::Receiver<Instant>,
    /// Since when the device waits for a job; `None` while it has one.
    free_since: Option<Instant>,
}

impl Puller {
    async fn run(mut self) {
        let mut pause = self.idle;
        let mut unreachable = false;
        loop {
            let leased = tokio::select! {
                () = self.stop.cancelled() => return,
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
                        self.take(leased).await;
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
                () = self.stop.cancelled() => return,
                () = sleep(pause) => {}
            }
        }
    }

    /// Prepares one job and hands it over.
    async fn take(&mut self, Leased { claim, job }: Leased) {
        let job = match job {
            Ok(job) => job,
            Err(invalid) => return self.reporter.refuse(&claim, invalid.to_string()).await,
        };
        let span = info_span!(
            "job",
            job = job.id,
            kind = job.work.name(),
            round = job.round.0,
            attempt = job.attempt,
            hotkey = job.work.score().map_or("", |score| score.submission.hotkey.as_str())
        );
        kit::trace::attach(&span, &job.traceparent);
        let rival = job.work.score().and_then(|score| score.rival.clone());
        let (scheduler, lasts) = (self.scheduler.clone(), job.lease);
        let held = Held {
            kind: job.work.name(),
            lease: Lease::keep(scheduler, claim.clone(), lasts, job.deadline, rival, &self.stop),
            claim,
            lasts,
            since: Instant::now(),
            span: span.clone(),
        };
        self.reporter.show(|status| status.staged = Some(job.id.clone()));
        let prepared = self.prepare(job, &held).instrument(span.clone()).await;
        self.reporter.show(|status| status.staged = None);
        match prepared {
            Ok(prepared) => self.hand_over(Ready { held, prepared }).await,
            Err(failure) => self.reporter.finish(held, Err(failure)).instrument(span).await,
        }
    }

    /// Everything up to the moment in which the device is free for the job.
    async fn prepare(&mut self, job: Job, held: &Held) -> Result<Prepared, Failure> {
        let (base, lease) = (job.base(), &held.lease);
        if self.loaded.borrow().refused == Some(base) {
            self.preparer.fetcher.forget_model().await;
        }
        let mut prepared = self.preparer.prepare(job, lease).await?;
        // Without its model on the device there is nothing to stage for: the device does it itself,
        // unless the model comes before the device is free.
        let is_there = |loaded: &Loaded| loaded.stager.as_ref().is_some_and(|(id, _)| *id == base);
        let mut loaded = self.loaded.clone();
        tokio::select! {
            _ = loaded.wait_for(is_there) => {}
            () = self.device_is_free() => {}
            why = lease.interrupted() => return Err(why.into()),
        }
        let stager = loaded.borrow().stager.clone().filter(|(id, _)| *id == base);
        if let Some((_, stager)) = stager {
            prepared = self.preparer.stage(prepared, stager, lease).await?;
        }
        let waiting = Instant::now();
        metrics::handed_over(self.free_since.is_none() && prepared.is_staged());
        tokio::select! {
            () = self.device_is_free() => {}
            why = lease.interrupted() => return Err(why.into()),
        }
        metrics::step("wait", waiting.elapsed());
        Ok(prepared)
    }

    /// Waits until the device has no job.
    async fn device_is_free(&mut self) {
        if self.free_since.is_none() {
            self.free_since = match self.device_free.recv().await {
                Some(since) => Some(since),
                // The other loop has ended: so will this one.
                None => std::future::pending().await,
            };
        }
    }

    async fn hand_over(&mut self, ready: Ready) {
        if let Some(free) = self.free_since.take() {
            metrics::device_waited(free.max(ready.held.since).elapsed());
        }
        if let Err(unsent) = self.jobs.send(ready).await {
            let outcome = Err(Failure::Own(OwnFailure::Stopping));
            self.reporter.finish(unsent.0.held, outcome).await;
        }
    }
}

/// Runs what is prepared.
struct Runner {
    device: Device,
    reporter: Reporter,
    jobs: mpsc::Receiver<Ready>,
    freed: mpsc::Sender<Instant>,
}

impl Runner {
    async fn run(mut self) {
        while let Some(Ready { held, prepared }) = self.jobs.recv().await {
            let span = held.span.clone();
            self.run_one(held, prepared).instrument(span).await;
            // The other loop may have ended.
            let _ = self.freed.send(Instant::now()).await;
        }
        self.device.stop().await;
    }

    async fn run_one(&self, held: Held, prepared: Prepared) {
        metrics::busy(true);
        let id = prepared.job.id.clone();
        self.reporter.show(|status| status.job = Some(id));
        let began = Instant::now();
        let outcome: Result<Measured, Failure> =
            self.device.run(prepared, held.lease.watch()).await;
        metrics::step("run", began.elapsed());
        let on_device = self.device.loaded().borrow().on_device.clone();
        self.reporter.show(|status| status.on_device = on_device);
        self.reporter.finish(held, outcome).await;
        self.reporter.show(|status| status.job = None);
        metrics::busy(false);
    }
}
