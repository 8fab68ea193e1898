//! What one node makes of the chain: how far it follows it, what it has forgotten, and what it
//! says of it.

use std::borrow::Cow;

use scale_value::Value;
use subxt::ext::frame_decode::storage::encode_storage_key_prefix;

use crate::{
    block::Block,
    chain::{Chain, NoState, Storage},
    faults::{Lie, Outlook},
    pool::Pool,
    runtime::Runtime,
};

/// The item of storage that [`Lie::Commitments`] is about.
const COMMITMENTS: (&str, &str) = ("Commitments", "CommitmentOf");
/// As many blocks a stream of heads sends before it looks at the chain again.
const MAX_PATH: usize = 256;

/// The chain as one node sees it at one moment.
pub(crate) struct View<'a> {
    chain: &'a Chain,
    outlook: Outlook,
    best: &'a Block,
    finalized: &'a Block,
    /// Blocks made later are unknown.
    serial: u64,
}

impl Chain {
    /// The chain as a node of this outlook sees it.
    pub(crate) fn view(&self, outlook: Outlook) -> View<'_> {
        let tips = outlook.stuck.unwrap_or_else(|| self.newest());
        let newest = self.find(&tips.best.hash).unwrap_or(self.head());
        let behind = newest.head.number.saturating_sub(outlook.lag);
        let best = self.ancestor(newest, behind.into()).unwrap_or(newest);
        let (finalized, serial) = match outlook.lag {
            0 => (tips.finalized, tips.serial),
            _ => (tips.finalized.min(best.finalized), best.serial),
        };
        let finalized = match outlook.lie {
            Some((Lie::Finality, _)) => best,
            Some((Lie::BlockHash | Lie::Commitments | Lie::Genesis, _)) | None => {
                self.ancestor(best, finalized.into()).unwrap_or(best)
            }
        };
        View { chain: self, outlook, best, finalized, serial }
    }
}

impl<'a> View<'a> {
    /// The newest block.
    pub(crate) fn best(&self) -> &'a Block {
        self.best
    }

    /// The newest block that cannot be undone.
    pub(crate) fn finalized(&self) -> &'a Block {
        self.finalized
    }

    /// The pool, which all nodes share.
    pub(crate) fn pool(&self) -> &'a Pool {
        self.chain.pool()
    }

    /// A block by its number.
    pub(crate) fn at(&self, number: u64) -> Option<&'a Block> {
        self.chain.ancestor(self.best, number)
    }

    /// A block by its hash, or by the one that this node gives it; the newest without one.
    pub(crate) fn find(&self, hash: Option<[u8; 32]>) -> Option<&'a Block> {
        let Some(hash) = hash else { return Some(self.best) };
        let found = self.chain.find(&hash).filter(|block| block.serial <= self.serial);
        found.or_else(|| self.forged(&hash))
    }

    /// The runtime of a block, as [`View::find`] finds it.
    pub(crate) fn runtime(&self, hash: Option<[u8; 32]>) -> Result<&'a Runtime, NoState> {
        Ok(self.chain.runtime_of(self.find(hash).ok_or(NoState::Unknown)?))
    }

    /// The storage of a block, if it is still there.
    pub(crate) fn storage(&self, hash: Option<[u8; 32]>) -> Result<Storage<'a>, NoState> {
        let block = self.find(hash).ok_or(NoState::Unknown)?;
        let age = self.best.head.number.saturating_sub(block.head.number);
        if self.outlook.keep_states.is_some_and(|kept| age > kept) {
            return Err(NoState::Discarded(self.told(block).head.hash));
        }
        Ok(self.chain.storage(block))
    }

    /// A stored value as this node tells it.
    pub(crate) fn value(&self, storage: &Storage<'_>, key: &[u8]) -> Option<Vec<u8>> {
        let mut value = storage.get(key)?.to_vec();
        let (pallet, entry) = COMMITMENTS;
        if let Some((Lie::Commitments, _)) = self.outlook.lie
            && key.starts_with(&encode_storage_key_prefix(pallet, entry))
            && let Some((type_id, _)) = storage.runtime().entry(pallet, entry)
        {
            let decodes = |bytes: &[u8]| storage.runtime().decode::<Value>(entry, bytes, type_id);
            alter(&mut value, |bytes| decodes(bytes).is_ok());
        }
        Some(value)
    }

    /// The headers that follow `last` on the way to `to`, oldest first, each with the true hash
    /// of its block; `to` itself where nothing was sent so far, or where it is of another branch
    /// and the node announces no more than that.
    pub(crate) fn since(&self, last: Option<[u8; 32]>, to: &'a Block) -> Vec<&'a Block> {
        match last.and_then(|hash| self.chain.find(&hash)) {
            None => vec![to],
            Some(last) => {
                let path = self.chain.path(last, to).into_iter().take(MAX_PATH);
                let path: Vec<_> = path.filter_map(|head| self.chain.find(&head.hash)).collect();
                let forks = path.first().is_some_and(|first| first.parent != last.head.hash);
                if forks && self.outlook.tip_only { vec![to] } else { path }
            }
        }
    }

    /// A block as this node tells it.
    pub(crate) fn told(&self, block: &'a Block) -> Cow<'a, Block> {
        match self.outlook.lie {
            Some((Lie::BlockHash, honest)) if block.head.number > honest => {
                let forgeries = self.forgeries(block, honest);
                forgeries
                    .into_iter()
                    .next_back()
                    .map_or(Cow::Borrowed(block), |(_, forged)| Cow::Owned(forged))
            }
            Some((Lie::Genesis, _)) if block.head.number == 0 => {
                Cow::Owned(block.forged(block.parent))
            }
            Some((Lie::BlockHash | Lie::Commitments | Lie::Finality | Lie::Genesis, _)) | None => {
                Cow::Borrowed(block)
            }
        }
    }

    /// The block to which this node gives a hash that is not its own.
    fn forged(&self, hash: &[u8; 32]) -> Option<&'a Block> {
        match self.outlook.lie? {
            (Lie::BlockHash, honest) => {
                let mut forgeries = self.forgeries(self.best, honest).into_iter();
                forgeries.find(|(_, forged)| forged.head.hash == *hash).map(|(block, _)| block)
            }
            (Lie::Genesis, _) => self.at(0).filter(|first| self.told(first).head.hash == *hash),
            (Lie::Commitments | Lie::Finality, _) => None,
        }
    }

    /// The blocks after number `honest` up to `tip`, each with its forgery: a chain of their own.
    fn forgeries(&self, tip: &'a Block, honest: u32) -> Vec<(&'a Block, Block)> {
        let mut forgeries: Vec<(&Block, Block)> = Vec::new();
        let first = u64::from(honest) + 1;
        for number in first..=tip.head.number.into() {
            let Some(block) = self.chain.ancestor(tip, number) else { break };
            let parent = forgeries.last().map_or(block.parent, |(_, forged)| forged.head.hash);
            forgeries.push((block, block.forged(parent)));
        }
        forgeries
    }
}

/// Changes one bit, as late as the value still decodes.
fn alter(value: &mut [u8], decodes: impl Fn(&[u8]) -> bool) {
    for at in (0..value.len()).rev() {
        value[at] ^= 1;
        if decodes(value) {
            return;
        }
        value[at] ^= 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_altered_value_is_another_of_the_same_length(value in prop::collection::vec(any::<u8>(), 1..50)) {
            let mut altered = value.clone();
            // The last byte is a tag that must stay.
            alter(&mut altered, |bytes| bytes.last() == value.last());
            prop_assert_eq!(altered.len(), value.len());
            prop_assert_eq!(altered.last(), value.last());
            prop_assert_eq!(altered != value, value.len() > 1);
        }
    }
}
