//! The chain as it grows: best and final blocks, without gaps.
//!
//! One task follows each of the two, on the endpoint in use, and moves with it; what a connection
//! skipped is filled in by walking back from the new head to a block that is known. Where the walk
//! ends below the old head, blocks were taken back. Everyone who watches is led from what it was
//! told last to what holds now, so that it always has a linked chain.

mod branch;
mod follow;
mod watch;

use std::{collections::VecDeque, sync::Arc};

use domain::{BlockHash, BlockNumber};
use futures::Stream;
use kit::Shutdown;
use tokio::sync::watch as watched;

pub(crate) use self::{
    branch::{Branch, Reorganisation},
    watch::Event,
};
use crate::{
    chain::{Block, Chain},
    config::Follow,
    degradations::Degradations,
    error::Error,
};

/// Blocks for which a new watcher is told of degradations.
const LOOK_BACK: u64 = 512;

/// Most blocks that are filled in at once: two weeks of them.
const MAX_PATH: usize = 100_000;

/// A branch as it grows, shared without copying.
type Line = watched::Sender<Arc<Branch>>;

/// See the module. Clones see the same blocks.
#[derive(Debug, Clone)]
pub(crate) struct Blocks {
    best: Line,
    finalized: Line,
    /// What is meant by "the newest block".
    follow: Follow,
    newest: watched::Sender<Option<Block>>,
    degradations: Degradations,
}

impl Blocks {
    pub(crate) fn new(follow: Follow, degradations: Degradations) -> Self {
        Self {
            best: Line::default(),
            finalized: Line::default(),
            follow,
            newest: watched::Sender::default(),
            degradations,
        }
    }

    /// The newest block; an error before the first.
    pub(crate) fn newest(&self) -> Result<Block, Error> {
        let newest = *self.newest.borrow();
        newest.ok_or_else(|| Error::Unreachable("no block was seen yet".to_owned()))
    }

    /// The newest block, and its changes.
    pub(crate) fn subscribe(&self) -> watched::Receiver<Option<Block>> {
        self.newest.subscribe()
    }

    /// Newest best or final block that was seen.
    pub(crate) fn tip(&self, finality: Follow) -> Option<Block> {
        self.line(finality).borrow().tip()
    }

    /// The best blocks as they grow.
    pub(crate) fn best(&self) -> watched::Receiver<Arc<Branch>> {
        self.best.subscribe()
    }

    /// The block of a height: the final one where that is known, else the best one.
    pub(crate) fn at(&self, number: BlockNumber) -> Option<Block> {
        let of = |line: &Line| line.borrow().at(number);
        of(&self.finalized).or_else(|| of(&self.best))
    }

    /// Height of a block that was seen and is not taken back.
    pub(crate) fn find(&self, hash: BlockHash) -> Option<Block> {
        let of = |line: &Line| line.borrow().find(hash);
        of(&self.best).or_else(|| of(&self.finalized))
    }

    /// Every block from the newest on, linked, with reorganisations and degradations; ends at
    /// `shutdown`.
    pub(crate) fn watch(
        &self,
        finality: Option<Follow>,
        chain: Chain,
        shutdown: Shutdown,
    ) -> impl Stream<Item = Event> + Send + use<> {
        let line = self.line(finality.unwrap_or(self.follow)).subscribe();
        let newest = line.borrow().tip().map_or(0, |tip| tip.number.0);
        let since = BlockNumber(newest.saturating_sub(LOOK_BACK));
        let watcher = watch::Watcher {
            line,
            told: Branch::default(),
            ready: VecDeque::new(),
            degradations: self.degradations.watch(since),
            chain,
        };
        watcher.events(shutdown)
    }

    fn line(&self, finality: Follow) -> &Line {
        match finality {
            Follow::Best => &self.best,
            Follow::Finalized => &self.finalized,
        }
    }
}

/// The blocks from `branch` to `head`, ascending, found by walking back from the head. Empty where
/// the head is on the branch already; starts at a block without a known parent where the walk has
/// passed the oldest one that is kept.
async fn path(chain: &Chain, branch: &Branch, head: Block) -> Result<Vec<Block>, Error> {
    let Some(oldest) = branch.oldest() else { return Ok(vec![head]) };
    if branch.holds(head.number, head.hash) {
        return Ok(Vec::new());
    }
    let mut path = vec![head];
    let mut first = head;
    while !branch.takes(&first) && first.number > oldest.number {
        if path.len() > MAX_PATH {
            let what =
                format!("block {} is too far from what was seen to be filled in", head.number);
            return Err(Error::Lie(what));
        }
        let parent = chain.block_of(first.parent).await?;
        if parent.number.0 + 1 != first.number.0 {
            return Err(Error::Lie(format!(
                "the parent of block {} has another height",
                first.number
            )));
        }
        first = parent;
        path.push(first);
    }
    path.reverse();
    Ok(path)
}
