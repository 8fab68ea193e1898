//! One watcher of the chain: led from what it was told last to what holds now.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures::{Stream, stream};
use kit::Shutdown;
use tokio::{sync::watch, time::sleep};
use tracing::{debug, info};

use super::{
    Branch, Reorganisation,
    lead::{Sources, lead},
};
use crate::{
    chain::{Block, Chain},
    degradations::{self, Degradation, Kind},
    error::Error,
    metrics,
};

/// Pause before what was missed is asked for again.
const PAUSE: Duration = Duration::from_millis(200);

/// Most blocks that are caught up with: half a day of them. Each is asked for by its hash.
const MAX_BEHIND: u64 = 4096;

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
    /// The block that it holds from before, until it is led on from there.
    pub(super) known: Option<Block>,
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
        if let Some(known) = self.known {
            if tip.number < known.number {
                // The endpoint is behind what the watcher has seen: there is nothing to say yet.
                return Ok(());
            }
            self.resume(known, tip).await?;
            self.known = None;
        }
        self.go_on(branch).await
    }

    /// Says what leads from what was told to the tip of a branch that is not empty.
    async fn go_on(&mut self, branch: &Branch) -> Result<(), Error> {
        let from = Sources { now: &self.chain, abandoned: &self.chain };
        for block in lead(from, &mut self.told, branch).await? {
            self.put(block);
        }
        Ok(())
    }

    /// Takes over a block that was told by an earlier stream, maybe of an earlier process.
    async fn resume(&mut self, known: Block, tip: Block) -> Result<(), Error> {
        let known = match self.chain.block_of(known.hash).await {
            Ok(block) if block.number == known.number => block,
            // Nobody knows it any more, or its height is made up: then it is of no branch.
            Ok(_) | Err(Error::NoSuchBlock(_)) => known,
            Err(error) => return Err(error),
        };
        self.told = Branch::from(known);
        let behind = tip.number.0.saturating_sub(known.number.0);
        if behind <= MAX_BEHIND {
            return Ok(());
        }
        // Whether it still holds is told all the same.
        let there = self.chain.block(known.number).await?;
        self.go_on(&Branch::from(there)).await?;
        let detail = format!(
            "{behind} blocks after block {} are too many to be told one by one: it goes on with \
             block {}",
            known.number, tip.number
        );
        info!(%detail, "blocks are skipped for one who watches");
        metrics::degraded(Kind::BlocksSkipped.as_str());
        // Not in the book: it is of this watcher alone.
        let skipped = Degradation::new(Kind::BlocksSkipped, detail, tip.number);
        self.ready.push_back(Event::Degradation(skipped));
        self.told = Branch::default();
        Ok(())
    }

    fn put(&mut self, block: Block) {
        if let Some(reorganisation) = self.told.put(block) {
            self.ready.push_back(Event::Reorganisation(reorganisation));
        }
        self.ready.push_back(Event::Block(block));
    }
}
