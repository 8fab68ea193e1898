//! The headers of tus 1.0: what a client says, parsed, and nothing more.
//!
//! Pure: bytes in, a value or a reason out. Whatever the bytes are, nothing here panics, and what is kept is
//! never larger than what came.

use std::fmt;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

/// Most pairs of an `Upload-Metadata` that are read.
const MAX_PAIRS: usize = 32;

/// The algorithms of [`Checksum`], as `Tus-Checksum-Algorithm` lists them.
pub(crate) const ALGORITHMS: &str = "sha1,sha256";

/// Why a header is not understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// It is not what the protocol allows there.
    Malformed(&'static str),
    /// A checksum of an algorithm that is not offered.
    Algorithm,
}

/// `Upload-Metadata`: the pairs, in the order of the header.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Metadata(Vec<(String, Vec<u8>)>);

impl Metadata {
    /// Reads a header: pairs parted by commas, each a key and, behind a space, its value in base64, which
    /// may be left out.
    pub(crate) fn parse(header: &[u8]) -> Result<Self, Flaw> {
        let mut pairs = Vec::new();
        if header.iter().all(u8::is_ascii_whitespace) {
            return Ok(Self(pairs));
        }
        for pair in header.split(|byte| *byte == b',') {
            if pairs.len() == MAX_PAIRS {
                return Err(Flaw::Malformed("has too many pairs"));
            }
            let mut words = pair.trim_ascii().splitn(2, |byte| *byte == b' ');
            let key = words.next().unwrap_or_default();
            if key.is_empty() || !key.iter().all(u8::is_ascii_graphic) {
                return Err(Flaw::Malformed("has a key that is empty or not ASCII"));
            }
            let key = String::from_utf8_lossy(key).into_owned();
            if pairs.iter().any(|(known, _)| *known == key) {
                return Err(Flaw::Malformed("gives a key twice"));
            }
            let value = BASE64_STANDARD
                .decode(words.next().unwrap_or_default().trim_ascii())
                .map_err(|_| Flaw::Malformed("has a value that is not base64"))?;
            pairs.push((key, value));
        }
        Ok(Self(pairs))
    }

    /// The value of `key`.
    pub(crate) fn get(&self, key: &str) -> Option<&[u8]> {
        self.0.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_slice())
    }

    /// The header that says this.
    #[cfg(test)]
    fn write(&self) -> String {
        let pairs = self.0.iter().map(|(key, value)| match value.as_slice() {
            [] => key.clone(),
            value => format!("{key} {}", BASE64_STANDARD.encode(value)),
        });
        pairs.collect::<Vec<_>>().join(",")
    }
}

/// `Upload-Checksum`: what the body of one request must hash to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Checksum {
    Sha1([u8; 20]),
    Sha256([u8; 32]),
}

impl Checksum {
    /// Reads a header: the algorithm's name, a space, and the digest in base64.
    pub(crate) fn parse(header: &[u8]) -> Result<Self, Flaw> {
        let mut words = header.trim_ascii().splitn(2, |byte| *byte == b' ');
        let algorithm = words.next().unwrap_or_default();
        let digest = words.next().ok_or(Flaw::Malformed("has no digest"))?;
        let digest = || {
            BASE64_STANDARD
                .decode(digest.trim_ascii())
                .map_err(|_| Flaw::Malformed("has a digest that is not base64"))
        };
        const LENGTH: Flaw = Flaw::Malformed("has a digest that is not as long as its algorithm's");
        match algorithm {
            b"sha1" => Ok(Self::Sha1(digest()?.try_into().map_err(|_| LENGTH)?)),
            b"sha256" => Ok(Self::Sha256(digest()?.try_into().map_err(|_| LENGTH)?)),
            _ => Err(Flaw::Algorithm),
        }
    }

    /// Begins to hash what it must fit.
    pub(crate) fn begin(self) -> Checking {
        match self {
            Self::Sha1(expected) => Checking::Sha1(Sha1::default(), expected),
            Self::Sha256(expected) => Checking::Sha256(Sha256::default(), expected),
        }
    }
}

/// A body that is being held against its checksum.
#[derive(Clone)]
pub(crate) enum Checking {
    Sha1(Sha1, [u8; 20]),
    Sha256(Sha256, [u8; 32]),
}

impl Checking {
    /// Takes the next bytes.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha1(hash, _) => hash.update(bytes),
            Self::Sha256(hash, _) => hash.update(bytes),
        }
    }

    /// Whether what came is what was announced.
    pub(crate) fn fits(self) -> bool {
        match self {
            Self::Sha1(hash, expected) => hash.finalize().as_slice() == expected,
            Self::Sha256(hash, expected) => hash.finalize().as_slice() == expected,
        }
    }
}

impl fmt::Debug for Checking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checking").finish_non_exhaustive()
    }
}

/// `Upload-Length` and `Upload-Offset`: a number of bytes, digits only.
pub(crate) fn bytes(header: &[u8]) -> Result<u64, Flaw> {
    let digits = header.trim_ascii();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(Flaw::Malformed("is not a number of bytes"));
    }
    // Digits are text.
    let text = std::str::from_utf8(digits).unwrap_or_default();
    text.parse().map_err(|_| Flaw::Malformed("is too large a number"))
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[test]
    fn the_examples_of_the_protocol_are_read() {
        let header = b"filename d29ybGRfZG9taW5hdGlvbl9wbGFuLnBkZg==,is_confidential";
        let metadata = Metadata::parse(header).unwrap();
        assert_eq!(metadata.get("filename"), Some(&b"world_domination_plan.pdf"[..]));
        assert_eq!(metadata.get("is_confidential"), Some(&b""[..]));
        assert_eq!(metadata.get("other"), None);
        let checksum = Checksum::parse(b"sha1 Kq5sNclPz7QV2+lfQIuc6R7oRu0=").unwrap();
        let mut checking = checksum.begin();
        checking.update(b"hello ");
        checking.update(b"world");
        assert!(checking.fits());
        assert!(!checksum.begin().fits());
    }

    #[test]
    fn what_the_protocol_does_not_allow_is_refused() {
        for header in
            [&b"a YQ==,a YQ=="[..], b",", b"a YQ==,", b"a Y", b"a YQ== YQ==", b"\xff YQ==", b" ,a"]
        {
            assert!(matches!(Metadata::parse(header), Err(Flaw::Malformed(_))), "{header:?}");
        }
        let many = (0..=MAX_PAIRS).map(|n| format!("k{n}")).collect::<Vec<_>>().join(",");
        assert!(Metadata::parse(many.as_bytes()).is_err());
        for header in [&b"sha1"[..], b"sha1 ", b"sha1 YQ==", b"sha256 Kq5sNclPz7QV2+lfQIuc6R7oRu0="]
        {
            assert!(matches!(Checksum::parse(header), Err(Flaw::Malformed(_))), "{header:?}");
        }
        for header in [&b"md5 YQ=="[..], b"SHA1 YQ==", b" x", b"crc32 !"] {
            let flaw = Checksum::parse(header).unwrap_err();
            assert!(flaw == Flaw::Algorithm || header == b" x", "{header:?}");
        }
        for header in [&b""[..], b"-1", b"+1", b"1.0", b"0x1", b"1 1", b"18446744073709551616"] {
            assert!(bytes(header).is_err(), "{header:?}");
        }
        assert_eq!(bytes(b" 18446744073709551615 "), Ok(u64::MAX));
        assert_eq!(bytes(b"007"), Ok(7));
    }

    proptest! {
        #[test]
        fn metadata_that_is_written_is_read_again(
            pairs in proptest::collection::btree_map("[!-+\\--~]{1,12}", vec(any::<u8>(), 0..40), 0..9)
        ) {
            let metadata = Metadata(pairs.into_iter().collect());
            prop_assert_eq!(Metadata::parse(metadata.write().as_bytes()).unwrap(), metadata);
        }

        #[test]
        fn no_metadata_is_larger_than_its_header(header in vec(any::<u8>(), 0..300)) {
            if let Ok(metadata) = Metadata::parse(&header) {
                let kept: usize = metadata.0.iter().map(|(key, value)| key.len() + value.len()).sum();
                prop_assert!(kept <= header.len());
            }
        }

        #[test]
        fn a_checksum_fits_what_it_was_made_of_and_nothing_else(
            body in vec(any::<u8>(), 0..200), cut in 0..200usize, bit in 0..8u8
        ) {
            let (sha1, sha256) = (Sha1::digest(&body), Sha256::digest(&body));
            for (name, digest) in [("sha1", sha1.as_slice()), ("sha256", sha256.as_slice())] {
                let header = format!("{name} {}", BASE64_STANDARD.encode(digest));
                let checksum = Checksum::parse(header.as_bytes()).unwrap();
                let mut checking = checksum.begin();
                let (first, second) = body.split_at(cut.min(body.len()));
                checking.update(first);
                checking.update(second);
                prop_assert!(checking.fits());
                let mut other = body.clone();
                match other.get_mut(cut) {
                    Some(byte) => *byte ^= 1 << bit,
                    None => other.push(bit),
                }
                let mut checking = checksum.begin();
                checking.update(&other);
                prop_assert!(!checking.fits());
            }
        }

        #[test]
        fn numbers_are_read_as_they_are_written_and_bytes_never_panic(
            number: u64, header in vec(any::<u8>(), 0..80)
        ) {
            prop_assert_eq!(bytes(number.to_string().as_bytes()), Ok(number));
            let _ = (bytes(&header), Checksum::parse(&header));
        }
    }
}
