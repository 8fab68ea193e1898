//! The rounds that have started here: the current one, and what is kept of those before.

use std::{path::PathBuf, sync::Arc};

use domain::RoundId;
use kit::Shutdown;
use store::Artifacts;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tracing::{Instrument as _, info, info_span, warn};

use crate::{
    calls::Caller,
    config::Config,
    discovery::Discovery,
    error::Refused,
    nonces::Nonces,
    plan::{Plan, Timetable},
    report::{Failure, Report},
    round::{HEARD, Round, Shown},
    signer::Signer,
    task::{self, Task},
};

/// What a round's task is made with.
#[derive(Debug)]
pub(crate) struct Tools {
    pub(crate) config: Arc<Config>,
    pub(crate) artifacts: Artifacts,
    pub(crate) signer: Signer,
    pub(crate) nonces: Nonces,
    pub(crate) discovery: Discovery,
    /// TLS towards validators with an `https` URL.
    pub(crate) tls: kit::Tls,
    /// Folder for temporary files.
    pub(crate) scratch: PathBuf,
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
    current: watch::Sender<Option<Arc<Round>>>,
}

impl Rounds {
    /// No round has started yet.
    pub(crate) fn new(tools: Tools) -> Self {
        Self { tools, current: watch::Sender::new(None) }
    }

    /// The settings of the service.
    pub(crate) fn config(&self) -> &Config {
        &self.tools.config
    }

    /// Signs for this validator.
    pub(crate) fn signer(&self) -> &Signer {
        &self.tools.signer
    }

    /// Nonces of this validator's messages, and those that were seen.
    pub(crate) fn nonces(&self) -> &Nonces {
        &self.tools.nonces
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
            found => return found,
        }
        let plan = Arc::new(plan);
        let stop = self.tools.shutdown.child();
        let (shown, seen) = watch::channel(Shown::default());
        let (tell, heard) = mpsc::channel(HEARD);
        let round = Arc::new(Round::new(Arc::clone(&plan), stop.clone(), seen, tell));
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
        let task = self.task(&plan, shown, heard);
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
        let until = stop.clone();
        let run = async move {
            tokio::select! {
                () = task.run() => {}
                () = until.cancelled() => {}
            }
        };
        stop.spawn(run.instrument(span));
        Ok(Found::Here(round))
    }

    fn task(
        &self,
        plan: &Arc<Plan>,
        shown: watch::Sender<Shown>,
        heard: mpsc::Receiver<crate::round::Heard>,
    ) -> Task {
        let Tools { config, artifacts, signer, nonces, discovery, tls, scratch, .. } = &self.tools;
        Task {
            plan: Arc::clone(plan),
            config: Arc::clone(config),
            artifacts: artifacts.clone(),
            caller: Caller::new(
                Arc::clone(plan),
                Arc::clone(config),
                tls.clone(),
                discovery.clone(),
                signer.clone(),
                nonces.clone(),
            ),
            scratch: scratch.join(format!("{}-{}", plan.round, plan.hotkey.short())),
            times: Timetable::new(Instant::now(), plan.deadline),
            shown,
            heard,
        }
    }
}
