//! Sees to it that every file that a miner left on the hub is fetched: compares what the round's roster
//! names with what is stored and being fetched, and begins what is missing. It needs no input but time.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use domain::{Hotkey, Phase, RoundId};
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use kit::Shutdown;
use tokio::{
    task::JoinError,
    time::{Instant, MissedTickBehavior, interval},
};
use tracing::{Instrument as _, field::Empty, info, info_span, warn};

use super::{
    bucket::Bucket,
    client::{self, Client},
    memory::{self, Attempts},
    pull::{Ended, Order, Pulls},
};
use crate::{
    app::App,
    marks, metrics,
    view::{Miner, Round, Seen},
};

/// The shortest time between two looks.
const SHORTEST: Duration = Duration::from_millis(10);

/// The task.
#[derive(Debug)]
pub(crate) struct Puller {
    pulls: Arc<Pulls>,
    running: HashMap<Hotkey, Running>,
    /// Whose pull ended without a file, and when: others are looked at before.
    resting: HashMap<Hotkey, Instant>,
    ended: FuturesUnordered<BoxFuture<'static, (Hotkey, Result<Ended, JoinError>)>>,
    /// Whether the hub answered the last time.
    reached: Option<bool>,
}

/// A pull that was begun.
#[derive(Debug)]
struct Running {
    round: RoundId,
    stop: Shutdown,
}

impl Puller {
    /// Fetches with the handles of `app`; none where the configuration says so.
    pub(crate) fn new(app: &App) -> anyhow::Result<Option<Self>> {
        let config = &app.config.hub;
        if !config.enabled {
            return Ok(None);
        }
        let base = client::base(&config.url)?;
        let client = match Client::new(base, config) {
            Ok(client) => client,
            // A machine without certificates, say: what miners send is taken all the same.
            Err(error) => {
                warn!(%error, "no hub can be asked from this machine");
                metrics::hub_reached(false);
                return Ok(None);
            }
        };
        let pulls = Pulls {
            app: app.clone(),
            client,
            all: Arc::new(Mutex::new(Bucket::new(config.bytes_per_second))),
        };
        Ok(Some(Self {
            pulls: Arc::new(pulls),
            running: HashMap::new(),
            resting: HashMap::new(),
            ended: FuturesUnordered::new(),
            reached: None,
        }))
    }

    /// Begins what is missing, again and again, until `shutdown`.
    pub(crate) async fn run(mut self, shutdown: Shutdown) {
        let mut ticks = interval(self.every());
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                Some(ended) = self.ended.next(), if !self.ended.is_empty() => self.note(ended),
                () = shutdown.cancelled() => return,
            }
            tokio::select! {
                () = self.reconcile(&shutdown) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    fn every(&self) -> Duration {
        self.pulls.app.config.hub.interval.max(SHORTEST)
    }

    async fn reconcile(&mut self, shutdown: &Shutdown) {
        let Ok(seen) = self.pulls.app.latest.fresh() else { return };
        let phase = seen.view.schedule.phase_of(seen.view.block);
        let taken = matches!(phase, Phase::Submission | Phase::Validate);
        let round = seen.view.round.as_ref().filter(|round| taken && round.open);
        let Some(round) = round else {
            self.running.values().for_each(|running| running.stop.cancel());
            metrics::hub_waiting(0);
            return;
        };
        if self.running.is_empty() && !round.miners.values().any(|miner| miner.hub.is_some()) {
            metrics::hub_waiting(0);
            return;
        }
        let store = &self.pulls.app.store;
        let known = async {
            let submitted = marks::submitted(store, round.id).await?;
            let attempts = memory::of_round(store, round.id).await?;
            Ok::<_, store::StoreError>((submitted, attempts))
        };
        let (submitted, attempts) = match known.await {
            Ok(known) => known,
            Err(error) => {
                warn!(%error, "what was fetched from the hub can't be read in the store");
                return;
            }
        };
        let is_submitted = |hotkey: &Hotkey| submitted.iter().any(|mark| mark.hotkey == *hotkey);
        for (hotkey, running) in &self.running {
            if running.round != round.id || is_submitted(hotkey) {
                running.stop.cancel();
            }
        }
        let most = self.pulls.app.config.hub.attempts;
        let missing = missing(round, &attempts, most, |hotkey| is_submitted(hotkey));
        metrics::hub_waiting(missing.len());
        let every = self.every();
        self.resting.retain(|_, since| since.elapsed() < every);
        let busy = |hotkey| self.running.contains_key(hotkey) || self.resting.contains_key(hotkey);
        let mut orders = Vec::new();
        for (hotkey, miner) in missing {
            let tried = attempts.get(hotkey).cloned().unwrap_or_default();
            if !busy(hotkey) && tried.are_due(seen.view.block) {
                orders.extend(order(&seen, (round, shutdown.child()), (hotkey, miner), &tried));
            }
        }
        let free = self.pulls.app.config.hub.concurrency.max(1).saturating_sub(self.running.len());
        for order in orders.into_iter().take(free) {
            self.begin(order, shutdown);
        }
    }

    fn begin(&mut self, order: Order, shutdown: &Shutdown) {
        let (round, hotkey) = (order.round.id, order.hotkey.clone());
        let span = info_span!("pull", %round, %hotkey, reason = Empty);
        kit::trace::attach(&span, &order.round.traceparent);
        let (pulls, stop) = (Arc::clone(&self.pulls), order.stop.clone());
        let task = async move { pulls.pull(&order).await };
        let task = shutdown.spawn(task.instrument(span));
        let of = hotkey.clone();
        self.ended.push(async move { (of, task.await) }.boxed());
        self.running.insert(hotkey, Running { round, stop });
        metrics::hub_pulls_in_progress(self.running.len());
    }

    fn note(&mut self, (hotkey, ended): (Hotkey, Result<Ended, JoinError>)) {
        self.running.remove(&hotkey);
        metrics::hub_pulls_in_progress(self.running.len());
        if !matches!(ended, Ok(Ended::Stored)) {
            self.resting.insert(hotkey.clone(), Instant::now());
        }
        match ended {
            Ok(ended) => self.reach(ended),
            Err(error) => warn!(%error, %hotkey, "a pull broke down"),
        }
    }

    /// Says once that the hub is gone, and once that it is back.
    fn reach(&mut self, ended: Ended) {
        let Some(reached) = ended.reached() else { return };
        let before = self.reached.replace(reached);
        metrics::hub_reached(reached);
        let url = &self.pulls.app.config.hub.url;
        match (before, reached) {
            (Some(true) | None, false) => warn!(hub = url, ?ended, "the hub gives no files"),
            (Some(false), true) => info!(hub = url, "the hub gives files again"),
            (Some(true) | None, true) | (Some(false), false) => {}
        }
    }
}

/// Miners whose file is still to be fetched: this validator's own first, then those that were tried the
/// least.
fn missing<'a>(
    round: &'a Round,
    attempts: &BTreeMap<Hotkey, Attempts>,
    most: u32,
    is_submitted: impl Fn(&Hotkey) -> bool,
) -> Vec<(&'a Hotkey, &'a Miner)> {
    let tried = |hotkey: &Hotkey| attempts.get(hotkey).map_or(0, Attempts::count);
    let mut missing: Vec<_> = round
        .miners
        .iter()
        .filter(|(_, miner)| miner.may_upload && miner.pending && miner.hub.is_some())
        .filter(|(hotkey, _)| !attempts.get(*hotkey).is_some_and(|tried| tried.are_over(most)))
        .filter(|(hotkey, _)| !is_submitted(hotkey))
        .collect();
    missing.sort_by_key(|(hotkey, miner)| (!miner.assigned, tried(hotkey), miner.uid));
    missing
}

fn order(
    seen: &Seen,
    (round, stop): (&Arc<Round>, Shutdown),
    (hotkey, miner): (&Hotkey, &Miner),
    tried: &Attempts,
) -> Option<Order> {
    Some(Order {
        round: Arc::clone(round),
        manifest: Arc::clone(seen.manifest.as_ref()?),
        group: seen.view.expert_group,
        block: seen.view.block,
        hotkey: hotkey.clone(),
        place: miner.hub.clone()?,
        attempts: tried.count(),
        last: tried.last_reason().map(str::to_owned),
        stop,
    })
}
