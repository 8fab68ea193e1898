//! safetensors: eight bytes of length, a JSON header, the data end to end.

use std::fmt;

use serde::{
    Deserialize,
    de::{self, IgnoredAny, MapAccess, Visitor},
};

use super::Tensors;
use crate::{
    checkpoint::Limits,
    refusal::{Flaw, Refusal, clip},
    tensor::{TensorInfo, TensorSpec},
};

/// Bytes before the header: its length.
pub(crate) const LENGTH_LEN: usize = 8;

/// Reads and checks the header: names are unique, and the tensors lie end to end from the header's end to the file's.
pub(super) fn tensors(file: &[u8], limits: Limits) -> Result<Tensors, Refusal> {
    let (length, rest) =
        file.split_first_chunk::<LENGTH_LEN>().ok_or_else(|| Flaw::Truncated.with("no header"))?;
    let header =
        rest.split_at_checked(header_len(*length, limits)?).ok_or_else(|| truncated(file.len()))?;
    let (header, data) = header;
    let (tensors, end) = table(header, limits, data.len())?;
    if end != data.len() {
        return Err(trailing(data.len() - end));
    }
    Ok(tensors)
}

/// The header's length by the file's first eight bytes. `header_too_large` beyond the limit.
pub(crate) fn header_len(length: [u8; LENGTH_LEN], limits: Limits) -> Result<usize, Refusal> {
    let length = u64::from_le_bytes(length);
    usize::try_from(length).ok().filter(|_| length <= limits.max_header_bytes).ok_or_else(|| {
        let detail = format!("{length} bytes, the limit is {}", limits.max_header_bytes);
        Flaw::HeaderTooLarge.with(detail)
    })
}

/// The refusal of a file of so many bytes, which ends before its header does.
pub(crate) fn truncated(bytes: usize) -> Refusal {
    Flaw::Truncated.with(format!("a header that goes on behind {bytes} bytes"))
}

/// The refusal of bytes that no tensor has.
pub(crate) fn trailing(bytes: usize) -> Refusal {
    Flaw::BadOffsets.with(format!("{bytes} bytes after the last tensor"))
}

/// Reads a header that is followed by at most `max_data` bytes: the tensors, which lie end to end, and where the last
/// one ends, counted from the header's end.
pub(crate) fn table(
    header: &[u8],
    limits: Limits,
    max_data: usize,
) -> Result<(Tensors, usize), Refusal> {
    let data_start = LENGTH_LEN + header.len();
    let header: Header = serde_json::from_slice(header).map_err(|e| Flaw::BadHeader.with(e))?;
    if header.0.len() > limits.max_tensors {
        return Err(Flaw::TooManyTensors.with(header.0.len()));
    }
    let mut tensors = Tensors::new();
    let mut ranges = Vec::with_capacity(header.0.len());
    for (name, entry) in header.0 {
        let dtype =
            entry.dtype.parse().map_err(|e| Flaw::UnknownDtype.with(format!("{name}: {e}")))?;
        let spec = TensorSpec { dtype, shape: entry.shape };
        let (from, to) = entry.data_offsets;
        if to.checked_sub(from) != Some(spec.checked_bytes(&name)?) {
            let detail = format!("{name}: {dtype} of {:?} in {from}..{to}", spec.shape);
            return Err(Flaw::BadOffsets.with(detail));
        }
        if to > max_data {
            return Err(Flaw::Truncated.with(format!("{name}: ends at {to} of {max_data}")));
        }
        ranges.push((from, to));
        let info = TensorInfo::contiguous_at(spec, data_start.saturating_add(from));
        if tensors.insert(name.clone(), info).is_some() {
            return Err(Flaw::DuplicateTensor.with(name));
        }
    }
    ranges.sort_unstable();
    let mut end = 0;
    for (from, to) in ranges {
        if from != end {
            let kind = if from < end { "an overlap" } else { "a gap" };
            return Err(Flaw::BadOffsets.with(format!("{kind} between {end} and {from}")));
        }
        end = to;
    }
    Ok((tensors, end))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

/// The header's tensors in the order of the file, duplicates included: a map would hide them.
struct Header(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: de::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    let entry = map.next_value();
                    let named = |e: A::Error| de::Error::custom(format!("{}: {e}", clip(&name)));
                    let entry = entry.map_err(named)?;
                    entries.push((name, entry));
                }
                Ok(Header(entries))
            }
        }

        d.deserialize_map(Entries)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::dtype::Dtype;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        file.extend(vec![0; data]);
        file
    }

    fn flaw(header: &str, data: usize) -> Flaw {
        tensors(&file(header, data), Limits::default()).unwrap_err().flaw().unwrap()
    }

    const A: &str = r#""a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#;

    #[test]
    fn a_plain_header_is_read_and_its_metadata_ignored() {
        let header = format!(r#"{{"__metadata__":{{"format":"pt"}},{A}}}"#);
        let tensors = tensors(&file(&header, 8), Limits::default()).unwrap();
        assert_eq!(tensors["a"].spec(), &TensorSpec { dtype: Dtype::F32, shape: vec![2] });
    }

    #[test]
    fn headers_that_lie_are_refused_by_name() {
        let b = |from, to| {
            format!(
                r#"{{{A},"b":{{"dtype":"U8","shape":[{}],"data_offsets":[{from},{to}]}}}}"#,
                to - from
            )
        };
        assert_eq!(flaw(&b(4, 8), 8), Flaw::BadOffsets, "an overlap");
        assert_eq!(flaw(&b(9, 12), 12), Flaw::BadOffsets, "a gap");
        assert_eq!(flaw(&b(8, 12), 13), Flaw::BadOffsets, "a tail");
        assert_eq!(flaw(&b(8, 12), 11), Flaw::Truncated);
        assert_eq!(flaw(&format!("{{{A},{A}}}"), 8), Flaw::DuplicateTensor);
        assert_eq!(
            flaw(&A.replace("F32", "F7").replacen("\"a\"", "{\"a\"", 1), 8),
            Flaw::BadHeader
        );
        assert_eq!(flaw(&format!("{{{}}}", A.replace("F32", "F7")), 8), Flaw::UnknownDtype);
        assert_eq!(flaw(&format!("{{{}}}", A.replace("[2]", "[3]")), 8), Flaw::BadOffsets);
        assert_eq!(flaw(&format!("{{{}}}", A.replace("[2]", "[-2]")), 8), Flaw::BadHeader);
        assert_eq!(flaw(&format!("{{{}}}", A.replace("[0,8]", "[8,0]")), 8), Flaw::BadOffsets);
        let huge = A.replace("[2]", "[4294967296,4294967296,2]");
        assert_eq!(flaw(&format!("{{{huge}}}"), 8), Flaw::HugeShape);
        let deep = format!(r#"{{"__metadata__":{}"#, "[".repeat(100_000));
        assert_eq!(flaw(&deep, 0), Flaw::BadHeader, "recursion is bounded");
    }

    proptest! {
        #[test]
        fn any_header_is_a_table_or_a_refusal(header: Vec<u8>, data in 0usize..64, extra: u64) {
            let mut file = (header.len() as u64).wrapping_add(extra % 3).to_le_bytes().to_vec();
            file.extend(&header);
            file.extend(vec![0; data]);
            let _ = tensors(&file, Limits::default());
        }
    }
}
