use proptest::prelude::*;

use super::*;
use crate::vector::Values as _;

fn roundtrip(codec: Codec, values: &[f32]) -> Result<Vec<f32>, CodecError> {
    let mut bytes = vec![0; codec.encoded_len(values.len())];
    codec.encode(values, &mut bytes)?;
    let mut back = vec![0.0; values.len()];
    codec.decode(&bytes, &mut back)?;
    Ok(back)
}

/// Any finite float32, of any size.
fn finite() -> impl Strategy<Value = f32> {
    any::<u32>().prop_map(f32::from_bits).prop_filter("finite", |x| x.is_finite())
}

proptest! {
    #[test]
    fn what_is_decoded_is_finite_and_within_the_codecs_bound(
        mut values in prop::collection::vec(finite(), 0..700),
        small: bool,
    ) {
        if small {
            values.iter_mut().for_each(|x| *x = x.clamp(-1.0, 1.0));
        }
        prop_assert_eq!(&roundtrip(Codec::Float32, &values).unwrap(), &values);
        for (x, back) in values.iter().zip(roundtrip(Codec::Bfloat16, &values).unwrap()) {
            prop_assert!(back.is_finite());
            let bound = f64::from(x.abs()) / 256.0 + f64::from(f32::MIN_POSITIVE);
            prop_assert!((f64::from(*x) - f64::from(back)).abs() <= bound, "{x} {back}");
        }
        let back = roundtrip(Codec::Int8, &values).unwrap();
        for (values, back) in values.chunks(256).zip(back.chunks(256)) {
            let largest = values.iter().fold(0.0f32, |l, x| l.max(x.abs()));
            let bound = f64::from(largest) / 253.9 + 2f64.powi(-119);
            for (x, back) in values.iter().zip(back) {
                prop_assert!(back.is_finite());
                let error = (f64::from(*x) - f64::from(*back)).abs();
                prop_assert!(error <= bound, "{x} {back} of {largest}");
            }
        }
    }

    #[test]
    fn bfloat16_is_rounded_to_nearest_even(x in finite()) {
        let nearest = bf16::from_f32(x);
        let expected = match nearest.is_finite() {
            true => nearest,
            false if x > 0.0 => bf16::MAX,
            false => bf16::MIN,
        };
        prop_assert_eq!(narrow(x), expected.to_bits());
    }

    #[test]
    fn any_bytes_decode_to_finite_numbers_or_a_named_error(
        bytes in prop::collection::vec(any::<u8>(), 0..900),
        len in 0_usize..900,
    ) {
        for codec in Codec::ALL {
            let mut values = vec![0.0; len];
            match codec.decode(&bytes, &mut values) {
                Ok(()) => {
                    prop_assert_eq!(bytes.len(), codec.encoded_len(len));
                    prop_assert!(values.iter().all(|x| x.is_finite()));
                }
                Err(error) => prop_assert!(!error.reason().is_empty()),
            }
            // Bytes of the right length, so that what they say is looked at.
            let mut right = bytes.clone();
            right.resize(codec.encoded_len(len), 0x7f);
            if codec.decode(&right, &mut values).is_ok() {
                prop_assert!(values.iter().all(|x| x.is_finite()));
            }
        }
    }

    #[test]
    fn parts_that_begin_at_blocks_are_encoded_as_the_whole(
        seed: u64,
        blocks in 1_usize..200,
        rest in 0_usize..256,
    ) {
        let values = noise(seed, 256 * blocks + rest);
        for codec in Codec::ALL {
            let mut whole = vec![0; codec.encoded_len(values.len())];
            codec.encode(&values, &mut whole).unwrap();
            let mut parts = Vec::new();
            for part in values.chunks(3 * 256) {
                let mut bytes = vec![0; codec.encoded_len(part.len())];
                codec.encode(part, &mut bytes).unwrap();
                parts.extend(bytes);
            }
            prop_assert_eq!(&parts, &whole);
            let encoded = Encoded::new(codec, values.len(), whole.as_slice()).unwrap();
            let mut all = vec![0.0; values.len()];
            encoded.read(0, &mut all).unwrap();
            let (from, to) = (values.len() / 3, values.len() / 2 + 1);
            let mut part = vec![0.0; to - from];
            encoded.read(from, &mut part).unwrap();
            prop_assert_eq!(&part[..], &all[from..to]);
        }
    }
}

/// Numbers of many sizes.
fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed | 1;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        f32::from_bits((state >> 32) as u32 & 0x9fff_ffff | 0x2000_0000)
    };
    (0..len).map(|_| next()).collect()
}

#[test]
fn a_value_that_is_not_finite_is_named_by_its_place_in_the_slice() {
    for codec in Codec::ALL {
        let mut values = vec![1.0; 2 * PIECE + 7];
        values[PIECE + 3] = f32::NAN;
        values[2 * PIECE] = f32::INFINITY;
        let error = roundtrip(codec, &values).unwrap_err();
        assert_eq!(error, CodecError::NonFinite { index: PIECE + 3 }, "{codec}");
    }
}

#[test]
fn bytes_that_no_encoder_writes_are_refused_by_name() {
    let values = vec![1.0; PIECE + 300];
    let mut bytes = vec![0; Codec::Int8.encoded_len(values.len())];
    Codec::Int8.encode(&values, &mut bytes).unwrap();
    let mut back = values.clone();
    let block = PIECE / 256 + 1;
    let scale = block * 260;
    for bad in [f32::NAN, f32::INFINITY, f32::MAX, -1.0, -0.0] {
        let mut bytes = bytes.clone();
        bytes[scale..scale + 4].copy_from_slice(&bad.to_le_bytes());
        let error = Codec::Int8.decode(&bytes, &mut back).unwrap_err();
        assert_eq!(error, CodecError::Scale { block }, "{bad}");
    }
    let mut coded = bytes.clone();
    coded[scale + 4 + 9] = 0x80;
    let error = Codec::Int8.decode(&coded, &mut back).unwrap_err();
    assert_eq!(error, CodecError::Code { index: PIECE + 256 + 9 });
    let (expected, found) = (bytes.len(), bytes.len() - 1);
    let error = Codec::Int8.decode(&bytes[1..], &mut back).unwrap_err();
    assert_eq!(error, CodecError::Length { expected, found });
    assert_eq!(Encoded::new(Codec::Int8, back.len(), &bytes[1..]).unwrap_err(), error);
}

#[test]
fn the_largest_numbers_stay_finite() {
    for codec in Codec::ALL {
        let back = roundtrip(codec, &[f32::MAX, f32::MIN, 0.0, f32::MIN_POSITIVE]).unwrap();
        assert!(back.iter().all(|x| x.is_finite()), "{codec}: {back:?}");
        assert!(back[0] > 3.3e38 && back[1] < -3.3e38, "{codec}: {back:?}");
    }
    let tiny = [f32::from_bits(1), -f32::MIN_POSITIVE];
    assert_eq!(roundtrip(Codec::Int8, &tiny).unwrap(), [0.0, 0.0]);
}

#[test]
fn a_codec_is_read_back_from_its_name() {
    for codec in Codec::ALL {
        assert_eq!(codec.name().parse(), Ok(codec));
        assert_eq!(serde_json::to_value(codec).unwrap(), codec.name());
    }
    assert!("int4".parse::<Codec>().is_err());
}
