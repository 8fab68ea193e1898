//! Signatures for named purposes: there is no way to have arbitrary bytes signed.
//!
//! Each purpose makes its own message, and no message of one can be read as another's.

use domain::{ModelHash, model_hash_message};
use tracing::info;

use crate::{keys::SigningKey, metrics};

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
    fn name(&self) -> &'static str {
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

/// Signs for a purpose; logged and counted.
pub(crate) fn sign(key: &SigningKey, purpose: Purpose) -> [u8; 64] {
    let message = purpose.message();
    metrics::signed(purpose.name());
    info!(purpose = purpose.name(), ?purpose, "signed");
    key.sign(&message)
}

#[cfg(test)]
mod tests {
    use schnorrkel::{ExpansionMode, MiniSecretKey};

    use super::*;
    use crate::keys::verify;

    #[test]
    fn each_purpose_signs_its_own_message_and_no_others() {
        let seed = MiniSecretKey::from_bytes(&[3; 32]).unwrap();
        let key = SigningKey::new(seed.expand_to_keypair(ExpansionMode::Ed25519));
        let hash = ModelHash([0xab; 24]);
        let digest = [7; 32];
        let purposes = [Purpose::ModelHash(hash), Purpose::Peer(digest), Purpose::Record(digest)];
        let messages =
            ["ab".repeat(24).into_bytes(), [PEER, &digest].concat(), [RECORD, &digest].concat()];
        for (i, purpose) in purposes.into_iter().enumerate() {
            let signature = sign(&key, purpose);
            for (j, message) in messages.iter().enumerate() {
                assert_eq!(verify(key.hotkey(), message, &signature), i == j, "{purpose:?} {j}");
            }
        }
    }
}
