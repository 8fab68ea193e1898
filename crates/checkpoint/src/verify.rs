//! Decides whether a miner's file can be evaluated: the right tensors, the committed hash, finite everywhere.

use domain::ModelHash;

use crate::{
    checkpoint::Checkpoint,
    dtype::Dtype,
    finite::first_non_finite,
    hash::ModelHasher,
    layout::SliceLayout,
    refusal::{Refusal, clip},
};

/// What was learned about a checkpoint that may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified {
    pub model_hash: ModelHash,
    pub tensors: usize,
    /// Of the tensors' data.
    pub bytes: u64,
}

/// Bytes that are hashed and scanned while they are in the cache; a multiple of every element's size.
const CHUNK: usize = 256 << 10;

/// Checks names, shapes and types against the slice's layout, then the hash and every value in one pass.
///
/// Types may be F32, BF16 or F16 whatever the layout has. Refusals in this order: `shared_weights`,
/// `foreign_tensor`, `missing_tensor`, `wrong_shape`, `wrong_dtype`, `hash_mismatch`, `non_finite`.
pub fn verify(
    checkpoint: &Checkpoint,
    layout: &SliceLayout,
    committed: Option<&ModelHash>,
) -> Result<Verified, Refusal> {
    check_structure(checkpoint, layout)?;
    let mut hasher = ModelHasher::default();
    let mut bytes = 0;
    let mut bad = None;
    for (name, info) in checkpoint.tensors() {
        hasher.name(name);
        let data = checkpoint.bytes(name)?;
        bytes += data.len() as u64;
        for (nth, chunk) in data.chunks(CHUNK).enumerate() {
            hasher.data(chunk);
            if bad.is_none() {
                bad = first_non_finite(info.dtype(), chunk).map(|(index, value)| {
                    let index = nth * (CHUNK / info.dtype().size()) + index;
                    Refusal::NonFinite { name: name.clone(), index, value: value.to_owned() }
                });
            }
        }
    }
    let model_hash = hasher.finish();
    if let Some(expected) = committed.filter(|expected| **expected != model_hash) {
        return Err(Refusal::HashMismatch { expected: *expected, found: model_hash });
    }
    match bad {
        Some(refusal) => Err(refusal),
        None => Ok(Verified { model_hash, tensors: checkpoint.tensors().len(), bytes }),
    }
}

/// The checks that need no tensor's data.
fn check_structure(checkpoint: &Checkpoint, layout: &SliceLayout) -> Result<(), Refusal> {
    let tensors = checkpoint.tensors();
    if let Some(name) = tensors.keys().find(|name| layout.shared.contains(*name)) {
        return Err(Refusal::SharedWeights { name: clip(name) });
    }
    if let Some(name) = tensors.keys().find(|name| !layout.tensors.contains_key(*name)) {
        return Err(Refusal::ForeignTensor { name: clip(name) });
    }
    for (name, expected) in &layout.tensors {
        let info = tensors.get(name).ok_or_else(|| Refusal::missing(name))?;
        if info.shape() != expected.shape {
            return Err(Refusal::WrongShape {
                name: name.clone(),
                expected: expected.shape.clone(),
                found: info.shape().to_vec(),
            });
        }
        if !matches!(info.dtype(), Dtype::F32 | Dtype::BF16 | Dtype::F16) {
            return Err(Refusal::WrongDtype { name: name.clone(), found: info.dtype() });
        }
    }
    Ok(())
}
