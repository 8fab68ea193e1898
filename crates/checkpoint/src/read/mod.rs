//! The readers: from bytes of unknown origin to a table of tensors, or a refusal with a name.

mod pickle;
mod pt;
mod safetensors;
mod zip;

use std::collections::BTreeMap;

use crate::{
    checkpoint::{Format, Limits},
    refusal::{Flaw, Refusal},
    tensor::TensorInfo,
};

type Tensors = BTreeMap<String, TensorInfo>;

/// Tells the format by its first bytes and reads the table of tensors.
pub(crate) fn tensors(file: &[u8], limits: Limits) -> Result<(Format, Tensors), Refusal> {
    let (format, tensors) = if file.starts_with(b"PK\x03\x04") {
        (Format::Pt, pt::tensors(file, limits)?)
    } else if file.get(8) == Some(&b'{') {
        (Format::Safetensors, safetensors::tensors(file, limits)?)
    } else {
        return Err(Flaw::NotACheckpoint.with("neither a zip archive nor a safetensors header"));
    };
    if tensors.is_empty() {
        return Err(Flaw::NoTensors.with("a checkpoint without tensors"));
    }
    // Many views of one storage cost nothing in the file and much when they are read.
    let total = tensors.values().fold(0usize, |sum, t| sum.saturating_add(t.bytes()));
    if total > file.len().saturating_mul(MAX_EXPANSION) {
        return Err(Flaw::StorageBomb.with(format!("{total} bytes of tensors in {}", file.len())));
    }
    Ok((format, tensors))
}

/// Tied weights share a storage; nobody honest shares one more often than this.
const MAX_EXPANSION: usize = 4;
