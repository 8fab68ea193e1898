//! Looks at a checkpoint as the gateway will, as far as that needs no base model.

use std::path::Path;

use checkpoint::{Format, Limits, Refusal, SliceLayout, TensorSource as _, open, verify};
use domain::ModelHash;

/// A checkpoint that nothing is wrong with by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checked {
    /// What has to be committed on chain.
    pub model_hash: ModelHash,
    /// Which of the two formats it is in.
    pub format: Format,
    /// How many tensors it has.
    pub tensors: usize,
    /// Length of the file.
    pub bytes: u64,
}

/// Reads the whole file: it must be readable, of floats that are finite everywhere, and of the hash that is
/// `expected`. Takes as long as hashing does: not for an async thread.
///
/// # Errors
///
/// With the reason that the gateway would give. Names and shapes are not looked at: only the base model knows them.
pub fn check(path: &Path, expected: Option<&ModelHash>) -> Result<Checked, Refusal> {
    let file = open(path, Limits::default())?;
    let layout = SliceLayout { tensors: file.specs().clone(), ..SliceLayout::default() };
    let verified = verify(&file, &layout, expected)?;
    Ok(Checked {
        model_hash: verified.model_hash,
        format: file.format(),
        tensors: verified.tensors,
        bytes: file.len(),
    })
}
