//! Bytes of strangers: each is an error, and none is a panic.

use drand::{MAX_SEALED, OpenError, open, seal};
use proptest::prelude::*;

use crate::secret;

const MESSAGE: &[u8] = b"uids and weights";
const ROUND: u64 = 42;

fn sealed() -> Vec<u8> {
    seal(secret().beacon(), ROUND, MESSAGE, [5; 32]).unwrap()
}

#[test]
fn every_shorter_and_every_longer_message_is_refused() {
    let (sealed, signature) = (sealed(), secret().sign(ROUND));
    for length in 0..sealed.len() {
        let refused = open(&sealed[..length], &signature).unwrap_err();
        assert!(matches!(refused, OpenError::Layout(_)), "{length}: {refused}");
    }
    let longer = [&sealed[..], &[0]].concat();
    assert_eq!(open(&longer, &signature), Err(OpenError::Layout("bytes after the end")));
    let huge = vec![0; MAX_SEALED + 1];
    assert_eq!(open(&huge, &signature), Err(OpenError::TooLong(huge.len())));
}

#[test]
fn a_length_of_all_the_memory_in_the_world_is_refused_before_anything_is_made_of_it() {
    let (sealed, signature) = (sealed(), secret().sign(ROUND));
    // The lengths of the four strings, and of the two inside the body.
    let body = 96 + 40 + 40;
    let inner = body + 8;
    for at in [96, 136, body, inner, inner + 8 + MESSAGE.len() + 16, sealed.len() - 16] {
        assert!(sealed[at..at + 8].ends_with(&[0; 6]), "a length is at {at}");
        for length in [u64::MAX, u64::MAX / 2, 1 << 40, 33, 0] {
            let mut changed = sealed.clone();
            changed[at..at + 8].copy_from_slice(&length.to_le_bytes());
            assert!(open(&changed, &signature).is_err(), "{length} at {at}");
        }
    }
}

#[test]
fn a_signature_of_another_length_or_of_no_point_is_refused() {
    let (sealed, signature) = (sealed(), secret().sign(ROUND));
    let mut infinity = [0; 48];
    infinity[0] = 0xc0;
    let longer = [&signature[..], &[0]].concat();
    for bad in [&[][..], &signature[..47], &longer, &[0; 48], &[0xff; 48], &infinity] {
        assert_eq!(open(&sealed, bad), Err(OpenError::Signature));
        assert!(!secret().beacon().verify(ROUND, bad));
    }
}

#[test]
fn the_point_at_infinity_opens_nothing() {
    let (mut sealed, signature) = (sealed(), secret().sign(ROUND));
    sealed[..96].fill(0);
    sealed[0] = 0xc0;
    assert_eq!(open(&sealed, &signature), Err(OpenError::Sealed));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_changed_bit_anywhere_is_an_error(at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut changed = sealed();
        let at = at.index(changed.len());
        changed[at] ^= 1 << bit;
        prop_assert!(open(&changed, &secret().sign(ROUND)).is_err());
    }

    #[test]
    fn a_changed_bit_of_the_signature_is_an_error(at in 0usize..48, bit in 0u8..8) {
        let mut changed = secret().sign(ROUND);
        changed[at] ^= 1 << bit;
        prop_assert!(open(&sealed(), &changed).is_err());
        prop_assert!(!secret().beacon().verify(ROUND, &changed));
    }
}

proptest! {
    #[test]
    fn any_bytes_are_an_error(
        bytes in prop::collection::vec(any::<u8>(), 0..1000),
        signature in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        prop_assert!(open(&bytes, &secret().sign(ROUND)).is_err());
        prop_assert!(open(&sealed(), &signature).is_err());
        prop_assert!(!secret().beacon().verify(ROUND, &signature));
    }

    /// A real head keeps the parser going for longer.
    #[test]
    fn any_bytes_after_a_real_head_are_an_error(
        keep in 96usize..260,
        tail in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        let real = sealed();
        let bytes = [&real[..keep.min(real.len())], &tail[..]].concat();
        prop_assume!(bytes != real);
        prop_assert!(open(&bytes, &secret().sign(ROUND)).is_err());
    }
}
