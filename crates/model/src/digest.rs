//! A digest of tensors as they lie on their device, cheap enough to be taken after every job: whether
//! a run has left a trace in the base model.

use blake2::{Blake2b, Digest as _, digest::consts::U16};
use tch::{Device, Kind, Tensor};

use crate::ModelError;

/// Words of a row. A row's weights stay in the processor's cache.
const ROW: i64 = 1 << 14;

/// Rows that are weighed at once: all that is held beside the tensors. On the processor they stay in
/// the cache; on a GPU they are enough to be busy with. The digest does not depend on it.
fn rows_at_once(device: Device) -> i64 {
    if device == Device::Cpu { 2 } else { 512 }
}

/// A weighed sum of each tensor's raw words modulo 2^64, hashed in the order in which the tensors were
/// added. Sums of integers do not depend on the order of summation, so the same words give the same
/// digest on every device. A changed word shows, and so do two that have changed places: weights are
/// odd, without pattern, and every word's upper half is added to its lower one before, because floats
/// differ in their upper bits, which a product modulo 2^64 would push out. It is no defence against
/// who can choose the words.
#[derive(Debug, Default)]
pub(crate) struct WordSums {
    /// Per tensor: the sums of its rows, int64, on the device.
    sums: Vec<Vec<Tensor>>,
    weights: Option<Tensor>,
}

impl WordSums {
    /// Adds a tensor.
    pub(crate) fn add(&mut self, tensor: &Tensor) -> Result<(), ModelError> {
        let flat = tensor.f_detach()?.f_contiguous()?.f_view([-1])?;
        // As few words as there can be.
        let kind = match flat.numel() * flat.f_kind()?.elt_size_in_bytes() {
            bytes if bytes.is_multiple_of(8) => Kind::Int64,
            bytes if bytes.is_multiple_of(4) => Kind::Int,
            _ => Kind::Int16,
        };
        let words = flat.f_view_dtype(kind)?;
        let (length, at_once) = (words.size1()?, rows_at_once(flat.device()));
        let weights = self.weights(flat.device())?;
        let mut sums = Vec::new();
        let mut from = 0;
        while from < length {
            let left = length - from;
            let rows = (left / ROW).min(at_once);
            let (rows, columns) = if rows == 0 { (1, left) } else { (rows, ROW) };
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
        self.sums.push(sums);
        Ok(())
    }

    fn weights(&mut self, device: Device) -> Result<Tensor, ModelError> {
        let made = match self.weights.take() {
            Some(made) => made,
            None => {
                let weights: Vec<i64> = (0..ROW).map(|n| weight(n.unsigned_abs())).collect();
                Tensor::f_from_slice(&weights)?.f_to_device(device)?
            }
        };
        Ok(self.weights.insert(made).shallow_clone())
    }

    /// The digest, 32 hexadecimal digits. Waits for the device once.
    pub(crate) fn finish(self) -> Result<String, ModelError> {
        let all: Vec<&Tensor> = self.sums.iter().flatten().collect();
        let mut values = if all.is_empty() {
            Vec::new()
        } else {
            Vec::<i64>::try_from(Tensor::f_cat(&all, 0)?.f_to_device(Device::Cpu)?)?
        }
        .into_iter();
        let mut hash = Blake2b::<U16>::new();
        for sums in &self.sums {
            let rows: usize = sums.iter().map(Tensor::numel).sum();
            let rows = values.by_ref().take(rows).zip(ROW.unsigned_abs()..);
            let total =
                rows.fold(0i64, |total, (sum, n)| total.wrapping_add(sum.wrapping_mul(weight(n))));
            hash.update(total.to_le_bytes());
        }
        Ok(hex::encode(hash.finalize()))
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
        let mut sums = WordSums::default();
        tensors.iter().for_each(|tensor| sums.add(tensor).unwrap());
        sums.finish().unwrap()
    }

    #[test]
    fn one_bit_and_two_exchanged_words_show_in_every_type_and_across_chunks() {
        tch::set_num_threads(1);
        // Six whole rows of words in float32, and a part of one.
        let count = ROW * 12 + 6;
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
                (values[first], values[first + 2 * ROW as usize]) = (1.0, -1.0);
                digest(&[Tensor::from_slice(&values).to_kind(kind)])
            };
            assert_ne!(of_signs(1), of_signs(3), "{kind:?}");
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
