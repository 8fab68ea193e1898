//! The little of thrift's compact protocol that a page's header takes, read from a stream within a
//! bound and without keeping what is not asked for.

use std::io::{self, Read};

/// Structures within structures.
const DEEPEST: usize = 16;

/// Where the reader stands.
#[derive(Debug)]
pub(super) struct Thrift<R> {
    inner: R,
    read: u64,
    most: u64,
}

/// The type of a field, as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A boolean field holds its value in its type.
    Bool(bool),
    Byte,
    Int,
    Double,
    Binary,
    List,
    Map,
    Struct,
    Uuid,
}

impl Kind {
    fn of(nibble: u8) -> io::Result<Self> {
        Ok(match nibble {
            1 => Self::Bool(true),
            2 => Self::Bool(false),
            3 => Self::Byte,
            4..=6 => Self::Int,
            7 => Self::Double,
            8 => Self::Binary,
            9 | 10 => Self::List,
            11 => Self::Map,
            12 => Self::Struct,
            13 => Self::Uuid,
            _ => return Err(bad("an unknown type")),
        })
    }
}

impl<R: Read> Thrift<R> {
    /// A reader of at most `most` bytes.
    pub(super) fn new(inner: R, most: u64) -> Self {
        Self { inner, read: 0, most }
    }

    /// Bytes that were read.
    pub(super) fn read(&self) -> u64 {
        self.read
    }

    /// Reads a structure: `field` takes the number and type of each field and reads its value, or
    /// says that it did not, and the value is skipped.
    pub(super) fn structure(
        &mut self,
        field: &mut dyn FnMut(&mut Self, i16, Kind) -> io::Result<bool>,
    ) -> io::Result<()> {
        let mut id = 0_i16;
        while let Some((next, kind)) = self.field(id)? {
            id = next;
            if !field(self, id, kind)? {
                self.skip(kind, 0)?;
            }
        }
        Ok(())
    }

    /// An integer of up to 32 bits.
    pub(super) fn int(&mut self) -> io::Result<i32> {
        i32::try_from(self.zigzag()?).map_err(|_| bad("an integer is too large"))
    }

    /// The next field's number and type; none at the end of the structure.
    fn field(&mut self, before: i16) -> io::Result<Option<(i16, Kind)>> {
        let head = self.byte()?;
        if head == 0 {
            return Ok(None);
        }
        let id = match i16::from(head >> 4) {
            0 => i16::try_from(self.zigzag()?).map_err(|_| bad("a field's number"))?,
            step => before.checked_add(step).ok_or_else(|| bad("a field's number"))?,
        };
        Ok(Some((id, Kind::of(head & 15)?)))
    }

    fn skip(&mut self, kind: Kind, depth: usize) -> io::Result<()> {
        if depth > DEEPEST {
            return Err(bad("too deep"));
        }
        match kind {
            Kind::Bool(_) => Ok(()),
            Kind::Byte => self.bytes(1),
            Kind::Int => self.varint().map(drop),
            Kind::Double => self.bytes(8),
            Kind::Uuid => self.bytes(16),
            Kind::Binary => {
                let length = self.varint()?;
                self.bytes(length)
            }
            Kind::Struct => {
                let mut id = 0;
                while let Some((next, kind)) = self.field(id)? {
                    id = next;
                    self.skip(kind, depth + 1)?;
                }
                Ok(())
            }
            Kind::List => {
                let head = self.byte()?;
                let count = match head >> 4 {
                    15 => self.varint()?,
                    count => u64::from(count),
                };
                for _ in 0..count {
                    self.element(head & 15, depth)?;
                }
                Ok(())
            }
            Kind::Map => {
                let count = self.varint()?;
                let kinds = if count == 0 { 0 } else { self.byte()? };
                for _ in 0..count {
                    self.element(kinds >> 4, depth)?;
                    self.element(kinds & 15, depth)?;
                }
                Ok(())
            }
        }
    }

    /// One element of a list or map: of at least one byte, so that their count is bounded.
    fn element(&mut self, nibble: u8, depth: usize) -> io::Result<()> {
        let kind = Kind::of(nibble)?;
        if let Kind::Bool(_) = kind { self.bytes(1) } else { self.skip(kind, depth + 1) }
    }

    fn zigzag(&mut self) -> io::Result<i64> {
        let value = self.varint()?;
        // The low bit is the sign.
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    fn varint(&mut self) -> io::Result<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return Ok(value);
            }
        }
        Err(bad("an integer is too long"))
    }

    fn byte(&mut self) -> io::Result<u8> {
        let mut byte = [0];
        self.count(1)?;
        self.inner.read_exact(&mut byte)?;
        let [byte] = byte;
        Ok(byte)
    }

    /// Passes over bytes.
    fn bytes(&mut self, count: u64) -> io::Result<()> {
        self.count(count)?;
        let passed = io::copy(&mut self.inner.by_ref().take(count), &mut io::sink())?;
        if passed == count { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    fn count(&mut self, count: u64) -> io::Result<()> {
        self.read = self.read.saturating_add(count);
        if self.read > self.most { Err(bad("it is too long")) } else { Ok(()) }
    }
}

fn bad(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ints(bytes: &[u8]) -> io::Result<(Vec<(i16, i32)>, u64)> {
        let mut found = Vec::new();
        let mut thrift = Thrift::new(bytes, 1 << 20);
        thrift.structure(&mut |thrift, id, kind| {
            if kind != Kind::Int {
                return Ok(false);
            }
            found.push((id, thrift.int()?));
            Ok(true)
        })?;
        Ok((found, thrift.read()))
    }

    #[test]
    fn fields_are_found_between_what_is_skipped() {
        let bytes = [
            0x15, 0x05, // 1: -3
            0x18, 0x02, b'a', b'b', // 2: binary
            0x1c, 0x11, 0x19, 0x23, 7, 8,
            0x00, // 3: a structure of a boolean and a list of bytes
            0x1b, 0x01, 0x58, 0x02, 0x00, // 4: a map of an integer to a text
            0x05, 0x28, 0xac, 0x02, // 20: 150
            0x00, 0xff,
        ];
        let (found, read) = ints(&bytes).unwrap();
        assert_eq!(found, [(1, -3), (20, 150)]);
        assert_eq!(read, bytes.len() as u64 - 1);
    }

    #[test]
    fn what_never_ends_is_refused() {
        assert!(ints(&[0x1c; 100]).is_err());
        assert!(ints(&[0x15; 3]).is_err());
        assert!(
            ints(&[0x15, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]).is_err()
        );
        // A text and a list of 2^62 elements.
        let most = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f];
        assert!(ints(&[&[0x18], most.as_slice()].concat()).is_err());
        assert!(ints(&[&[0x19, 0xf1], most.as_slice()].concat()).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            if let Ok((_, read)) = ints(&bytes) {
                prop_assert!(read <= bytes.len() as u64);
            }
        }
    }
}
