//! The writers: tensor by tensor, each file visible whole or not at all.

mod output;
mod pickle;
mod pt;
mod safetensors;
mod zip;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

pub(crate) use self::output::readable;
use crate::{checkpoint::Format, refusal::Refusal, source::TensorSource, tensor::TensorSpec};

/// A written file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileInfo {
    /// Without its folder.
    pub name: String,
    pub bytes: u64,
    /// Of the whole file, 64 lower-case hex digits.
    pub sha256: String,
}

/// A file that could not be written; nothing of it stays.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("cannot write {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("cannot read what is to be written: {0}")]
    Source(#[from] Refusal),
    #[error("a checkpoint without tensors")]
    Empty,
    #[error("tensor {found} where {expected:?} comes next")]
    Order { expected: Option<String>, found: String },
    #[error("{name} has {found} bytes, not {expected}")]
    Size { name: String, expected: usize, found: usize },
}

/// Writes all tensors of a source to a safetensors file.
pub fn write_safetensors(path: &Path, source: &dyn TensorSource) -> Result<FileInfo, WriteError> {
    write(path, Format::Safetensors, source)
}

/// Writes all tensors of a source as `torch.save({"model_state_dict": {name: tensor}}, path)` does, so that
/// `torch.load(path, weights_only=True)` reads them.
pub fn write_pt(path: &Path, source: &dyn TensorSource) -> Result<FileInfo, WriteError> {
    write(path, Format::Pt, source)
}

fn write(path: &Path, format: Format, source: &dyn TensorSource) -> Result<FileInfo, WriteError> {
    let mut writer = Writer::create(path, format, source.specs())?;
    for name in source.specs().keys() {
        writer.write(name, &source.bytes(name)?)?;
    }
    writer.finish()
}

/// Takes tensors in ascending order of name; the file appears with [`Writer::finish`].
pub(crate) struct Writer {
    kind: Kind,
    /// What is still to come, in reverse.
    rest: Vec<(String, usize)>,
}

enum Kind {
    Safetensors(safetensors::Writer),
    Pt(pt::Writer),
}

impl Writer {
    pub(crate) fn create(
        path: &Path,
        format: Format,
        specs: &BTreeMap<String, TensorSpec>,
    ) -> Result<Self, WriteError> {
        if specs.is_empty() {
            return Err(WriteError::Empty);
        }
        let kind = match format {
            Format::Safetensors => Kind::Safetensors(safetensors::Writer::create(path, specs)?),
            Format::Pt => Kind::Pt(pt::Writer::create(path, specs)?),
        };
        let rest = specs.iter().rev().map(|(name, spec)| (name.clone(), spec.bytes())).collect();
        Ok(Self { kind, rest })
    }

    pub(crate) fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), WriteError> {
        match self.rest.pop() {
            Some((next, expected)) if next == name => {
                if bytes.len() != expected {
                    return Err(WriteError::Size { name: next, expected, found: bytes.len() });
                }
            }
            next => {
                let expected = next.map(|(name, _)| name);
                return Err(WriteError::Order { expected, found: name.to_owned() });
            }
        }
        match &mut self.kind {
            Kind::Safetensors(writer) => writer.write(name, bytes),
            Kind::Pt(writer) => writer.write(bytes),
        }
    }

    pub(crate) fn finish(mut self) -> Result<FileInfo, WriteError> {
        if let Some((expected, _)) = self.rest.pop() {
            let found = "the end".to_owned();
            return Err(WriteError::Order { expected: Some(expected), found });
        }
        match self.kind {
            Kind::Safetensors(writer) => writer.finish(),
            Kind::Pt(writer) => writer.finish(),
        }
    }
}
