//! The flat vector that a merge works on: tensors end to end in ascending order of name, row-major, float32.
//!
//! It knows where a tensor lies in it, how to read a part of it, and its digests; not who holds which part.

mod digest;
mod layout;
mod values;

pub use digest::{ChunkDigests, DigestError, WrongChunk};
pub use layout::{LayoutDigest, Segment, VectorLayout};
pub(crate) use values::within;
pub use values::{ReadError, Values};

/// Elements of a chunk: 1 MiB of float32. What is computed, encoded, hashed and sent in one go.
pub const CHUNK: usize = 1 << 18;
