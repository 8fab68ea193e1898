//! Digests of what travels: every chunk has one, and a list of them has one.
//!
//! A receiver checks a chunk when it has come, not a file when all of it has. Who signs the root of a list says what
//! every chunk must be.

use rayon::prelude::*;

/// BLAKE3 of each chunk of some bytes: all chunks are equally long but the last, which may be shorter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkDigests {
    chunk: usize,
    len: u64,
    digests: Vec<[u8; 32]>,
}

/// A list of digests that does not fit its length.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    #[error("chunks of {chunk} bytes")]
    ChunkSize { chunk: usize },
    #[error("{found} digests for {expected} chunks")]
    Count { expected: u64, found: usize },
}

/// A chunk that is not the one of the list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WrongChunk {
    #[error("there is no chunk {index} of {count}")]
    Index { index: usize, count: usize },
    #[error("chunk {index} has {found} bytes, not {expected}")]
    Length { index: usize, expected: usize, found: usize },
    #[error("chunk {index} has another digest")]
    Digest { index: usize },
}

impl ChunkDigests {
    /// Of bytes in memory or mapped, chunks side by side. `chunk` is a number of bytes, at least 1.
    pub fn of(chunk: usize, bytes: &[u8]) -> Result<Self, DigestError> {
        if chunk == 0 {
            return Err(DigestError::ChunkSize { chunk });
        }
        let digests = bytes.par_chunks(chunk).map(digest).collect();
        Ok(Self { chunk, len: bytes.len() as u64, digests })
    }

    /// From a list that was sent: as many digests as `len` bytes have chunks. Compare [`ChunkDigests::root`] with the
    /// signed one before a chunk is checked against it.
    pub fn from_parts(chunk: usize, len: u64, digests: Vec<[u8; 32]>) -> Result<Self, DigestError> {
        if chunk == 0 {
            return Err(DigestError::ChunkSize { chunk });
        }
        let expected = len.div_ceil(chunk as u64);
        if digests.len() as u64 != expected {
            return Err(DigestError::Count { expected, found: digests.len() });
        }
        Ok(Self { chunk, len, digests })
    }

    /// BLAKE3 of one chunk's bytes.
    pub fn of_chunk(bytes: &[u8]) -> [u8; 32] {
        digest(bytes)
    }

    /// The digests in order.
    pub fn digests(&self) -> &[[u8; 32]] {
        &self.digests
    }

    /// Bytes of all chunks.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The digest of the list: what is signed. It depends on the length and on the size of the chunks too.
    pub fn root(&self) -> [u8; 32] {
        let mut hash = blake3::Hasher::new_derive_key("connito chunk digests v1");
        hash.update(&(self.chunk as u64).to_le_bytes());
        hash.update(&self.len.to_le_bytes());
        hash.update(self.digests.as_flattened());
        hash.finalize().into()
    }

    /// Whether these are the bytes of chunk `index`.
    pub fn check(&self, index: usize, bytes: &[u8]) -> Result<(), WrongChunk> {
        let count = self.digests.len();
        let expected = self.digests.get(index).ok_or(WrongChunk::Index { index, count })?;
        let before = (index as u64).saturating_mul(self.chunk as u64);
        let len = (self.len - before).min(self.chunk as u64) as usize;
        if bytes.len() != len {
            return Err(WrongChunk::Length { index, expected: len, found: bytes.len() });
        }
        if digest(bytes) != *expected {
            return Err(WrongChunk::Digest { index });
        }
        Ok(())
    }
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    blake3::hash(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_passes_in_its_own_place_only_and_whole() {
        let bytes: Vec<u8> = (0..=99).collect();
        let list = ChunkDigests::of(40, &bytes).unwrap();
        let chunks: Vec<&[u8]> = bytes.chunks(40).collect();
        for (index, chunk) in chunks.iter().enumerate() {
            assert_eq!(list.check(index, chunk), Ok(()));
        }
        assert_eq!(list.check(0, chunks[1]), Err(WrongChunk::Digest { index: 0 }));
        let short = WrongChunk::Length { index: 2, expected: 20, found: 19 };
        assert_eq!(list.check(2, &chunks[2][1..]), Err(short));
        assert_eq!(list.check(3, &[]), Err(WrongChunk::Index { index: 3, count: 3 }));
    }

    #[test]
    fn a_list_that_does_not_fit_its_length_is_refused() {
        for (chunk, len, count) in [(40, 100, 2), (40, 100, 4), (40, 0, 1), (40, u64::MAX, 3)] {
            let refused = ChunkDigests::from_parts(chunk, len, vec![[0; 32]; count]);
            assert!(matches!(refused, Err(DigestError::Count { .. })), "{len} {count}");
        }
        let none = ChunkDigests::from_parts(0, 0, Vec::new());
        assert_eq!(none, Err(DigestError::ChunkSize { chunk: 0 }));
        assert_eq!(ChunkDigests::of(0, &[1]), Err(DigestError::ChunkSize { chunk: 0 }));
    }
}
