//! The bytes that are hashed and signed: one encoding for every value, written here once.
//!
//! A text that names the kind goes first, so that what is signed as one thing is worth nothing as
//! another. Then the fields in their order: numbers little-endian in their full width, texts and
//! lists after their length as four bytes, hotkeys as their public key, a choice as one byte. No
//! field is left out, so no two values have the same bytes.

use std::{fmt, str::FromStr};

use domain::Hotkey;
use serde::{Deserialize, Serialize, de};

/// BLAKE3 of something; written as 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

/// A text that is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not 32 bytes of hex")]
pub struct NotADigest;

impl Digest {
    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// The digest of a list of digests: how a gradient, or a slice of the result, is named by those
    /// of its chunks.
    pub fn of_chunks(chunks: &[Self]) -> Self {
        Bytes::new("chunks").list(chunks, |bytes, chunk| bytes.digest(chunk)).hash()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Self, NotADigest> {
        let hash = blake3::Hash::from_hex(text).map_err(|_| NotADigest)?;
        Ok(Self(*hash.as_bytes()))
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

const DOMAIN: &str = "connito.merge.v1:";

/// Bytes being written.
#[derive(Debug)]
pub(crate) struct Bytes(Vec<u8>);

impl Bytes {
    pub(crate) fn new(kind: &str) -> Self {
        Self(Vec::from(DOMAIN)).text(kind)
    }

    pub(crate) fn byte(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    pub(crate) fn number(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(crate) fn raw(mut self, value: &[u8]) -> Self {
        self.0.extend(value);
        self
    }

    fn len(mut self, len: usize) -> Self {
        // A list of 4 Gi things does not fit into memory that anybody has; should it, it has no
        // bytes that another list has.
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        self.0.extend(len.to_le_bytes());
        self
    }

    pub(crate) fn text(self, value: &str) -> Self {
        self.len(value.len()).raw(value.as_bytes())
    }

    pub(crate) fn hotkey(self, value: &Hotkey) -> Self {
        self.raw(value.public_key())
    }

    pub(crate) fn digest(self, value: &Digest) -> Self {
        self.raw(&value.0)
    }

    pub(crate) fn list<T>(
        self,
        values: impl IntoIterator<Item = T, IntoIter: ExactSizeIterator>,
        write: impl Fn(Self, T) -> Self,
    ) -> Self {
        let values = values.into_iter();
        let this = self.len(values.len());
        values.fold(this, write)
    }

    pub(crate) fn option<T>(self, value: Option<T>, write: impl Fn(Self, T) -> Self) -> Self {
        match value {
            None => self.byte(0),
            Some(value) => write(self.byte(1), value),
        }
    }

    pub(crate) fn into_vec(self) -> Vec<u8> {
        self.0
    }

    pub(crate) fn hash(self) -> Digest {
        Digest::of(&self.0)
    }
}
