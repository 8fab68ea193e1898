//! Finding blocks and their states, on the best chain and beside it.

use bytes::Bytes;

use super::{BLOCK_HASH_COUNT, Chain};
use crate::{
    block::{Block, Head},
    extrinsic::Facts,
    history::{Changes, History},
    runtime::Runtime,
    state::State,
};

/// The state of a block cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoState {
    #[error("UnknownBlock: Header was not found in the database")]
    Unknown,
    #[error("UnknownBlock: State already discarded for 0x{}", hex::encode(.0))]
    Discarded([u8; 32]),
}

/// All that is stored as of one block.
pub(crate) struct Storage<'a> {
    runtime: &'a Runtime,
    history: &'a History,
    block: u32,
    /// The last block of the best chain on the way to this one.
    base: u32,
    /// What the branch wrote since.
    over: Changes,
}

impl<'a> Storage<'a> {
    pub(crate) fn get(&self, key: &[u8]) -> Option<&Bytes> {
        match self.over.get(key) {
            Some(written) => written.as_ref(),
            None => self.history.get(key, self.base),
        }
    }

    /// Up to `limit` keys with `prefix`, ascending, after `start`.
    pub(crate) fn keys(&self, prefix: &[u8], start: Option<&[u8]>, limit: usize) -> Vec<Vec<u8>> {
        if self.over.is_empty() {
            return self.history.keys(prefix, start, limit, self.base);
        }
        // At most this many keys of the best chain are not keys here.
        let limit_below = limit.saturating_add(self.over.len());
        let below = self.history.keys(prefix, start, limit_below, self.base).into_iter();
        let mut keys: Vec<_> = below.filter(|key| !self.over.contains_key(key)).collect();
        let written = self.over.iter().filter(|(_, value)| value.is_some());
        let after = |key: &&Vec<u8>| start.is_none_or(|start| key.as_slice() > start);
        keys.extend(
            written.map(|(key, _)| key).filter(|k| k.starts_with(prefix)).filter(after).cloned(),
        );
        keys.sort_unstable();
        keys.truncate(limit);
        keys
    }

    pub(crate) fn runtime(&self) -> &'a Runtime {
        self.runtime
    }

    /// The same, decoded by the block's own runtime.
    pub(crate) fn state(self) -> State<'a> {
        State::beside(self.runtime, self.history, self.base, self.block, self.over)
    }
}

impl Chain {
    /// A block of the best chain.
    pub(crate) fn block(&self, number: u64) -> Option<&Block> {
        self.blocks.get(usize::try_from(number).ok()?)
    }

    /// A block of any branch by its hash.
    pub(crate) fn find(&self, hash: &[u8; 32]) -> Option<&Block> {
        match self.by_hash.get(hash) {
            Some(number) => self.block((*number).into()),
            None => self.abandoned.get(hash).map(|(block, _)| block),
        }
    }

    /// Whether a block is on the best chain.
    fn is_best(&self, block: &Block) -> bool {
        self.by_hash.contains_key(&block.head.hash)
    }

    pub(super) fn parent(&self, block: &Block) -> Option<&Block> {
        self.find(&block.parent)
    }

    /// The block of this number on the branch that ends in `tip`.
    pub(crate) fn ancestor<'a>(&'a self, tip: &'a Block, number: u64) -> Option<&'a Block> {
        let mut at = tip;
        if number > at.head.number.into() {
            return None;
        }
        while u64::from(at.head.number) > number {
            if self.is_best(at) {
                return self.block(number);
            }
            at = self.parent(at)?;
        }
        Some(at)
    }

    /// The blocks that lead from one block to another, oldest first: those of the other's branch
    /// that are not on the first one's.
    pub(crate) fn path<'a>(&'a self, from: &'a Block, to: &'a Block) -> Vec<Head> {
        let (mut from, mut to) = (from, to);
        let mut path = Vec::new();
        while from.head != to.head {
            let (behind, ahead) = (from.head.number, to.head.number);
            if ahead >= behind {
                path.push(to.head);
                let Some(parent) = self.parent(to) else { break };
                to = parent;
            }
            if behind >= ahead {
                let Some(parent) = self.parent(from) else { break };
                from = parent;
            }
        }
        path.reverse();
        path
    }

    /// The storage of a block of any branch.
    pub(crate) fn storage<'a>(&'a self, block: &'a Block) -> Storage<'a> {
        let mut over = Changes::new();
        let mut at = block;
        while let Some((_, changes)) = self.abandoned.get(&at.head.hash) {
            for (key, value) in changes {
                over.entry(key.clone()).or_insert_with(|| value.clone());
            }
            let Some(parent) = self.parent(at) else { break };
            at = parent;
        }
        Storage {
            runtime: &self.runtimes[block.runtime],
            history: &self.history,
            block: block.head.number,
            base: at.head.number,
            over,
        }
    }

    /// The state of a block of the best chain, for reading. Blocks to come read as the newest.
    pub(crate) fn state(&self, block: u32) -> State<'_> {
        let block = self.block(block.into()).unwrap_or(self.head());
        State::at(&self.runtimes[block.runtime], &self.history, block.head.number)
    }

    /// The hash of a block that block `block` still remembers.
    pub(super) fn hash_of(&self, number: u64, block: u32) -> Option<[u8; 32]> {
        let age = u64::from(block).checked_sub(number)?;
        (number == 0 || age <= BLOCK_HASH_COUNT.into())
            .then(|| self.block(number))?
            .map(|b| b.head.hash)
    }

    /// What an extrinsic for block `block`, the next one, has to have been signed for.
    pub(super) fn facts<'a>(
        &'a self,
        block: u32,
        hash_of: &'a dyn Fn(u64) -> Option<[u8; 32]>,
    ) -> Facts<'a> {
        let runtime = &self.runtimes[self.head().runtime];
        Facts { runtime, genesis: self.blocks[0].head.hash, block, hash_of }
    }
}
