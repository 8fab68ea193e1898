//! Who speaks: the bearer token of the deployment and the sr25519 signatures of miners (protocol, section 3).

use std::str::FromStr;

use axum::http::{HeaderMap, header};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use domain::{Hotkey, ModelHash, model_hash_message};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::error::Error;

/// Signing context of Substrate chains.
const CONTEXT: &[u8] = b"substrate";

/// An sr25519 signature; on the wire URL-safe base64 without padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Signature([u8; 64]);

impl FromStr for Signature {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = BASE64_URL_SAFE_NO_PAD
            .decode(text)
            .map_err(|_| "it is not URL-safe base64 without padding")?;
        Ok(Self(bytes.try_into().map_err(|_| "it is not 64 bytes")?))
    }
}

impl Signature {
    /// Whether `hotkey` signed `message` with this.
    pub(crate) fn is_of(&self, hotkey: &Hotkey, message: &[u8]) -> bool {
        let key = schnorrkel::PublicKey::from_bytes(hotkey.public_key());
        let signature = schnorrkel::Signature::from_bytes(&self.0);
        match (key, signature) {
            (Ok(key), Ok(signature)) => key.verify_simple(CONTEXT, message, &signature).is_ok(),
            _ => false,
        }
    }

    /// Names this use of a key, for replay protection: SHA-256 of the signature, hex.
    pub(crate) fn digest(&self) -> String {
        hex::encode(Sha256::digest(self.0))
    }
}

/// Whether `signature`, as published in the first commit phase, is `hotkey`'s of the lower-case hex of
/// `hash`.
pub(crate) fn commits_to(hotkey: &Hotkey, signature: &str, hash: &ModelHash) -> bool {
    signature
        .parse::<Signature>()
        .is_ok_and(|signature| signature.is_of(hotkey, &model_hash_message(hash)))
}

/// Lets a request through when it carries the deployment's token, or when there is none to carry.
pub(crate) fn check_token(
    expected: Option<&SecretString>,
    headers: &HeaderMap,
) -> Result<(), Error> {
    let Some(expected) = expected else { return Ok(()) };
    let given = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim())
        .filter(|token| !token.is_empty())
        .ok_or(Error::TokenMissing)?;
    // Digests, so that not even the length of the token shows in the time taken.
    let (given, expected) = (Sha256::digest(given), Sha256::digest(expected.expose_secret()));
    if bool::from(given.ct_eq(&expected)) { Ok(()) } else { Err(Error::TokenWrong) }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Case {
        kind: String,
        signer: Hotkey,
        message: String,
        signature: String,
        valid: bool,
    }

    fn vectors() -> Vec<Case> {
        let folder = std::env::var("CONNITO_VECTORS").unwrap_or_else(|_| {
            concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors").to_owned()
        });
        let text = std::fs::read(format!("{folder}/signatures.json")).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    #[test]
    fn vectors_of_signatures_verify_exactly_when_they_are_valid() {
        for case in vectors() {
            let signature: Signature = case.signature.parse().unwrap();
            let message = hex::decode(&case.message).unwrap();
            assert_eq!(signature.is_of(&case.signer, &message), case.valid, "{}", case.kind);
        }
    }

    #[test]
    fn a_token_is_asked_for_only_where_there_is_one() {
        let token = SecretString::from("secret");
        let with = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            check_token(Some(&token), &headers)
        };
        assert!(check_token(None, &HeaderMap::new()).is_ok());
        assert!(with("Bearer secret").is_ok());
        assert!(with("bearer secret").is_ok());
        assert!(matches!(with("Bearer secrets"), Err(Error::TokenWrong)));
        assert!(matches!(with("Basic secret"), Err(Error::TokenMissing)));
        assert!(matches!(with("Bearer "), Err(Error::TokenMissing)));
        assert!(matches!(check_token(Some(&token), &HeaderMap::new()), Err(Error::TokenMissing)));
    }
}
