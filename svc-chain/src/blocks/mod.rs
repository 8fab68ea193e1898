//! The chain as it grows: best and final blocks, without gaps.
//!
//! One task follows each of the two, on the endpoint in use, and moves with it; what a connection
//! skipped is filled in by walking back from the new head to a block that is known. Where the walk
//! ends below the old head, blocks were taken back. Everyone who watches is led from what it was
//! told last, by this process or by an earlier one, to what holds now, so that it always has a
//! linked chain.

mod branch;
mod follow;
mod lead;
mod watch;

use std::{collections::VecDeque, sync::Arc};

use domain::{BlockHash, BlockNumber};
use futures::Stream;
use kit::Shutdown;
use proto::InvalidField;
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

/// A block that a caller holds is at most so far above the newest one: an endpoint may be behind,
/// and not by more.
const MAX_AHEAD: u64 = 512;

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

    /// Checks a block that a caller holds, as far as that can be done at once.
    pub(crate) async fn known(
        &self,
        finality: Option<Follow>,
        chain: &Chain,
        known: Block,
    ) -> Result<(), Error> {
        let tip = self.tip(finality.unwrap_or(self.follow));
        let tip = tip.ok_or_else(|| Error::Unreachable("no block was seen yet".to_owned()))?;
        if known.number.0 > tip.number.0.saturating_add(MAX_AHEAD) {
            let why = format!("{} is far above the newest block, {}", known.number, tip.number);
            return Err(InvalidField::new("known.number", why).into());
        }
        match chain.block_of(known.hash).await {
            Ok(block) if block.number == known.number => Ok(()),
            Ok(block) => {
                let why = format!("it is the hash of block {}, not {}", block.number, known.number);
                Err(InvalidField::new("known.hash", why).into())
            }
            // The branch that it is of may be forgotten by now, or not have come yet.
            Err(Error::NoSuchBlock(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Every block from the newest on, or after the one that is known, linked, with
    /// reorganisations and degradations; ends at `shutdown`.
    pub(crate) fn watch(
        &self,
        finality: Option<Follow>,
        known: Option<Block>,
        chain: Chain,
        shutdown: Shutdown,
    ) -> impl Stream<Item = Event> + Send + use<> {
        let line = self.line(finality.unwrap_or(self.follow)).subscribe();
        let newest = line.borrow().tip().map_or(0, |tip| tip.number.0);
        let since = BlockNumber(newest.saturating_sub(LOOK_BACK));
        let watcher = watch::Watcher {
            line,
            known,
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
