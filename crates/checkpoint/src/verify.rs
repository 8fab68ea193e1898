//! Decides whether a miner's file can be evaluated: the right tensors, the committed hash, finite everywhere.

use std::collections::BTreeMap;

use domain::ModelHash;

use crate::{
    checkpoint::Checkpoint,
    dtype::Dtype,
    finite::first_non_finite,
    hash::ModelHasher,
    layout::SliceLayout,
    refusal::{Refusal, clip},
    source::TensorSource as _,
    tensor::TensorSpec,
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
    check_structure(checkpoint.specs(), layout)?;
    let mut hasher = ModelHasher::default();
    let mut bytes = 0;
    let mut bad = None;
    for (name, info) in checkpoint.tensors() {
        hasher.name(name);
        bytes += info.bytes() as u64;
        let (elements, step) = (info.spec().elements(), CHUNK / info.dtype().size());
        for start in (0..elements).step_by(step) {
            // Part by part, so that a tensor in another order costs no copy of the whole of it.
            let chunk = checkpoint.part(name, start..elements.min(start + step))?;
            hasher.data(&chunk);
            if bad.is_none() {
                bad = first_non_finite(info.dtype(), &chunk).map(|(index, value)| {
                    let (index, value) = (start + index, value.to_owned());
                    Refusal::NonFinite { name: name.clone(), index, value }
                });
            }
        }
    }
    let model_hash = hasher.finish();
    check_hash(model_hash, committed)?;
    match bad {
        Some(refusal) => Err(refusal),
        None => Ok(Verified { model_hash, tensors: checkpoint.tensors().len(), bytes }),
    }
}

/// The checks that need no tensor's data.
pub(crate) fn check_structure(
    tensors: &BTreeMap<String, TensorSpec>,
    layout: &SliceLayout,
) -> Result<(), Refusal> {
    if let Some(name) = tensors.keys().find(|name| layout.shared.contains(*name)) {
        return Err(Refusal::SharedWeights { name: clip(name) });
    }
    if let Some(name) = tensors.keys().find(|name| !layout.tensors.contains_key(*name)) {
        return Err(Refusal::ForeignTensor { name: clip(name) });
    }
    for (name, expected) in &layout.tensors {
        let found = tensors.get(name).ok_or_else(|| Refusal::missing(name))?;
        if found.shape != expected.shape {
            return Err(Refusal::WrongShape {
                name: name.clone(),
                expected: expected.shape.clone(),
                found: found.shape.clone(),
            });
        }
        if !matches!(found.dtype, Dtype::F32 | Dtype::BF16 | Dtype::F16) {
            return Err(Refusal::WrongDtype { name: name.clone(), found: found.dtype });
        }
    }
    Ok(())
}

/// The refusal of a file that was not the one committed to.
pub(crate) fn check_hash(found: ModelHash, committed: Option<&ModelHash>) -> Result<(), Refusal> {
    match committed {
        Some(expected) if *expected != found => {
            Err(Refusal::HashMismatch { expected: *expected, found })
        }
        _ => Ok(()),
    }
}
