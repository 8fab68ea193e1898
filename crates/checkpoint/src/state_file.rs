//! Files of a validator's own state: a safetensors file of float32 tensors that is bound to what it belongs to, and that
//! holds its own hash.
//!
//! Besides the tensors there are byte tensors whose names begin with `~`: `~format` (kind and version), what the file is
//! bound to, and last in the file `~digest`: the root of the [`ChunkDigests`] of everything before it, in chunks of 1 MiB.

use std::{
    collections::BTreeMap,
    io::{self, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use rayon::prelude::*;
use serde_json::json;
use tempfile::NamedTempFile;

use crate::{
    checkpoint::{Checkpoint, Format, Limits, open},
    dtype::{Dtype, decode_into, encode_into},
    finite::first_non_finite,
    refusal::{Refusal, clip},
    tensor::TensorSpec,
    vector::ChunkDigests,
};

/// A state file that cannot be used or written.
#[derive(Debug, thiserror::Error)]
pub enum StateFileError {
    #[error("cannot write {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Read(#[from] Refusal),
    #[error("{} is no {kind} file", path.display())]
    Kind { path: PathBuf, kind: &'static str },
    #[error("a {kind} file of version {found}, understood is {expected}")]
    Version { kind: &'static str, found: u32, expected: u32 },
    #[error("{} is not what was written: its hash differs", path.display())]
    Digest { path: PathBuf },
    #[error("the state has no tensor {name} of shape {shape:?}")]
    Missing { name: String, shape: Vec<usize> },
    #[error("the state has a tensor {name} that does not belong to it")]
    Foreign { name: String },
    #[error("{name}[{index}] of the state is {value}")]
    NonFinite { name: String, index: usize, value: &'static str },
    #[error("{written} elements of {expected} were written")]
    Incomplete { written: u64, expected: u64 },
}

/// Bytes that have a digest of their own.
const CHUNK: usize = 1 << 20;
const FORMAT: &str = "~format";
const DIGEST: &str = "~digest";
const DIGEST_LEN: usize = 32;

/// A state file while it is read: mapped, checked once when it is opened.
pub(crate) struct StateFile {
    file: Checkpoint,
}

impl StateFile {
    /// Whether the file at `path` has a format of its own, which files before this module did not.
    pub(crate) fn is_one(file: &Checkpoint) -> bool {
        file.tensors().contains_key(FORMAT)
    }

    pub(crate) fn open(
        path: &Path,
        kind: &'static str,
        version: u32,
    ) -> Result<Self, StateFileError> {
        Self::check(open(path, limits())?, path, kind, version)
    }

    /// Checks an opened file: kind, version, hash, and that every value is finite.
    pub(crate) fn check(
        file: Checkpoint,
        path: &Path,
        kind: &'static str,
        version: u32,
    ) -> Result<Self, StateFileError> {
        let other = || StateFileError::Kind { path: path.to_owned(), kind };
        let state = Self { file };
        let format = state.tail(FORMAT).ok_or_else(other)?;
        let text = std::str::from_utf8(format).map_err(|_| other())?;
        let (found_kind, found) = text.rsplit_once('.').ok_or_else(other)?;
        let found: u32 = found.parse().map_err(|_| other())?;
        if found_kind != kind {
            return Err(other());
        }
        if found != version {
            return Err(StateFileError::Version { kind, found, expected: version });
        }
        let file = &state.file;
        let digest = file.tensors().get(DIGEST).ok_or_else(other)?;
        let (hashed, last) = file.raw().split_at(digest.start().min(file.raw().len()));
        let root = ChunkDigests::of(CHUNK, hashed).map(|list| list.root());
        if file.format() != Format::Safetensors || root.ok().is_none_or(|root| root != last) {
            return Err(StateFileError::Digest { path: path.to_owned() });
        }
        state.finite()?;
        Ok(state)
    }

    /// Exactly these tensors, no more and no less.
    pub(crate) fn expect<'a>(
        &self,
        tensors: impl IntoIterator<Item = (&'a str, &'a [usize])>,
    ) -> Result<(), StateFileError> {
        let mut count = 0;
        for (name, shape) in tensors {
            count += 1;
            let found = self.file.tensors().get(name);
            if found.is_none_or(|t| t.dtype() != Dtype::F32 || t.shape() != shape) {
                let (name, shape) = (clip(name), shape.to_vec());
                return Err(StateFileError::Missing { name, shape });
            }
        }
        let own = self.file.tensors().keys().filter(|name| !name.starts_with('~'));
        match own.clone().nth(count) {
            Some(name) => Err(StateFileError::Foreign { name: clip(name) }),
            None => Ok(()),
        }
    }

    /// What the file is bound to under this name.
    pub(crate) fn bound(&self, name: &str) -> Option<&[u8]> {
        self.tail(&format!("~{name}"))
    }

    pub(crate) fn file(&self) -> &Checkpoint {
        &self.file
    }

    /// Fills `out` with a tensor's elements from `start`.
    pub(crate) fn read(&self, name: &str, start: usize, out: &mut [f32]) -> Result<(), Refusal> {
        let bytes = self.file.part(name, start..start.saturating_add(out.len()))?;
        decode_into(Dtype::F32, &bytes, out);
        Ok(())
    }

    fn tail(&self, name: &str) -> Option<&[u8]> {
        let info = self.file.tensors().get(name).filter(|info| info.dtype() == Dtype::U8)?;
        self.file.raw().get(info.start()..info.start().checked_add(info.bytes())?)
    }

    fn finite(&self) -> Result<(), StateFileError> {
        for (name, info) in self.file.tensors() {
            let (elements, step) = (info.spec().elements(), CHUNK / info.dtype().size());
            (0..elements.div_ceil(step)).into_par_iter().try_for_each(|nth| {
                let start = nth * step;
                let bytes = self.file.part(name, start..elements.min(start + step))?;
                match first_non_finite(info.dtype(), &bytes) {
                    None => Ok(()),
                    Some((index, value)) => {
                        let (name, index) = (clip(name), start + index);
                        Err(StateFileError::NonFinite { name, index, value })
                    }
                }
            })?;
        }
        Ok(())
    }
}

/// A validator's own file: as large as its model, whatever that is.
pub(crate) fn limits() -> Limits {
    Limits { max_tensors: 1 << 20, max_header_bytes: 256 << 20, ..Limits::trusted() }
}

/// A state file while it is written, under another name until it is complete.
pub(crate) struct StateWriter {
    path: PathBuf,
    file: NamedTempFile,
    specs: BTreeMap<String, TensorSpec>,
    /// Where each tensor's data begin in the file.
    starts: BTreeMap<String, u64>,
    digest: u64,
    /// Elements of the tensors, so far and in all.
    written: u64,
    expected: u64,
}

impl StateWriter {
    /// `bound` are names and lengths in bytes of what [`StateWriter::bind`] will write.
    pub(crate) fn create(
        path: &Path,
        kind: &str,
        version: u32,
        tensors: impl IntoIterator<Item = (String, Vec<usize>)>,
        bound: &[(&str, usize)],
    ) -> Result<Self, StateFileError> {
        let format = format!("{kind}.{version}");
        let bytes =
            |name: String, len: usize| (name, TensorSpec { dtype: Dtype::U8, shape: vec![len] });
        let own = tensors
            .into_iter()
            .map(|(name, shape)| (name, TensorSpec { dtype: Dtype::F32, shape }));
        let tail = bound.iter().map(|(name, len)| bytes(format!("~{name}"), *len));
        let all: Vec<_> = own
            .chain([bytes(FORMAT.to_owned(), format.len())])
            .chain(tail)
            .chain([bytes(DIGEST.to_owned(), DIGEST_LEN)])
            .collect();
        let (mut header, mut starts, mut at) = (serde_json::Map::new(), BTreeMap::new(), 0);
        for (name, spec) in &all {
            let end = at + spec.bytes() as u64;
            let entry =
                json!({ "dtype": spec.dtype, "shape": spec.shape, "data_offsets": [at, end] });
            header.insert(name.clone(), entry);
            starts.insert(name.clone(), at);
            at = end;
        }
        let mut header = serde_json::Value::Object(header).to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        let data = 8 + header.len() as u64;
        starts.values_mut().for_each(|start| *start += data);
        let specs: BTreeMap<_, _> = all.into_iter().collect();
        let expected =
            specs.values().filter(|s| s.dtype == Dtype::F32).map(|s| s.elements() as u64).sum();
        let error = |source| StateFileError::Io { path: path.to_owned(), source };
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut file =
            tempfile::Builder::new().prefix(".writing-").tempfile_in(folder).map_err(error)?;
        file.as_file().set_len(data + at).map_err(error)?;
        file.write_all(&(header.len() as u64).to_le_bytes()).map_err(error)?;
        file.write_all(&header).map_err(error)?;
        let digest = data + at - DIGEST_LEN as u64;
        let path = path.to_owned();
        let mut writer = Self { path, file, specs, starts, digest, written: 0, expected };
        writer.put(FORMAT, 0, format.as_bytes())?;
        Ok(writer)
    }

    /// Writes a tensor's elements from `start`; each must be written once.
    pub(crate) fn write(
        &mut self,
        name: &str,
        start: usize,
        values: &[f32],
    ) -> Result<(), StateFileError> {
        let end = start.saturating_add(values.len());
        let spec = self.specs.get(name).filter(|s| s.dtype == Dtype::F32 && end <= s.elements());
        if spec.is_none() {
            let (name, shape) = (clip(name), vec![end]);
            return Err(StateFileError::Missing { name, shape });
        }
        let mut bytes = vec![0; 4 * values.len().min(CHUNK / 4)];
        for (nth, part) in values.chunks(CHUNK / 4).enumerate() {
            let bytes = &mut bytes[..4 * part.len()];
            encode_into(Dtype::F32, part, bytes);
            self.put(name, 4 * (start + nth * (CHUNK / 4)) as u64, bytes)?;
        }
        self.written += values.len() as u64;
        Ok(())
    }

    /// Writes what the file is bound to.
    pub(crate) fn bind(&mut self, name: &str, bytes: &[u8]) -> Result<(), StateFileError> {
        self.put(&format!("~{name}"), 0, bytes)
    }

    fn put(&mut self, name: &str, offset: u64, bytes: &[u8]) -> Result<(), StateFileError> {
        let start = self.starts.get(name).copied().unwrap_or_default() + offset;
        let written =
            self.file.seek(SeekFrom::Start(start)).and_then(|_| self.file.write_all(bytes));
        written.map_err(|source| StateFileError::Io { path: self.path.clone(), source })
    }

    /// Hashes the file and makes it visible, replacing one of the same name.
    pub(crate) fn finish(mut self) -> Result<(), StateFileError> {
        if self.written != self.expected {
            let Self { written, expected, .. } = self;
            return Err(StateFileError::Incomplete { written, expected });
        }
        let error = |source| StateFileError::Io { path: self.path.clone(), source };
        let map = crate::map::Bytes::map(self.file.reopen().map_err(error)?).map_err(error)?;
        let root = ChunkDigests::of(CHUNK, &map[..self.digest as usize]);
        let root = root.map(|list| list.root()).unwrap_or_default();
        drop(map);
        self.put(DIGEST, 0, &root)?;
        let error = |source| StateFileError::Io { path: self.path.clone(), source };
        self.file.as_file().sync_all().map_err(error)?;
        crate::write::readable(self.file.as_file()).map_err(error)?;
        let path = self.path.clone();
        let persisted = self.file.persist(&self.path);
        persisted.map_err(|e| StateFileError::Io { path, source: e.error })?;
        Ok(())
    }
}
