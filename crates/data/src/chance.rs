use blake2::{Blake2b, Digest as _, digest::consts::U32};
use domain::Seed;
use rand_chacha::{
    ChaCha20Rng,
    rand_core::{RngCore as _, SeedableRng as _},
};

/// Numbers from a seed: the 64-bit words of one ChaCha20 stream, low 32 bits first.
#[derive(Debug)]
pub(crate) struct Chance(ChaCha20Rng);

impl Chance {
    pub(crate) fn new(seed: &Seed) -> Self {
        Self(ChaCha20Rng::from_seed(seed.0))
    }

    /// A number below `n`, which is not zero: the high half of the 128-bit product of the next word
    /// and `n`.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        let product = u128::from(self.0.next_u64()) * u128::from(n);
        // The high half of a product with `n` is less than `n`.
        (product >> 64) as u64
    }

    /// An index of something of `n` parts.
    pub(crate) fn index(&mut self, n: usize) -> usize {
        self.below(n as u64) as usize
    }
}

/// BLAKE2b-256 of the parts, one after the other.
pub(crate) fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Blake2b::<U32>::new();
    for part in parts {
        hash.update(part);
    }
    hash.finalize().into()
}
