//! Every value every key ever had on the best chain. A block only ever appends, so the state as of
//! a past block cannot change; the newest blocks can be undone, and what they wrote is handed out.

use std::{collections::BTreeMap, ops::Bound};

use bytes::Bytes;

/// What was written under one key: the blocks that wrote it, ascending, each with its value.
pub(crate) type Versions = Vec<(u32, Option<Bytes>)>;

/// What a block writes: a key's new value, or `None` where it is removed.
pub(crate) type Changes = BTreeMap<Vec<u8>, Option<Bytes>>;

/// The storage of all blocks.
#[derive(Debug, Default)]
pub(crate) struct History {
    keys: BTreeMap<Vec<u8>, Versions>,
}

impl History {
    /// Writes the changes of `block`. Blocks come in ascending order, each once.
    pub(crate) fn append(&mut self, block: u32, changes: Changes) {
        for (key, value) in changes {
            let versions = self.keys.entry(key).or_default();
            debug_assert!(versions.last().is_none_or(|(last, _)| *last < block));
            if versions.last().map(|(_, v)| v) != Some(&value) {
                versions.push((block, value));
            }
        }
    }

    /// Forgets all that the blocks after `block` wrote, and returns it by block.
    pub(crate) fn undo(&mut self, block: u32) -> BTreeMap<u32, Changes> {
        let mut undone: BTreeMap<u32, Changes> = BTreeMap::new();
        self.keys.retain(|key, versions| {
            let after = versions.partition_point(|(written, _)| *written <= block);
            for (written, value) in versions.drain(after..) {
                undone.entry(written).or_default().insert(key.clone(), value);
            }
            !versions.is_empty()
        });
        undone
    }

    /// All that was ever written, by key.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Vec<u8>, &Versions)> {
        self.keys.iter()
    }

    /// A history of these keys; `None` where a key's blocks do not ascend up to `head`.
    pub(crate) fn restore(
        keys: impl IntoIterator<Item = (Vec<u8>, Versions)>,
        head: u32,
    ) -> Option<Self> {
        let keys: BTreeMap<_, _> = keys.into_iter().collect();
        let ascend = |versions: &Versions| {
            versions.is_sorted_by(|(a, _), (b, _)| a < b)
                && versions.last().is_some_and(|(last, _)| *last <= head)
        };
        keys.values().all(ascend).then_some(Self { keys })
    }

    /// The value of `key` at the end of `block`.
    pub(crate) fn get(&self, key: &[u8], block: u32) -> Option<&Bytes> {
        as_of(self.keys.get(key)?, block)
    }

    /// Up to `limit` keys with `prefix`, ascending, after `start`, as of `block`.
    pub(crate) fn keys(
        &self,
        prefix: &[u8],
        start: Option<&[u8]>,
        limit: usize,
        block: u32,
    ) -> Vec<Vec<u8>> {
        let from = match start {
            Some(start) if start >= prefix => Bound::Excluded(start),
            _ => Bound::Included(prefix),
        };
        self.keys
            .range::<[u8], _>((from, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .filter(|(_, versions)| as_of(versions, block).is_some())
            .take(limit)
            .map(|(key, _)| key.clone())
            .collect()
    }
}

fn as_of(versions: &[(u32, Option<Bytes>)], block: u32) -> Option<&Bytes> {
    let after = versions.partition_point(|(written, _)| *written <= block);
    versions[..after].last()?.1.as_ref()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn changes() -> impl Strategy<Value = Changes> {
        let key = prop::collection::vec(0u8..4, 1..4);
        let value =
            prop::option::of(prop::collection::vec(any::<u8>(), 0..3).prop_map(Bytes::from));
        prop::collection::btree_map(key, value, 0..6)
    }

    proptest! {
        /// A plain map that is copied at every block says the same as the history, forever.
        #[test]
        fn the_state_of_a_past_block_never_changes(blocks in prop::collection::vec(changes(), 1..12)) {
            let mut history = History::default();
            let mut now: BTreeMap<Vec<u8>, Bytes> = BTreeMap::new();
            let mut copies = Vec::new();
            for (number, changes) in blocks.into_iter().enumerate() {
                for (key, value) in &changes {
                    match value {
                        Some(value) => now.insert(key.clone(), value.clone()),
                        None => now.remove(key),
                    };
                }
                history.append(number as u32, changes);
                copies.push(now.clone());
                for (block, copy) in copies.iter().enumerate() {
                    let keys: Vec<_> = copy.keys().cloned().collect();
                    prop_assert_eq!(history.keys(&[], None, usize::MAX, block as u32), keys);
                    for (key, value) in copy {
                        prop_assert_eq!(history.get(key, block as u32), Some(value));
                    }
                }
            }
        }
    }

    proptest! {
        /// Undone blocks leave no trace, and what is handed out makes them again.
        #[test]
        fn undone_blocks_can_be_done_again(
            blocks in prop::collection::vec(changes(), 1..12),
            fork in 0usize..12,
        ) {
            let upto = |n: usize| {
                let mut history = History::default();
                for (number, changes) in blocks.iter().take(n).enumerate() {
                    history.append(number as u32, changes.clone());
                }
                history
            };
            let fork = fork.min(blocks.len() - 1);
            let (mut history, whole) = (upto(blocks.len()), upto(blocks.len()));
            let undone = history.undo(fork as u32);
            prop_assert_eq!(&history.keys, &upto(fork + 1).keys);
            for (number, changes) in undone {
                history.append(number, changes);
            }
            prop_assert_eq!(history.keys, whole.keys);
        }
    }

    #[test]
    fn a_history_whose_blocks_do_not_ascend_is_not_restored() {
        let key = |blocks: &[u32]| {
            vec![(vec![1], blocks.iter().map(|b| (*b, Some(Bytes::new()))).collect())]
        };
        assert!(History::restore(key(&[0, 2, 5]), 5).is_some());
        for broken in [&[2, 2][..], &[3, 2], &[6], &[]] {
            assert!(History::restore(key(broken), 5).is_none(), "{broken:?}");
        }
    }

    #[test]
    fn keys_are_paged_by_prefix_without_the_start_itself() {
        let mut history = History::default();
        let keys = [&b"a1"[..], b"a2", b"a3", b"b1"];
        history.append(0, keys.iter().map(|k| (k.to_vec(), Some(Bytes::new()))).collect());
        assert_eq!(history.keys(b"a", None, 2, 0), [b"a1".to_vec(), b"a2".to_vec()]);
        assert_eq!(history.keys(b"a", Some(b"a2"), 2, 0), [b"a3".to_vec()]);
        assert_eq!(history.keys(b"b", Some(b"a2"), 2, 0), [b"b1".to_vec()]);
        assert_eq!(history.keys(b"a", Some(b"b0"), 2, 0), Vec::<Vec<u8>>::new());
    }
}
