//! The text column of a parquet file, without the rest of it.
//!
//! Footers and values are read by the parquet crate; pages by [`pages`], so that memory is bounded
//! whatever a file claims.

mod pages;
#[cfg(test)]
mod tests;
mod thrift;

use std::{fs::File, os::unix::fs::FileExt as _, panic::AssertUnwindSafe, sync::Arc};

use ::parquet::{
    basic::{ConvertedType, LogicalType, Type as PhysicalType},
    column::reader::ColumnReaderImpl,
    data_type::{ByteArray, ByteArrayType},
    errors::{ParquetError, Result as ParquetResult},
    file::{
        metadata::{ParquetMetaData, ParquetMetaDataReader},
        reader::{ChunkReader, Length},
    },
};
use bytes::Bytes;
use pages::Pages;

use crate::{
    DataError,
    format::{Each, Reading},
};

/// Records that are decoded at once.
const RECORDS: usize = 256;

/// Bytes of a footer: the reader takes several times as many.
const LONGEST_FOOTER: u64 = 16 << 20;
/// Bytes of a footer's end: its length and the format's mark.
const FOOTER_END: u64 = 8;

/// Gives every text of the column to `each`; see [`Reading::run`].
pub(crate) fn read(reading: &Reading<'_>, file: File, each: Each<'_>) -> Result<(), DataError> {
    // The reader of this format is large, and the bytes are a stranger's: what it does not foresee
    // must cost the shard and no more.
    let read = AssertUnwindSafe(|| read_column(reading, file, each));
    std::panic::catch_unwind(read).unwrap_or_else(|_| Err(reading.content("it is malformed")))
}

fn read_column(reading: &Reading<'_>, file: File, each: Each<'_>) -> Result<(), DataError> {
    let bad = |error: ParquetError| reading.content(error);
    let size = file.metadata().map_err(|error| reading.content(error))?.len();
    let source = Source { file: Arc::new(file), size };
    check_footer(reading, &source)?;
    let metadata = ParquetMetaDataReader::new().parse_and_finish(&source).map_err(bad)?;
    let column = text_column(reading, &metadata)?;
    let mut number = 0;
    let mut unpacked = 0;
    for group in metadata.row_groups() {
        let expected = u64::try_from(group.num_rows()).unwrap_or(u64::MAX);
        if expected > reading.limits.rows.saturating_sub(number) {
            return Err(reading.limit("the number of rows", reading.limits.rows));
        }
        let chunk = group.columns().get(column);
        let chunk = chunk.ok_or_else(|| reading.content("a row group without the column"))?;
        let pages = Pages::new(source.clone(), chunk, reading.limits).map_err(bad)?;
        let column =
            ColumnReaderImpl::<ByteArrayType>::new(chunk.column_descr_ptr(), Box::new(pages));
        let first = number;
        read_group(reading, column, &mut |text| {
            if let Some(text) = text {
                unpacked += text.len() as u64;
                if unpacked > reading.limits.unpacked_bytes {
                    let limit = reading.limits.unpacked_bytes;
                    return Err(reading.limit("the unpacked content", limit));
                }
                each(number, text)?;
            }
            number += 1;
            Ok(())
        })?;
        if number - first != expected {
            let found = number - first;
            return Err(reading.content(format!("{found} rows where {expected} are announced")));
        }
    }
    Ok(())
}

/// Refuses a footer that is too long to be read.
fn check_footer(reading: &Reading<'_>, source: &Source) -> Result<(), DataError> {
    let end = source.size.checked_sub(FOOTER_END);
    let end = end.ok_or_else(|| reading.content("it is too short"))?;
    let mut length = [0; 4];
    source.file.read_exact_at(&mut length, end).map_err(|error| reading.content(error))?;
    if u64::from(u32::from_le_bytes(length)) > LONGEST_FOOTER.min(end) {
        return Err(reading.content("its footer is too long"));
    }
    Ok(())
}

/// The index of the column of that name.
fn text_column(reading: &Reading<'_>, metadata: &ParquetMetaData) -> Result<usize, DataError> {
    let schema = metadata.file_metadata().schema_descr();
    let columns = schema.columns();
    let named = columns.iter().position(|column| column.path().string() == reading.field);
    let index =
        named.ok_or_else(|| reading.content(format!("there is no column `{}`", reading.field)))?;
    let column = schema.column(index);
    let text = column.physical_type() == PhysicalType::BYTE_ARRAY
        && (column.converted_type() == ConvertedType::UTF8
            || column.logical_type_ref() == Some(&LogicalType::String));
    if !text || column.max_rep_level() != 0 || column.max_def_level() > 1 {
        return Err(reading.content(format!("the column `{}` is not of texts", reading.field)));
    }
    Ok(index)
}

fn read_group(
    reading: &Reading<'_>,
    mut column: ColumnReaderImpl<ByteArrayType>,
    each: &mut dyn FnMut(Option<&str>) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let (mut levels, mut values) = (Vec::<i16>::new(), Vec::<ByteArray>::new());
    loop {
        levels.clear();
        values.clear();
        let (records, _, _) = column
            .read_records(RECORDS, Some(&mut levels), None, &mut values)
            .map_err(|error| reading.content(error))?;
        if records == 0 {
            return Ok(());
        }
        // A required column has no levels: every record has its value.
        let mut values = values.iter();
        for record in 0..records {
            if levels.get(record).is_some_and(|level| *level == 0) {
                each(None)?;
                continue;
            }
            let value = values.next().ok_or_else(|| reading.content("a value is missing"))?;
            let text = std::str::from_utf8(value.data()).map_err(|error| reading.content(error))?;
            each(Some(text))?;
        }
    }
}

/// The file, read at places: nothing is asked for that is not there, whatever its footer says.
#[derive(Debug, Clone)]
struct Source {
    file: Arc<File>,
    size: u64,
}

/// The file from a place on.
#[derive(Debug)]
struct From {
    file: Arc<File>,
    at: u64,
}

impl std::io::Read for From {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.file.read_at(buffer, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Length for Source {
    fn len(&self) -> u64 {
        self.size
    }
}

impl ChunkReader for Source {
    type T = std::io::BufReader<From>;

    fn get_read(&self, start: u64) -> ParquetResult<Self::T> {
        if start > self.size {
            return Err(ParquetError::EOF(format!("{start} of {} bytes", self.size)));
        }
        Ok(std::io::BufReader::new(From { file: self.file.clone(), at: start }))
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        if start.checked_add(length as u64).is_none_or(|end| end > self.size) {
            return Err(ParquetError::EOF(format!("{start}+{length} of {} bytes", self.size)));
        }
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, start)?;
        Ok(bytes.into())
    }
}
