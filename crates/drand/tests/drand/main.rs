//! Timelock encryption as the chain and its clients meet it, and as strangers attack it.

#![expect(clippy::unwrap_used, reason = "a test may fail wherever it is")]

mod hostile;
mod official;

use std::sync::OnceLock;

use drand::{MAX_SEALED, OVERHEAD, SealError, SecretBeacon, open, seal};
use proptest::prelude::*;

/// A development beacon, made once: its key takes a moment.
fn secret() -> &'static SecretBeacon {
    static SECRET: OnceLock<SecretBeacon> = OnceLock::new();
    SECRET.get_or_init(|| SecretBeacon::from_seed([7; 32], 1_000, 3).unwrap())
}

#[test]
fn a_development_beacon_is_the_same_for_the_same_seed_and_signs_its_own_rounds_only() {
    let again = SecretBeacon::from_seed([7; 32], 1_000, 3).unwrap();
    let other = SecretBeacon::from_seed([8; 32], 1_000, 3).unwrap();
    assert_eq!(again.beacon(), secret().beacon());
    assert_eq!(again.sign(5), secret().sign(5));
    assert!(again.beacon().verify(5, &again.sign(5)));
    assert!(!again.beacon().verify(6, &again.sign(5)), "another round's");
    assert!(!again.beacon().verify(5, &other.sign(5)), "another beacon's");
    assert!(!format!("{again:?}").contains("secret"));
}

#[test]
fn a_message_opens_with_the_signature_of_its_round_and_with_no_other() {
    let sealed = seal(secret().beacon(), 9, b"weights", [1; 32]).unwrap();
    assert_eq!(open(&sealed, &secret().sign(9)).unwrap(), b"weights");
    assert!(open(&sealed, &secret().sign(8)).is_err());
    let other = SecretBeacon::from_seed([8; 32], 1_000, 3).unwrap();
    assert!(open(&sealed, &other.sign(9)).is_err());
}

#[test]
fn chance_used_twice_gives_nothing_away() {
    let beacon = secret().beacon();
    let first = seal(beacon, 9, b"the same length", [1; 32]).unwrap();
    assert_eq!(seal(beacon, 9, b"the same length", [1; 32]).unwrap(), first);
    let other = seal(beacon, 9, b"another message", [1; 32]).unwrap();
    let same = first.iter().zip(&other).filter(|(a, b)| a == b).count();
    // The lengths and the cipher's name are the same, and beyond them only what chance makes so.
    assert!(same < OVERHEAD / 2, "{same} bytes of {}", first.len());
}

#[test]
fn a_message_that_would_not_fit_into_a_commit_is_not_sealed() {
    let most = vec![0; MAX_SEALED - OVERHEAD];
    let sealed = seal(secret().beacon(), 1, &most, [0; 32]).unwrap();
    assert_eq!(sealed.len(), MAX_SEALED);
    assert_eq!(open(&sealed, &secret().sign(1)).unwrap(), most);
    let more = vec![0; most.len() + 1];
    let refused = seal(secret().beacon(), 1, &more, [0; 32]);
    assert_eq!(refused, Err(SealError::TooLong(more.len())));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn whatever_is_sealed_opens(
        message in prop::collection::vec(any::<u8>(), 0..600),
        round in any::<u64>(),
        entropy: [u8; 32],
    ) {
        let sealed = seal(secret().beacon(), round, &message, entropy).unwrap();
        prop_assert_eq!(sealed.len(), message.len() + OVERHEAD);
        prop_assert_eq!(open(&sealed, &secret().sign(round)).unwrap(), message);
    }
}
