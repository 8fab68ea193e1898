//! How a slice of a vector travels: as float32, as bfloat16, or as signed bytes with a scale per block.
//!
//! The two small ones lose something; [`Feedback`] keeps what was lost and adds it to the next round's gradient, so that
//! over rounds nothing is. It knows nothing of rounds, peers or files that are not its own.

mod blocks;
mod encoded;
mod feedback;

use std::{fmt, str::FromStr};

use half::bf16;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

pub use self::{
    encoded::Encoded,
    feedback::{Feedback, FeedbackError, NextFeedback},
};

/// What an element becomes on the wire. Little-endian throughout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// 4 bytes, exact.
    Float32,
    /// 2 bytes, rounded to nearest even; beyond its largest number, that number. Relative error at most 2^-8 of numbers
    /// that are not subnormal.
    Bfloat16,
    /// Blocks of 256 elements: a float32 scale, then a signed byte from -127 to 127 per element, `scale * byte`. The
    /// scale is the block's largest magnitude over 127, the bytes are rounded to nearest even: an error of at most 1/254
    /// of the largest magnitude, and of 2^-119 where all are below that.
    ///
    /// Linear, not on a curve with more steps near zero: it needs no table, nothing but arithmetic that is the same on
    /// every machine; every element of a block has the same bound on its error; and small elements, which a curve would
    /// keep, come later by error feedback. Blocks are small instead, so that one large element spoils few others.
    Int8,
}

/// What cannot be encoded, or bytes that are no encoding. `index` counts elements, `block` blocks of what was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    #[error("{found} bytes, not {expected}")]
    Length { expected: usize, found: usize },
    #[error("element {index} is not finite")]
    NonFinite { index: usize },
    /// Negative, not finite, or so large that an element would not be.
    #[error("block {block} has no usable scale")]
    Scale { block: usize },
    /// -128, which no encoder writes.
    #[error("element {index} is out of the code's range")]
    Code { index: usize },
}

impl CodecError {
    /// The stable reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Length { .. } => "wrong_length",
            Self::NonFinite { .. } => "non_finite",
            Self::Scale { .. } => "bad_scale",
            Self::Code { .. } => "bad_code",
        }
    }

    /// The same, counted from so many elements earlier.
    fn after(self, elements: usize) -> Self {
        match self {
            Self::NonFinite { index } => Self::NonFinite { index: index + elements },
            Self::Code { index } => Self::Code { index: index + elements },
            Self::Scale { block } => Self::Scale { block: block + elements / blocks::BLOCK },
            Self::Length { .. } => self,
        }
    }
}

/// Elements that one thread encodes at a time; whole blocks.
const PIECE: usize = 16 << 10;

impl Codec {
    /// All codecs.
    pub const ALL: [Self; 3] = [Self::Float32, Self::Bfloat16, Self::Int8];

    /// The name in configuration and on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Bfloat16 => "bfloat16",
            Self::Int8 => "int8",
        }
    }

    /// Whether decoding gives back what was encoded.
    pub fn is_exact(self) -> bool {
        self == Self::Float32
    }

    /// Elements that are encoded together: a slice may be encoded and decoded in parts that begin at multiples of it.
    pub fn block(self) -> usize {
        match self {
            Self::Float32 | Self::Bfloat16 => 1,
            Self::Int8 => blocks::BLOCK,
        }
    }

    /// Bytes of so many elements, from the beginning of a block.
    pub fn encoded_len(self, elements: usize) -> usize {
        match self {
            Self::Float32 => elements.saturating_mul(4),
            Self::Bfloat16 => elements.saturating_mul(2),
            Self::Int8 => elements.saturating_add(4 * elements.div_ceil(blocks::BLOCK)),
        }
    }

    /// Encodes into `out`, which has [`Codec::encoded_len`] bytes, on all cores. `values` are a whole slice, or a part of
    /// one that begins at a block. A value that is not finite is refused; what `out` holds then is of no use.
    pub fn encode(self, values: &[f32], out: &mut [u8]) -> Result<(), CodecError> {
        let expected = self.encoded_len(values.len());
        if out.len() != expected {
            return Err(CodecError::Length { expected, found: out.len() });
        }
        values
            .par_chunks(PIECE)
            .zip(out.par_chunks_mut(self.encoded_len(PIECE)))
            .enumerate()
            .map(|(nth, (values, out))| {
                self.encode_piece(values, out).map_err(|error| error.after(nth * PIECE))
            })
            .reduce(|| Ok(()), Result::and)
    }

    /// Decodes as many elements as `values` has, on all cores. Bytes that no encoder writes are refused by name: a wrong
    /// length, a value that is not finite, a scale or a code out of its range. What `values` holds then is of no use.
    pub fn decode(self, bytes: &[u8], values: &mut [f32]) -> Result<(), CodecError> {
        let expected = self.encoded_len(values.len());
        if bytes.len() != expected {
            return Err(CodecError::Length { expected, found: bytes.len() });
        }
        values
            .par_chunks_mut(PIECE)
            .zip(bytes.par_chunks(self.encoded_len(PIECE)))
            .enumerate()
            .map(|(nth, (values, bytes))| {
                self.decode_piece(bytes, values).map_err(|error| error.after(nth * PIECE))
            })
            .reduce(|| Ok(()), Result::and)
    }

    fn encode_piece(self, values: &[f32], out: &mut [u8]) -> Result<(), CodecError> {
        all_finite(values)?;
        match self {
            Self::Float32 => {
                let (out, _) = out.as_chunks_mut();
                out.iter_mut().zip(values).for_each(|(out, x)| *out = x.to_le_bytes());
            }
            Self::Bfloat16 => {
                let (out, _) = out.as_chunks_mut();
                out.iter_mut().zip(values).for_each(|(out, x)| *out = narrow(*x).to_le_bytes());
            }
            Self::Int8 => blocks::encode(values, out),
        }
        Ok(())
    }

    fn decode_piece(self, bytes: &[u8], values: &mut [f32]) -> Result<(), CodecError> {
        match self {
            Self::Float32 => {
                let (bytes, _) = bytes.as_chunks();
                values.iter_mut().zip(bytes).for_each(|(x, bytes)| *x = f32::from_le_bytes(*bytes));
            }
            Self::Bfloat16 => {
                let (bytes, _) = bytes.as_chunks();
                let wide = |bytes| f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16);
                values.iter_mut().zip(bytes).for_each(|(x, bytes)| *x = wide(*bytes));
            }
            Self::Int8 => return blocks::decode(bytes, values),
        }
        all_finite(values)
    }
}

/// The upper 16 bits of a finite float32, rounded to nearest even; the largest finite number instead of infinity.
fn narrow(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let magnitude = (rounded & 0x7fff).min(u32::from(bf16::MAX.to_bits()));
    ((rounded & 0x8000) | magnitude) as u16
}

fn all_finite(values: &[f32]) -> Result<(), CodecError> {
    if values.iter().fold(true, |all, x| all & x.is_finite()) {
        return Ok(());
    }
    let index = values.iter().position(|x| !x.is_finite()).unwrap_or_default();
    Err(CodecError::NonFinite { index })
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Codec {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|codec| codec.name() == text);
        found.ok_or("a codec is `float32`, `bfloat16` or `int8`")
    }
}

#[cfg(test)]
mod tests;
