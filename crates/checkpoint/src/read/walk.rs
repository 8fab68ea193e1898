//! A zip archive read from front to back, as its bytes arrive: what its local headers say.
//!
//! A zip archive can be read from both ends, and a malicious one reads differently from each. An archive that is
//! accepted here has one reading: its entries lie end to end from its first byte to its directory, and
//! [`super::zip`], which reads the directory, must find the same ones.
//!
//! torch leaves sizes out of its local headers and writes them behind the data. They are then known from the pickle,
//! which ends by itself and says how large each storage is; other entries are small, and searched for their end.

use std::collections::BTreeMap;

use super::{
    pickle_end::PickleEnd,
    zip::{DIRECTORY, LOCAL, LOCAL_LEN, number, read_zip64, slice},
};
use crate::refusal::{Flaw, Refusal, clip};

const DESCRIPTOR: &[u8] = b"PK\x07\x08";
/// Mark, checksum and two sizes of 32 or 64 bits.
const DESCRIPTOR_LEN: usize = 16;
const DESCRIPTOR64_LEN: usize = 24;
/// An entry whose size is told only behind it, and by no pickle, is at most this large: torch's are tens of bytes.
const MAX_SEARCHED: usize = 4096;
/// What may follow the directory: the end records, the last of them with a comment.
const END_RECORDS: u64 = 56 + 20 + 22 + u16::MAX as u64;

/// What the archive consists of, in the order of the file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event<'p> {
    /// An entry begins: see [`Walk::entry`].
    Entry,
    /// The next part of its data; left out where its end has to be searched for.
    Data(&'p [u8]),
    /// The entry ends: see [`Walk::end`].
    End,
    /// The directory begins; nothing follows.
    Directory,
}

/// An entry as its local header tells of it.
#[derive(Debug, Default)]
pub(crate) struct Entry {
    pub(crate) name: String,
    /// Where in the file its header begins.
    pub(crate) header: u64,
    /// Where in the file its data begin.
    pub(crate) start: u64,
    /// Size of its data where it is known before they come.
    pub(crate) size: Option<u64>,
    /// Its sizes follow its data.
    described: bool,
}

/// Sizes in bytes of the storages that a pickle mentions, by key.
pub(crate) type StorageSizes = BTreeMap<String, u64>;

/// The folder of an archive whose pickle this is.
pub(crate) fn pickle_folder(name: &str) -> Option<&str> {
    name.strip_suffix("/data.pkl").filter(|folder| !folder.contains('/'))
}

#[derive(Debug)]
enum State {
    Header,
    Names,
    Data(u64),
    Pickle(PickleEnd),
    Search,
    Descriptor,
    Directory,
}

#[derive(Debug)]
pub(crate) struct Walk {
    state: State,
    /// Bytes taken so far.
    at: u64,
    /// What is gathered of a header; at most the longest header with its name, or [`MAX_SEARCHED`].
    buffer: Vec<u8>,
    entry: Entry,
    /// Where the current or last entry's data end.
    end: u64,
    folder: Option<String>,
    storages: StorageSizes,
    directory: u64,
    max_tail: u64,
}

impl Walk {
    /// From the archive's first byte. `max_directory` limits what follows the last entry.
    pub(crate) fn new(max_directory: u64) -> Self {
        Self {
            state: State::Header,
            at: 0,
            buffer: Vec::new(),
            entry: Entry::default(),
            end: 0,
            folder: None,
            storages: StorageSizes::new(),
            directory: 0,
            max_tail: max_directory.saturating_add(END_RECORDS),
        }
    }

    /// What the pickle in this folder says. Told when the pickle ends and not before: what it says of the entries
    /// before it would come too late for a stream.
    pub(crate) fn learn(&mut self, folder: &str, storages: StorageSizes) {
        self.folder = Some(folder.to_owned());
        self.storages = storages;
    }

    /// The current or last entry.
    pub(crate) fn entry(&self) -> &Entry {
        &self.entry
    }

    /// Where in the file the last entry's data end.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// Where in the file the directory begins; `truncated` when it has not been reached.
    pub(crate) fn directory(&self) -> Result<u64, Refusal> {
        match self.state {
            State::Directory => Ok(self.directory),
            State::Header
            | State::Names
            | State::Data(_)
            | State::Pickle(_)
            | State::Search
            | State::Descriptor => Err(Flaw::Truncated.with("a zip archive without its directory")),
        }
    }

    /// Takes bytes from `piece` up to the next event. `None` when all were taken and it needs more.
    pub(crate) fn next<'p>(&mut self, piece: &mut &'p [u8]) -> Result<Option<Event<'p>>, Refusal> {
        loop {
            match &mut self.state {
                State::Header => {
                    if !self.gather(piece, 4) {
                        return Ok(None);
                    }
                    if self.buffer.starts_with(DIRECTORY) {
                        self.directory = self.at - 4;
                        self.state = State::Directory;
                        return Ok(Some(Event::Directory));
                    }
                    if !self.buffer.starts_with(LOCAL) {
                        return Err(Flaw::BadArchive.with("bytes between its entries"));
                    }
                    if !self.gather(piece, LOCAL_LEN) {
                        return Ok(None);
                    }
                    self.state = State::Names;
                }
                State::Names => {
                    let lengths = number(&self.buffer, 26, 2)? + number(&self.buffer, 28, 2)?;
                    if !self.gather(piece, LOCAL_LEN + lengths as usize) {
                        return Ok(None);
                    }
                    self.begin()?;
                    return Ok(Some(Event::Entry));
                }
                State::Data(0) => {
                    self.end = self.at;
                    self.state =
                        if self.entry.described { State::Descriptor } else { State::Header };
                    return Ok(Some(Event::End));
                }
                State::Data(left) => {
                    let most = usize::try_from(*left).unwrap_or(usize::MAX);
                    let (data, rest) = piece.split_at(most.min(piece.len()));
                    *left -= data.len() as u64;
                    self.at += data.len() as u64;
                    *piece = rest;
                    return Ok((!data.is_empty()).then_some(Event::Data(data)));
                }
                State::Pickle(finder) => {
                    let (taken, ended) = finder.feed(piece);
                    let (data, rest) = piece.split_at(taken);
                    self.at += taken as u64;
                    *piece = rest;
                    if ended {
                        self.state = State::Data(0);
                    }
                    return Ok((!data.is_empty()).then_some(Event::Data(data)));
                }
                State::Search => {
                    if self.search(piece)? {
                        return Ok(Some(Event::End));
                    }
                    return Ok(None);
                }
                State::Descriptor => {
                    if !self.descriptor(piece)? {
                        return Ok(None);
                    }
                    self.state = State::Header;
                }
                State::Directory => {
                    self.at += piece.len() as u64;
                    *piece = &[];
                    if self.at - self.directory > self.max_tail {
                        let detail = format!("a directory of more than {} bytes", self.max_tail);
                        return Err(Flaw::HeaderTooLarge.with(detail));
                    }
                    return Ok(None);
                }
            }
        }
    }

    /// Fills the buffer up to `len` bytes; false when the piece was too short for it.
    fn gather(&mut self, piece: &mut &[u8], len: usize) -> bool {
        let missing = len.saturating_sub(self.buffer.len());
        let (taken, rest) = piece.split_at(missing.min(piece.len()));
        self.buffer.extend_from_slice(taken);
        self.at += taken.len() as u64;
        *piece = rest;
        self.buffer.len() >= len
    }

    /// The buffer holds a whole local header.
    fn begin(&mut self) -> Result<(), Refusal> {
        let header = std::mem::take(&mut self.buffer);
        let name_len = number(&header, 26, 2)? as usize;
        let extra_len = number(&header, 28, 2)? as usize;
        let name = std::str::from_utf8(slice(&header, LOCAL_LEN, name_len)?)
            .map_err(|_| Flaw::BadArchive.with("a name that is not UTF-8"))?;
        let (flags, method) = (number(&header, 6, 2)?, number(&header, 8, 2)?);
        if flags & 1 != 0 {
            return Err(Flaw::EncryptedEntry.with(name));
        }
        if method != 0 {
            return Err(Flaw::CompressedEntry.with(name));
        }
        let described = flags & (1 << 3) != 0;
        let mut size = None;
        if !described {
            let mut fields = [number(&header, 22, 4)?, number(&header, 18, 4)?, 0];
            read_zip64(slice(&header, LOCAL_LEN + name_len, extra_len)?, &mut fields)?;
            let [plain, compressed, _] = fields;
            if plain != compressed {
                return Err(Flaw::CompressedEntry.with(name));
            }
            size = Some(plain);
        } else if let Some(bytes) = self.storage_size(name) {
            size = Some(bytes);
        }
        self.state = match size {
            Some(bytes) => State::Data(bytes),
            None if pickle_folder(name).is_some() => State::Pickle(PickleEnd::default()),
            None => State::Search,
        };
        self.entry = Entry {
            name: name.to_owned(),
            header: self.at - header.len() as u64,
            start: self.at,
            size,
            described,
        };
        Ok(())
    }

    /// Size of a storage's data by what the pickle said.
    fn storage_size(&self, name: &str) -> Option<u64> {
        let key = name.strip_prefix(self.folder.as_deref()?)?.strip_prefix("/data/")?;
        self.storages.get(key).copied()
    }

    /// Looks for the first place where a descriptor tells the number of bytes before it and a header follows.
    fn search(&mut self, piece: &mut &[u8]) -> Result<bool, Refusal> {
        while let Some((byte, rest)) = piece.split_first() {
            self.buffer.push(*byte);
            self.at += 1;
            *piece = rest;
            if let Some(size) = searched(&self.buffer) {
                self.end = self.entry.start + size as u64;
                // The next header's mark was read with it.
                self.buffer.drain(..self.buffer.len() - 4);
                self.state = State::Header;
                return Ok(true);
            }
            if self.buffer.len() > MAX_SEARCHED + DESCRIPTOR64_LEN + 4 {
                let detail = format!("{}: its size is told behind it", clip(&self.entry.name));
                return Err(Flaw::BadArchive.with(detail));
            }
        }
        Ok(false)
    }

    /// Reads the descriptor behind data of known size. False when the piece was too short.
    fn descriptor(&mut self, piece: &mut &[u8]) -> Result<bool, Refusal> {
        let size = self.end - self.entry.start;
        if !self.gather(piece, DESCRIPTOR_LEN) {
            return Ok(false);
        }
        let mut len = DESCRIPTOR_LEN;
        if size == 0 {
            // Both forms begin with the same zeros; only a header's mark can follow the short one.
            if !self.gather(piece, DESCRIPTOR_LEN + 4) {
                return Ok(false);
            }
            if !is_header(slice(&self.buffer, DESCRIPTOR_LEN, 4)?) {
                len = DESCRIPTOR64_LEN;
            }
        } else if number(&self.buffer, 12, 4)? != size {
            len = DESCRIPTOR64_LEN;
        }
        if !self.gather(piece, len) {
            return Ok(false);
        }
        if !describes(slice(&self.buffer, 0, len)?, size) {
            let detail = format!("{}: another size behind its data", clip(&self.entry.name));
            return Err(Flaw::BadArchive.with(detail));
        }
        self.buffer.drain(..len);
        Ok(true)
    }
}

fn is_header(mark: &[u8]) -> bool {
    mark == LOCAL || mark == DIRECTORY
}

/// Whether these are a whole descriptor, of 32 or 64 bits, of so many bytes.
fn describes(descriptor: &[u8], size: u64) -> bool {
    let width = (descriptor.len() - 8) / 2;
    descriptor.starts_with(DESCRIPTOR)
        && number(descriptor, 8, width) == Ok(size)
        && number(descriptor, 8 + width, width) == Ok(size)
}

/// Size of an entry when it, its descriptor and the next header's mark are exactly these bytes.
fn searched(bytes: &[u8]) -> Option<usize> {
    let (before, mark) = bytes.split_at_checked(bytes.len().checked_sub(4)?)?;
    if !is_header(mark) {
        return None;
    }
    [DESCRIPTOR_LEN, DESCRIPTOR64_LEN].into_iter().find_map(|len| {
        let (data, descriptor) = before.split_at_checked(before.len().checked_sub(len)?)?;
        describes(descriptor, data.len() as u64).then_some(data.len())
    })
}
