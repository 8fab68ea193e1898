//! The device's own thread: it alone touches the model. Jobs come to it prepared, one at a time.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};
use tracing::{Span, warn};

use crate::{
    bench::{Bench, Loaded, Setup},
    error::{Failure, OwnFailure},
    job::Measured,
    lease::LeaseWatch,
    metrics,
    prepare::Prepared,
};

/// The handle of a device's thread, which ends when this is dropped and its last job done.
#[derive(Debug)]
pub(crate) struct Device {
    jobs: mpsc::Sender<Task>,
    loaded: watch::Receiver<Loaded>,
    thread: JoinHandle<()>,
}

#[derive(Debug)]
struct Task {
    prepared: Prepared,
    lease: LeaseWatch,
    span: Span,
    answer: oneshot::Sender<Result<Measured, Failure>>,
}

impl Device {
    /// Starts the thread; nothing is loaded yet.
    pub(crate) fn start(setup: Setup) -> Self {
        let (jobs, mut tasks) = mpsc::channel::<Task>(1);
        let (loaded, view) = watch::channel(Loaded::default());
        let thread = tokio::task::spawn_blocking(move || {
            let mut bench = Bench::new(setup, loaded);
            while let Some(Task { prepared, lease, span, answer }) = tasks.blocking_recv() {
                let outcome = span.in_scope(|| measure(&mut bench, prepared, &lease));
                // Nobody waits when the process stops.
                let _ = answer.send(outcome);
            }
        });
        Self { jobs, loaded: view, thread }
    }

    /// What is on the device, now and later.
    pub(crate) fn loaded(&self) -> watch::Receiver<Loaded> {
        self.loaded.clone()
    }

    /// Does a job to its end, or until its lease is interrupted: then after the batch it is at.
    pub(crate) async fn run(
        &self,
        prepared: Prepared,
        lease: LeaseWatch,
    ) -> Result<Measured, Failure> {
        let (answer, outcome) = oneshot::channel();
        let task = Task { prepared, lease, span: Span::current(), answer };
        let gone = || {
            let what = "its thread is gone".to_owned();
            Failure::Own(OwnFailure::Panicked { place: "device", what })
        };
        self.jobs.send(task).await.map_err(|_| gone())?;
        outcome.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Waits for the thread's end.
    pub(crate) async fn stop(self) {
        drop(self.jobs);
        if let Err(error) = self.thread.await {
            warn!(%error, "the device's thread ended badly");
        }
    }
}

/// Measures, and takes everything off a device that can't be trusted any more.
fn measure(bench: &mut Bench, prepared: Prepared, lease: &LeaseWatch) -> Result<Measured, Failure> {
    let outcome =
        catch_unwind(AssertUnwindSafe(|| bench.measure(prepared, lease))).unwrap_or_else(|panic| {
            let what = panic_text(Some(panic));
            Err(Failure::Own(OwnFailure::Panicked { place: "model", what }))
        });
    match outcome {
        Err(failure) if failure.spoils_the_device() => {
            metrics::device_reset();
            bench.clear();
            Err(failure)
        }
        // A run that was stopped ends as its lease says.
        Err(Failure::Lost) => Err(lease.interrupt().map_or(Failure::Lost, Into::into)),
        outcome => outcome,
    }
}

/// What a panic said.
pub(crate) fn panic_text(panic: Option<Box<dyn Any + Send>>) -> String {
    let Some(panic) = panic else { return "it was cancelled".to_owned() };
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_told_by_its_message() {
        for text in ["a plain message", "another"] {
            let panic = catch_unwind(|| assert!(text.is_empty(), "{text}")).unwrap_err();
            assert_eq!(panic_text(Some(panic)), text);
        }
    }
}
