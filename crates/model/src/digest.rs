//! A digest of tensors as they lie on their device, cheap enough to be taken after every job: whether
//! a run has left a trace in the base model.

use blake2::{Blake2b, Digest as _, digest::consts::U16};
use tch::{Device, Kind, Tensor};

use crate::ModelError;

/// Words of a row.
const ROW: usize = 1 << 14;

/// Rows that a GPU weighs at once: all that is held beside the tensors. The digest does not depend on
/// it.
const ROWS_AT_ONCE: i64 = 512;

/// A weighed sum of each tensor's raw words modulo 2^64, hashed in the order in which the tensors were
/// added. Sums of integers do not depend on the order of summation, so the same words give the same
/// digest on every device. A changed word shows, and so do two that have changed places: weights are
/// odd, without pattern, and every word's upper half is added to its lower one before, because floats
/// differ in their upper bits, which a product modulo 2^64 would push out. It is no defence against
/// who can choose the words.
#[derive(Debug)]
pub(crate) struct WordSums {
    sums: Vec<RowSums>,
    weights: Vec<i64>,
    on_device: Option<Tensor>,
}

/// The sums of a tensor's rows.
#[derive(Debug)]
enum RowSums {
    Known(Vec<i64>),
    /// int64, on the device.
    Waiting(Vec<Tensor>),
}

impl WordSums {
    pub(crate) fn new() -> Self {
        let weights = (0..ROW as u64).map(weight).collect();
        Self { sums: Vec::new(), weights, on_device: None }
    }

    /// Adds a tensor.
    pub(crate) fn add(&mut self, tensor: &Tensor) -> Result<(), ModelError> {
        let flat = tensor.f_detach()?.f_contiguous()?.f_view([-1])?;
        let sums = if flat.device() == Device::Cpu {
            RowSums::Known(self.on_processor(&flat)?)
        } else {
            RowSums::Waiting(self.by_libtorch(&flat)?)
        };
        self.sums.push(sums);
        Ok(())
    }

    /// libtorch's own products of 64 bits take ten times as long.
    fn on_processor(&self, flat: &Tensor) -> Result<Vec<i64>, ModelError> {
        let bytes = flat.numel() * flat.f_kind()?.elt_size_in_bytes();
        if bytes == 0 {
            return Ok(Vec::new());
        }
        #[expect(
            unsafe_code,
            reason = "a contiguous tensor on the processor, which lives longer than the slice and is not written to meanwhile"
        )]
        let bytes = unsafe { std::slice::from_raw_parts(flat.data_ptr().cast::<u8>(), bytes) };
        let kind = word(bytes.len());
        Ok(if kind == Kind::Int64 {
            self.rows(bytes, |word| {
                let word = i64::from_le_bytes(word);
                word.wrapping_add(word >> 32)
            })
        } else if kind == Kind::Int {
            self.rows(bytes, |word| i64::from(i32::from_le_bytes(word)))
        } else {
            self.rows(bytes, |word| i64::from(i16::from_le_bytes(word)))
        })
    }

    fn rows<const N: usize>(&self, bytes: &[u8], word: impl Fn([u8; N]) -> i64) -> Vec<i64> {
        let (words, _) = bytes.as_chunks::<N>();
        let row = |row: &[[u8; N]]| {
            let terms = row.iter().zip(&self.weights);
            terms.fold(0i64, |sum, (bytes, weight)| {
                sum.wrapping_add(word(*bytes).wrapping_mul(*weight))
            })
        };
        words.chunks(ROW).map(row).collect()
    }

    fn by_libtorch(&mut self, flat: &Tensor) -> Result<Vec<Tensor>, ModelError> {
        let weights = match self.on_device.take() {
            Some(weights) => weights,
            None => Tensor::f_from_slice(&self.weights)?.f_to_device(flat.device())?,
        };
        let weights = &*self.on_device.insert(weights);
        let kind = word(flat.numel() * flat.f_kind()?.elt_size_in_bytes());
        let words = flat.f_view_dtype(kind)?;
        let (length, row) = (words.size1()?, ROW as i64);
        let mut sums = Vec::new();
        let mut from = 0;
        while from < length {
            let left = length - from;
            let rows = (left / row).min(ROWS_AT_ONCE);
            let (rows, columns) = if rows == 0 { (1, left) } else { (rows, row) };
            let part = words.f_narrow(0, from, rows * columns)?.f_view([rows, columns])?;
            let folded = if kind == Kind::Int64 {
                part.f_bitwise_right_shift_tensor_scalar(32)?.f_add(&part)?
            } else {
                part.f_to_kind(Kind::Int64)?
            };
            let weighed = folded.f_mul(&weights.f_narrow(0, 0, columns)?)?;
            sums.push(weighed.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Int64)?);
            from += rows * columns;
        }
        Ok(sums)
    }

    /// The digest, 32 hexadecimal digits. Waits for the device once.
    pub(crate) fn finish(self) -> Result<String, ModelError> {
        let waiting: Vec<&Tensor> = self
            .sums
            .iter()
            .flat_map(|sums| match sums {
                RowSums::Known(_) => [].iter(),
                RowSums::Waiting(tensors) => tensors.iter(),
            })
            .collect();
        let waited = if waiting.is_empty() {
            Vec::new()
        } else {
            Vec::<i64>::try_from(Tensor::f_cat(&waiting, 0)?.f_to_device(Device::Cpu)?)?
        };
        let mut waited = waited.as_slice();
        let mut hash = Blake2b::<U16>::new();
        for sums in &self.sums {
            let rows = match sums {
                RowSums::Known(rows) => rows,
                RowSums::Waiting(tensors) => {
                    let count: usize = tensors.iter().map(Tensor::numel).sum();
                    let (rows, rest) = waited.split_at(count.min(waited.len()));
                    waited = rest;
                    rows
                }
            };
            let total = rows
                .iter()
                .zip(ROW as u64..)
                .fold(0i64, |total, (sum, n)| total.wrapping_add(sum.wrapping_mul(weight(n))));
            hash.update(total.to_le_bytes());
        }
        Ok(hex::encode(hash.finalize()))
    }
}

/// The word in which a tensor of so many bytes is read: as few as there can be.
fn word(bytes: usize) -> Kind {
    match bytes {
        bytes if bytes.is_multiple_of(8) => Kind::Int64,
        bytes if bytes.is_multiple_of(4) => Kind::Int,
        _ => Kind::Int16,
    }
}

/// The odd weight of a word (below [`ROW`]) or of a row (from there on): SplitMix64's finaliser.
fn weight(n: u64) -> i64 {
    let mut z = (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) | 1).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(tensors: &[Tensor]) -> String {
        let mut sums = WordSums::new();
        tensors.iter().for_each(|tensor| sums.add(tensor).unwrap());
        sums.finish().unwrap()
    }

    #[test]
    fn one_bit_and_two_exchanged_words_show_in_every_type_and_across_chunks() {
        tch::set_num_threads(1);
        // Six whole rows of words in float32, and a part of one.
        let count = ROW as i64 * 12 + 6;
        for kind in [Kind::Float, Kind::BFloat16, Kind::Half] {
            let of = |change: &dyn Fn(&mut Vec<f32>)| {
                let mut values: Vec<f32> = (0..count).map(|n| (n % 97) as f32 - 48.0).collect();
                change(&mut values);
                Tensor::from_slice(&values).to_kind(kind)
            };
            let plain = of(&|_| ());
            let expected = digest(&[plain.shallow_clone()]);
            assert_eq!(expected, digest(&[plain.copy()]), "{kind:?}: the same words");
            let last = count as usize - 1;
            let changed = |change: &dyn Fn(&mut Vec<f32>), what: &str| {
                assert_ne!(expected, digest(&[of(change)]), "{kind:?}: {what}");
            };
            changed(&|values| values[last] = -values[last], "the sign of the last word");
            changed(&|values| values[0] = f32::NAN, "a NaN");
            changed(&|values| values.swap(3, 4), "neighbours exchanged");
            changed(&|values| values.swap(1, last), "words of two rows exchanged");
            // Bits that a weight alone would push out of the sum.
            let of_signs = |first: usize| {
                let mut values = vec![0.0; count as usize];
                (values[first], values[first + 2 * ROW]) = (1.0, -1.0);
                digest(&[Tensor::from_slice(&values).to_kind(kind)])
            };
            assert_ne!(of_signs(1), of_signs(3), "{kind:?}");
        }
    }

    /// The processor stands in for a GPU: what it cannot do faster itself, it does like one.
    #[test]
    fn both_ways_of_summing_give_the_same_digest() {
        tch::set_num_threads(1);
        for (count, kind) in [
            (ROW as i64 * 2 * (ROWS_AT_ONCE + 1) + 10, Kind::Float),
            (ROW as i64 * 3, Kind::BFloat16),
            (7, Kind::BFloat16),
            (6, Kind::Half),
            (3, Kind::Float),
        ] {
            let values = Tensor::arange(count, (Kind::Float, Device::Cpu)).sin().to_kind(kind);
            let mut by_libtorch = WordSums::new();
            let sums = by_libtorch.by_libtorch(&values).unwrap();
            by_libtorch.sums.push(RowSums::Waiting(sums));
            assert_eq!(by_libtorch.finish().unwrap(), digest(&[values]), "{count} {kind:?}");
        }
    }

    #[test]
    fn a_word_and_its_complement_differ() {
        for word in [0i64, 1, 1 << 31, 1 << 32, 1 << 62, 0x3f80_0000_3f80_0000] {
            let of = |word: i64| digest(&[Tensor::from_slice(&[5, word])]);
            assert_ne!(of(word), of(!word), "{word:x}");
            assert_ne!(of(word), of(word ^ i64::MIN), "{word:x}");
        }
    }

    #[test]
    fn tensors_that_have_changed_places_show() {
        let (a, b) = (Tensor::from_slice(&[1f32, 2.0, 3.0]), Tensor::from_slice(&[1f32, 2.0]));
        let both = [a.shallow_clone(), b.shallow_clone()];
        assert_ne!(digest(&both), digest(&[b, a]));
    }
}
