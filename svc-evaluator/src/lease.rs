//! A job's lease: kept alive until it is dropped, and what its holder must know meanwhile.

use std::time::Duration;

use domain::Rival;
use kit::Shutdown;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep},
};

use crate::scheduler::{CallError, Claim, Scheduler};

/// Why a job is to be dropped before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interrupt {
    /// Another worker has the job, or will have it.
    LeaseLost,
    /// Nobody waits for the result any more.
    Deadline,
    /// The evaluator stops.
    Stopping,
}

/// A lease that is renewed until this is dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    watch: LeaseWatch,
    keeper: JoinHandle<()>,
}

/// What the holder of a lease sees, on any thread.
#[derive(Debug, Clone)]
pub(crate) struct LeaseWatch(watch::Receiver<State>);

#[derive(Debug, Default)]
struct State {
    interrupt: Option<Interrupt>,
    rival: Option<Rival>,
}

impl Lease {
    /// Keeps the lease of `claim`, which lasts for `lease` without a renewal.
    pub(crate) fn keep(
        scheduler: Scheduler,
        claim: Claim,
        lease: Duration,
        deadline: Option<Duration>,
        rival: Option<Rival>,
        shutdown: &Shutdown,
    ) -> Self {
        let (state, watch) = watch::channel(State { interrupt: None, rival });
        let stop = shutdown.clone();
        let keeper = shutdown.spawn(async move {
            tokio::select! {
                () = renew(&scheduler, &claim, lease, &state) => {
                    state.send_modify(|state| state.interrupt = Some(Interrupt::LeaseLost));
                }
                () = interrupt(deadline, &stop, &state) => {}
            }
        });
        Self { watch: LeaseWatch(watch), keeper }
    }

    pub(crate) fn watch(&self) -> LeaseWatch {
        self.watch.clone()
    }

    /// Waits until the job is to be dropped.
    pub(crate) async fn interrupted(&self) -> Interrupt {
        self.watch().interrupted().await
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl LeaseWatch {
    /// Of a lease that nothing ever happens to.
    #[cfg(test)]
    pub(crate) fn quiet() -> Self {
        let (_, watch) = watch::channel(State::default());
        Self(watch)
    }

    /// Whether, and why, the job is to be dropped.
    pub(crate) fn interrupt(&self) -> Option<Interrupt> {
        self.0.borrow().interrupt
    }

    /// Whether a submission with these losses so far can't be paid any more.
    pub(crate) fn is_out_of_reach(&self, losses: &[f64]) -> bool {
        self.0.borrow().rival.as_ref().is_some_and(|rival| rival.is_out_of_reach(losses))
    }

    /// Waits until the job is to be dropped.
    pub(crate) async fn interrupted(mut self) -> Interrupt {
        let seen = self.0.wait_for(|state| state.interrupt.is_some()).await;
        // A keeper that is gone renews nothing.
        seen.ok().and_then(|state| state.interrupt).unwrap_or(Interrupt::LeaseLost)
    }
}

/// Renews the lease at a third of its time; returns once it is lost, or has not been renewed for as
/// long as it lasts.
async fn renew(
    scheduler: &Scheduler,
    claim: &Claim,
    lease: Duration,
    state: &watch::Sender<State>,
) {
    let third = lease / 3;
    let mut renewed = Instant::now();
    loop {
        sleep(third).await;
        match scheduler.renew(claim, third).await {
            Ok(rival) => {
                renewed = Instant::now();
                state.send_modify(|state| state.rival = rival);
            }
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

/// Says when the deadline comes or the process stops. It never returns: the lease is kept on, so that
/// the end of the job can be told.
async fn interrupt(deadline: Option<Duration>, stop: &Shutdown, state: &watch::Sender<State>) {
    let deadline = async {
        match deadline {
            Some(deadline) => sleep(deadline).await,
            None => std::future::pending().await,
        }
    };
    let why = tokio::select! {
        () = deadline => Interrupt::Deadline,
        () = stop.cancelled() => Interrupt::Stopping,
    };
    state.send_modify(|state| state.interrupt = Some(why));
    std::future::pending().await
}
