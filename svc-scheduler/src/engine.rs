//! One loop owns the state. Everybody else holds an [`Engine`]: a handle that hands in events and
//! watches what came of them.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use domain::{
    BlockHash, BlockNumber, Degradation, Effect, Event, Policy, Rejection, Reply, RoundId, State,
    apply,
};
use kit::Shutdown;
use proto::scheduler::v1::RoundView;
use store::{Lease, Store};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, info, info_span, warn};

use crate::{
    effects::{self, Outside},
    error::Error,
    leader::{STATE, pause},
    metrics, view,
};

/// Events that may wait for the loop; senders wait when it is full, nothing is dropped.
const QUEUE: usize = 256;

/// A handle of the loop.
#[derive(Debug, Clone)]
pub(crate) struct Engine {
    events: mpsc::Sender<Request>,
    view: watch::Receiver<Arc<RoundView>>,
    newest: watch::Receiver<Option<Seen>>,
}

/// A block that was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) number: BlockNumber,
    pub(crate) hash: BlockHash,
}

impl Seen {
    /// The newest one of a state, where that keeps its hash.
    fn newest(state: &State) -> Option<Self> {
        state.block_hash.map(|hash| Self { number: state.block, hash })
    }
}

#[derive(Debug)]
struct Request {
    event: Event,
    reply: oneshot::Sender<Result<Reply, Error>>,
}

impl Engine {
    /// Hands in an event. It is saved when this returns.
    pub(crate) async fn apply(&self, event: Event) -> Result<Reply, Error> {
        let (reply, answer) = oneshot::channel();
        let request = Request { event, reply };
        self.events.send(request).await.map_err(|_| Error::lost())?;
        answer.await.map_err(|_| Error::lost())?
    }

    /// The newest view, and every later one.
    pub(crate) fn view(&self) -> watch::Receiver<Arc<RoundView>> {
        self.view.clone()
    }

    /// The newest block in the saved state.
    pub(crate) fn newest(&self) -> Option<Seen> {
        *self.newest.borrow()
    }
}

/// Why a state could not be saved.
#[derive(Debug, thiserror::Error)]
enum SaveError {
    #[error("it cannot be encoded: {0}")]
    Encode(#[from] serde_json::Error),
    #[error(transparent)]
    Store(#[from] store::StoreError),
}

/// The loop itself.
pub(crate) struct Driver {
    state: State,
    policy: Arc<Policy>,
    store: Store,
    lease: Arc<Lease>,
    outside: Outside,
    engine: Engine,
    events: mpsc::Receiver<Request>,
    views: watch::Sender<Arc<RoundView>>,
    newest: watch::Sender<Option<Seen>>,
    running: HashMap<String, CancellationToken>,
}

/// A loop over `state`, and its handle.
pub(crate) fn new(
    state: State,
    policy: Arc<Policy>,
    store: Store,
    lease: Arc<Lease>,
    outside: Outside,
) -> (Engine, Driver) {
    let (events, requests) = mpsc::channel(QUEUE);
    let (views, view) = watch::channel(Arc::new(view::round_view(&state, &policy)));
    let (seen, newest) = watch::channel(Seen::newest(&state));
    let engine = Engine { events, view, newest };
    let driver = Driver {
        state,
        policy,
        store,
        lease,
        outside,
        engine: engine.clone(),
        events: requests,
        views,
        newest: seen,
        running: HashMap::new(),
    };
    (engine, driver)
}

impl Driver {
    /// Takes in events until `shutdown`, or until the state cannot be saved any more.
    pub(crate) async fn run(mut self, shutdown: Shutdown) -> anyhow::Result<()> {
        self.reconcile(&shutdown);
        loop {
            let request = tokio::select! {
                request = self.events.recv() => request,
                () = shutdown.cancelled() => return Ok(()),
            };
            let Some(Request { event, reply }) = request else { return Ok(()) };
            match self.take_in(event).await {
                Ok(answer) => {
                    self.reconcile(&shutdown);
                    let _ = reply.send(answer.map_err(Error::from));
                }
                Err(error) => {
                    let _ = reply.send(Err(Error::Unsaved(error.to_string())));
                    anyhow::bail!("the state could not be saved: {error}");
                }
            }
        }
    }

    /// Applies `event` to a copy and saves that before it counts.
    async fn take_in(&mut self, event: Event) -> Result<Result<Reply, Rejection>, SaveError> {
        let mut next = self.state.clone();
        let reply = match apply(&mut next, event, &self.policy) {
            Ok(reply) => reply,
            Err(rejection) => return Ok(Err(rejection)),
        };
        if next.revision == self.state.revision {
            return Ok(Ok(reply));
        }
        let bytes = Bytes::from(serde_json::to_vec(&next)?);
        metrics::state_saved(bytes.len());
        self.save(bytes).await?;
        self.announce(&next);
        self.state = next;
        self.newest.send_replace(Seen::newest(&self.state));
        let _ = self.views.send(Arc::new(view::round_view(&self.state, &self.policy)));
        Ok(Ok(reply))
    }

    /// Saves under the leader's fence; a store that is away for a moment is waited for.
    async fn save(&self, bytes: Bytes) -> Result<(), store::StoreError> {
        let mut attempt = 0;
        loop {
            match self.store.put_fenced(&self.lease, STATE, bytes.clone()).await {
                Err(error) if error.is_unavailable() && attempt < 8 => {
                    warn!(%error, "the state could not be saved yet");
                    tokio::time::sleep(pause(attempt, std::time::Duration::from_secs(2))).await;
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    /// Tells people and metrics what has changed.
    fn announce(&self, next: &State) {
        metrics::block(next.block.0);
        self.announce_resync(next);
        let Some(round) = &next.round else { return };
        let old = self.state.round.as_ref().filter(|old| old.id == round.id);
        let seen = old.map_or(0, |old| old.degradations.len());
        if old.map(|old| old.stage) != Some(round.stage) {
            metrics::stage(round.stage);
            let span = info_span!(
                "round",
                connito.service = "svc-scheduler",
                round = round.id.0,
                cycle = round.cycle.0,
                stage = ?round.stage,
            );
            kit::trace::attach(&span, &round.traceparent);
            span.in_scope(|| {
                info!(block = next.block.0, miners = round.miners.len(), "round moved on");
            });
        }
        // What the last look has left behind was told when it was noticed.
        let told = self.state.resync.as_ref().map(|old| &old.degradations[..]).unwrap_or_default();
        for degradation in round.degradations.iter().skip(seen).filter(|d| !told.contains(d)) {
            degraded(Some(round.id), degradation);
        }
    }

    /// The same of the look at the other validators' model.
    fn announce_resync(&self, next: &State) {
        let Some(resync) = &next.resync else { return };
        let old = self.state.resync.as_ref().filter(|old| old.asked == resync.asked);
        if old.map(|old| &old.stage) != Some(&resync.stage) {
            metrics::resync(&resync.stage);
            let (cycle, stage) = (resync.cycle.0, resync.stage.as_str());
            info!(block = next.block.0, cycle, stage, "the stake majority's model");
        }
        let told = self.state.resync.as_ref().map(|old| &old.degradations[..]).unwrap_or_default();
        for degradation in resync.degradations.iter().filter(|d| !told.contains(d)) {
            degraded(None, degradation);
        }
    }

    /// Keeps exactly one task per unfinished effect.
    fn reconcile(&mut self, shutdown: &Shutdown) {
        let state = &self.state;
        self.running.retain(|id, token| {
            let wanted = state.effects.contains_key(id);
            if !wanted {
                token.cancel();
            }
            wanted
        });
        for (id, effect) in &self.state.effects {
            if self.running.contains_key(id) {
                continue;
            }
            let token = CancellationToken::new();
            self.running.insert(id.clone(), token.clone());
            let span = info_span!(
                "effect",
                connito.service = "svc-scheduler",
                effect = id.as_str(),
                round = tracing::field::Empty,
            );
            if let Some(traceparent) = self.traceparent(effect) {
                kit::trace::attach(&span, &traceparent);
            }
            let work = effects::run(effect.clone(), self.engine.clone(), self.outside.clone());
            let stop = shutdown.clone();
            shutdown.spawn(
                async move {
                    tokio::select! {
                        () = work => {}
                        () = token.cancelled() => {}
                        () = stop.cancelled() => {}
                    }
                }
                .instrument(span),
            );
        }
    }

    /// Trace context of the round that an effect belongs to.
    fn traceparent(&self, effect: &Effect) -> Option<String> {
        match effect {
            Effect::Record(record) => Some(record.traceparent.clone()),
            Effect::Reveals { traceparent, .. } => Some(traceparent.clone()),
            Effect::Resync(plan) => Some(plan.traceparent.clone()),
            Effect::Freeze { .. }
            | Effect::Merge(_)
            | Effect::SignHash { .. }
            | Effect::Write { .. } => self.state.round.as_ref().map(|r| r.traceparent.clone()),
        }
    }
}

fn degraded(round: Option<RoundId>, degradation: &Degradation) {
    metrics::degraded(degradation);
    warn!(
        round = round.map(|round| round.0),
        kind = degradation.kind.as_str(),
        detail = degradation.detail,
        "degradation"
    );
}

/// Hands every block of the chain to the engine, across reconnects.
pub(crate) async fn follow_blocks(engine: Engine, outside: Outside, shutdown: Shutdown) {
    let mut attempt = 0;
    while !shutdown.is_cancelled() {
        let watched = tokio::select! {
            watched = outside.watch_blocks(&engine) => watched,
            () = shutdown.cancelled() => return,
        };
        match watched {
            Ok(blocks) => {
                attempt = if blocks > 0 { 0 } else { attempt + 1 };
                warn!("the stream of blocks ended: connecting again");
            }
            Err(status) => {
                attempt += 1;
                warn!(error = status.message(), "no blocks from the chain service");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(pause(attempt, std::time::Duration::from_secs(5))) => {}
            () = shutdown.cancelled() => {}
        }
    }
}
