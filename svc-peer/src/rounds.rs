//! The rounds that have started here: the current one, and what is kept of those before.

use std::{path::PathBuf, sync::Arc};

use domain::RoundId;
use kit::Shutdown;
use store::{Artifacts, Store};
use tokio::sync::watch;
use tracing::{Instrument as _, info, info_span, warn};

use crate::{
    call::Caller,
    conduct::Conduct,
    config::Config,
    desk::Desk,
    discovery::Discovery,
    error::Refused,
    lines::Lines,
    merger::Clock,
    nonces::Nonces,
    plan::Plan,
    report::{Failure, Report},
    round::{Round, Shown},
    signer::Signer,
    task::{self, Task},
};

/// What a round's task is made with.
#[derive(Debug)]
pub(crate) struct Tools {
    pub(crate) config: Arc<Config>,
    pub(crate) artifacts: Artifacts,
    pub(crate) store: Store,
    pub(crate) signer: Signer,
    pub(crate) nonces: Nonces,
    pub(crate) discovery: Discovery,
    pub(crate) desk: Arc<Desk>,
    /// How this validator behaves.
    pub(crate) conduct: Arc<dyn Conduct>,
    /// Folder for files of its own.
    pub(crate) folder: PathBuf,
    pub(crate) shutdown: Shutdown,
}

/// A merge that runs here, or the report of one that has ended.
#[derive(Debug)]
pub(crate) enum Found {
    /// It started in this process, and is the newest.
    Here(Arc<Round>),
    /// It ended before this process, or the newest round, began.
    Before(Box<Report>),
}

/// Starts rounds, one task each, and finds them.
#[derive(Debug)]
pub(crate) struct Rounds {
    tools: Tools,
    current: Arc<watch::Sender<Option<Arc<Round>>>>,
}

impl Rounds {
    /// No round has started yet.
    pub(crate) fn new(tools: Tools) -> Self {
        Self { tools, current: Arc::new(watch::Sender::new(None)) }
    }

    /// The newest round, if it is `id`; otherwise why it cannot be asked here.
    pub(crate) fn current(&self, id: RoundId) -> Result<Arc<Round>, Refused> {
        match &*self.current.borrow() {
            Some(round) if round.plan.round == id => Ok(Arc::clone(round)),
            Some(round) if round.plan.round > id => {
                Err(Refused::OldRound { newer: round.plan.round.0 })
            }
            Some(_) | None => Err(Refused::NotStarted),
        }
    }

    /// The merge of a round, wherever it is.
    pub(crate) async fn find(&self, id: RoundId) -> Result<Found, Refused> {
        if let Ok(round) = self.current(id) {
            return Ok(Found::Here(round));
        }
        match self.report(id).await? {
            Some(report) => Ok(Found::Before(Box::new(report))),
            None => Err(Refused::UnknownRound { round: id.0 }),
        }
    }

    async fn report(&self, id: RoundId) -> Result<Option<Report>, Refused> {
        let key = format!("rounds/{id}/{}", Report::FILE);
        let kept: Result<Option<Report>, Failure> = task::kept(&self.tools.artifacts, &key).await;
        kept.map_err(|error| Refused::Unreadable { detail: error.to_string() })
    }

    /// Starts the merge of a round, unless it has been started before; stops that of an older one.
    pub(crate) async fn start(&self, plan: Plan) -> Result<Found, Refused> {
        let id = plan.round;
        match self.find(id).await {
            Err(Refused::UnknownRound { .. }) => {}
            Ok(Found::Before(report)) if report.block_hash != plan.block_hash => {
                let (found, expected) = (report.block_hash, plan.block_hash);
                return Err(Refused::OtherChain { found, expected });
            }
            found => return found,
        }
        let plan = Arc::new(plan);
        let stop = self.tools.shutdown.child();
        let clock = Clock::new(plan.elapsed);
        let (shown, seen) = watch::channel(Shown::default());
        let round = Arc::new(Round::new(Arc::clone(&plan), stop.clone(), seen));
        let mut before = None;
        let began = self.current.send_if_modified(|current| {
            let newest = current.as_ref().is_none_or(|current| current.plan.round < id);
            if newest {
                before = current.replace(Arc::clone(&round));
            }
            newest
        });
        if !began {
            // Another call was faster, or a newer round is here already.
            return self.current(id).map(Found::Here);
        }
        if let Some(before) = before {
            if before.now().report.is_none() {
                warn!(round = %before.plan.round, newer = %id, "merge abandoned for a newer round");
            }
            before.stop.cancel();
        }
        let task = self.task(&plan, clock, &stop, shown);
        let span = info_span!(
            parent: None,
            "merge",
            round = %plan.round,
            group = %plan.group,
            hotkey = %plan.hotkey,
            contributions = plan.contributions.len(),
            validators = plan.validators.len(),
        );
        kit::trace::attach(&span, &plan.traceparent);
        info!(parent: &span, deadline = ?plan.deadline, "merge started");
        let (until, here, current) = (stop.clone(), Arc::clone(&round), Arc::clone(&self.current));
        let run = async move {
            tokio::select! {
                () = task.run() => forget_unless_ended(&here, &current),
                () = until.cancelled() => {}
            }
        };
        stop.spawn(run.instrument(span));
        Ok(Found::Here(round))
    }

    fn task(
        &self,
        plan: &Arc<Plan>,
        clock: Clock,
        stop: &Shutdown,
        shown: watch::Sender<Shown>,
    ) -> Task {
        let Tools {
            config,
            artifacts,
            store,
            signer,
            nonces,
            discovery,
            desk,
            conduct,
            folder,
            ..
        } = &self.tools;
        let axons = plan.validators.iter().map(|(hotkey, one)| (hotkey.clone(), one.axon.clone()));
        let lines = Lines::new(Arc::clone(config), discovery.clone(), axons);
        let caller = Caller::new(
            plan.round,
            plan.hotkey.clone(),
            lines,
            signer.clone(),
            nonces.clone(),
            config.call_timeout,
        );
        Task {
            plan: Arc::clone(plan),
            config: Arc::clone(config),
            artifacts: artifacts.clone(),
            store: store.clone(),
            caller: Arc::new(caller),
            signer: signer.clone(),
            desk: Arc::clone(desk),
            conduct: Arc::clone(conduct),
            folder: folder.join(plan.hotkey.short()),
            clock,
            stop: stop.clone(),
            shown,
        }
    }
}

/// A merge that was left without a report, since its lease was lost, is not here any more: who asks is
/// told so and starts it again, wherever the lease can be had. It goes on with what it has said.
fn forget_unless_ended(round: &Arc<Round>, current: &watch::Sender<Option<Arc<Round>>>) {
    if round.now().report.is_none() {
        let is_this = |current: &Arc<Round>| Arc::ptr_eq(current, round);
        current.send_if_modified(|current| current.take_if(|now| is_this(now)).is_some());
        round.stop.cancel();
    }
}
