//! Sees to it that the scheduler learns of every stored submission: compares what the store's marks say
//! with what the scheduler's view says, and reports the difference. It needs no input but time.

use std::time::Duration;

use domain::RoundId;
use kit::Shutdown;
use store::Store;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use crate::{
    app::App,
    grpc::Scheduler,
    marks::{self, Submitted},
    view::Latest,
};

/// The task.
#[derive(Debug)]
pub(crate) struct Reporter {
    latest: Latest,
    store: Store,
    scheduler: Scheduler,
    every: Duration,
}

impl Reporter {
    /// Reports with the handles of `app`.
    pub(crate) fn new(app: &App) -> Self {
        Self {
            latest: app.latest.clone(),
            store: app.store.clone(),
            scheduler: app.scheduler.clone(),
            every: app.config.report_interval,
        }
    }

    /// Reports what is missing, again and again, until `shutdown`.
    pub(crate) async fn run(self, shutdown: Shutdown) {
        let mut ticks = interval(self.every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = shutdown.cancelled() => return,
            }
            tokio::select! {
                () = self.reconcile() => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    async fn reconcile(&self) {
        let Ok(seen) = self.latest.fresh() else { return };
        let Some(round) = seen.view.round.as_ref().filter(|round| round.open) else { return };
        let waits = |submitted: &Submitted| {
            round.miners.get(&submitted.hotkey).is_some_and(|miner| miner.pending)
        };
        if !round.miners.values().any(|miner| miner.pending) {
            return;
        }
        match marks::submitted(&self.store, round.id).await {
            Ok(all) => {
                for submitted in all.into_iter().filter(waits) {
                    self.report(round.id, submitted).await;
                }
            }
            Err(error) => warn!(%error, "the marks of submissions can't be read"),
        }
    }

    async fn report(&self, round: RoundId, submitted: Submitted) {
        let hotkey = submitted.hotkey.clone();
        match self.scheduler.report_submission(round, submitted.into()).await {
            Ok(true) => info!(%hotkey, %round, "a submission was reported late"),
            Ok(false) => {}
            Err(status) => warn!(%status, %hotkey, %round, "a submission could not be reported"),
        }
    }
}
