//! Looks for NaN and infinity at the speed of memory.

use crate::dtype::Dtype;

/// Index of the first element that is not finite, with its name. Integers are always finite.
pub(crate) fn first_non_finite(dtype: Dtype, bytes: &[u8]) -> Option<(usize, &'static str)> {
    match dtype {
        Dtype::F64 => scan(bytes, |b| u64::from_le_bytes(b) << 1, 0x7ff << 53, |b| b[7] >= 0x80),
        Dtype::F32 => {
            scan(bytes, |b| u64::from(u32::from_le_bytes(b) << 1), 0xff << 24, |b| b[3] >= 0x80)
        }
        Dtype::F16 => {
            scan(bytes, |b| u64::from(u16::from_le_bytes(b) << 1), 0x1f << 11, |b| b[1] >= 0x80)
        }
        Dtype::BF16 => {
            scan(bytes, |b| u64::from(u16::from_le_bytes(b) << 1), 0xff << 8, |b| b[1] >= 0x80)
        }
        Dtype::I64 | Dtype::I32 | Dtype::I16 | Dtype::I8 | Dtype::U8 | Dtype::Bool => None,
    }
}

/// Elements looked at between two branches: the inner loop has none, so that the compiler makes it wide.
const BLOCK: usize = 4096;

/// `magnitude` gives an element's bits without the sign; it is finite when they are below those of infinity.
fn scan<const N: usize>(
    bytes: &[u8],
    magnitude: impl Fn([u8; N]) -> u64,
    infinity: u64,
    negative: impl Fn([u8; N]) -> bool,
) -> Option<(usize, &'static str)> {
    let (elements, _) = bytes.as_chunks::<N>();
    for (nth, block) in elements.chunks(BLOCK).enumerate() {
        if !block.iter().fold(false, |found, e| found | (magnitude(*e) >= infinity)) {
            continue;
        }
        let index = block.iter().position(|e| magnitude(*e) >= infinity)?;
        let element = block[index];
        let value = match (magnitude(element) == infinity, negative(element)) {
            (true, false) => "inf",
            (true, true) => "-inf",
            (false, _) => "NaN",
        };
        return Some((nth * BLOCK + index, value));
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::dtype::{decode_f32, encode_f32};

    const FLOATS: [Dtype; 4] = [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::BF16];

    #[test]
    fn the_first_bad_element_is_named_in_every_float_type() {
        for dtype in FLOATS {
            for (bad, name) in
                [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")]
            {
                let mut values = vec![1.5f32; 3 * BLOCK];
                values[BLOCK + 7] = bad;
                values[2 * BLOCK] = f32::NAN;
                let bytes = encode_f32(dtype, &values).unwrap();
                assert_eq!(first_non_finite(dtype, &bytes), Some((BLOCK + 7, name)), "{dtype}");
            }
        }
        assert_eq!(first_non_finite(Dtype::I32, &[0xff; 64]), None);
    }

    proptest! {
        #[test]
        fn the_scan_agrees_with_the_definition(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
                let values = decode_f32(dtype, &bytes).unwrap();
                let expected = values.iter().position(|v| !v.is_finite());
                prop_assert_eq!(first_non_finite(dtype, &bytes).map(|found| found.0), expected);
            }
            let (doubles, _) = bytes.as_chunks();
            let expected = doubles.iter().position(|v| !f64::from_le_bytes(*v).is_finite());
            prop_assert_eq!(first_non_finite(Dtype::F64, &bytes).map(|found| found.0), expected);
        }
    }
}
