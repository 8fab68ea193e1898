//! Shards of texts: which formats there are, and how one is read from its start, in memory bounded
//! by the limits.

use std::{
    borrow::Cow,
    fmt,
    fs::File,
    io::{BufRead, BufReader, Read},
};

use flate2::read::MultiGzDecoder;
use serde::de::{self, DeserializeSeed as _, IgnoredAny};

use crate::{DataError, Limits, parquet};

/// The logarithm of the largest window of a zstd frame: 128 MiB of memory.
pub(crate) const ZSTD_WINDOW: u32 = 27;

/// How a shard holds its texts, by the end of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Parquet,
    Lines(Packing),
    Text,
}

/// How lines are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

impl Format {
    /// The format of a file of this name; none for files that are no shards.
    pub(crate) fn of(path: &str) -> Option<Self> {
        let ends = |endings: &[&str]| endings.iter().any(|ending| path.ends_with(ending));
        if ends(&[".parquet"]) {
            Some(Self::Parquet)
        } else if ends(&[".jsonl"]) {
            Some(Self::Lines(Packing::Plain))
        } else if ends(&[".jsonl.gz", ".json.gz"]) {
            Some(Self::Lines(Packing::Gzip))
        } else if ends(&[".jsonl.zst", ".json.zst"]) {
            Some(Self::Lines(Packing::Zstd))
        } else if ends(&[".txt"]) {
            Some(Self::Text)
        } else {
            None
        }
    }
}

/// Takes a record's number, from 0, and its text.
pub(crate) type Each<'a> = &'a mut dyn FnMut(u64, &str) -> Result<(), DataError>;

/// A shard that is open for reading.
#[derive(Debug)]
pub(crate) struct Reading<'a> {
    /// What errors call it.
    pub(crate) name: &'a str,
    pub(crate) format: Format,
    /// The column or key of the text.
    pub(crate) field: &'a str,
    pub(crate) limits: &'a Limits,
}

impl Reading<'_> {
    /// Gives every text to `each`, in the order of the records; records whose text is null have
    /// none. A record is a row of parquet, a line (empty ones included) or the whole of a text
    /// file.
    ///
    /// # Errors
    ///
    /// The bytes are not of the format, or a limit is passed; the first error of `each`.
    pub(crate) fn run(&self, file: File, each: Each<'_>) -> Result<(), DataError> {
        match self.format {
            Format::Parquet => parquet::read(self, file, each),
            Format::Text => self.text(file, each),
            Format::Lines(Packing::Plain) => self.lines(BufReader::new(file), each),
            Format::Lines(Packing::Gzip) => {
                self.lines(BufReader::new(MultiGzDecoder::new(BufReader::new(file))), each)
            }
            Format::Lines(Packing::Zstd) => {
                let mut decoder = zstd::Decoder::new(file).map_err(|error| self.content(error))?;
                decoder.window_log_max(ZSTD_WINDOW).map_err(|error| self.content(error))?;
                self.lines(BufReader::new(decoder), each)
            }
        }
    }

    pub(crate) fn content(&self, why: impl fmt::Display) -> DataError {
        DataError::content(self.name, why)
    }

    pub(crate) fn limit(&self, what: &'static str, limit: u64) -> DataError {
        DataError::Limit { shard: self.name.to_owned(), what, limit }
    }

    fn text(&self, file: File, each: Each<'_>) -> Result<(), DataError> {
        let mut text = Vec::new();
        let most = self.limits.piece_bytes;
        file.take(most + 1).read_to_end(&mut text).map_err(|error| self.content(error))?;
        if text.len() as u64 > most {
            return Err(self.limit("its text", most));
        }
        each(0, std::str::from_utf8(&text).map_err(|error| self.content(error))?)
    }

    fn lines(&self, mut reader: impl BufRead, each: Each<'_>) -> Result<(), DataError> {
        let mut line = Vec::new();
        let mut unpacked = 0;
        for number in 0.. {
            line.clear();
            let most = self.limits.piece_bytes;
            let mut piece = reader.by_ref().take(most + 1);
            let read = piece.read_until(b'\n', &mut line).map_err(|error| self.content(error))?;
            if read == 0 {
                return Ok(());
            }
            unpacked += read as u64;
            if read as u64 > most {
                return Err(self.limit("a line", most));
            }
            if unpacked > self.limits.unpacked_bytes {
                return Err(self.limit("the unpacked content", self.limits.unpacked_bytes));
            }
            if number >= self.limits.rows {
                return Err(self.limit("the number of lines", self.limits.rows));
            }
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let text = text_of(&line, self.field)
                .map_err(|error| self.content(format!("line {}: {error}", number + 1)))?;
            if let Some(text) = text {
                each(number, &text)?;
            }
        }
        Ok(())
    }
}

/// The text under `field` of a line's JSON object; none where it is null.
fn text_of<'l>(line: &'l [u8], field: &str) -> Result<Option<Cow<'l, str>>, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(line);
    let text = TextOf(field).deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(text)
}

struct TextOf<'f>(&'f str);

impl<'de> de::DeserializeSeed<'de> for TextOf<'_> {
    type Value = Option<Cow<'de, str>>;

    fn deserialize<D: de::Deserializer<'de>>(
        self,
        deserializer: D,
    ) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> de::Visitor<'de> for TextOf<'_> {
    type Value = Option<Cow<'de, str>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object with `{}`", self.0)
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(Borrowed(key)) = map.next_key()? {
            if key != self.0 {
                map.next_value::<IgnoredAny>()?;
            } else if found.is_none() {
                found = Some(map.next_value::<Option<Borrowed<'de>>>()?);
            } else {
                return Err(de::Error::custom(format_args!("`{}` twice", self.0)));
            }
        }
        let missing = || de::Error::custom(format_args!("there is no `{}`", self.0));
        Ok(found.ok_or_else(missing)?.map(|Borrowed(text)| text))
    }
}

/// A string, without a copy where it has no escapes.
#[derive(serde::Deserialize)]
#[serde(transparent)]
struct Borrowed<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
#[path = "format_tests.rs"]
mod tests;
