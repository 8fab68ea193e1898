//! The hotkey: signs extrinsics and named messages, and never leaves the process.
//!
//! sr25519 (schnorrkel), context `substrate` (protocol, section 3).

use std::fmt;

use domain::Hotkey;
use schnorrkel::{Keypair, PublicKey, Signature};
use subxt::{
    SubstrateConfig,
    config::substrate::{AccountId32, MultiSignature},
    transactions::Signer,
};

const CONTEXT: &[u8] = b"substrate";

/// A hotkey with its private half. Zeroised when dropped; shown without its secret.
pub struct SigningKey {
    pair: Keypair,
    hotkey: Hotkey,
}

impl SigningKey {
    /// The key of a schnorrkel pair.
    pub fn new(pair: Keypair) -> Self {
        let hotkey = Hotkey::from_public_key(pair.public.to_bytes());
        Self { pair, hotkey }
    }

    /// Its public half.
    pub fn hotkey(&self) -> &Hotkey {
        &self.hotkey
    }

    /// Signs the bytes as they are, without a `<Bytes>` wrapper.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.pair.sign_simple(CONTEXT, message).to_bytes()
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("hotkey", &self.hotkey).finish_non_exhaustive()
    }
}

impl Signer<SubstrateConfig> for SigningKey {
    fn account_id(&self) -> AccountId32 {
        AccountId32(*self.hotkey.public_key())
    }

    fn sign(&self, payload: &[u8]) -> MultiSignature {
        MultiSignature::Sr25519(Self::sign(self, payload))
    }
}

/// Whether `signature` is the hotkey's over `message`, either raw or wrapped in `<Bytes>…</Bytes>`
/// as browser wallets do (chain, section 5).
pub fn verify(hotkey: &Hotkey, message: &[u8], signature: &[u8]) -> bool {
    let (Ok(key), Ok(signature)) =
        (PublicKey::from_bytes(hotkey.public_key()), Signature::from_bytes(signature))
    else {
        return false;
    };
    let wrapped = [b"<Bytes>", message, b"</Bytes>"].concat();
    key.verify_simple(CONTEXT, message, &signature).is_ok()
        || key.verify_simple(CONTEXT, &wrapped, &signature).is_ok()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use schnorrkel::{ExpansionMode, MiniSecretKey};
    use serde::Deserialize;

    use super::*;

    fn key(seed: u8) -> SigningKey {
        let seed = MiniSecretKey::from_bytes(&[seed; 32]).unwrap();
        SigningKey::new(seed.expand_to_keypair(ExpansionMode::Ed25519))
    }

    #[derive(Deserialize)]
    struct Vector {
        kind: String,
        signer: String,
        message: String,
        signature: String,
        valid: bool,
    }

    fn unbase64(text: &str) -> Vec<u8> {
        const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let bits: Vec<u8> = text
            .bytes()
            .map(|c| DIGITS.iter().position(|d| *d == c).unwrap() as u8)
            .flat_map(|digit| (0..6).rev().map(move |bit| digit >> bit & 1))
            .collect();
        bits.chunks_exact(8).map(|bits| bits.iter().fold(0, |byte, bit| byte << 1 | bit)).collect()
    }

    #[test]
    fn every_signature_of_the_vectors_is_judged_as_they_say() {
        let folder = std::env::var_os("CONNITO_VECTORS").map_or_else(
            || concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors").into(),
            PathBuf::from,
        );
        let text = std::fs::read_to_string(folder.join("signatures.json")).unwrap();
        let vectors: Vec<Vector> = serde_json::from_str(&text).unwrap();
        assert!(!vectors.is_empty());
        for v in vectors {
            let signer: Hotkey = v.signer.parse().unwrap();
            let message = hex::decode(&v.message).unwrap();
            let verdict = verify(&signer, &message, &unbase64(&v.signature));
            assert_eq!(verdict, v.valid, "{} by {}", v.kind, v.signer);
        }
    }

    #[test]
    fn a_signature_over_wrapped_bytes_is_accepted_for_the_bare_message() {
        let key = key(1);
        let signature = key.sign(b"<Bytes>hello</Bytes>");
        assert!(verify(key.hotkey(), b"hello", &signature));
        assert!(!verify(key.hotkey(), b"hullo", &signature));
    }

    #[test]
    fn a_signature_of_another_key_or_of_no_length_is_refused() {
        let signature = key(1).sign(b"hello");
        assert!(verify(key(1).hotkey(), b"hello", &signature));
        assert!(!verify(key(2).hotkey(), b"hello", &signature));
        assert!(!verify(key(1).hotkey(), b"hello", &signature[..63]));
        assert!(!verify(key(1).hotkey(), b"hello", &[]));
    }

    #[test]
    fn a_key_does_not_show_its_secret() {
        let key = key(7);
        let secret = hex::encode(key.pair.secret.to_bytes());
        let shown = format!("{key:?}");
        assert!(shown.contains(key.hotkey().as_str()), "{shown}");
        assert!(!shown.contains(&secret[..16]), "{shown}");
    }
}
