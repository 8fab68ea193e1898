//! The directory of a zip archive as torch writes it: stored entries only, zip64 where it is large.
//!
//! The archive's own checksums are not looked at: they cost a pass over everything and protect nothing that the
//! model hash does not.

use std::{collections::HashMap, ops::Range};

use super::walk::{Event, StorageSizes, Walk, pickle_folder};
use crate::refusal::{Flaw, Refusal, clip};

/// Name of an entry and the bytes of the file that hold it.
pub(super) type Entries<'a> = HashMap<&'a str, Range<usize>>;

/// What the directory says.
pub(super) struct Archive<'a> {
    pub(super) entries: Entries<'a>,
    /// Where each entry's local header begins, where its data end, and its name; in the order of the file.
    order: Vec<(usize, usize, &'a str)>,
    /// Where the directory begins.
    start: usize,
}

const END: &[u8] = b"PK\x05\x06";
const END_LEN: usize = 22;
const END64: &[u8] = b"PK\x06\x06";
const LOCATOR64: &[u8] = b"PK\x06\x07";
const LOCATOR64_LEN: usize = 20;
pub(super) const DIRECTORY: &[u8] = b"PK\x01\x02";
const DIRECTORY_LEN: usize = 46;
pub(super) const LOCAL: &[u8] = b"PK\x03\x04";
pub(super) const LOCAL_LEN: usize = 30;

/// Reads the directory. Entries are inside the file, stored as they are, named once, and do not overlap.
pub(super) fn archive(file: &[u8], max_directory: u64) -> Result<Archive<'_>, Refusal> {
    let end = find_end(file)?;
    let (count, start, stop) = directory(file, end)?;
    if (stop - start) as u64 > max_directory {
        return Err(Flaw::HeaderTooLarge.with(format!("a directory of {} bytes", stop - start)));
    }
    let mut entries = Entries::new();
    let mut taken = Vec::new();
    let mut at = start;
    for _ in 0..count {
        let header = Header::read(&file[..stop], at)?;
        let (local, data) = header.locate(file)?;
        taken.push((local, data.end, header.name));
        if entries.insert(header.name, data).is_some() {
            return Err(Flaw::DuplicateEntry.with(header.name));
        }
        at = header.next;
    }
    if at != stop {
        return Err(Flaw::BadArchive.with("the directory has another length than its entries"));
    }
    taken.sort_unstable();
    for pair in taken.windows(2) {
        if pair[1].0 < pair[0].1 {
            return Err(Flaw::OverlappingEntries.with(format!("{} and {}", pair[0].2, pair[1].2)));
        }
    }
    if taken.last().is_some_and(|last| last.1 > start) {
        return Err(Flaw::OverlappingEntries.with("an entry reaches into the directory"));
    }
    Ok(Archive { entries, order: taken, start })
}

impl Archive<'_> {
    /// Reads the archive from front to back as well, and refuses it where that finds other entries than the directory
    /// has, other bytes between them or other sizes: `bad_archive`. `storages` is what the pickle in `folder` says.
    pub(super) fn check_front_to_back(
        &self,
        file: &[u8],
        max_directory: u64,
        folder: &str,
        storages: StorageSizes,
    ) -> Result<(), Refusal> {
        let mut walk = Walk::new(max_directory);
        let mut storages = Some(storages);
        let mut order = self.order.iter();
        let mut rest = file;
        while let Some(event) = walk.next(&mut rest)? {
            if event != Event::End {
                continue;
            }
            let entry = walk.entry();
            let other = || Flaw::BadArchive.with(format!("{}: not in the directory", entry.name));
            let (header, end, name) = order.next().ok_or_else(other)?;
            let found = (entry.header, walk.end(), entry.name.as_str());
            if found != (*header as u64, *end as u64, *name) {
                return Err(Flaw::BadArchive.with(format!("{name}: two readings of its place")));
            }
            if pickle_folder(name) == Some(folder) {
                walk.learn(folder, storages.take().unwrap_or_default());
            }
        }
        if walk.directory()? != self.start as u64 {
            return Err(Flaw::BadArchive.with("bytes before the directory"));
        }
        match order.next() {
            Some((_, _, name)) => {
                Err(Flaw::BadArchive.with(format!("{name}: only in the directory")))
            }
            None => Ok(()),
        }
    }
}

/// The end record, which must end the file: another reader cannot find another one.
fn find_end(file: &[u8]) -> Result<usize, Refusal> {
    let none = || Flaw::Truncated.with("a zip archive without its directory");
    let last = file.len().checked_sub(END_LEN).ok_or_else(none)?;
    let first = last.saturating_sub(usize::from(u16::MAX));
    let is_end = |at: &usize| {
        file[*at..].starts_with(END)
            && number(file, *at + 20, 2).is_ok_and(|comment| comment as usize == last - *at)
    };
    (first..=last).rev().find(is_end).ok_or_else(none)
}

/// Number of entries, and where the directory begins and ends.
fn directory(file: &[u8], end: usize) -> Result<(u64, usize, usize), Refusal> {
    let bad = || Flaw::BadArchive.with("the end record does not point at a directory");
    let locator = end.checked_sub(LOCATOR64_LEN).filter(|at| file[*at..].starts_with(LOCATOR64));
    let (count, len, start) = match locator {
        Some(locator) => {
            let at = usize::try_from(number(file, locator + 8, 8)?).map_err(|_| bad())?;
            if !file.get(at..).is_some_and(|rest| rest.starts_with(END64)) {
                return Err(bad());
            }
            (number(file, at + 32, 8)?, number(file, at + 40, 8)?, number(file, at + 48, 8)?)
        }
        None => {
            (number(file, end + 10, 2)?, number(file, end + 12, 4)?, number(file, end + 16, 4)?)
        }
    };
    let start = usize::try_from(start).map_err(|_| bad())?;
    let stop = usize::try_from(len).ok().and_then(|len| start.checked_add(len)).ok_or_else(bad)?;
    if stop > end {
        return Err(bad());
    }
    Ok((count, start, stop))
}

struct Header<'a> {
    name: &'a str,
    size: u64,
    local: u64,
    next: usize,
}

impl<'a> Header<'a> {
    fn read(file: &'a [u8], at: usize) -> Result<Self, Refusal> {
        if !file.get(at..).is_some_and(|rest| rest.starts_with(DIRECTORY)) {
            return Err(Flaw::BadArchive.with("a directory entry without its mark"));
        }
        let word = |offset| number(file, at + offset, 2).map(|n| n as usize);
        let (flags, method) = (word(8)?, word(10)?);
        let (name_len, extra_len, comment_len) = (word(28)?, word(30)?, word(32)?);
        let extra_at = at + DIRECTORY_LEN + name_len;
        let next = extra_at + extra_len + comment_len;
        let name = slice(file, at + DIRECTORY_LEN, name_len)?;
        let name = std::str::from_utf8(name)
            .map_err(|_| Flaw::BadArchive.with("a name that is not UTF-8"))?;
        let mut fields =
            [number(file, at + 24, 4)?, number(file, at + 20, 4)?, number(file, at + 42, 4)?];
        read_zip64(slice(file, extra_at, extra_len)?, &mut fields)?;
        slice(file, at, next - at)?;
        let [size, compressed, local] = fields;
        if flags & 1 != 0 {
            return Err(Flaw::EncryptedEntry.with(name));
        }
        if method != 0 || compressed != size {
            return Err(Flaw::CompressedEntry.with(name));
        }
        Ok(Self { name, size, local, next })
    }

    /// Where the local header begins and where the data lie.
    fn locate(&self, file: &[u8]) -> Result<(usize, Range<usize>), Refusal> {
        let bad = |what: &str| Flaw::BadArchive.with(format!("{}: {what}", clip(self.name)));
        let at = usize::try_from(self.local).map_err(|_| bad("no local header"))?;
        if !file.get(at..).is_some_and(|rest| rest.starts_with(LOCAL)) {
            return Err(bad("no local header"));
        }
        let name_len = number(file, at + 26, 2)? as usize;
        let extra_len = number(file, at + 28, 2)? as usize;
        if slice(file, at + LOCAL_LEN, name_len)? != self.name.as_bytes() {
            return Err(bad("another name in the local header"));
        }
        let start = at + LOCAL_LEN + name_len + extra_len;
        let end = usize::try_from(self.size).ok().and_then(|size| start.checked_add(size));
        match end.filter(|end| *end <= file.len()) {
            Some(end) => Ok((at, start..end)),
            None => Err(Flaw::Truncated.with(self.name)),
        }
    }
}

/// Fields that do not fit 32 bits stand in an extra record, in this order.
pub(super) fn read_zip64(mut extra: &[u8], fields: &mut [u64; 3]) -> Result<(), Refusal> {
    while extra.len() >= 4 {
        let (id, len) = (number(extra, 0, 2)?, number(extra, 2, 2)? as usize);
        let record = slice(extra, 4, len)?;
        if id == 1 {
            let mut at = 0;
            for field in fields.iter_mut().filter(|field| **field == u64::from(u32::MAX)) {
                *field = number(record, at, 8)?;
                at += 8;
            }
            return Ok(());
        }
        extra = &extra[4 + len..];
    }
    Ok(())
}

pub(super) fn slice(file: &[u8], at: usize, len: usize) -> Result<&[u8], Refusal> {
    let end = at.checked_add(len);
    end.and_then(|end| file.get(at..end)).ok_or_else(|| Flaw::Truncated.with("zip directory"))
}

/// A little-endian number of `len` bytes, at most 8.
pub(super) fn number(file: &[u8], at: usize, len: usize) -> Result<u64, Refusal> {
    Ok(slice(file, at, len)?.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte)))
}
