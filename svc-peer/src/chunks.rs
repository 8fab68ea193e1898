//! Encoded chunks of a vector, in files: how a vector is cut, and files that are filled chunk by chunk.
//!
//! Each chunk is encoded by itself and has a digest. What was signed is the digest of the list of these, so
//! that a chunk is checked when it comes, whoever it comes from. Nothing here knows the network, nor
//! who signed what. Blocking.

use std::{io, ops::Range, path::PathBuf, sync::Arc};

use bytes::Bytes;
use checkpoint::{Codec, CodecError};
use merge::Digest;

use crate::spool::Spool;

/// How a vector is cut and encoded: everything that follows from its length and the codec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cut {
    /// Elements of the whole vector.
    pub(crate) elements: usize,
    /// Elements of a chunk: a multiple of the codec's block.
    pub(crate) chunk: usize,
    /// What each chunk is encoded with.
    pub(crate) codec: Codec,
}

impl Cut {
    /// Chunks of the whole vector.
    pub(crate) fn chunks(self) -> u32 {
        u32::try_from(self.elements.div_ceil(self.chunk)).unwrap_or(u32::MAX)
    }

    /// The first element of a chunk.
    pub(crate) fn start_of(self, chunk: u32) -> usize {
        (chunk as usize).saturating_mul(self.chunk)
    }

    /// Elements of a chunk: as many as all others have, but for the last; none beyond it.
    pub(crate) fn elements_of(self, chunk: u32) -> usize {
        self.elements.saturating_sub(self.start_of(chunk)).min(self.chunk)
    }

    /// Bytes of an encoded chunk.
    pub(crate) fn bytes_of(self, chunk: u32) -> usize {
        self.codec.encoded_len(self.elements_of(chunk))
    }

    /// Bytes of consecutive encoded chunks.
    pub(crate) fn bytes(self, range: Range<u32>) -> u64 {
        self.before(range.end).saturating_sub(self.before(range.start))
    }

    /// The name in a merge's terms: the codec of gradients, that of results, and elements of a chunk.
    pub(crate) fn name(self) -> String {
        format!("{}/{} {}", self.codec, result_codec(self.codec), self.chunk)
    }

    /// Whether an encoded chunk is one of finite numbers.
    pub(crate) fn decodes(self, chunk: u32, bytes: &[u8]) -> Result<(), Garbage> {
        let mut values = vec![0.0; self.elements_of(chunk)];
        let decoded = self.codec.decode(bytes, &mut values);
        decoded.map_err(|source| Garbage::Undecodable { chunk, source })
    }

    /// Bytes before a chunk. Chunks begin at blocks of the codec, so that lengths add up.
    fn before(self, chunk: u32) -> u64 {
        self.codec.encoded_len(self.start_of(chunk).min(self.elements)) as u64
    }
}

/// What results travel in, of gradients in `codec`. Nothing keeps what a result loses, since anybody must be
/// able to compute it again: so it is never encoded in as little as 8 bits.
pub(crate) fn result_codec(codec: Codec) -> Codec {
    match codec {
        Codec::Float32 => Codec::Float32,
        Codec::Bfloat16 | Codec::Int8 => Codec::Bfloat16,
    }
}

/// Bytes that do not belong where they came, or that could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum Garbage {
    #[error("the list of digests {0}")]
    OtherList(&'static str),
    #[error("chunk {chunk} has another digest")]
    OtherChunk { chunk: u32 },
    #[error("chunk {chunk} has {found} bytes, not {expected}")]
    WrongLength { chunk: u32, expected: usize, found: usize },
    #[error("more than the chunks up to {end}")]
    TooMany { end: u32 },
    #[error("chunk {chunk} and what follows is missing")]
    Incomplete { chunk: u32 },
    #[error("chunk {chunk} encodes no finite numbers: {source}")]
    Undecodable { chunk: u32, source: CodecError },
    #[error("a file of the round: {0}")]
    Io(#[from] io::Error),
}

impl Garbage {
    /// Stable snake_case name of the reason.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::OtherList(_) => "other_list",
            Self::OtherChunk { .. } => "other_chunk",
            Self::WrongLength { .. } => "wrong_length",
            Self::TooMany { .. } => "too_many",
            Self::Incomplete { .. } => "incomplete",
            Self::Undecodable { source, .. } => source.reason(),
            Self::Io(_) => "io",
        }
    }
}

/// Consecutive encoded chunks in a file that is deleted with the last clone. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Chunks(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    cut: Cut,
    range: Range<u32>,
    listed: Range<u32>,
    list: Arc<[Digest]>,
    spool: Spool,
}

impl Chunks {
    /// How the vector is cut that they are of.
    pub(crate) fn cut(&self) -> Cut {
        self.0.cut
    }

    /// Which chunks of the whole vector these are.
    pub(crate) fn range(&self) -> Range<u32> {
        self.0.range.clone()
    }

    /// Digests of these chunks, or of more around them: what was signed is the digest of this list.
    pub(crate) fn list(&self) -> &Arc<[Digest]> {
        &self.0.list
    }

    /// Which chunks the list is of: [`Chunks::range`], or the whole vector's where these are a piece
    /// of a gradient.
    #[cfg(test)]
    pub(crate) fn listed(&self) -> Range<u32> {
        self.0.listed.clone()
    }

    /// Bytes of all these chunks.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> u64 {
        self.0.cut.bytes(self.range())
    }

    /// An encoded chunk as it is in the file: for somebody who checks it.
    pub(crate) fn read(&self, chunk: u32) -> io::Result<Bytes> {
        self.part(chunk, 0..self.0.cut.bytes_of(chunk)).map(Bytes::from)
    }

    /// As [`Chunks::read`], compared with its digest again: for arithmetic that this validator signs.
    pub(crate) fn checked(&self, chunk: u32) -> io::Result<Bytes> {
        let bytes = self.read(chunk)?;
        if digest_of(&self.0.listed, &self.0.list, chunk) != Some(Digest::of(&bytes)) {
            let why = format!("chunk {chunk} is not what was written");
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        Ok(bytes)
    }

    /// Some bytes of an encoded chunk.
    pub(crate) fn part(&self, chunk: u32, bytes: Range<usize>) -> io::Result<Vec<u8>> {
        let Inner { cut, range, spool, .. } = &*self.0;
        if !range.contains(&chunk) || bytes.end > cut.bytes_of(chunk) {
            let why = format!("no bytes {bytes:?} of chunk {chunk} here");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        spool.read_at(cut.bytes(range.start..chunk) + bytes.start as u64, bytes.len())
    }
}

fn digest_of(listed: &Range<u32>, list: &[Digest], chunk: u32) -> Option<Digest> {
    list.get(chunk.checked_sub(listed.start)? as usize).copied()
}

/// A file that is being filled, each chunk in its turn.
#[derive(Debug)]
struct Tail {
    cut: Cut,
    range: Range<u32>,
    spool: Spool,
    next: u32,
}

impl Tail {
    fn create(path: PathBuf, cut: Cut, range: Range<u32>) -> io::Result<Self> {
        let next = range.start;
        Ok(Self { cut, range, spool: Spool::create(path)?, next })
    }

    fn next(&self) -> Option<u32> {
        (self.next < self.range.end).then_some(self.next)
    }

    /// The number of the chunk that these bytes are to be; refused where they cannot be it.
    fn turn(&self, bytes: &[u8]) -> Result<u32, Garbage> {
        let Some(chunk) = self.next() else {
            return Err(Garbage::TooMany { end: self.range.end });
        };
        let (expected, found) = (self.cut.bytes_of(chunk), bytes.len());
        match expected == found {
            true => Ok(chunk),
            false => Err(Garbage::WrongLength { chunk, expected, found }),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.spool.write_at(self.cut.bytes(self.range.start..self.next), bytes)?;
        self.next += 1;
        Ok(())
    }

    fn finish(self, listed: Range<u32>, list: Arc<[Digest]>) -> Result<Chunks, Garbage> {
        if let Some(chunk) = self.next() {
            return Err(Garbage::Incomplete { chunk });
        }
        let Self { cut, range, spool, .. } = self;
        Ok(Chunks(Arc::new(Inner { cut, range, listed, list, spool })))
    }
}

/// Chunks of somebody else, in order, each checked against the list of digests. It survives a transfer that
/// breaks off: another one goes on with [`Filling::next`].
#[derive(Debug)]
pub(crate) struct Filling {
    tail: Tail,
    listed: Range<u32>,
    list: Arc<[Digest]>,
}

impl Filling {
    /// Makes the file at `path` for the chunks of `range`. `list` are the digests of the chunks of
    /// `listed`, which `range` is within; their digest must be `committed`.
    pub(crate) fn begin(
        path: PathBuf,
        cut: Cut,
        range: Range<u32>,
        listed: Range<u32>,
        list: impl Into<Arc<[Digest]>>,
        committed: Digest,
    ) -> Result<Self, Garbage> {
        let list = list.into();
        if list.len() != listed.len() {
            return Err(Garbage::OtherList("has another length"));
        }
        if Digest::of_chunks(&list) != committed {
            return Err(Garbage::OtherList("is not what was committed to"));
        }
        let covered = listed.start <= range.start && range.end <= listed.end;
        if !covered || range.start > range.end || listed.end > cut.chunks() {
            return Err(Garbage::OtherList("is of other chunks"));
        }
        Ok(Self { tail: Tail::create(path, cut, range)?, listed, list })
    }

    /// The chunk that is due; `None` when all are here.
    pub(crate) fn next(&self) -> Option<u32> {
        self.tail.next()
    }

    /// The digests that chunks are checked against.
    pub(crate) fn list(&self) -> &Arc<[Digest]> {
        &self.list
    }

    /// Takes the chunk that is due. After a refusal the same one is due still.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), Garbage> {
        let chunk = self.tail.turn(bytes)?;
        if digest_of(&self.listed, &self.list, chunk) != Some(Digest::of(bytes)) {
            return Err(Garbage::OtherChunk { chunk });
        }
        Ok(self.tail.write(bytes)?)
    }

    /// The chunks, once all are here.
    pub(crate) fn finish(self) -> Result<Chunks, Garbage> {
        self.tail.finish(self.listed, self.list)
    }
}

/// This validator's own chunks while they are written: their digests make the list.
#[derive(Debug)]
pub(crate) struct Writing {
    tail: Tail,
    list: Vec<Digest>,
}

impl Writing {
    /// Makes the file at `path` for the chunks of `range`.
    pub(crate) fn create(path: PathBuf, cut: Cut, range: Range<u32>) -> io::Result<Self> {
        Ok(Self { tail: Tail::create(path, cut, range)?, list: Vec::new() })
    }

    /// Writes the next chunk.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), Garbage> {
        self.tail.turn(bytes)?;
        self.tail.write(bytes)?;
        self.list.push(Digest::of(bytes));
        Ok(())
    }

    /// The chunks, once all are written.
    pub(crate) fn finish(self) -> Result<Chunks, Garbage> {
        let listed = self.tail.range.clone();
        self.tail.finish(listed, self.list.into())
    }
}

#[cfg(test)]
mod tests;
