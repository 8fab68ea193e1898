//! Blocks that are taken back, and blocks that no longer can be.

use super::Chain;
use crate::{
    block::Head,
    node::Stopped,
    pool::{Status, Waiting},
    runtime::MetadataError,
};

/// What becomes of the extrinsics of blocks that a reorganisation takes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Taken {
    /// They go back to the pool, and from there into the new blocks, where they are still valid.
    Back,
    /// Nobody has them any more.
    Lost,
    /// They come back into the pool after this many more blocks.
    Later(u32),
}

/// A reorganisation that cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReorganiseError {
    /// Finalized blocks would have to be taken back.
    #[error("{depth} blocks cannot be taken back: only {reversible} are not finalized")]
    Finalized { depth: u32, reversible: u32 },
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

impl Chain {
    /// Takes back the newest `depth` blocks, and makes one more than that in their place. What
    /// was written into them by hand, and an upgrade in them, are undone.
    pub(crate) fn reorganise(
        &mut self,
        depth: u32,
        taken: Taken,
    ) -> Result<Result<Head, MetadataError>, ReorganiseError> {
        let (head, finalized) = (self.head().head.number, self.tips.borrow().finalized);
        let reversible = head.saturating_sub(finalized);
        if depth > reversible {
            return Err(ReorganiseError::Finalized { depth, reversible });
        }
        let undone = self.take_back(head - depth);
        Ok(self.replace(depth, taken, undone))
    }

    /// Abandons all blocks after `fork`, and returns what they included.
    fn take_back(&mut self, fork: u32) -> Vec<Waiting> {
        let old = self.head().runtime;
        let mut changes = self.history.undo(fork);
        let keep = usize::try_from(fork).unwrap_or(usize::MAX).saturating_add(1);
        while self.blocks.len() > keep
            && let Some(block) = self.blocks.pop()
        {
            self.by_hash.remove(&block.head.hash);
            let wrote = changes.remove(&block.head.number).unwrap_or_default();
            self.abandoned.insert(block.head.hash, (block, wrote));
        }
        if self.head().runtime != old {
            self.staged.clear();
        }
        self.journal.retain(|included| included.block <= fork);
        let (undone, stays): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.in_blocks).into_iter().partition(|(block, _)| *block > fork);
        self.in_blocks = stays;
        undone.into_iter().map(|(_, waiting)| waiting).collect()
    }

    fn replace(
        &mut self,
        depth: u32,
        taken: Taken,
        undone: Vec<Waiting>,
    ) -> Result<Head, MetadataError> {
        self.branches += 1;
        for waiting in &undone {
            if let Some(hash) = waiting.in_block() {
                waiting.tell(Status::Retracted { hash });
            }
            self.pool.forgive(&waiting.extrinsic.hash);
        }
        match taken {
            Taken::Back => self.pool.restore(undone),
            Taken::Lost => undone.iter().for_each(|waiting| waiting.tell(Status::Dropped)),
            Taken::Later(blocks) => {
                let after = self.head().head.number.saturating_add(depth).saturating_add(1);
                let after = after.saturating_add(blocks);
                self.returning.extend(undone.into_iter().map(|waiting| (after, waiting)));
            }
        }
        self.revalidate()?;
        for _ in 0..depth {
            self.produce()?;
        }
        self.produce()
    }

    /// What is finalized once `best` is the newest block.
    pub(super) fn finalized_with(&self, best: u32) -> u32 {
        let finalized = self.tips.borrow().finalized;
        if self.finality_paused {
            return finalized;
        }
        finalized.max(best.saturating_sub(self.finality_lag))
    }

    /// Sets how many blocks finality is behind. What is finalized stays so.
    pub(crate) fn set_finality_lag(&mut self, blocks: u32) {
        self.finality_lag = blocks;
        self.finalize();
    }

    /// Stops and resumes finality.
    pub(crate) fn set_finality_paused(&mut self, paused: bool) {
        self.finality_paused = paused;
        self.finalize();
    }

    fn finalize(&mut self) {
        let finalized = self.finalized_with(self.head().head.number);
        self.tips.send_if_modified(|tips| {
            let grown = finalized > tips.finalized;
            tips.finalized = tips.finalized.max(finalized);
            grown
        });
        self.tell_finalized(finalized);
    }

    /// Tells everyone whose extrinsic can no longer be taken back.
    pub(super) fn tell_finalized(&mut self, finalized: u32) {
        self.in_blocks.retain(|(number, waiting)| {
            let is_final = *number <= finalized;
            if is_final && let Some(hash) = waiting.in_block() {
                waiting.tell(Status::Finalized { number: *number, hash });
            }
            !is_final
        });
    }
}
