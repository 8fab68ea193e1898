//! Signatures for named purposes: there is no way to have arbitrary bytes signed.
//!
//! Each purpose makes its own message, and no message of one can be read as another's. Who asks is
//! known before ([`kit::auth`]); each use is logged with its caller and counted, and there are only
//! so many of them in a minute.

use std::{fmt, num::NonZeroU32, sync::Arc};

use domain::{ModelHash, model_hash_message};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use kit::auth::Caller;
use tracing::{info, warn};

use crate::{config::Config, error::Error, keys::SigningKey, metrics};

const PEER: &[u8] = b"connito.peer.v1:";
const RECORD: &[u8] = b"connito.record.v1:";

/// What a signature is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A model hash: its ASCII is signed (protocol, section 3).
    ModelHash(ModelHash),
    /// A message between validators' peer services, by its BLAKE2b-256 digest.
    Peer([u8; 32]),
    /// The record of a round, by its SHA-256 digest.
    Record([u8; 32]),
}

impl Purpose {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::ModelHash(_) => "model_hash",
            Self::Peer(_) => "peer",
            Self::Record(_) => "record",
        }
    }

    /// The bytes that are signed.
    pub(crate) fn message(&self) -> Vec<u8> {
        match self {
            Self::ModelHash(hash) => model_hash_message(hash),
            Self::Peer(digest) => [PEER, digest].concat(),
            Self::Record(digest) => [RECORD, digest].concat(),
        }
    }
}

/// The hotkey, as callers may use it. Clones share the limits.
#[derive(Clone)]
pub(crate) struct Signer {
    key: Arc<SigningKey>,
    /// Of model hashes and of records: a few per round.
    model_hash: Arc<DefaultDirectRateLimiter>,
    record: Arc<DefaultDirectRateLimiter>,
    /// Of messages to other validators: as many as a merge has parts.
    peer: Arc<DefaultDirectRateLimiter>,
}

impl Signer {
    pub(crate) fn new(key: Arc<SigningKey>, config: &Config) -> Self {
        let limiter = |per_minute: u32| {
            let per_minute = NonZeroU32::new(per_minute).unwrap_or(NonZeroU32::MIN);
            Arc::new(RateLimiter::direct(Quota::per_minute(per_minute)))
        };
        Self {
            key,
            model_hash: limiter(config.round_signatures_per_minute),
            record: limiter(config.round_signatures_per_minute),
            peer: limiter(config.peer_signatures_per_minute),
        }
    }

    /// Signs for a purpose; logged and counted, whatever comes of it.
    ///
    /// # Errors
    ///
    /// When this purpose was signed for too often in the last minute.
    pub(crate) fn sign(&self, caller: &Caller, purpose: Purpose) -> Result<[u8; 64], Error> {
        let limiter = match purpose {
            Purpose::ModelHash(_) => &self.model_hash,
            Purpose::Peer(_) => &self.peer,
            Purpose::Record(_) => &self.record,
        };
        if limiter.check().is_err() {
            metrics::signature_refused(purpose.name(), "limit");
            warn!(purpose = purpose.name(), %caller, "not signed: too often in a minute");
            return Err(Error::SignLimit { purpose: purpose.name() });
        }
        metrics::signed(purpose.name());
        info!(purpose = purpose.name(), ?purpose, %caller, "signed");
        Ok(self.key.sign(&purpose.message()))
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").field("key", &self.key).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use schnorrkel::{ExpansionMode, MiniSecretKey};

    use super::*;
    use crate::keys::verify;

    #[test]
    fn each_purpose_signs_its_own_message_and_no_others() {
        let seed = MiniSecretKey::from_bytes(&[3; 32]).unwrap();
        let key = Arc::new(SigningKey::new(seed.expand_to_keypair(ExpansionMode::Ed25519)));
        let signer = Signer::new(Arc::clone(&key), &Config::defaults());
        let hash = ModelHash([0xab; 24]);
        let digest = [7; 32];
        let purposes = [Purpose::ModelHash(hash), Purpose::Peer(digest), Purpose::Record(digest)];
        let messages =
            ["ab".repeat(24).into_bytes(), [PEER, &digest].concat(), [RECORD, &digest].concat()];
        for (i, purpose) in purposes.into_iter().enumerate() {
            let signature = signer.sign(&Caller::Token, purpose).unwrap();
            for (j, message) in messages.iter().enumerate() {
                assert_eq!(verify(key.hotkey(), message, &signature), i == j, "{purpose:?} {j}");
            }
        }
    }

    #[test]
    fn each_purpose_has_a_limit_of_its_own() {
        let seed = MiniSecretKey::from_bytes(&[3; 32]).unwrap();
        let key = Arc::new(SigningKey::new(seed.expand_to_keypair(ExpansionMode::Ed25519)));
        let config = Config { round_signatures_per_minute: 2, ..Config::defaults() };
        let signer = Signer::new(key, &config);
        let record = Purpose::Record([1; 32]);
        assert!(signer.sign(&Caller::Token, record).is_ok());
        assert!(signer.sign(&Caller::Token, record).is_ok());
        let refused = signer.sign(&Caller::Token, record).unwrap_err();
        assert_eq!(refused, Error::SignLimit { purpose: "record" });
        assert!(signer.sign(&Caller::Token, Purpose::ModelHash(ModelHash([1; 24]))).is_ok());
    }
}
