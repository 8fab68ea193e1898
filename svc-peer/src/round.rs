//! The handle of one round's merge: what is shown of it, and how to tell it what was heard.
//!
//! The task ([`crate::task`]) owns the state and shows copies of it; handlers read them, wait for
//! them, and pass on what other validators said. Nothing is shared that both could change.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use domain::Hotkey;
use kit::Shutdown;
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    error::Refused,
    members::Members,
    messages::{Hello, Offer},
    plan::Plan,
    report::Report,
};

/// How far a merge is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum State {
    /// Adding up the submissions.
    #[default]
    Aggregating,
    /// Looking for the other validators.
    Meeting,
    /// Exchanging slices.
    Reducing,
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
    /// What this validator brings.
    pub(crate) offer: Option<Offer>,
    /// Whom it has met, itself included; after the agreement, the members.
    pub(crate) met: BTreeSet<Hotkey>,
    /// The agreed members.
    pub(crate) members: Option<Arc<Members>>,
    /// The own pseudo-gradient, where there is one.
    pub(crate) gradient: Option<Arc<Vec<f32>>>,
    /// The slice that this validator has reduced.
    pub(crate) reduced: Option<Arc<Vec<f32>>>,
    /// BLAKE3 of the whole reduced vector.
    pub(crate) digest: Option<[u8; 32]>,
    /// How it ended.
    pub(crate) report: Option<Arc<Report>>,
}

/// What another validator said, verified.
#[derive(Debug)]
pub(crate) enum Heard {
    /// A hello; whom this validator has met by then is told back.
    Hello(Box<Hello>, oneshot::Sender<BTreeSet<Hotkey>>),
    /// The digest that a validator has come to.
    Digest(Hotkey, [u8; 32]),
}

/// What is heard and not looked at yet: more is dropped, and said again by who said it.
pub(crate) const HEARD: usize = 64;

/// A round that has started here.
#[derive(Debug)]
pub(crate) struct Round {
    /// What it is to do.
    pub(crate) plan: Arc<Plan>,
    /// Stops its task.
    pub(crate) stop: Shutdown,
    shown: watch::Receiver<Shown>,
    heard: mpsc::Sender<Heard>,
    asked: BTreeMap<Hotkey, AtomicU32>,
}

impl Round {
    /// A handle of the round of `plan`.
    pub(crate) fn new(
        plan: Arc<Plan>,
        stop: Shutdown,
        shown: watch::Receiver<Shown>,
        heard: mpsc::Sender<Heard>,
    ) -> Self {
        let asked = plan.validators.keys().map(|h| (h.clone(), AtomicU32::new(0))).collect();
        Self { plan, stop, shown, heard, asked }
    }

    /// What is to be seen now.
    pub(crate) fn now(&self) -> Shown {
        self.shown.borrow().clone()
    }

    /// Counts a request of a validator of the round, of which it has `most`.
    pub(crate) fn count(&self, sender: &Hotkey, most: u32) -> Result<(), Refused> {
        let asked = self.asked.get(sender).ok_or(Refused::NotAValidator)?;
        let before = asked
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < most).then_some(n + 1));
        before.map(|_| ()).map_err(|_| Refused::TooMany)
    }

    /// Waits for at most `wait` until `ready` gives something of what is shown; a merge that has
    /// failed will give nothing any more.
    pub(crate) async fn wait<T>(
        &self,
        wait: Duration,
        what: &'static str,
        ready: impl Fn(&Shown) -> Option<T>,
    ) -> Result<T, Refused> {
        let mut shown = self.shown.clone();
        let until = async {
            let done = |shown: &Shown| shown.report.is_some() || ready(shown).is_some();
            shown.wait_for(done).await.map(|shown| (ready(&shown), shown.report.clone()))
        };
        match tokio::time::timeout(wait, until).await {
            Err(_) => Err(Refused::NotReady { what }),
            Ok(Err(_)) => Err(Refused::Stopping),
            Ok(Ok((Some(value), _))) => Ok(value),
            Ok(Ok((None, report))) => {
                let why = report.map(|report| report.why.clone()).unwrap_or_default();
                Err(Refused::Failed { why })
            }
        }
    }

    /// Passes on a hello, and returns whom this validator has met.
    pub(crate) async fn hear_hello(&self, hello: Hello) -> BTreeSet<Hotkey> {
        let mut shown = self.shown.clone();
        let (tell, told) = oneshot::channel();
        if shown.borrow_and_update().state == State::Meeting
            && self.heard.try_send(Heard::Hello(Box::new(hello), tell)).is_ok()
        {
            // The meeting may end before it looks at this hello: then its result is the answer.
            tokio::select! {
                Ok(met) = told => return met,
                _ = shown.wait_for(|shown| shown.state != State::Meeting) => {}
            }
        }
        self.now().met
    }

    /// Passes on a digest. Where there is no room, its sender will be asked for it anyway.
    pub(crate) fn hear_digest(&self, sender: Hotkey, digest: [u8; 32]) {
        let _ = self.heard.try_send(Heard::Digest(sender, digest));
    }
}
