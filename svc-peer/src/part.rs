//! Streams of chunks: a list of digests in parts, then chunk after chunk. Both ends read and write
//! them here; what the digests are of is for others to know.

use bytes::Bytes;
use merge::Digest;
use proto::{
    InvalidField,
    convert::required,
    peer::v2::{Chunk, ChunkList, chunk},
};

use crate::message::MAX_CHUNK;

const DIGEST: usize = 32;

/// A part of a stream of chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    /// More of the list.
    List {
        /// The next digests.
        digests: Vec<Digest>,
        /// Whether the list ends here.
        last: bool,
    },
    /// The next chunk, whole.
    Data(Bytes),
}

impl Part {
    /// The parts of a list: at least one.
    pub(crate) fn of_list(list: &[Digest]) -> impl Iterator<Item = Self> {
        let each = MAX_CHUNK / DIGEST;
        let count = list.len().div_ceil(each).max(1);
        (0..count).map(move |part| {
            let end = list.len().min((part + 1) * each);
            let digests = list.get(part * each..end).unwrap_or_default().to_vec();
            Self::List { digests, last: part + 1 == count }
        })
    }

    /// Writes it for the wire.
    pub(crate) fn into_wire(self) -> Chunk {
        let part = match self {
            Self::List { digests, last } => {
                let digests = digests.iter().flat_map(|digest| digest.0).collect();
                chunk::Part::List(ChunkList { digests, last })
            }
            Self::Data(bytes) => chunk::Part::Data(bytes),
        };
        Chunk { part: Some(part) }
    }

    /// Reads it from the wire.
    pub(crate) fn from_wire(chunk: Chunk) -> Result<Self, InvalidField> {
        match required("part", chunk.part)? {
            chunk::Part::List(ChunkList { digests, last }) => {
                let (digests, rest) = digests.as_chunks::<DIGEST>();
                if !rest.is_empty() || digests.len() > MAX_CHUNK / DIGEST {
                    return Err(InvalidField::new("part.list", "no list of digests"));
                }
                Ok(Self::List { digests: digests.iter().copied().map(Digest).collect(), last })
            }
            chunk::Part::Data(bytes) if bytes.is_empty() || bytes.len() > MAX_CHUNK => {
                Err(InvalidField::new("part.data", "of a length that no chunk has"))
            }
            chunk::Part::Data(bytes) => Ok(Self::Data(bytes)),
        }
    }
}

/// A list that comes in parts, of at most so many digests.
#[derive(Debug)]
pub(crate) struct Gathering {
    digests: Vec<Digest>,
    most: usize,
}

impl Gathering {
    /// Nothing has come yet.
    pub(crate) fn new(most: usize) -> Self {
        Self { digests: Vec::new(), most }
    }

    /// Takes a part; the whole list, once it is the last one.
    pub(crate) fn take(&mut self, part: Part) -> Result<Option<Vec<Digest>>, InvalidField> {
        let Part::List { digests, last } = part else {
            return Err(InvalidField::new("part", "a chunk before the end of the list"));
        };
        if digests.len() > self.most - self.digests.len() {
            return Err(InvalidField::new("part.list", "longer than asked for"));
        }
        if digests.is_empty() && !last {
            return Err(InvalidField::new("part.list", "nothing in it"));
        }
        self.digests.extend(digests);
        Ok(last.then(|| std::mem::take(&mut self.digests)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn list(len: usize) -> Vec<Digest> {
        (0..len as u32).map(|n| Digest::of(&n.to_le_bytes())).collect()
    }

    fn gathered(list: &[Digest], most: usize) -> Result<Vec<Digest>, InvalidField> {
        let mut gathering = Gathering::new(most);
        for part in Part::of_list(list) {
            if let Some(whole) = gathering.take(Part::from_wire(part.into_wire())?)? {
                return Ok(whole);
            }
        }
        Err(InvalidField::new("part", "the last part says so"))
    }

    #[test]
    fn a_list_of_any_length_comes_back_whole_and_never_longer_than_asked_for() {
        let each = MAX_CHUNK / DIGEST;
        for len in [0, 1, each - 1, each, each + 1, 2 * each, 2 * each + 7] {
            let list = list(len);
            assert_eq!(gathered(&list, len).unwrap(), list);
            if len > 0 {
                assert!(gathered(&list, len - 1).is_err());
            }
        }
    }

    #[test]
    fn a_chunk_within_a_list_and_parts_without_end_are_refused() {
        let mut gathering = Gathering::new(10);
        assert!(gathering.take(Part::Data(Bytes::from_static(b"x"))).is_err());
        assert!(gathering.take(Part::List { digests: Vec::new(), last: false }).is_err());
    }

    #[test]
    fn chunks_have_one_byte_to_one_mebibyte() {
        let read = |len| Part::from_wire(Part::Data(vec![7; len].into()).into_wire());
        assert!(read(0).is_err());
        assert!(read(1).is_ok());
        assert!(read(MAX_CHUNK).is_ok());
        assert!(read(MAX_CHUNK + 1).is_err());
        assert!(Part::from_wire(Chunk { part: None }).is_err());
    }

    proptest! {
        #[test]
        fn a_list_whose_bytes_are_no_digests_is_refused(
            raw in prop::collection::vec(any::<u8>(), 0..200), last: bool,
        ) {
            let whole = raw.len() % 32 == 0;
            let list = ChunkList { digests: raw.into(), last };
            let part = Part::from_wire(Chunk { part: Some(chunk::Part::List(list)) });
            prop_assert_eq!(part.is_ok(), whole);
        }
    }
}
