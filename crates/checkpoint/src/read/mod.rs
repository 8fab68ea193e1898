//! The readers: from bytes of unknown origin to a table of tensors, or a refusal with a name.

mod pickle;
mod pickle_end;
pub(crate) mod pt;
pub(crate) mod safetensors;
pub(crate) mod walk;
mod zip;

use std::collections::BTreeMap;

use crate::{
    checkpoint::{Format, Limits},
    refusal::{Flaw, Refusal},
    tensor::TensorInfo,
};

/// Every tensor by name, with its place in the file.
pub(crate) type Tensors = BTreeMap<String, TensorInfo>;

/// Tells the format by its first bytes and reads the table of tensors.
pub(crate) fn tensors(file: &[u8], limits: Limits) -> Result<(Format, Tensors), Refusal> {
    let format = format(file)?;
    let tensors = match format {
        Format::Pt => pt::tensors(file, limits)?,
        Format::Safetensors => safetensors::tensors(file, limits)?,
    };
    if tensors.is_empty() {
        return Err(no_tensors());
    }
    // Many views of one storage cost nothing in the file and much when they are read.
    let total = tensors.values().fold(0usize, |sum, t| sum.saturating_add(t.bytes()));
    if total > file.len().saturating_mul(MAX_EXPANSION) {
        return Err(Flaw::StorageBomb.with(format!("{total} bytes of tensors in {}", file.len())));
    }
    Ok((format, tensors))
}

/// So many bytes tell the format.
pub(crate) const MAGIC_LEN: usize = 9;

/// The format of a file by its first [`MAGIC_LEN`] bytes, or all of a shorter one.
pub(crate) fn format(start: &[u8]) -> Result<Format, Refusal> {
    if start.starts_with(b"PK\x03\x04") {
        Ok(Format::Pt)
    } else if start.get(MAGIC_LEN - 1) == Some(&b'{') {
        Ok(Format::Safetensors)
    } else {
        Err(Flaw::NotACheckpoint.with("neither a zip archive nor a safetensors header"))
    }
}

pub(crate) fn no_tensors() -> Refusal {
    Flaw::NoTensors.with("a checkpoint without tensors")
}

/// Tied weights share a storage; nobody honest shares one more often than this.
const MAX_EXPANSION: usize = 4;
