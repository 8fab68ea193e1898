//! Verifies a submission while it arrives: one pass over the bytes, and memory that does not grow with the file.
//! See [`Stream`].

mod archive;
mod data;
mod lane;
mod rules;

use std::{collections::BTreeMap, fmt, sync::Arc};

use bytes::Bytes;
use domain::ModelHash;
use sha2::{Digest as _, Sha256};

use self::{
    archive::Archive,
    data::{OrderedHash, Region},
    rules::Rules,
};
use crate::{
    checkpoint::{Checkpoint, Format, Limits, check_size},
    hash::model_hash,
    layout::SliceLayout,
    read::{self, Tensors, no_tensors, safetensors},
    refusal::{Flaw, Refusal},
    source::TensorSource as _,
    tensor::TensorSpec,
    verify::{Verified, check_hash, verify},
};

/// Bytes that are hashed, parsed and scanned in one go, while they are in the cache.
const CHUNK: usize = 64 << 10;

/// A submission that is arriving, fed with pieces of any size.
///
/// It is accepted exactly when [`crate::open()`] and [`crate::verify()`] accept the file, provided that it is as long as
/// announced. Of several flaws the first that passes is named: a value that is not finite before a hash that does not
/// fit, where [`crate::verify()`] names the hash.
///
/// What is refused when:
/// - the announced size: before the first byte;
/// - what is neither format: by the ninth byte;
/// - a safetensors header that is too long: by the ninth byte; a malformed one, and names, shapes and types that are
///   not the layout's, gaps, overlaps, a size that does not fit the announced one: with the header's last byte;
/// - a pickle that is forbidden, malformed or not of the layout: with its last byte; an archive's entry that is
///   compressed, encrypted, comes twice or has not its storage's size: with its local header;
/// - a value that is not finite: with its last byte;
/// - bytes beyond what the header, the announcement or the limit allow: with the first of them;
/// - a hash that is not the committed one, a file that ends too early, an archive's directory that tells another
///   story than the archive: at the end.
///
/// It blocks only for hashing, for which it may start one thread: call it where that is allowed. The thread ends with
/// the stream. After a refusal every call repeats it.
pub struct Stream {
    rules: Rules,
    sha256: Sha256,
    bytes: u64,
    phase: Phase,
    refused: Option<Refusal>,
}

#[derive(Debug)]
enum Phase {
    /// The first bytes, too few to tell the format; then a safetensors header that is not complete.
    Start(Vec<u8>),
    Safetensors(Box<Safetensors>),
    Pt(Box<Archive>),
}

#[derive(Debug)]
struct Safetensors {
    tensors: Tensors,
    specs: BTreeMap<String, TensorSpec>,
    region: Region,
    /// Where the last tensor ends in the file.
    end: u64,
    hash: OrderedHash,
}

/// A submission whose every byte has come. Nothing was found against it.
#[derive(Debug)]
pub struct Streamed {
    /// Of the whole file, 64 lower-case hex digits.
    pub sha256: String,
    /// Size of the file.
    pub bytes: u64,
    pub format: Format,
    /// Every tensor's type and shape.
    pub tensors: BTreeMap<String, TensorSpec>,
    pub outcome: Outcome,
}

/// What is left to do.
#[derive(Debug)]
pub enum Outcome {
    /// Nothing.
    Verified(Verified),
    /// To look at the stored file again.
    NeedsReread(Reread),
}

/// Why one pass was not enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RereadReason {
    /// The directory of a `.pt` archive has to confirm what passed: only the directory and the pickle are read.
    Directory,
    /// The tensors do not lie in ascending order of name: all of them are read for the hash.
    TensorOrder,
    /// Tensors that share bytes, are not contiguous or came before their description: all of them are read, hashed
    /// and looked at.
    Unscanned,
}

impl fmt::Display for RereadReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Directory => "directory",
            Self::TensorOrder => "tensor_order",
            Self::Unscanned => "unscanned",
        })
    }
}

/// What a stream leaves to be confirmed with the stored file.
#[derive(Debug)]
pub struct Reread {
    layout: Arc<SliceLayout>,
    expected: Option<ModelHash>,
    format: Format,
    bytes: u64,
    placed: Tensors,
    scanned: bool,
    model_hash: Option<ModelHash>,
}

impl Reread {
    /// What has to be read, and why.
    pub fn reason(&self) -> RereadReason {
        match (self.scanned, self.model_hash) {
            (false, _) => RereadReason::Unscanned,
            (true, None) => RereadReason::TensorOrder,
            (true, Some(_)) => RereadReason::Directory,
        }
    }

    /// Finishes the verification. `spool` is the stored file of the streamed bytes, opened: what was seen of it while
    /// it passed is not looked at again, provided that it lies where it lay then. Refusals as
    /// [`crate::verify()`].
    pub fn verify(&self, spool: &Checkpoint) -> Result<Verified, Refusal> {
        let same = spool.format() == self.format
            && spool.len() == self.bytes
            && *spool.tensors() == self.placed;
        if !same || !self.scanned {
            return verify(spool, &self.layout, self.expected.as_ref());
        }
        let found = match self.model_hash {
            Some(hash) => hash,
            None => model_hash(spool)?,
        };
        check_hash(found, self.expected.as_ref())?;
        Ok(verified(found, spool.specs()))
    }
}

fn verified(model_hash: ModelHash, specs: &BTreeMap<String, TensorSpec>) -> Verified {
    let bytes = specs.values().map(|spec| spec.bytes() as u64).sum();
    Verified { model_hash, tensors: specs.len(), bytes }
}

impl Stream {
    /// A submission of this slice. `expected` is the hash committed on chain, `announced_bytes` the size that the
    /// sender promised: `empty_file` or `file_too_large` when no such file is taken.
    pub fn new(
        layout: Arc<SliceLayout>,
        limits: Limits,
        expected: Option<ModelHash>,
        announced_bytes: Option<u64>,
    ) -> Result<Self, Refusal> {
        if let Some(bytes) = announced_bytes {
            check_size(bytes, limits)?;
        }
        let rules = Rules { layout, limits, expected, announced: announced_bytes };
        let phase = Phase::Start(Vec::new());
        Ok(Self { rules, sha256: Sha256::new(), bytes: 0, phase, refused: None })
    }

    /// Bytes taken so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next bytes, as many as there are. Refused as early as they allow.
    pub fn push(&mut self, piece: &[u8]) -> Result<(), Refusal> {
        self.take_all(piece, None)
    }

    /// The same, of bytes that the hash beside may keep until it has been there: they are not copied for it.
    pub fn push_shared(&mut self, piece: &Bytes) -> Result<(), Refusal> {
        self.take_all(piece, Some(piece))
    }

    fn take_all(&mut self, piece: &[u8], of: Option<&Bytes>) -> Result<(), Refusal> {
        if let Some(refusal) = &self.refused {
            return Err(refusal.clone());
        }
        let taken = piece.chunks(CHUNK).try_for_each(|chunk| self.take(chunk, of));
        if let Err(refusal) = &taken {
            self.refused = Some(refusal.clone());
            // What was kept of it is of no use: its memory and its thread go now.
            self.phase = Phase::Start(Vec::new());
        }
        match &mut self.phase {
            Phase::Start(_) => {}
            Phase::Safetensors(file) => file.hash.let_go(),
            Phase::Pt(archive) => archive.let_go(),
        }
        taken
    }

    fn take(&mut self, chunk: &[u8], of: Option<&Bytes>) -> Result<(), Refusal> {
        self.bytes = self.bytes.saturating_add(chunk.len() as u64);
        self.rules.check_length(self.bytes)?;
        self.sha256.update(chunk);
        match &mut self.phase {
            Phase::Start(start) => {
                let mut chunk = chunk;
                if let Some(next) = begin(start, &mut chunk, &self.rules)? {
                    self.phase = next;
                    self.parse(chunk, of)?;
                }
                Ok(())
            }
            Phase::Safetensors(_) | Phase::Pt(_) => self.parse(chunk, of),
        }
    }

    fn parse(&mut self, chunk: &[u8], of: Option<&Bytes>) -> Result<(), Refusal> {
        match &mut self.phase {
            Phase::Start(_) => Ok(()),
            Phase::Safetensors(file) => {
                file.region.feed(chunk, of, &mut file.hash)?;
                match self.bytes.checked_sub(file.end) {
                    Some(0) | None => Ok(()),
                    Some(more) => Err(safetensors::trailing(more as usize)),
                }
            }
            Phase::Pt(archive) => archive.feed(chunk, of, &self.rules),
        }
    }

    /// No more bytes come.
    pub fn finish(self) -> Result<Streamed, Refusal> {
        if let Some(refusal) = self.refused {
            return Err(refusal);
        }
        let (format, specs, outcome) = match self.phase {
            Phase::Start(start) => return Err(short(&start)),
            Phase::Safetensors(file) => {
                let Safetensors { tensors, specs, region, end, hash } = *file;
                if !region.is_done() {
                    let detail = format!("{} bytes of {end}", self.bytes);
                    return Err(Flaw::Truncated.with(detail));
                }
                (Format::Safetensors, specs, (tensors, true, hash.finish()))
            }
            Phase::Pt(archive) => {
                let passed = archive.finish()?;
                let hash = if passed.scanned { passed.hash.finish() } else { None };
                (Format::Pt, passed.specs, (passed.placed, passed.scanned, hash))
            }
        };
        self.rules.check_end(self.bytes)?;
        let (placed, scanned, model_hash) = outcome;
        let outcome = match model_hash {
            Some(hash) if format == Format::Safetensors => {
                check_hash(hash, self.rules.expected.as_ref())?;
                Outcome::Verified(verified(hash, &specs))
            }
            model_hash => Outcome::NeedsReread(Reread {
                layout: self.rules.layout,
                expected: self.rules.expected,
                format,
                bytes: self.bytes,
                placed,
                scanned,
                model_hash,
            }),
        };
        let sha256 = hex::encode(self.sha256.finalize());
        Ok(Streamed { sha256, bytes: self.bytes, format, tensors: specs, outcome })
    }
}

/// Takes the first bytes, up to the end of a safetensors header, and tells what follows them.
fn begin(start: &mut Vec<u8>, chunk: &mut &[u8], rules: &Rules) -> Result<Option<Phase>, Refusal> {
    if !gather(start, chunk, read::MAGIC_LEN) {
        return Ok(None);
    }
    if read::format(start)? == Format::Pt {
        let mut archive = Archive::new(rules);
        archive.feed(start, None, rules)?;
        return Ok(Some(Phase::Pt(Box::new(archive))));
    }
    let Some((length, _)) = start.split_first_chunk() else { return Ok(None) };
    let length = safetensors::header_len(*length, rules.limits)?;
    let data_start = safetensors::LENGTH_LEN + length;
    rules.check_room(data_start as u64)?;
    // A header of no bytes leaves the ninth to the data.
    if !gather(start, chunk, data_start) {
        return Ok(None);
    }
    let header = start.get(safetensors::LENGTH_LEN..data_start).unwrap_or_default();
    let most = rules.room().saturating_sub(data_start as u64);
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let (tensors, end) = safetensors::table(header, rules.limits, most)?;
    if tensors.is_empty() {
        return Err(no_tensors());
    }
    if rules.announced.is_some() && end < most {
        return Err(safetensors::trailing(most - end));
    }
    let specs = tensors.iter().map(|(name, info)| (name.clone(), info.spec().clone())).collect();
    rules.check_structure(&specs)?;
    let places = tensors.iter().map(|(name, info)| (name.as_str(), info));
    // Checked by the table: contiguous, and end to end.
    let region = Region::new(data_start, places).ok_or_else(|| Flaw::BadOffsets.with("overlap"))?;
    let hash =
        if in_order(&tensors) { OrderedHash::new(&specs) } else { OrderedHash::out_of_order() };
    let end = (data_start as u64).saturating_add(end as u64);
    let file = Safetensors { tensors, specs, region, end, hash };
    Ok(Some(Phase::Safetensors(Box::new(file))))
}

/// Whether the data lie in ascending order of name, so that they can be hashed as they come.
fn in_order(tensors: &Tensors) -> bool {
    tensors.values().filter(|info| info.bytes() > 0).is_sorted_by_key(|info| info.start())
}

/// Fills `start` up to `len` bytes; false when there were too few.
fn gather(start: &mut Vec<u8>, chunk: &mut &[u8], len: usize) -> bool {
    let (taken, rest) = chunk.split_at(len.saturating_sub(start.len()).min(chunk.len()));
    start.extend_from_slice(taken);
    *chunk = rest;
    start.len() >= len
}

/// The refusal of a file that ended before its format or its header was known.
fn short(start: &[u8]) -> Refusal {
    if start.is_empty() {
        return Flaw::EmptyFile.with("0 bytes");
    }
    match read::format(start) {
        Err(refusal) => refusal,
        Ok(Format::Pt) => Flaw::Truncated.with("a zip archive without its directory"),
        Ok(Format::Safetensors) => safetensors::truncated(start.len()),
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("bytes", &self.bytes)
            .field("refused", &self.refused)
            .finish_non_exhaustive()
    }
}
