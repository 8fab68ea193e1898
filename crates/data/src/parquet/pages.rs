//! The pages of a column, unpacked within bounds. The parquet crate's own reader of pages unpacks
//! whatever a page expands to, and reserves what its header claims.

use std::io::{Read, Take};

use ::parquet::{
    basic::{Compression, Encoding},
    column::page::{Page, PageMetadata, PageReader},
    errors::{ParquetError, Result},
    file::{
        metadata::ColumnChunkMetaData,
        reader::{ChunkReader as _, Length as _},
    },
};
use bytes::Bytes;
use flate2::read::MultiGzDecoder;

use super::{
    Source,
    thrift::{Kind, Thrift},
};
use crate::{Limits, format::ZSTD_WINDOW};

/// Entries of a dictionary.
const MOST_ENTRIES: u32 = 1 << 22;

/// The pages of one column of one row group.
#[derive(Debug)]
pub(super) struct Pages {
    source: Source,
    compression: Compression,
    at: u64,
    left: u64,
    /// Bytes of a page, packed or not.
    most_bytes: u64,
    /// Values of a page.
    most_values: u64,
    next: Option<Header>,
}

/// What a page's header says, with the place of its body.
#[derive(Debug, Default)]
struct Header {
    kind: Option<i32>,
    unpacked: Option<i32>,
    packed: Option<i32>,
    /// Fields of the header of a page of this kind, by number.
    of_data: [Option<i32>; 8],
    of_dictionary: [Option<i32>; 8],
    of_data_2: [Option<i32>; 8],
    body: u64,
}

impl Pages {
    pub(super) fn new(
        source: Source,
        column: &ColumnChunkMetaData,
        limits: &Limits,
    ) -> Result<Self> {
        let compression = column.compression();
        match compression {
            Compression::UNCOMPRESSED
            | Compression::SNAPPY
            | Compression::GZIP(_)
            | Compression::ZSTD(_) => {}
            Compression::LZO | Compression::BROTLI(_) | Compression::LZ4 | Compression::LZ4_RAW => {
                return Err(bad(format!("the compression {compression} is not read")));
            }
        }
        if column.file_path().is_some() {
            return Err(bad("a column in another file"));
        }
        let dictionary = column.dictionary_page_offset().filter(|offset| *offset > 0);
        let at = unsigned(dictionary.unwrap_or(column.data_page_offset()), "an offset")?;
        let left = unsigned(column.compressed_size(), "a size")?;
        if at.checked_add(left).is_none_or(|end| end > source.len()) {
            return Err(bad("a column beyond the end of the file"));
        }
        let (most_bytes, most_values) = (limits.piece_bytes, limits.rows);
        Ok(Self { source, compression, at, left, most_bytes, most_values, next: None })
    }

    /// Reads the next header that is not of an index, unless that was done.
    fn peek(&mut self) -> Result<Option<&Header>> {
        while self.next.is_none() && self.left > 0 {
            let reader = self.source.get_read(self.at)?;
            let mut thrift = Thrift::new(reader, self.left.min(self.most_bytes));
            let mut header = Header::default();
            thrift.structure(&mut |thrift, id, kind| header.field(thrift, id, kind))?;
            let packed = header.packed()? as u64;
            let whole = thrift.read() + packed;
            if whole > self.left || packed > self.most_bytes {
                return Err(bad(format!("a page of {packed} bytes")));
            }
            header.body = self.at + thrift.read();
            self.at += whole;
            self.left -= whole;
            if header.kind != Some(1) {
                self.next = Some(header);
            }
        }
        Ok(self.next.as_ref())
    }

    fn unpack(&self, header: &Header) -> Result<Page> {
        let body = self.source.get_bytes(header.body, header.packed()?)?;
        let size = usize::try_from(header.unpacked.unwrap_or(-1))?;
        if size as u64 > self.most_bytes {
            return Err(bad(format!("a page of {size} unpacked bytes")));
        }
        let page = match header.kind {
            Some(0) => {
                let [_, values, encoding, definition, repetition, ..] = header.of_data;
                Page::DataPage {
                    buf: self.inflate(body, size)?,
                    num_values: self.values(values)?,
                    encoding: value_encoding(encoding)?,
                    def_level_encoding: level_encoding(definition)?,
                    rep_level_encoding: level_encoding(repetition)?,
                    statistics: None,
                }
            }
            Some(2) => {
                let [_, values, encoding, sorted, ..] = header.of_dictionary;
                let buf = self.inflate(body, size)?;
                let num_values = self.values(values)?;
                // Each entry has its length before it.
                if num_values > MOST_ENTRIES || u64::from(num_values) * 4 > buf.len() as u64 {
                    return Err(bad(format!("a dictionary of {num_values} entries")));
                }
                let (encoding, is_sorted) = (value_encoding(encoding)?, sorted == Some(1));
                Page::DictionaryPage { buf, num_values, encoding, is_sorted }
            }
            Some(3) => {
                let [_, values, nulls, rows, encoding, definition, repetition, packed] =
                    header.of_data_2;
                let levels = |bytes: Option<i32>| u32::try_from(bytes.unwrap_or(-1));
                let (definition, repetition) = (levels(definition)?, levels(repetition)?);
                let before = definition as usize + repetition as usize;
                if before > body.len() || before > size {
                    return Err(bad("levels beyond the end of their page"));
                }
                let is_compressed = packed != Some(0);
                let buf = if is_compressed {
                    let mut whole = body.slice(..before).to_vec();
                    whole.extend(self.inflate(body.slice(before..), size - before)?);
                    whole.into()
                } else {
                    body
                };
                Page::DataPageV2 {
                    buf,
                    num_values: self.values(values)?,
                    encoding: value_encoding(encoding)?,
                    num_nulls: self.values(nulls)?,
                    num_rows: self.values(rows)?,
                    def_levels_byte_len: definition,
                    rep_levels_byte_len: repetition,
                    is_compressed,
                    statistics: None,
                }
            }
            kind => return Err(bad(format!("a page of kind {kind:?}"))),
        };
        Ok(page)
    }

    /// `body`, unpacked: `size` bytes, or an error before there are more.
    fn inflate(&self, body: Bytes, size: usize) -> Result<Bytes> {
        let unpacked = match self.compression {
            // An empty page may have nothing that could be unpacked.
            _ if size == 0 => Vec::new(),
            Compression::SNAPPY => {
                let length = snap::raw::decompress_len(&body).map_err(bad)?;
                if length != size {
                    return Err(bad(format!("a page of {length} bytes, and not {size}")));
                }
                snap::raw::Decoder::new().decompress_vec(&body).map_err(bad)?
            }
            Compression::GZIP(_) => fill(MultiGzDecoder::new(body.as_ref()), size)?,
            Compression::ZSTD(_) => {
                let mut decoder = zstd::Decoder::with_buffer(body.as_ref())?;
                decoder.window_log_max(ZSTD_WINDOW)?;
                fill(decoder, size)?
            }
            Compression::UNCOMPRESSED
            | Compression::LZO
            | Compression::BROTLI(_)
            | Compression::LZ4
            | Compression::LZ4_RAW => return Ok(body),
        };
        Ok(unpacked.into())
    }

    fn values(&self, count: Option<i32>) -> Result<u32> {
        let count = u32::try_from(count.unwrap_or(-1))?;
        if u64::from(count) > self.most_values {
            return Err(bad(format!("a page of {count} values")));
        }
        Ok(count)
    }
}

impl PageReader for Pages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        self.peek()?;
        self.next.take().map(|header| self.unpack(&header)).transpose()
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        let count = |value: Option<i32>| value.and_then(|value| usize::try_from(value).ok());
        let metadata = |header: &Header| {
            let [_, values, ..] = header.of_data;
            let [_, values_2, _, rows, ..] = header.of_data_2;
            PageMetadata {
                num_rows: count(rows),
                num_levels: count(values.or(values_2)),
                is_dict: header.kind == Some(2),
            }
        };
        Ok(self.peek()?.map(metadata))
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.peek()?;
        self.next = None;
        Ok(())
    }
}

impl Iterator for Pages {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl Header {
    fn packed(&self) -> Result<usize> {
        Ok(usize::try_from(self.packed.unwrap_or(-1))?)
    }

    fn field<R: Read>(
        &mut self,
        thrift: &mut Thrift<R>,
        id: i16,
        kind: Kind,
    ) -> std::io::Result<bool> {
        let int = match (id, kind) {
            (1, Kind::Int) => &mut self.kind,
            (2, Kind::Int) => &mut self.unpacked,
            (3, Kind::Int) => &mut self.packed,
            (5, Kind::Struct) => return inner(thrift, &mut self.of_data),
            (7, Kind::Struct) => return inner(thrift, &mut self.of_dictionary),
            (8, Kind::Struct) => return inner(thrift, &mut self.of_data_2),
            _ => return Ok(false),
        };
        *int = Some(thrift.int()?);
        Ok(true)
    }
}

/// Reads the integers and booleans of a structure, by number.
fn inner<R: Read>(thrift: &mut Thrift<R>, fields: &mut [Option<i32>; 8]) -> std::io::Result<bool> {
    thrift.structure(&mut |thrift, id, kind| {
        let Some(field) = usize::try_from(id).ok().and_then(|id| fields.get_mut(id)) else {
            return Ok(false);
        };
        if let Kind::Bool(value) = kind {
            *field = Some(i32::from(value));
        } else if kind == Kind::Int {
            *field = Some(thrift.int()?);
        } else {
            return Ok(false);
        }
        Ok(true)
    })?;
    Ok(true)
}

/// Exactly `size` bytes.
fn fill(reader: impl Read, size: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut reader: Take<_> = reader.take(size as u64 + 1);
    reader.read_to_end(&mut bytes)?;
    if bytes.len() == size {
        return Ok(bytes);
    }
    let than = if bytes.len() > size { "more" } else { "fewer" };
    Err(bad(format!("a page of {than} than its {size} bytes")))
}

/// The encodings that writers use by default; the others reserve what the data claims.
fn value_encoding(number: Option<i32>) -> Result<Encoding> {
    match number {
        Some(0) => Ok(Encoding::PLAIN),
        Some(2) => Ok(Encoding::PLAIN_DICTIONARY),
        Some(8) => Ok(Encoding::RLE_DICTIONARY),
        other => Err(bad(format!("the encoding {other:?} is not read"))),
    }
}

fn level_encoding(number: Option<i32>) -> Result<Encoding> {
    match number {
        Some(3) => Ok(Encoding::RLE),
        #[expect(deprecated, reason = "writers name it where there are no levels")]
        Some(4) => Ok(Encoding::BIT_PACKED),
        other => Err(bad(format!("levels of the encoding {other:?}"))),
    }
}

fn unsigned(number: i64, what: &str) -> Result<u64> {
    u64::try_from(number).map_err(|_| bad(format!("{what} of {number}")))
}

fn bad(why: impl ToString) -> ParquetError {
    ParquetError::General(why.to_string())
}
