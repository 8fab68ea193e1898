//! A beacon that one has the key of: for development chains and tests. Its secret is no secret.

use std::fmt;

use ::timelock::engines::{EngineBLS, drand::TinyBLS381};
use ark_ec::{CurveGroup as _, PrimeGroup as _};
use ark_ff::PrimeField as _;
use ark_serialize::CanonicalSerialize as _;
use sha2::{Digest as _, Sha512};

use crate::beacon::{Beacon, BeaconError, KeyGroup, PUBLIC_KEY_BYTES, SIGNATURE_BYTES, identity};

/// A beacon that signs any round, at any time.
#[derive(Clone)]
pub struct SecretBeacon {
    secret: <TinyBLS381 as EngineBLS>::Scalar,
    beacon: Beacon,
}

impl fmt::Debug for SecretBeacon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretBeacon").field("beacon", &self.beacon).finish_non_exhaustive()
    }
}

impl SecretBeacon {
    /// The beacon of a seed, always the same. Times are in seconds.
    pub fn from_seed(seed: [u8; 32], genesis_time: u64, period: u64) -> Result<Self, BeaconError> {
        let digest = Sha512::new().chain_update("connito drand").chain_update(seed).finalize();
        let secret = <TinyBLS381 as EngineBLS>::Scalar::from_be_bytes_mod_order(&digest);
        let mut public_key = [0; PUBLIC_KEY_BYTES];
        (KeyGroup::generator() * secret)
            .into_affine()
            .serialize_compressed(&mut public_key[..])
            .map_err(|_| BeaconError::PublicKey)?;
        Ok(Self { secret, beacon: Beacon::new(public_key, genesis_time, period)? })
    }

    /// The public side.
    pub fn beacon(&self) -> &Beacon {
        &self.beacon
    }

    /// The signature of a round, compressed.
    #[expect(clippy::expect_used, reason = "a compressed point of G1 has 48 bytes")]
    pub fn sign(&self, round: u64) -> [u8; SIGNATURE_BYTES] {
        let mut signature = [0; SIGNATURE_BYTES];
        identity(round)
            .extract::<TinyBLS381>(self.secret)
            .0
            .into_affine()
            .serialize_compressed(&mut signature[..])
            .expect("48 bytes");
        signature
    }
}
