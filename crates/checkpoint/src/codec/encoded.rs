//! A slice as it came, decoded where it is read.

use std::fmt;

use super::{Codec, CodecError};
use crate::vector::{ReadError, Values};

/// Encoded elements in memory or in a mapped file. Parts that begin and end at blocks are decoded in place; bytes that no
/// encoder writes are an error of the part that has them, so that whoever reads all of it once knows.
pub struct Encoded<B> {
    codec: Codec,
    len: usize,
    bytes: B,
}

impl<B: AsRef<[u8]> + Send + Sync> Encoded<B> {
    /// `len` elements; refused where the bytes are not as many as those have.
    pub fn new(codec: Codec, len: usize, bytes: B) -> Result<Self, CodecError> {
        let (expected, found) = (codec.encoded_len(len), bytes.as_ref().len());
        if found != expected {
            return Err(CodecError::Length { expected, found });
        }
        Ok(Self { codec, len, bytes })
    }
}

impl<B: AsRef<[u8]> + Send + Sync> Values for Encoded<B> {
    fn len(&self) -> usize {
        self.len
    }

    fn read(&self, start: usize, out: &mut [f32]) -> Result<(), ReadError> {
        let end = crate::vector::within(start, out.len(), self.len)?.end;
        let block = self.codec.block();
        let from = start - start % block;
        let to = end.next_multiple_of(block).min(self.len);
        let first = self.codec.encoded_len(from);
        let bytes = &self.bytes.as_ref()[first..first + self.codec.encoded_len(to - from)];
        let failed = |error: CodecError| match error.after(from) {
            CodecError::NonFinite { index } => ReadError::NonFinite { index },
            error @ (CodecError::Length { .. }
            | CodecError::Scale { .. }
            | CodecError::Code { .. }) => ReadError::Source(error.to_string()),
        };
        if (from, to) == (start, end) {
            return self.codec.decode(bytes, out).map_err(failed);
        }
        let mut whole = vec![0.0; to - from];
        self.codec.decode(bytes, &mut whole).map_err(failed)?;
        out.copy_from_slice(&whole[start - from..end - from]);
        Ok(())
    }
}

impl<B> fmt::Debug for Encoded<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoded").field("codec", &self.codec).field("len", &self.len).finish()
    }
}
