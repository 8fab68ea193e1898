//! The arithmetic of the all-reduce: slices of a flat vector, their mean, and digests.
//!
//! Pure and in one thread: the same inputs in the same order give the same bits on every member,
//! whatever the network did in between. Values are float32, little-endian on the wire; sums are
//! kept in float64 and rounded once.

use std::{collections::BTreeMap, ops::Range};

use bytes::Bytes;
use checkpoint::{OuterSgd, TensorSpec};
use domain::ModelHash;

/// How a vector is split: member `i`, in ascending order of hotkey, owns and reduces slice `i`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slices {
    /// Values in the whole vector.
    pub len: usize,
    /// Number of members.
    pub parts: usize,
}

impl Slices {
    /// The values of slice `index`; lengths differ by one at most. Empty beyond the last slice.
    pub fn range(self, index: usize) -> Range<usize> {
        self.start(index)..self.start(index.saturating_add(1))
    }

    fn start(self, index: usize) -> usize {
        if self.parts == 0 || index >= self.parts {
            return self.len;
        }
        // `len * index` may not fit where models have hundreds of GiB.
        let (each, rest) = (self.len / self.parts, self.len % self.parts);
        each * index + rest * index / self.parts
    }
}

/// A value that no gradient may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("value {index} is not finite")]
pub struct NonFinite {
    /// Its place in the slice.
    pub index: usize,
}

/// Whether every value is finite.
pub fn finite(values: &[f32]) -> Result<(), NonFinite> {
    match values.iter().position(|value| !value.is_finite()) {
        Some(index) => Err(NonFinite { index }),
        None => Ok(()),
    }
}

/// The mean of equally long parts, value by value: a float64 sum in the order given, divided by
/// their number and rounded to float32. Empty without parts; as long as the shortest part.
pub fn mean(parts: &[Vec<f32>]) -> Vec<f32> {
    let Some(len) = parts.iter().map(Vec::len).min() else { return Vec::new() };
    let count = parts.len() as f64;
    // Blocks that stay in cache, so that every part is read once, in order.
    const BLOCK: usize = 4096;
    let mut sums = [0_f64; BLOCK];
    let mut out = Vec::with_capacity(len);
    let mut start = 0;
    while start < len {
        let end = len.min(start + BLOCK);
        let sums = &mut sums[..end - start];
        sums.fill(0.0);
        for part in parts {
            for (sum, value) in sums.iter_mut().zip(&part[start..end]) {
                *sum += f64::from(*value);
            }
        }
        out.extend(sums.iter().map(|sum| (*sum / count) as f32));
        start = end;
    }
    out
}

/// The values as they travel.
pub fn to_bytes(values: &[f32]) -> Bytes {
    let mut bytes = Vec::with_capacity(values.len() * 4);
    for value in values {
        bytes.extend_from_slice(&value.to_le_bytes());
    }
    bytes.into()
}

/// Values and their digest, from bytes that come in pieces of any length.
#[derive(Debug, Default)]
pub struct Reader {
    values: Vec<f32>,
    rest: Vec<u8>,
    hash: blake3::Hasher,
    bytes: usize,
}

impl Reader {
    /// Takes in the next bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.bytes += bytes.len();
        let mut bytes = bytes;
        while !self.rest.is_empty()
            && let Some((first, after)) = bytes.split_first()
        {
            self.rest.push(*first);
            bytes = after;
            if let Ok(value) = self.rest.as_slice().try_into() {
                self.values.push(f32::from_le_bytes(value));
                self.rest.clear();
            }
        }
        let (values, rest) = bytes.as_chunks::<4>();
        self.values.extend(values.iter().map(|value| f32::from_le_bytes(*value)));
        self.rest.extend_from_slice(rest);
    }

    /// Bytes taken in so far.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// BLAKE3 of the bytes so far.
    pub fn digest(&self) -> [u8; 32] {
        self.hash.finalize().into()
    }

    /// The values; an incomplete last one is dropped.
    pub fn into_values(self) -> Vec<f32> {
        self.values
    }
}

/// BLAKE3 of the values as they travel.
pub fn digest(values: &[f32]) -> [u8; 32] {
    let mut hash = blake3::Hasher::new();
    for block in values.chunks(16 * 1024) {
        hash.update(&to_bytes(block));
    }
    hash.finalize().into()
}

/// What two validators must share to add their vectors up and to make the same model of the sum:
/// BLAKE3 over names, shapes and order of the tensors, the settings of the outer optimizer, and its
/// the model hash of its momentum (all zeros where there is none).
///
/// The momentum is in it because equal bases with unequal momentum make unequal models: better to
/// be left out by name than to find another hash on chain.
pub fn layout_digest(
    tensors: &BTreeMap<String, TensorSpec>,
    optimizer: &OuterSgd,
    momentum: Option<ModelHash>,
) -> [u8; 32] {
    let mut hash = blake3::Hasher::new();
    let mut field = |bytes: &[u8]| {
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    field(b"connito.layout.v1");
    field(&(tensors.len() as u64).to_le_bytes());
    for (name, spec) in tensors {
        field(name.as_bytes());
        let shape: Vec<u8> = spec.shape.iter().flat_map(|d| (*d as u64).to_le_bytes()).collect();
        field(&shape);
    }
    field(&optimizer.lr.to_le_bytes());
    field(&optimizer.momentum.to_le_bytes());
    field(&[u8::from(optimizer.nesterov)]);
    field(momentum.as_ref().map_or(&[], |hash| &hash.0[..]));
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn slices_cover_the_vector_in_order_and_are_equally_long(len in 0_usize..5000, parts in 1_usize..70) {
            let slices = Slices { len, parts };
            let mut end = 0;
            for index in 0..parts {
                let range = slices.range(index);
                prop_assert_eq!(range.start, end);
                prop_assert!(range.len() == len / parts || range.len() == len / parts + 1);
                end = range.end;
            }
            prop_assert_eq!(end, len);
            prop_assert!(slices.range(parts).is_empty());
        }

        #[test]
        fn the_mean_is_the_naive_mean_bit_for_bit_however_the_vector_is_sliced(
            seed: u32,
            members in 1_usize..6,
            parts in 1_usize..9,
            len in 0_usize..9000,
        ) {
            // Bits of any kind but non-finite ones, without a strategy per value.
            let mut bits = seed;
            let mut next = || {
                bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                f32::from_bits(bits & 0xbfff_ffff)
            };
            let vectors: Vec<Vec<f32>> =
                (0..members).map(|_| (0..len).map(|_| next()).collect()).collect();
            let naive: Vec<u32> = (0..len)
                .map(|i| {
                    let mut sum = 0.0;
                    for vector in &vectors {
                        sum += f64::from(vector[i]);
                    }
                    ((sum / vectors.len() as f64) as f32).to_bits()
                })
                .collect();
            let slices = Slices { len, parts };
            let reduced: Vec<u32> = (0..parts)
                .flat_map(|index| {
                    let part: Vec<_> =
                        vectors.iter().map(|v| v[slices.range(index)].to_vec()).collect();
                    mean(&part)
                })
                .map(f32::to_bits)
                .collect();
            prop_assert_eq!(reduced, naive);
        }

        #[test]
        fn values_survive_the_wire_bit_for_bit_in_pieces_of_any_length(
            bits: Vec<u32>,
            piece in 1_usize..20,
        ) {
            let values: Vec<f32> = bits.iter().map(|b| f32::from_bits(*b)).collect();
            let mut reader = Reader::default();
            to_bytes(&values).chunks(piece).for_each(|bytes| reader.push(bytes));
            prop_assert_eq!(reader.digest(), digest(&values));
            prop_assert_eq!(reader.bytes(), values.len() * 4);
            let back: Vec<u32> = reader.into_values().iter().map(|v| v.to_bits()).collect();
            prop_assert_eq!(back, bits);
        }
    }

    #[test]
    fn a_digest_is_that_of_the_bytes_in_one_piece() {
        let values: Vec<f32> = (0..40_000).map(|i| i as f32 * 0.37).collect();
        assert_eq!(digest(&values), *blake3::hash(&to_bytes(&values)).as_bytes());
    }

    #[test]
    fn the_first_value_that_is_not_finite_is_named() {
        assert_eq!(finite(&[1.0, f32::NAN, f32::INFINITY]), Err(NonFinite { index: 1 }));
        assert_eq!(finite(&[f32::MAX, -0.0]), Ok(()));
    }

    #[test]
    fn another_shape_name_optimizer_or_momentum_is_another_layout() {
        let tensors = |name: &str, shape: &[usize]| {
            let spec = TensorSpec { dtype: checkpoint::Dtype::F32, shape: shape.to_vec() };
            BTreeMap::from([(name.to_owned(), spec)])
        };
        let sgd = OuterSgd::default();
        let slower = OuterSgd { lr: 0.1, ..OuterSgd::default() };
        let all = [
            layout_digest(&tensors("a", &[2, 3]), &sgd, None),
            layout_digest(&tensors("a", &[3, 2]), &sgd, None),
            layout_digest(&tensors("b", &[2, 3]), &sgd, None),
            layout_digest(&tensors("a", &[2, 3]), &slower, None),
            layout_digest(&tensors("a", &[2, 3]), &sgd, Some(ModelHash([7; 24]))),
        ];
        for (i, one) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|other| other != one), "{i}");
        }
    }
}
