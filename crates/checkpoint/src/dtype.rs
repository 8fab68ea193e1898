//! Element types, and the way from each float type to float32 and back.

use std::{fmt, str::FromStr};

use half::{f16, slice::HalfFloatSliceExt as _};
use serde::{Deserialize, Serialize};

/// Type of a tensor's elements, stored little-endian. Written as safetensors writes it (`F32`, `BF16`, …).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Dtype {
    F64,
    F32,
    F16,
    BF16,
    I64,
    I32,
    I16,
    I8,
    U8,
    #[serde(rename = "BOOL")]
    Bool,
}

/// A dtype's text that is not one of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a known dtype")]
pub struct UnknownDtype(pub String);

impl Dtype {
    const ALL: [Self; 10] = [
        Self::F64,
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::I64,
        Self::I32,
        Self::I16,
        Self::I8,
        Self::U8,
        Self::Bool,
    ];

    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::BF16 | Self::I16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// Whether the elements are floating-point numbers.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::F16 | Self::BF16)
    }

    /// The name in a safetensors header.
    pub fn name(self) -> &'static str {
        match self {
            Self::F64 => "F64",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::I64 => "I64",
            Self::I32 => "I32",
            Self::I16 => "I16",
            Self::I8 => "I8",
            Self::U8 => "U8",
            Self::Bool => "BOOL",
        }
    }

    /// The name of torch's storage class for this type, as a `.pt` file's pickle has it.
    pub(crate) fn storage(self) -> &'static str {
        match self {
            Self::F64 => "DoubleStorage",
            Self::F32 => "FloatStorage",
            Self::F16 => "HalfStorage",
            Self::BF16 => "BFloat16Storage",
            Self::I64 => "LongStorage",
            Self::I32 => "IntStorage",
            Self::I16 => "ShortStorage",
            Self::I8 => "CharStorage",
            Self::U8 => "ByteStorage",
            Self::Bool => "BoolStorage",
        }
    }

    pub(crate) fn from_storage(class: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.storage() == class)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Dtype {
    type Err = UnknownDtype;

    fn from_str(text: &str) -> Result<Self, UnknownDtype> {
        let known = Self::ALL.into_iter().find(|dtype| dtype.name() == text);
        known.ok_or_else(|| UnknownDtype(text.chars().take(32).collect()))
    }
}

/// Elements converted in one go: small enough for the first-level cache.
const BATCH: usize = 2048;

/// Little-endian elements of a float type as float32; `None` for the other types. A ragged end is ignored.
/// F64 is rounded to nearest, the others are exact.
pub fn decode_f32(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    let mut values = vec![0.0; bytes.len() / dtype.size()];
    decode_into(dtype, bytes, &mut values).then_some(values)
}

/// Fills `values` with as many elements of `bytes` as there are; false when the type is not a float.
pub(crate) fn decode_into(dtype: Dtype, bytes: &[u8], values: &mut [f32]) -> bool {
    match dtype {
        Dtype::F64 => {
            let (chunks, _) = bytes.as_chunks();
            values.iter_mut().zip(chunks).for_each(|(v, c)| *v = f64::from_le_bytes(*c) as f32);
        }
        Dtype::F32 => {
            let (chunks, _) = bytes.as_chunks();
            values.iter_mut().zip(chunks).for_each(|(v, c)| *v = f32::from_le_bytes(*c));
        }
        Dtype::F16 => {
            let mut batch = [f16::ZERO; BATCH];
            for (out, part) in values.chunks_mut(BATCH).zip(bytes.chunks(2 * BATCH)) {
                let (chunks, _) = part.as_chunks();
                batch.iter_mut().zip(chunks).for_each(|(v, c)| *v = f16::from_le_bytes(*c));
                let n = out.len().min(chunks.len());
                batch[..n].convert_to_f32_slice(&mut out[..n]);
            }
        }
        Dtype::BF16 => {
            let (chunks, _) = bytes.as_chunks();
            values
                .iter_mut()
                .zip(chunks)
                .for_each(|(v, c)| *v = f32::from_bits(u32::from(u16::from_le_bytes(*c)) << 16));
        }
        Dtype::I64 | Dtype::I32 | Dtype::I16 | Dtype::I8 | Dtype::U8 | Dtype::Bool => return false,
    }
    true
}

/// float32 values as little-endian elements of a float type, rounded to nearest even; `None` for the other types.
pub fn encode_f32(dtype: Dtype, values: &[f32]) -> Option<Vec<u8>> {
    let mut bytes = vec![0; values.len() * dtype.size()];
    encode_into(dtype, values, &mut bytes).then_some(bytes)
}

/// As [`encode_f32`], into as many elements as `bytes` has; false when the type is not a float.
pub(crate) fn encode_into(dtype: Dtype, values: &[f32], bytes: &mut [u8]) -> bool {
    match dtype {
        Dtype::F64 => {
            let (out, _) = bytes.as_chunks_mut();
            out.iter_mut().zip(values).for_each(|(out, v)| *out = f64::from(*v).to_le_bytes());
        }
        Dtype::F32 => {
            let (out, _) = bytes.as_chunks_mut();
            out.iter_mut().zip(values).for_each(|(out, v)| *out = v.to_le_bytes());
        }
        Dtype::F16 => {
            let (out, _) = bytes.as_chunks_mut();
            let narrow = |v: f32| f16::from_f32(v).to_le_bytes();
            out.iter_mut().zip(values).for_each(|(out, v)| *out = narrow(*v));
        }
        Dtype::BF16 => {
            let (out, _) = bytes.as_chunks_mut();
            out.iter_mut().zip(values).for_each(|(out, v)| *out = narrow(*v).to_le_bytes());
        }
        Dtype::I64 | Dtype::I32 | Dtype::I16 | Dtype::I8 | Dtype::U8 | Dtype::Bool => return false,
    }
    true
}

/// As `bf16::from_f32`, without a branch.
fn narrow(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    // Not a number stays none: the quiet bit keeps it from becoming infinity.
    let quiet = bits >> 16 | 0x40;
    (if value.is_nan() { quiet } else { rounded }) as u16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bfloat16_is_rounded_as_the_library_does(bits: u32) {
            let value = f32::from_bits(bits);
            prop_assert_eq!(narrow(value), half::bf16::from_f32(value).to_bits());
        }
    }

    #[test]
    fn every_dtype_is_read_back_from_its_names() {
        for dtype in Dtype::ALL {
            assert_eq!(dtype.name().parse(), Ok(dtype));
            assert_eq!(Dtype::from_storage(dtype.storage()), Some(dtype));
            let json = serde_json::to_string(&dtype).unwrap();
            assert_eq!(json, format!("\"{}\"", dtype.name()));
        }
        assert_eq!("F8".parse::<Dtype>(), Err(UnknownDtype("F8".to_owned())));
    }

    #[test]
    fn integers_do_not_become_floats_silently() {
        assert_eq!(decode_f32(Dtype::I32, &[0; 8]), None);
        assert_eq!(encode_f32(Dtype::Bool, &[1.0]), None);
    }

    proptest! {
        #[test]
        fn what_fits_a_type_survives_it(bits in prop::collection::vec(any::<u16>(), 0..5000)) {
            for dtype in [Dtype::F16, Dtype::BF16] {
                let bytes: Vec<u8> = bits.iter().flat_map(|b| b.to_le_bytes()).collect();
                let values = decode_f32(dtype, &bytes).unwrap();
                for wide in [Dtype::F32, Dtype::F64] {
                    let wider = encode_f32(wide, &values).unwrap();
                    let back = decode_f32(wide, &wider).unwrap();
                    prop_assert!(values.iter().zip(&back).all(|(a, b)| a == b || a.is_nan()));
                }
                let again = decode_f32(dtype, &encode_f32(dtype, &values).unwrap()).unwrap();
                prop_assert!(values.iter().zip(&again).all(|(a, b)| a == b || a.is_nan()));
            }
        }
    }
}
