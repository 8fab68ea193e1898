//! An opened model file: tensors by name over mapped bytes.

use std::{
    borrow::Cow, collections::BTreeMap, fmt, fs::File, ops::Range, path::Path, str::FromStr,
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::{
    map::Bytes,
    read,
    refusal::{Flaw, Refusal},
    source::TensorSource,
    tensor::{TensorInfo, TensorSpec},
};

/// The two kinds of model file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    Safetensors,
    Pt,
}

impl Format {
    /// The file name's extension, without the dot.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Safetensors => "safetensors",
            Self::Pt => "pt",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.extension())
    }
}

impl FromStr for Format {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let all = [Self::Safetensors, Self::Pt];
        all.into_iter().find(|f| f.extension() == text).ok_or("a format is `safetensors` or `pt`")
    }
}

/// What a reader accepts at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Size of the file.
    pub max_file_bytes: u64,
    /// Size of a safetensors header, of a pickle, of a zip directory: what is parsed, so what costs memory and time.
    pub max_header_bytes: u64,
    pub max_tensors: usize,
}

impl Default for Limits {
    /// What miners send: 8 GiB, as the gateway takes them.
    fn default() -> Self {
        Self { max_file_bytes: 8 << 30, max_header_bytes: 16 << 20, max_tensors: 50_000 }
    }
}

impl Limits {
    /// Files that this validator made or its operator chose: of any size.
    pub fn trusted() -> Self {
        Self { max_file_bytes: u64::MAX, ..Self::default() }
    }
}

/// An opened checkpoint; cheap to clone. Opening checks that every tensor lies inside the file, not what it holds.
#[derive(Clone)]
pub struct Checkpoint {
    bytes: Arc<Bytes>,
    format: Format,
    tensors: Arc<BTreeMap<String, TensorInfo>>,
    specs: Arc<BTreeMap<String, TensorSpec>>,
}

/// Opens a model file, telling the format by its content and never by its name. Nothing of it is executed; memory
/// and time are bounded by `limits`. The file must not be truncated while the checkpoint lives.
pub fn open(path: &Path, limits: Limits) -> Result<Checkpoint, Refusal> {
    let unreadable = |e: std::io::Error| Refusal::unreadable(path, e);
    let file = File::open(path).map_err(unreadable)?;
    let meta = file.metadata().map_err(unreadable)?;
    if !meta.is_file() {
        return Err(Refusal::unreadable(path, "not a file"));
    }
    // An empty file cannot be mapped, and one beyond the limit need not be.
    check_size(meta.len(), limits)?;
    Checkpoint::read(Bytes::map(file).map_err(unreadable)?, limits)
}

/// Refuses an empty file and one beyond the limit.
pub(crate) fn check_size(len: u64, limits: Limits) -> Result<(), Refusal> {
    if len == 0 {
        return Err(Flaw::EmptyFile.with("0 bytes"));
    }
    if len > limits.max_file_bytes {
        let detail = format!("{len} bytes, the limit is {}", limits.max_file_bytes);
        return Err(Flaw::FileTooLarge.with(detail));
    }
    Ok(())
}

impl Checkpoint {
    /// As [`open`], from memory.
    pub fn from_bytes(bytes: Vec<u8>, limits: Limits) -> Result<Self, Refusal> {
        check_size(bytes.len() as u64, limits)?;
        Self::read(Bytes::Owned(bytes), limits)
    }

    fn read(bytes: Bytes, limits: Limits) -> Result<Self, Refusal> {
        let (format, tensors) = read::tensors(&bytes, limits)?;
        let specs = tensors.iter().map(|(name, info)| (name.clone(), info.spec().clone()));
        let specs = Arc::new(specs.collect());
        Ok(Self { bytes: Arc::new(bytes), format, tensors: Arc::new(tensors), specs })
    }

    /// Which of the two formats the file is in.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Size of the file in bytes.
    #[expect(clippy::len_without_is_empty, reason = "an empty file is never opened")]
    pub fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Every tensor, in ascending order of name.
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// A tensor's elements: little-endian, row-major, contiguous. `missing_tensor` when there is none.
    pub fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, Refusal> {
        let info = self.tensors.get(name).ok_or_else(|| Refusal::missing(name))?;
        info.read(&self.bytes).ok_or_else(|| Flaw::OutOfStorage.with(name))
    }

    /// As [`Checkpoint::bytes`], elements `range` of it; the rest of the file is not touched. `out_of_storage` when
    /// the tensor does not have them.
    pub fn part(&self, name: &str, range: Range<usize>) -> Result<Cow<'_, [u8]>, Refusal> {
        let info = self.tensors.get(name).ok_or_else(|| Refusal::missing(name))?;
        info.read_part(&self.bytes, range).ok_or_else(|| Flaw::OutOfStorage.with(name))
    }

    /// The whole file.
    pub(crate) fn raw(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether the file is still as long and as old as when it was opened; what differs where it is not.
    pub(crate) fn unchanged(&self) -> Result<(), String> {
        self.bytes.unchanged()
    }

    /// A tensor's elements as float32. `wrong_dtype` when they are not floats.
    pub fn to_f32(&self, name: &str) -> Result<Vec<f32>, Refusal> {
        TensorSource::to_f32(self, name)
    }
}

impl TensorSource for Checkpoint {
    fn specs(&self) -> &BTreeMap<String, TensorSpec> {
        &self.specs
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, Refusal> {
        Checkpoint::bytes(self, name)
    }

    fn part(&self, name: &str, range: Range<usize>) -> Result<Cow<'_, [u8]>, Refusal> {
        Checkpoint::part(self, name, range)
    }
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkpoint")
            .field("format", &self.format)
            .field("bytes", &self.bytes.len())
            .field("tensors", &self.tensors.len())
            .finish()
    }
}
