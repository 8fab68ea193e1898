//! A merge as it goes on, for those who ask about it.

use std::sync::Arc;

use kit::Shutdown;
use tokio::sync::watch;

use crate::{merger::Handle, plan::Plan, report::Report};

/// How far a merge is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum State {
    /// Adding up the submissions.
    #[default]
    Aggregating,
    /// Agreeing with the other validators and exchanging slices.
    Merging,
    /// Writing the new model.
    Writing,
    /// Over.
    Ended,
}

/// What is to be seen of a merge from outside of its task. Fields are filled as it goes on.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shown {
    /// How far it is.
    pub(crate) state: State,
    /// What goes on with the others, from the offer on.
    pub(crate) merging: Option<Handle>,
    /// How it ended.
    pub(crate) report: Option<Arc<Report>>,
}

/// A round that has started here.
#[derive(Debug)]
pub(crate) struct Round {
    /// What it is to do.
    pub(crate) plan: Arc<Plan>,
    /// Stops its task.
    pub(crate) stop: Shutdown,
    shown: watch::Receiver<Shown>,
}

impl Round {
    /// A handle of the round of `plan`.
    pub(crate) fn new(plan: Arc<Plan>, stop: Shutdown, shown: watch::Receiver<Shown>) -> Self {
        Self { plan, stop, shown }
    }

    /// What is to be seen now.
    pub(crate) fn now(&self) -> Shown {
        self.shown.borrow().clone()
    }
}
