//! The model hash that is signed and committed on chain (protocol, section 3).

use blake2::{Blake2b, Digest as _, digest::consts::U24};
use domain::ModelHash;

use crate::{refusal::Refusal, source::TensorSource};

/// BLAKE2b with a 24-byte digest over the tensors in ascending order of name: the UTF-8 name, then the data as
/// stored. No lengths, shapes or separators.
#[derive(Clone, Default)]
pub(crate) struct ModelHasher(Blake2b<U24>);

impl ModelHasher {
    pub(crate) fn name(&mut self, name: &str) {
        self.0.update(name);
    }

    /// The next part of the current tensor's data.
    pub(crate) fn data(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn finish(self) -> ModelHash {
        ModelHash(self.0.finalize().into())
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
