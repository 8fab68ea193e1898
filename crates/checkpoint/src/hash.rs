//! The model hash that is signed and committed on chain (protocol, section 3).

use blake2b_simd::{Params, State};
use domain::ModelHash;

use crate::{refusal::Refusal, source::TensorSource};

/// Bytes of the digest.
const LEN: usize = 24;

/// BLAKE2b with a 24-byte digest over the tensors in ascending order of name: the UTF-8 name, then the data as
/// stored. No lengths, shapes or separators.
#[derive(Clone)]
pub(crate) struct ModelHasher(State);

impl Default for ModelHasher {
    fn default() -> Self {
        Self(Params::new().hash_length(LEN).to_state())
    }
}

impl ModelHasher {
    pub(crate) fn name(&mut self, name: &str) {
        self.0.update(name.as_bytes());
    }

    /// The next part of the current tensor's data.
    pub(crate) fn data(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn finish(self) -> ModelHash {
        let digest = self.0.finalize();
        let mut hash = [0; LEN];
        for (to, from) in hash.iter_mut().zip(digest.as_bytes()) {
            *to = *from;
        }
        ModelHash(hash)
    }
}

/// The model hash of a set of tensors in their stored types (protocol, section 3).
pub fn model_hash(source: &dyn TensorSource) -> Result<ModelHash, Refusal> {
    let mut hasher = ModelHasher::default();
    for name in source.specs().keys() {
        hasher.name(name);
        hasher.data(&source.bytes(name)?);
    }
    Ok(hasher.finish())
}
