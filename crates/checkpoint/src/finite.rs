//! Looks for NaN and infinity at the speed of memory.

use crate::dtype::Dtype;

/// Index of the first element that is not finite, with its name. Integers are always finite.
pub(crate) fn first_non_finite(dtype: Dtype, bytes: &[u8]) -> Option<(usize, &'static str)> {
    match dtype {
        Dtype::F64 => scan::<F64, 8>(bytes),
        Dtype::F32 => scan::<F32, 4>(bytes),
        Dtype::F16 => scan::<F16, 2>(bytes),
        Dtype::BF16 => scan::<Bf16, 2>(bytes),
        Dtype::I64 | Dtype::I32 | Dtype::I16 | Dtype::I8 | Dtype::U8 | Dtype::Bool => None,
    }
}

/// Elements looked at between two branches: the inner loop has none, so that the compiler makes it wide.
const BLOCK: usize = 4096;

/// A float type of `N` bytes.
trait Float<const N: usize> {
    /// Its bits without the sign, as a signed integer of its own width, which every processor compares in wide
    /// registers.
    type Magnitude: Copy + Ord + Default;

    /// The magnitude of infinity; finite ones are below it.
    const INFINITY: Self::Magnitude;

    fn magnitude(element: [u8; N]) -> Self::Magnitude;
}

struct F64;
struct F32;
struct F16;
struct Bf16;

impl Float<8> for F64 {
    type Magnitude = i64;
    const INFINITY: i64 = 0x7ff << 52;

    fn magnitude(element: [u8; 8]) -> i64 {
        i64::from_le_bytes(element) & i64::MAX
    }
}

impl Float<4> for F32 {
    type Magnitude = i32;
    const INFINITY: i32 = 0xff << 23;

    fn magnitude(element: [u8; 4]) -> i32 {
        i32::from_le_bytes(element) & i32::MAX
    }
}

impl Float<2> for F16 {
    type Magnitude = i16;
    const INFINITY: i16 = 0x1f << 10;

    fn magnitude(element: [u8; 2]) -> i16 {
        i16::from_le_bytes(element) & i16::MAX
    }
}

impl Float<2> for Bf16 {
    type Magnitude = i16;
    const INFINITY: i16 = 0xff << 7;

    fn magnitude(element: [u8; 2]) -> i16 {
        i16::from_le_bytes(element) & i16::MAX
    }
}

fn scan<F: Float<N>, const N: usize>(bytes: &[u8]) -> Option<(usize, &'static str)> {
    let (elements, _) = bytes.as_chunks::<N>();
    for (nth, block) in elements.chunks(BLOCK).enumerate() {
        let largest = block.iter().fold(F::Magnitude::default(), |m, e| m.max(F::magnitude(*e)));
        if largest < F::INFINITY {
            continue;
        }
        let index = block.iter().position(|e| F::magnitude(*e) >= F::INFINITY)?;
        let element = block[index];
        let negative = element.last().is_some_and(|byte| *byte >= 0x80);
        let value = match (F::magnitude(element) == F::INFINITY, negative) {
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
