//! The memory of a file on its way in: a few blocks that go round and round.
//!
//! Pieces of any size come in, whole blocks go out, to be read by several threads; whoever is the last to let go of
//! one sends it home. So the memory of a file is bounded whatever its pieces are, and is not given back to the system
//! and asked for again for each of them.

use std::mem;

use bytes::Bytes;
use tokio::sync::mpsc;

/// Bytes that are handed over together: who is woken for each piece of a socket does little else.
const BLOCK: usize = 256 << 10;
/// Blocks of one file: one is filled, one is written, one is hashed, the others wait, so that nobody stops when another
/// is not on a processor for a while.
pub(crate) const BLOCKS: usize = 6;

/// The blocks of one file.
#[derive(Debug)]
pub(crate) struct Blocks {
    /// What is being filled.
    current: Vec<u8>,
    home: mpsc::Sender<Vec<u8>>,
    empty: mpsc::Receiver<Vec<u8>>,
    /// Those that do not exist yet.
    unmade: usize,
}

/// A block that others read.
struct Lent {
    bytes: Vec<u8>,
    home: mpsc::Sender<Vec<u8>>,
}

impl Blocks {
    pub(crate) fn new() -> Self {
        let (home, empty) = mpsc::channel(BLOCKS);
        Self { current: Vec::new(), home, empty, unmade: BLOCKS }
    }

    /// Copies what has room into the current block and returns the rest. Waits while all blocks are lent; may be
    /// dropped meanwhile.
    pub(crate) async fn fill<'a>(&mut self, piece: &'a [u8]) -> &'a [u8] {
        if self.current.capacity() == 0 {
            self.current = self.next().await;
        }
        let (part, rest) = piece.split_at(piece.len().min(BLOCK - self.current.len()));
        self.current.extend_from_slice(part);
        rest
    }

    /// Whether the current block has no room.
    pub(crate) fn is_full(&self) -> bool {
        self.current.len() >= BLOCK
    }

    /// Lends the current block, unless it is empty. Dropped, it comes home.
    pub(crate) fn take(&mut self) -> Option<Bytes> {
        if self.current.is_empty() {
            return None;
        }
        let bytes = mem::take(&mut self.current);
        Some(Bytes::from_owner(Lent { bytes, home: self.home.clone() }))
    }

    async fn next(&mut self) -> Vec<u8> {
        if let Ok(empty) = self.empty.try_recv() {
            return empty;
        }
        if self.unmade == 0
            && let Some(empty) = self.empty.recv().await
        {
            return empty;
        }
        self.unmade = self.unmade.saturating_sub(1);
        Vec::with_capacity(BLOCK)
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut bytes = mem::take(&mut self.bytes);
        bytes.clear();
        // There is room for all of them; without a home, its memory is free.
        let _ = self.home.try_send(bytes);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    /// Fills the blocks with these many bytes, if they have room for as many.
    fn fill(blocks: &mut Blocks, count: usize) -> Option<Vec<Bytes>> {
        let bytes = vec![7; count];
        let (mut rest, mut lent) = (&bytes[..], Vec::new());
        while !rest.is_empty() {
            rest = blocks.fill(rest).now_or_never()?;
            if blocks.is_full() {
                lent.extend(blocks.take());
            }
        }
        lent.extend(blocks.take());
        Some(lent)
    }

    #[test]
    fn what_goes_in_comes_out_and_the_same_memory_is_used_again() {
        let mut blocks = Blocks::new();
        let lent = fill(&mut blocks, 2 * BLOCK + 5).unwrap();
        let lengths: Vec<usize> = lent.iter().map(Bytes::len).collect();
        assert_eq!(lengths, [BLOCK, BLOCK, 5]);
        let mut places: Vec<_> = lent.iter().map(|block| block.as_ptr()).collect();
        drop(lent);
        for _ in 0..3 {
            let again = fill(&mut blocks, 3 * BLOCK).unwrap();
            assert!(again.iter().all(|block| block.iter().all(|byte| *byte == 7)));
            assert!(again.iter().all(|block| places.contains(&block.as_ptr())));
        }
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), 3);
    }

    #[test]
    fn there_are_so_many_and_no_more_until_the_last_reader_lets_go_of_one() {
        let mut blocks = Blocks::new();
        let mut lent = fill(&mut blocks, BLOCKS * BLOCK).unwrap();
        assert_eq!(lent.len(), BLOCKS);
        assert!(fill(&mut blocks, 1).is_none());
        let other_reader = lent.pop().map(|block| block.slice(10..20));
        assert!(fill(&mut blocks, 1).is_none(), "a part of it is being read");
        drop(other_reader);
        assert_eq!(fill(&mut blocks, 1).unwrap().len(), 1);
    }
}
