//! A zip archive of stored entries as torch writes it: each entry's data on a 64-byte boundary, zip64 where needed.

use super::{WriteError, output::Output};

/// torch maps its files and wants tensors aligned.
const ALIGNMENT: u64 = 64;
/// torch's own mark for the padding, a record that other readers skip.
const PADDING: u16 = u16::from_le_bytes(*b"FB");
/// 1 January 1980, the first day of zip.
const DATE: u16 = 0x21;
const UTF8_NAMES: u16 = 1 << 11;

struct Entry {
    name: String,
    crc: u32,
    size: u64,
    start: u64,
}

pub(super) struct Archive {
    output: Output,
    entries: Vec<Entry>,
    /// The largest number that a 32-bit field may hold; smaller in tests.
    limit: u64,
}

impl Archive {
    pub(super) fn new(output: Output) -> Self {
        Self { output, entries: Vec::new(), limit: u64::from(u32::MAX) - 1 }
    }

    /// As if numbers above `limit` did not fit 32 bits: a small archive that looks like a large one.
    #[cfg(test)]
    pub(super) fn with_limit(output: Output, limit: u64) -> Self {
        Self { limit, ..Self::new(output) }
    }

    pub(super) fn add(&mut self, name: &str, data: &[u8]) -> Result<(), WriteError> {
        let size = data.len() as u64;
        let start = self.output.len();
        let crc = crc32fast::hash(data);
        let mut extra = Vec::new();
        if size > self.limit {
            zip64(&mut extra, &[size, size]);
        }
        // The padding's own mark and length take four bytes.
        let unpadded = start + 30 + name.len() as u64 + extra.len() as u64 + 4;
        let padding = unpadded.next_multiple_of(ALIGNMENT) - unpadded;
        extra.extend(PADDING.to_le_bytes());
        extra.extend((padding as u16).to_le_bytes());
        extra.resize(extra.len() + padding as usize, 0);
        let mut header = b"PK\x03\x04".to_vec();
        words(&mut header, &[self.version(size), UTF8_NAMES, 0, 0, DATE]);
        header.extend(crc.to_le_bytes());
        header.extend(self.narrow(size).to_le_bytes());
        header.extend(self.narrow(size).to_le_bytes());
        words(&mut header, &[name.len() as u16, extra.len() as u16]);
        header.extend(name.as_bytes());
        header.extend(extra);
        self.output.write(&header)?;
        self.output.write(data)?;
        self.entries.push(Entry { name: name.to_owned(), crc, size, start });
        Ok(())
    }

    /// Writes the directory.
    pub(super) fn finish(mut self) -> Result<Output, WriteError> {
        let start = self.output.len();
        for entry in &self.entries {
            let large: Vec<u64> = [entry.size, entry.size, entry.start]
                .into_iter()
                .filter(|n| *n > self.limit)
                .collect();
            let mut extra = Vec::new();
            if !large.is_empty() {
                zip64(&mut extra, &large);
            }
            let version = self.version(entry.size.max(entry.start));
            let mut header = b"PK\x01\x02".to_vec();
            words(&mut header, &[version, version, UTF8_NAMES, 0, 0, DATE]);
            header.extend(entry.crc.to_le_bytes());
            header.extend(self.narrow(entry.size).to_le_bytes());
            header.extend(self.narrow(entry.size).to_le_bytes());
            // Name, extra, comment; disk, attributes.
            words(&mut header, &[entry.name.len() as u16, extra.len() as u16, 0, 0, 0, 0, 0]);
            header.extend(self.narrow(entry.start).to_le_bytes());
            header.extend(entry.name.as_bytes());
            header.extend(extra);
            self.output.write(&header)?;
        }
        let end = self.output.len();
        let count = self.entries.len() as u64;
        let mut record = Vec::new();
        if start > self.limit || count >= u64::from(u16::MAX) {
            record.extend(b"PK\x06\x06");
            record.extend(44u64.to_le_bytes());
            words(&mut record, &[45, 45]);
            record.extend([0; 8]);
            [count, count, end - start, start].iter().for_each(|n| record.extend(n.to_le_bytes()));
            record.extend(b"PK\x06\x07");
            record.extend([0; 4]);
            record.extend(end.to_le_bytes());
            record.extend(1u32.to_le_bytes());
        }
        let count = u16::try_from(count).unwrap_or(u16::MAX);
        record.extend(b"PK\x05\x06");
        words(&mut record, &[0, 0, count, count]);
        record.extend(self.narrow(end - start).to_le_bytes());
        record.extend(self.narrow(start).to_le_bytes());
        words(&mut record, &[0]);
        self.output.write(&record)?;
        Ok(self.output)
    }

    /// A 32-bit field: all ones where the number stands in the zip64 record.
    fn narrow(&self, n: u64) -> u32 {
        if n > self.limit { u32::MAX } else { n as u32 }
    }

    /// The version that a reader needs: 4.5 knows zip64.
    fn version(&self, largest: u64) -> u16 {
        if largest > self.limit { 45 } else { 20 }
    }
}

fn words(bytes: &mut Vec<u8>, words: &[u16]) {
    words.iter().for_each(|word| bytes.extend(word.to_le_bytes()));
}

fn zip64(extra: &mut Vec<u8>, numbers: &[u64]) {
    words(extra, &[1, 8 * numbers.len() as u16]);
    numbers.iter().for_each(|n| extra.extend(n.to_le_bytes()));
}
