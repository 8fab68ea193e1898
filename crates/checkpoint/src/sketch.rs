//! The sketch of a submission: what it changed in the base, folded into a few sums.

use blake2::{Blake2b, Digest as _, digest::consts::U8};
use domain::{Seed, Sketch};

use crate::{
    dtype::decode_into,
    refusal::{Refusal, clip},
    source::TensorSource,
};

const LENGTH: usize = Sketch::LENGTH;
/// Words whose bits are the signs of a row.
const WORDS: usize = LENGTH / 64;

/// Sketches `submission - base`, both read as float32, over the tensors of the submission in ascending
/// order of name.
///
/// A tensor is cut into rows of [`Sketch::LENGTH`] elements, the last one may be shorter. Every row is
/// rotated and every element's sign flipped or not, as a generator says that begins with the first
/// eight bytes of BLAKE2b-64 over seed and name; the rows are added up. It is one pass at about the
/// speed of memory, and a pure function of its arguments, on every machine.
///
/// # Errors
///
/// `missing_tensor`, `wrong_shape` or `wrong_dtype` when the base has no such tensor, or one is not of
/// floats; `non_finite` when an element is not finite, or the difference is too large for float32.
pub fn sketch(
    submission: &dyn TensorSource,
    base: &dyn TensorSource,
    seed: &Seed,
) -> Result<Sketch, Refusal> {
    let mut sums = [0.0f64; LENGTH];
    for (name, spec) in submission.specs() {
        let other = base.spec(name)?;
        if other.shape != spec.shape {
            let (expected, found) = (other.shape.clone(), spec.shape.clone());
            return Err(Refusal::WrongShape { name: clip(name), expected, found });
        }
        let (ours, theirs) = (submission.bytes(name)?, base.bytes(name)?);
        let mut generator = Generator::new(seed, name);
        let (mut one, mut two) = ([0.0f32; LENGTH], [0.0f32; LENGTH]);
        let rows = ours.chunks(LENGTH * spec.dtype.size());
        for (ours, theirs) in rows.zip(theirs.chunks(LENGTH * other.dtype.size())) {
            for (dtype, bytes, into) in
                [(spec.dtype, ours, &mut one), (other.dtype, theirs, &mut two)]
            {
                if !decode_into(dtype, bytes, into) {
                    return Err(Refusal::WrongDtype { name: clip(name), found: dtype });
                }
            }
            let (turn, signs) = generator.row();
            let elements = ours.len() / spec.dtype.size();
            for ((a, b), word) in one.chunks_mut(64).zip(two.chunks(64)).zip(signs) {
                for (n, (a, b)) in a.iter_mut().zip(b).enumerate() {
                    let sign = ((word >> n) as u32) << 31;
                    *a = f32::from_bits((*a - b).to_bits() ^ sign);
                }
            }
            // A short last row has something else behind its elements.
            let row = one.get(..elements).unwrap_or(&one);
            let (front, back) = row.split_at(elements.min(LENGTH - turn));
            let (turned, straight) = sums.split_at_mut(turn);
            straight.iter_mut().zip(front).for_each(|(sum, x)| *sum += f64::from(*x));
            turned.iter_mut().zip(back).for_each(|(sum, x)| *sum += f64::from(*x));
        }
    }
    let sums = sums.map(|sum| sum as f32);
    Sketch::new(sums).ok_or_else(|| {
        let index = sums.iter().position(|sum| !sum.is_finite()).unwrap_or_default();
        let value = sums.get(index).map(f32::to_string).unwrap_or_default();
        Refusal::NonFinite {
            name: "sketch of the difference from the base".to_owned(),
            index,
            value,
        }
    })
}

/// SplitMix64: one sequence per tensor.
struct Generator(u64);

impl Generator {
    fn new(seed: &Seed, name: &str) -> Self {
        let hash = Blake2b::<U8>::new().chain_update(seed.0).chain_update(name).finalize();
        Self(u64::from_le_bytes(hash.into()))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// How far a row is rotated, and its signs.
    fn row(&mut self) -> (usize, [u64; WORDS]) {
        let turn = self.next() as usize % LENGTH;
        (turn, std::array::from_fn(|_| self.next()))
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng as _, SeedableRng as _};
    use rand_chacha::ChaCha20Rng;

    use super::*;
    use crate::{Dtype, MemoryTensors, TensorSpec, encode_f32};

    const SEED: Seed = Seed([9; 32]);

    /// Two tensors, one of which does not fill its last row.
    fn tensors(dtype: Dtype, value: &mut dyn FnMut() -> f32) -> MemoryTensors {
        let mut tensors = MemoryTensors::default();
        for (name, shape) in [("a", vec![64, 40]), ("b", vec![17, 59])] {
            let values: Vec<f32> = (0..shape.iter().product::<usize>()).map(|_| value()).collect();
            let spec = TensorSpec { dtype, shape };
            tensors.insert(name, spec, encode_f32(dtype, &values).unwrap()).unwrap();
        }
        tensors
    }

    fn noise(seed: u64) -> impl FnMut() -> f32 {
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        move || rng.random::<f32>() - 0.5
    }

    #[test]
    fn a_copy_is_parallel_a_noisy_one_nearly_and_a_strangers_is_not() {
        let base = tensors(Dtype::F32, &mut noise(1));
        let submission = |seed: u64, noisy: f32| {
            let (mut base, mut change, mut extra) = (noise(1), noise(seed), noise(99));
            tensors(Dtype::F32, &mut || base() + 0.01 * change() + noisy * extra())
        };
        let of = |tensors| sketch(&tensors, &base, &SEED).unwrap();
        let honest = of(submission(2, 0.0));
        assert_eq!(honest, of(submission(2, 0.0)));
        let near = honest.cosine(&of(submission(2, 0.001))).unwrap();
        assert!((0.985..1.0).contains(&near), "{near}");
        let stranger = honest.cosine(&of(submission(3, 0.0))).unwrap();
        assert!(stranger.abs() < 0.3, "{stranger}");
    }

    #[test]
    fn the_stored_type_matters_as_little_as_its_rounding() {
        let base = tensors(Dtype::F32, &mut noise(1));
        let of = |dtype| {
            let (mut base, mut change) = (noise(1), noise(2));
            tensors(dtype, &mut || base() + 0.1 * change())
        };
        let [full, half] =
            [Dtype::F32, Dtype::BF16].map(|dtype| sketch(&of(dtype), &base, &SEED).unwrap());
        assert!(full.cosine(&half).unwrap() > 0.99);
    }

    #[test]
    fn the_base_itself_has_changed_nothing_and_a_foreign_tensor_is_named() {
        let base = tensors(Dtype::F32, &mut noise(1));
        assert_eq!(sketch(&base, &base, &SEED).unwrap().to_bytes(), [0; Sketch::BYTES]);
        let mut foreign = base.clone();
        foreign.insert_f32("c", vec![2], &[1.0, 2.0]).unwrap();
        assert_eq!(sketch(&foreign, &base, &SEED).unwrap_err().reason(), "missing_tensor");
        foreign = base.clone();
        foreign.insert_f32("b", vec![2], &[1.0, 2.0]).unwrap();
        assert_eq!(sketch(&foreign, &base, &SEED).unwrap_err().reason(), "wrong_shape");
        foreign = base.clone();
        foreign.insert_f32("b", vec![17, 59], &[f32::INFINITY; 17 * 59]).unwrap();
        assert_eq!(sketch(&foreign, &base, &SEED).unwrap_err().reason(), "non_finite");
    }

    #[test]
    fn the_same_sums_come_out_on_every_machine() {
        let base = tensors(Dtype::F32, &mut || 0.0);
        let mut n = 0.0f32;
        let submission = tensors(Dtype::F32, &mut || {
            n += 1.0;
            n
        });
        let bytes = sketch(&submission, &base, &SEED).unwrap().to_bytes();
        let digest = Blake2b::<U8>::digest(bytes);
        // Computed by another implementation.
        assert_eq!(hex::encode(digest), "290e7e5c683df58f");
    }
}
