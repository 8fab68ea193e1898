use std::{fs::File, io::Write as _, os::unix::fs::FileExt as _, path::Path};

use crate::{DataError, format::Reading, work::Wanted};

/// Bytes that are written at once.
const BUFFER: usize = 1 << 20;

/// A shard's texts that are long enough, in a temporary file that goes with this; in memory are only
/// their places.
#[derive(Debug)]
pub(crate) struct Spool {
    name: String,
    file: File,
    rows: Vec<Row>,
}

#[derive(Debug, Clone, Copy)]
struct Row {
    offset: u64,
    length: u32,
    /// Number of the record in the shard.
    number: u32,
}

impl Spool {
    /// Reads the shard `file` from its start to its end, with a temporary file in `folder`.
    ///
    /// # Errors
    ///
    /// What [`Reading::run`] refuses; the disk is full; nobody wants it any more.
    pub(crate) fn fill(
        reading: &Reading<'_>,
        file: File,
        minimum_length: usize,
        folder: &Path,
        wanted: &Wanted,
    ) -> Result<Self, DataError> {
        let failed = |error| DataError::file(folder, error);
        let spool = tempfile::tempfile_in(folder).map_err(failed)?;
        let mut writer = std::io::BufWriter::with_capacity(BUFFER, spool);
        let mut rows = Vec::new();
        let mut offset = 0;
        reading.run(file, &mut |number, text| {
            wanted.check()?;
            if text.len() < minimum_length.max(1) {
                return Ok(());
            }
            let number = u32::try_from(number)
                .map_err(|_| reading.limit("the number of records", u64::from(u32::MAX)))?;
            let length = u32::try_from(text.len())
                .map_err(|_| reading.limit("a text", u64::from(u32::MAX)))?;
            writer.write_all(text.as_bytes()).map_err(failed)?;
            rows.push(Row { offset, length, number });
            offset += u64::from(length);
            Ok(())
        })?;
        let file = writer.into_inner().map_err(|error| failed(error.into_error()))?;
        Ok(Self { name: reading.name.to_owned(), file, rows })
    }

    /// Number of texts.
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// The record's number and the text of the `n`th text.
    pub(crate) fn text(&self, n: usize) -> Result<(u64, String), DataError> {
        let broken = |why: String| DataError::content(&self.name, why);
        let row = self.rows.get(n).ok_or_else(|| broken(format!("no text {n}")))?;
        let mut text = vec![0; row.length as usize];
        self.file
            .read_exact_at(&mut text, row.offset)
            .map_err(|error| broken(format!("text {n}: {error}")))?;
        let text = String::from_utf8(text).map_err(|error| broken(format!("text {n}: {error}")))?;
        Ok((u64::from(row.number), text))
    }
}
