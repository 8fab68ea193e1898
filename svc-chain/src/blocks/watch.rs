//! One watcher of the chain: led from what it was told last to what holds now.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures::{Stream, stream};
use kit::Shutdown;
use tokio::{sync::watch, time::sleep};
use tracing::debug;

use super::{Branch, Reorganisation, path};
use crate::{
    chain::{Block, Chain},
    degradations::{self, Degradation},
    error::Error,
};

/// Pause before what was missed is asked for again.
const PAUSE: Duration = Duration::from_millis(200);

/// What a watcher is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// The next block.
    Block(Block),
    /// Blocks were taken back; those that took their place follow.
    Reorganisation(Reorganisation),
    Degradation(Degradation),
}

pub(super) struct Watcher {
    pub(super) line: watch::Receiver<Arc<Branch>>,
    /// What it was told of.
    pub(super) told: Branch,
    /// What it is told next.
    pub(super) ready: VecDeque<Event>,
    pub(super) degradations: degradations::Watcher,
    pub(super) chain: Chain,
}

impl Watcher {
    pub(super) fn events(mut self, shutdown: Shutdown) -> impl Stream<Item = Event> + Send {
        // What there is, before anything is waited for.
        self.line.mark_changed();
        stream::unfold((self, shutdown), |(mut watcher, shutdown)| async move {
            let event = tokio::select! {
                () = shutdown.cancelled() => return None,
                event = watcher.next() => event?,
            };
            Some((event, (watcher, shutdown)))
        })
    }

    /// The next event; `None` once nobody follows the chain any more.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            tokio::select! {
                changed = self.line.changed() => changed.ok()?,
                noticed = self.degradations.next() => {
                    self.ready.extend(noticed.into_iter().map(Event::Degradation));
                    continue;
                }
            }
            let branch = Arc::clone(&self.line.borrow_and_update());
            if let Err(error) = self.lead_to(&branch).await {
                // The node that answers now may be behind the one that told of the head.
                debug!(%error, "missed blocks are asked for again");
                sleep(PAUSE).await;
                self.line.mark_changed();
            }
        }
    }

    /// Says what leads from what was told to the tip of a branch.
    async fn lead_to(&mut self, branch: &Branch) -> Result<(), Error> {
        let Some(tip) = branch.tip() else { return Ok(()) };
        if self.told.tip().is_none() {
            self.put(tip);
            return Ok(());
        }
        // Where the branch has forgotten what was told, the blocks between are asked for.
        if self.told.common(branch).is_none()
            && let Some(oldest) = branch.oldest()
        {
            for block in path(&self.chain, &self.told, oldest).await? {
                self.put(block);
            }
        }
        let Some(common) = self.told.common(branch) else { return Ok(()) };
        let news: Vec<Block> = branch.above(common.number).collect();
        for block in news {
            self.put(block);
        }
        Ok(())
    }

    fn put(&mut self, block: Block) {
        if let Some(reorganisation) = self.told.put(block) {
            self.ready.push_back(Event::Reorganisation(reorganisation));
        }
        self.ready.push_back(Event::Block(block));
    }
}
