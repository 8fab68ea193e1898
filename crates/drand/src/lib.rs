//! Timelock encryption to a round of a drand beacon, as Subtensor's commit-reveal v4 uses it: what
//! is sealed now opens with the signature that the beacon publishes then.
//!
//! Signatures are on G1 of BLS12-381 and public keys on G2, as on drand's quicknet. The curve, the
//! identity-based encryption and the cipher are those of the crate `timelock`; this one gives them
//! the chain's layout of bytes, and lets no stranger's bytes near code that panics on them.
//!
//! It knows no network and no clock: who needs a signature brings it, and who seals brings chance.

mod beacon;
mod layout;
mod secret;
mod timelock;

pub use self::{
    beacon::{Beacon, BeaconError, PUBLIC_KEY_BYTES, SIGNATURE_BYTES},
    secret::SecretBeacon,
    timelock::{MAX_SEALED, OVERHEAD, OpenError, SealError, open, seal},
};
