//! A beacon: whose signatures open what is sealed, and when it publishes them.

use std::fmt;

use ::timelock::{
    engines::{EngineBLS, drand::TinyBLS381},
    ibe::fullident::Identity,
};
use ark_ec::PrimeGroup as _;
use ark_ff::Zero as _;
use ark_serialize::CanonicalDeserialize as _;
use sha2::{Digest as _, Sha256};

/// A point of G2, compressed.
pub const PUBLIC_KEY_BYTES: usize = 96;
/// A point of G1, compressed.
pub const SIGNATURE_BYTES: usize = 48;

/// Where public keys live: G2.
pub(crate) type KeyGroup = <TinyBLS381 as EngineBLS>::PublicKeyGroup;
/// Where signatures live: G1.
pub(crate) type SignatureGroup = <TinyBLS381 as EngineBLS>::SignatureGroup;

/// drand's quicknet, by its chain hash `52db9ba7…4e971`.
const QUICKNET_KEY: &str = "83cf0f2896adee7eb8b5f01fcad3912212c437e0073e911fb90022d3e760183c\
                            8c4b450b6a0a6c3ac6a5776a2d1064510d1fec758c921cc22b0e17e63aaf4bcb\
                            5ed66304de9cf809bd274ca73bab4af5a6e9c76a4bc09e76eae8991ef5ece45a";
const QUICKNET_GENESIS: u64 = 1_692_803_367;
const QUICKNET_PERIOD: u64 = 3;

/// Not a beacon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BeaconError {
    #[error("the public key is not a point of G2 that anyone could sign for")]
    PublicKey,
    #[error("the period between two rounds is zero")]
    Period,
}

/// The public side of a beacon: its key, and the times of its rounds. Round 1 is at the genesis,
/// and every round after it one period later.
#[derive(Clone, PartialEq, Eq)]
pub struct Beacon {
    public_key: [u8; PUBLIC_KEY_BYTES],
    key: KeyGroup,
    genesis_time: u64,
    period: u64,
}

impl fmt::Debug for Beacon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Beacon")
            .field("public_key", &hex::encode(self.public_key))
            .field("genesis_time", &self.genesis_time)
            .field("period", &self.period)
            .finish()
    }
}

impl Beacon {
    /// drand's quicknet, to which the live chain's commits are sealed: a round every 3 seconds.
    #[expect(clippy::expect_used, reason = "of constants, which a test opens")]
    pub fn quicknet() -> Self {
        let mut key = [0; PUBLIC_KEY_BYTES];
        hex::decode_to_slice(QUICKNET_KEY, &mut key).expect("96 bytes of hex");
        Self::new(key, QUICKNET_GENESIS, QUICKNET_PERIOD).expect("a point of G2")
    }

    /// A beacon by its compressed public key, its first round's Unix time, and its period, both
    /// in seconds.
    pub fn new(
        public_key: [u8; PUBLIC_KEY_BYTES],
        genesis_time: u64,
        period: u64,
    ) -> Result<Self, BeaconError> {
        let key = KeyGroup::deserialize_compressed(&public_key[..])
            .ok()
            // Under the point at infinity everyone's signature is the same.
            .filter(|key| !key.is_zero())
            .ok_or(BeaconError::PublicKey)?;
        if period == 0 {
            return Err(BeaconError::Period);
        }
        Ok(Self { public_key, key, genesis_time, period })
    }

    /// The compressed public key.
    pub fn public_key(&self) -> &[u8; PUBLIC_KEY_BYTES] {
        &self.public_key
    }

    /// The Unix time of round 1, in seconds.
    pub fn genesis_time(&self) -> u64 {
        self.genesis_time
    }

    /// Seconds between two rounds.
    pub fn period(&self) -> u64 {
        self.period
    }

    /// The newest round that is published at a time; 0 is none yet.
    ///
    /// The official SDKs leave out the one that makes the first round number 1: for a moment they
    /// name the round before the one that is named here, which opens up to a period sooner.
    pub fn round_at(&self, unix_seconds: u64) -> u64 {
        match unix_seconds.checked_sub(self.genesis_time) {
            Some(age) => age / self.period + 1,
            None => 0,
        }
    }

    /// The Unix time at which a round is published, in seconds. Round 0 counts as round 1.
    pub fn time_of(&self, round: u64) -> u64 {
        let periods = round.saturating_sub(1);
        self.genesis_time.saturating_add(periods.saturating_mul(self.period))
    }

    /// Whether a signature is this beacon's on a round. False for any bytes that are none.
    pub fn verify(&self, round: u64, signature: &[u8]) -> bool {
        let Some(signature) = signature_point(signature) else { return false };
        let signed = TinyBLS381::pairing(KeyGroup::generator(), signature);
        signed == TinyBLS381::pairing(self.key, identity(round).public::<TinyBLS381>())
    }

    pub(crate) fn key(&self) -> KeyGroup {
        self.key
    }
}

/// What a round's signature signs, which is also the name under which things are sealed to it.
pub(crate) fn identity(round: u64) -> Identity {
    Identity::new(b"", &Sha256::digest(round.to_be_bytes()))
}

/// A signature's bytes as a point of the right group.
pub(crate) fn signature_point(bytes: &[u8]) -> Option<SignatureGroup> {
    if bytes.len() != SIGNATURE_BYTES {
        return None;
    }
    SignatureGroup::deserialize_compressed(bytes).ok().filter(|point| !point.is_zero())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn round_one_is_at_the_genesis_and_nothing_is_before_it() {
        let beacon = Beacon::quicknet();
        let genesis = beacon.genesis_time();
        assert_eq!(beacon.round_at(0), 0);
        assert_eq!(beacon.round_at(genesis - 1), 0);
        assert_eq!((beacon.round_at(genesis), beacon.time_of(1)), (1, genesis));
        assert_eq!((beacon.round_at(genesis + 2), beacon.round_at(genesis + 3)), (1, 2));
        assert_eq!(beacon.time_of(u64::MAX), u64::MAX);
    }

    #[test]
    fn a_key_that_is_no_point_or_the_point_of_no_one_makes_no_beacon() {
        let mut infinity = [0; PUBLIC_KEY_BYTES];
        infinity[0] = 0xc0;
        for key in [[0; PUBLIC_KEY_BYTES], [0xff; PUBLIC_KEY_BYTES], infinity] {
            assert_eq!(Beacon::new(key, 0, 3), Err(BeaconError::PublicKey));
        }
        let key = *Beacon::quicknet().public_key();
        assert_eq!(Beacon::new(key, 0, 0), Err(BeaconError::Period));
    }

    proptest! {
        #[test]
        fn a_round_is_published_at_its_time_and_not_a_second_earlier(
            round in 1u64..1 << 40,
            genesis in 1u64..1 << 40,
            period in 1u64..100,
        ) {
            let key = *Beacon::quicknet().public_key();
            let beacon = Beacon::new(key, genesis, period).unwrap();
            let time = beacon.time_of(round);
            prop_assert_eq!(beacon.round_at(time), round);
            prop_assert_eq!(beacon.round_at(time - 1), round - 1);
        }
    }
}
