//! Global models from other validators: for one that missed a merge, made another model than the
//! stake majority, or begins.
//!
//! `holdings` and `desk` give what is here; `task` brings what is not. Files are told apart by the
//! root of their chunks' digests, which their holders sign: a chunk is checked when it comes, a model
//! when it is whole, and who has signed something else is known by name.

pub(crate) mod api;
mod assemble;
pub(crate) mod desk;
mod fetch;
mod holders;
pub(crate) mod holdings;
pub(crate) mod line;
mod lists;
pub mod message;
mod parts;
pub(crate) mod roster;
mod status;
mod task;
mod work;

use std::{path::PathBuf, sync::Arc};

use domain::ModelHash;
use kit::Shutdown;
use store::Artifacts;
use tokio::{
    sync::{Mutex, watch},
    time::Instant,
};
use tracing::{Instrument as _, info, info_span};

use self::{
    holders::Holders,
    line::{Line, Plumbing},
    roster::{Rosters, Source},
    status::{Shown, State},
    task::{Task, Wanted},
};
use crate::{error::Refused, plan::Model, report::Failure, step};

/// What resyncs are made with.
#[derive(Debug)]
pub(crate) struct Tools {
    pub(crate) plumbing: Plumbing,
    pub(crate) artifacts: Artifacts,
    pub(crate) rosters: Arc<Rosters>,
    /// Folder for files that are on their way, and for evidence.
    pub(crate) folder: PathBuf,
    pub(crate) shutdown: Shutdown,
}

/// A resync that has started here.
#[derive(Debug)]
struct Current {
    model: ModelHash,
    stop: Shutdown,
    shown: watch::Receiver<Shown>,
}

/// Starts resyncs, one at a time, and finds them.
#[derive(Debug)]
pub(crate) struct Resyncs {
    tools: Tools,
    current: Mutex<Option<Current>>,
}

impl Resyncs {
    /// None has started yet.
    pub(crate) fn new(tools: Tools) -> Self {
        Self { tools, current: Mutex::new(None) }
    }

    /// How far the resync of a model is.
    pub(crate) async fn find(&self, model: &ModelHash) -> Result<Shown, Refused> {
        let current = self.current.lock().await;
        let found = current.as_ref().filter(|current| current.model == *model);
        let found = found.ok_or(Refused::UnknownResync { model: *model })?;
        Ok(found.shown.borrow().clone())
    }

    /// Starts a resync, unless it runs or is done; stops that of another model.
    pub(crate) async fn start(&self, wanted: Wanted) -> Result<Shown, Refused> {
        let others = wanted.holders.keys().cloned().collect();
        self.tools.rosters.learn(Source::Resync, wanted.round, &wanted.hotkey, others);
        let model = wanted.target.model;
        let mut current = self.current.lock().await;
        if let Some(same) = current.as_ref().filter(|current| current.model == model) {
            let shown = same.shown.borrow().clone();
            if shown.state != State::Failed {
                return Ok(shown);
            }
        }
        if let Some(before) = current.take() {
            before.stop.cancel();
        }
        let stop = self.tools.shutdown.child();
        let begin = match self.there(&wanted).await? {
            Some(model) => Shown { state: State::Done, model: Some(model), ..Shown::default() },
            None => Shown::default(),
        };
        let (shown, seen) = watch::channel(begin.clone());
        if begin.state == State::Running {
            self.spawn(wanted, shown, &stop);
        }
        *current = Some(Current { model, stop, shown: seen });
        Ok(begin)
    }

    /// The model, where it is here already.
    async fn there(&self, wanted: &Wanted) -> Result<Option<Model>, Refused> {
        for prefix in wanted.prefixes() {
            let there = match step::published(&self.tools.artifacts, &prefix).await {
                Ok(there) => there,
                Err(Failure::Store(error)) => {
                    return Err(Refused::Unreadable { detail: error.to_string() });
                }
                // Whatever it is, it is not the model.
                Err(_) => None,
            };
            if there.is_some_and(|there| there.model_hash == wanted.target.model) {
                return Ok(Some(Model { prefix, ..wanted.model.clone() }));
            }
        }
        Ok(None)
    }

    fn spawn(&self, wanted: Wanted, shown: watch::Sender<Shown>, stop: &Shutdown) {
        let Tools { plumbing, artifacts, folder, .. } = &self.tools;
        let span = info_span!(
            parent: None,
            "resync",
            round = %wanted.round,
            model_hash = %wanted.target.model,
            group = %wanted.target.group,
            hotkey = %wanted.hotkey,
            holders = wanted.holders.len(),
        );
        kit::trace::attach(&span, &wanted.traceparent);
        info!(parent: &span, deadline = ?wanted.deadline, "resync started");
        let axons = wanted.holders.iter().map(|(h, holder)| (h.clone(), holder.axon.clone()));
        let line = Line::new(
            plumbing.clone(),
            wanted.round,
            wanted.hotkey.clone(),
            wanted.target.model,
            axons.collect(),
        );
        let evidence = folder.join("evidence");
        let task = Task {
            line,
            config: Arc::clone(&plumbing.config),
            artifacts: artifacts.clone(),
            folder: folder.join("files"),
            holders: Holders::new(wanted.target.model, wanted.holders.clone(), &evidence),
            start: Instant::now(),
            shown,
            wanted: Arc::new(wanted),
        };
        let until = stop.clone();
        let run = async move {
            tokio::select! {
                () = task.run() => {}
                () = until.cancelled() => {}
            }
        };
        stop.spawn(run.instrument(span));
    }
}
