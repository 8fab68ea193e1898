//! The newest blocks of a chain, linked by their hashes, and what becomes of them when another
//! branch takes their place.
//!
//! Pure: whoever holds a [`Branch`] brings the blocks.

use std::collections::VecDeque;

use domain::{BlockHash, BlockNumber};

use crate::chain::Block;

/// Blocks that are kept: a reorganisation is followed down to here.
pub(crate) const DEPTH: usize = 512;

/// Blocks were taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reorganisation {
    /// Newest block that stays.
    pub(crate) ancestor: Block,
    /// Newest block that was taken back.
    pub(crate) abandoned: Block,
}

/// See the module. The oldest comes first, and each is the parent of the next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Branch(VecDeque<Block>);

impl From<Block> for Branch {
    fn from(block: Block) -> Self {
        Self(VecDeque::from([block]))
    }
}

impl Branch {
    /// The newest block.
    pub(crate) fn tip(&self) -> Option<Block> {
        self.0.back().copied()
    }

    /// The oldest block that is kept.
    pub(crate) fn oldest(&self) -> Option<Block> {
        self.0.front().copied()
    }

    /// The block of a height, where it is kept.
    pub(crate) fn at(&self, number: BlockNumber) -> Option<Block> {
        let place = number.0.checked_sub(self.oldest()?.number.0)?;
        self.0.get(usize::try_from(place).ok()?).copied()
    }

    /// Whether a block is one of those that are kept.
    pub(crate) fn holds(&self, number: BlockNumber, hash: BlockHash) -> bool {
        self.at(number).is_some_and(|block| block.hash == hash)
    }

    /// The block of a hash, where it is kept.
    pub(crate) fn find(&self, hash: BlockHash) -> Option<Block> {
        self.0.iter().rev().copied().find(|block| block.hash == hash)
    }

    /// Whether a block that is not kept can be put on top of one that is.
    pub(crate) fn takes(&self, block: &Block) -> bool {
        match block.number.0.checked_sub(1) {
            Some(parent) => self.holds(BlockNumber(parent), block.parent),
            None => false,
        }
    }

    /// Puts a block on top of its parent; those above that one are taken back. A block whose
    /// parent is not kept starts anew: all of them are.
    pub(crate) fn put(&mut self, block: Block) -> Option<Reorganisation> {
        let before = self.tip();
        while self.tip().is_some_and(|tip| tip.hash != block.parent) {
            self.0.pop_back();
        }
        let reorganisation = before.filter(|before| before.hash != block.parent).map(|abandoned| {
            // Where nothing is left, all that is known of the ancestor is its name.
            let number = BlockNumber(block.number.0.saturating_sub(1));
            let unknown = Block { number, hash: block.parent, parent: BlockHash([0; 32]) };
            Reorganisation { ancestor: self.tip().unwrap_or(unknown), abandoned }
        });
        self.0.push_back(block);
        if self.0.len() > DEPTH {
            self.0.pop_front();
        }
        reorganisation
    }

    /// Puts its parent under the oldest block; returns whether that block is its parent.
    pub(crate) fn deepen(&mut self, parent: Block) -> bool {
        let fits = self.oldest().is_some_and(|oldest| {
            oldest.parent == parent.hash && oldest.number.0.checked_sub(1) == Some(parent.number.0)
        });
        if fits {
            self.0.push_front(parent);
        }
        fits
    }

    /// How many blocks there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Every block, ascending.
    pub(crate) fn all(&self) -> impl Iterator<Item = Block> + '_ {
        self.0.iter().copied()
    }

    /// Blocks above a height, ascending.
    pub(crate) fn above(&self, number: BlockNumber) -> impl Iterator<Item = Block> + '_ {
        self.0.iter().copied().filter(move |block| block.number > number)
    }

    /// The newest block that is kept here and there.
    pub(crate) fn common(&self, other: &Self) -> Option<Block> {
        self.0.iter().rev().copied().find(|block| other.holds(block.number, block.hash))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A block of a fork; block `n` of a fork has the parent `n - 1` of the same one.
    pub(crate) fn block(number: u64, fork: u8) -> Block {
        child(number, fork, fork)
    }

    /// A block of a fork on top of one of another fork.
    fn child(number: u64, fork: u8, of: u8) -> Block {
        let hash = |number: u64, fork: u8| {
            let mut hash = [fork; 32];
            hash[..8].copy_from_slice(&number.to_le_bytes());
            BlockHash(hash)
        };
        Block {
            number: BlockNumber(number),
            hash: hash(number, fork),
            parent: hash(number.saturating_sub(1), of),
        }
    }

    fn branch(numbers: std::ops::RangeInclusive<u64>, fork: u8) -> Branch {
        let mut branch = Branch::default();
        for number in numbers {
            assert_eq!(branch.put(block(number, fork)), None);
        }
        branch
    }

    #[test]
    fn a_block_on_an_older_one_takes_those_above_it_back() {
        let mut branch = branch(5..=10, 0);
        let fork = child(8, 1, 0);
        assert!(branch.takes(&fork));
        let told = branch.put(fork).unwrap();
        assert_eq!((told.ancestor, told.abandoned), (block(7, 0), block(10, 0)));
        assert_eq!(branch.tip(), Some(fork));
        assert_eq!(branch.at(BlockNumber(9)), None);
        assert_eq!(branch.put(block(9, 1)), None);
    }

    #[test]
    fn a_block_without_a_known_parent_starts_anew_and_says_so() {
        let mut branch = branch(5..=10, 0);
        assert!(!branch.takes(&block(7, 1)));
        let told = branch.put(block(7, 1)).unwrap();
        assert_eq!(told.ancestor.number, BlockNumber(6));
        assert_eq!(told.ancestor.hash, block(7, 1).parent);
        assert_eq!((branch.oldest(), branch.tip()), (Some(block(7, 1)), Some(block(7, 1))));
    }

    #[test]
    fn only_the_newest_are_kept() {
        let branch = branch(0..=1000, 0);
        assert_eq!(branch.oldest().unwrap().number.0, 1001 - DEPTH as u64);
        assert!(branch.holds(BlockNumber(1000), block(1000, 0).hash));
        assert!(!branch.holds(BlockNumber(1000), block(1000, 1).hash));
        assert_eq!(branch.at(BlockNumber(3)), None);
    }

    proptest! {
        /// Whatever is put: what is kept is linked, and what is told leads from the old tip to the
        /// new one.
        #[test]
        fn what_is_kept_is_always_a_chain(steps in prop::collection::vec((0u64..20, 0u8..4), 1..200)) {
            let mut branch = branch(0..=20, 0);
            for (back, fork) in steps {
                let tip = branch.tip().unwrap();
                let number = BlockNumber(tip.number.0.saturating_sub(back));
                let Some(parent) = branch.at(number) else { continue };
                let mut new = block(parent.number.0 + 1, fork);
                new.parent = parent.hash;
                new.hash.0[8..16].copy_from_slice(&parent.hash.0[..8]);
                prop_assert!(branch.takes(&new));
                match branch.put(new) {
                    Some(told) => {
                        prop_assert_eq!((told.ancestor, told.abandoned), (parent, tip));
                        prop_assert_ne!(parent, tip);
                    }
                    None => prop_assert_eq!(parent, tip),
                }
                let kept: Vec<_> = branch.above(BlockNumber(0)).collect();
                for pair in kept.windows(2) {
                    prop_assert_eq!(pair[1].parent, pair[0].hash);
                    prop_assert_eq!(pair[1].number.0, pair[0].number.0 + 1);
                }
            }
        }
    }
}
