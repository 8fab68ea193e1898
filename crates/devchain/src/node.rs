//! The one loop that owns the chain. Everything else sends it jobs.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{MissedTickBehavior, interval_at},
};
use tokio_util::sync::CancellationToken;

use crate::{
    chain::{Chain, Tips},
    genesis::Production,
};

/// Jobs that wait for the loop; who sends more waits for room.
const MAX_JOBS: usize = 1024;

type Job = Box<dyn FnOnce(&mut Chain) + Send>;

/// The chain was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the development chain was stopped")]
pub struct Stopped;

/// A way to the chain.
#[derive(Clone)]
pub(crate) struct Node {
    jobs: mpsc::Sender<Job>,
    tips: watch::Receiver<Tips>,
    paused: Arc<AtomicBool>,
}

impl Node {
    /// A node, and the loop that makes it work.
    pub(crate) fn new(
        chain: Chain,
        production: Production,
        stop: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (jobs, queue) = mpsc::channel(MAX_JOBS);
        let paused = Arc::new(AtomicBool::new(false));
        let node = Self { jobs, tips: chain.tips(), paused: Arc::clone(&paused) };
        (node, own(chain, queue, production, paused, stop))
    }

    /// Does something with the chain, between two blocks.
    pub(crate) async fn with<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Chain) -> R + Send + 'static,
    ) -> Result<R, Stopped> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |chain| {
            // Who asked may have gone away.
            let _ = answer.send(job(chain));
        });
        self.jobs.send(job).await.map_err(|_| Stopped)?;
        answered.await.map_err(|_| Stopped)
    }

    /// The ends of the chain, as they grow.
    pub(crate) fn tips(&self) -> watch::Receiver<Tips> {
        self.tips.clone()
    }

    /// Stops and resumes the making of blocks by time.
    pub(crate) fn set_paused(&self, paused: bool) {
        self.paused.store(paused, Ordering::Relaxed);
    }
}

async fn own(
    mut chain: Chain,
    mut queue: mpsc::Receiver<Job>,
    production: Production,
    paused: Arc<AtomicBool>,
    stop: CancellationToken,
) {
    let mut ticks = match production {
        Production::Interval(every) => {
            let mut ticks = interval_at(tokio::time::Instant::now() + every, every);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            Some(ticks)
        }
        Production::OnSubmit | Production::Manual => None,
    };
    let tick = async |ticks: &mut Option<tokio::time::Interval>| match ticks {
        Some(ticks) => _ = ticks.tick().await,
        None => std::future::pending().await,
    };
    loop {
        let due = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tick(&mut ticks) => !paused.load(Ordering::Relaxed),
            job = queue.recv() => match job {
                Some(job) => {
                    job(&mut chain);
                    production == Production::OnSubmit && chain.pool().has_work()
                }
                None => return,
            },
        };
        if due && let Err(error) = chain.produce() {
            tracing::error!(%error, "the development chain cannot make a block, and ends");
            return;
        }
    }
}
