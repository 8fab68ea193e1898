//! Wallet files: `<wallets>/<coldkey>/hotkeys/<hotkey>` (protocol, section 3; chain, section 5).
//!
//! The password of an encrypted file comes from the environment, from a file, or from the person at
//! the terminal ([`password`]).
//!
//! Understands plain JSON keys and `$NACL` files. Every other form is an error that says how to
//! get a file that works. The coldkey's private half is never looked for.

mod password;

use std::path::{Path, PathBuf};

use argon2::{Algorithm, Argon2, Params, Version};
use crypto_secretbox::{KeyInit as _, Nonce, XSalsa20Poly1305, aead::Aead as _};
use domain::Hotkey;
use schnorrkel::{ExpansionMode, Keypair, MiniSecretKey, SecretKey};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

pub(crate) use self::password::{ask, open};
use crate::keys::SigningKey;

/// Wallets are about a kilobyte; what is larger is something else.
const MAX_BYTES: usize = 64 * 1024;

/// Salt, passes and memory of libsodium's Argon2i "sensitive" key derivation, as wallets use it.
const SALT: [u8; 16] = [
    0x13, 0x71, 0x83, 0xdf, 0xf1, 0x5a, 0x09, 0xbc, 0x9c, 0x90, 0xb5, 0x51, 0x87, 0x39, 0xe9, 0xb1,
];
const PASSES: u32 = 8;
const MEMORY_KIB: u32 = 512 * 1024;

const NACL: &[u8] = b"$NACL";
const NONCE_BYTES: usize = 24;

/// Why a wallet file gives no key, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum WalletError {
    #[error(
        "the wallet file {path} cannot be read: {why}; check `wallet_path`, `coldkey` and `hotkey`"
    )]
    Unreadable { path: PathBuf, why: String },
    #[error(
        "the wallet file {path} is encrypted: set CONNITO_WALLET_PASSWORD or `wallet_password_file`, or start it at a terminal and be asked"
    )]
    NoPassword { path: PathBuf },
    #[error("the password does not open the wallet file {path}")]
    WrongPassword { path: PathBuf },
    #[error(
        "the wallet file {path} is encrypted with {form}, which is not supported: open it with the wallet tool and save it again in today's format (`btcli wallet update`)"
    )]
    OldEncryption { path: PathBuf, form: &'static str },
    #[error(
        "the wallet file {path} holds an ed25519 key: a hotkey must be sr25519; make a new one (`btcli wallet new-hotkey`)"
    )]
    Ed25519 { path: PathBuf },
    #[error(
        "the wallet file {path} holds only a secret phrase: make a file with its private key from it (`btcli wallet regen-hotkey`)"
    )]
    PhraseOnly { path: PathBuf },
    #[error("the wallet file {path} holds no usable key: {why}")]
    Malformed { path: PathBuf, why: &'static str },
    #[error("the wallet file {path} says {said}, but its key belongs to {found}")]
    WrongAddress { path: PathBuf, said: String, found: Hotkey },
}

/// Where the hotkey file of a wallet lies. `~` at the start is the home folder of `home`.
pub fn hotkey_file(wallets: &Path, coldkey: &str, hotkey: &str, home: Option<&Path>) -> PathBuf {
    let wallets = match (wallets.strip_prefix("~"), home) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => wallets.to_owned(),
    };
    wallets.join(coldkey).join("hotkeys").join(hotkey)
}

/// Reads the hotkey from a wallet file. An encrypted one takes seconds and 512 MiB: not for an
/// async thread.
pub(crate) fn load(
    path: &Path,
    password: Option<&SecretString>,
) -> Result<SigningKey, WalletError> {
    let unreadable = |why: String| WalletError::Unreadable { path: path.to_owned(), why };
    let length = std::fs::metadata(path).map_err(|error| unreadable(error.to_string()))?.len();
    if length > MAX_BYTES as u64 {
        return Err(unreadable(format!("{length} bytes are too many for a wallet file")));
    }
    let bytes = Zeroizing::new(std::fs::read(path).map_err(|error| unreadable(error.to_string()))?);
    parse(path, &bytes, password)
}

fn parse(
    path: &Path,
    bytes: &[u8],
    password: Option<&SecretString>,
) -> Result<SigningKey, WalletError> {
    let path = path.to_owned();
    if let Some(sealed) = bytes.strip_prefix(NACL) {
        let password = password.ok_or(WalletError::NoPassword { path: path.clone() })?;
        let plain = open_nacl(&path, sealed, password)?;
        return parse_json(path, &plain);
    }
    if bytes.starts_with(b"$ANSIBLE_VAULT") {
        return Err(WalletError::OldEncryption { path, form: "Ansible Vault" });
    }
    if bytes.starts_with(b"gAAAAA") {
        return Err(WalletError::OldEncryption { path, form: "Fernet" });
    }
    parse_json(path, bytes)
}

fn open_nacl(
    path: &Path,
    sealed: &[u8],
    password: &SecretString,
) -> Result<Zeroizing<Vec<u8>>, WalletError> {
    let malformed = |why| WalletError::Malformed { path: path.to_owned(), why };
    let (nonce, sealed) =
        sealed.split_at_checked(NONCE_BYTES).ok_or_else(|| malformed("it is cut short"))?;
    let params = Params::new(MEMORY_KIB, PASSES, 1, Some(32))
        .map_err(|_| malformed("its key derivation is not possible here"))?;
    let mut key = Zeroizing::new([0; 32]);
    Argon2::new(Algorithm::Argon2i, Version::V0x13, params)
        .hash_password_into(password.expose_secret().as_bytes(), &SALT, key.as_mut())
        .map_err(|_| malformed("its key derivation is not possible here"))?;
    XSalsa20Poly1305::new(key.as_slice().into())
        .decrypt(Nonce::from_slice(nonce), sealed)
        .map(Zeroizing::new)
        .map_err(|_| WalletError::WrongPassword { path: path.to_owned() })
}

/// The keys of a wallet file, in any order; what is not named here is of no interest.
#[derive(Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(rename_all = "camelCase")]
struct KeyFile {
    secret_seed: Option<String>,
    secret_phrase: Option<String>,
    private_key: Option<String>,
    /// Old files have a space before the name.
    #[serde(alias = " ss58Address")]
    ss58_address: Option<String>,
    public_key: Option<String>,
    /// 1 is sr25519; old files lack it.
    crypto_type: Option<u8>,
}

fn parse_json(path: PathBuf, json: &[u8]) -> Result<SigningKey, WalletError> {
    let Ok(file) = serde_json::from_slice::<KeyFile>(json) else {
        // The error of the parser may quote the secret: it is not passed on.
        return Err(WalletError::Malformed { path, why: "it is not the JSON of a wallet" });
    };
    match file.crypto_type {
        None | Some(1) => {}
        Some(0) => return Err(WalletError::Ed25519 { path }),
        Some(_) => return Err(WalletError::Malformed { path, why: "its key type is unknown" }),
    }
    let pair = match (&file.secret_seed, &file.private_key, &file.secret_phrase) {
        (Some(seed), _, _) => from_seed(seed),
        (None, Some(key), _) => from_private_key(key),
        (None, None, Some(_)) => return Err(WalletError::PhraseOnly { path }),
        (None, None, None) => Err("it has neither `secretSeed` nor `privateKey`"),
    };
    let key = match pair {
        Ok(pair) => SigningKey::new(pair),
        Err(why) => return Err(WalletError::Malformed { path, why }),
    };
    let said = match (&file.ss58_address, &file.public_key) {
        (Some(address), _) => address.trim().to_owned(),
        (None, Some(hex)) => public_key(hex).map_or_else(|| hex.clone(), |key| key.to_string()),
        (None, None) => {
            return Err(WalletError::Malformed { path, why: "it does not say its address" });
        }
    };
    if said != key.hotkey().as_str() {
        return Err(WalletError::WrongAddress { path, said, found: key.hotkey().clone() });
    }
    Ok(key)
}

fn from_seed(hex: &str) -> Result<Keypair, &'static str> {
    let seed: Zeroizing<[u8; 32]> = unhex(hex).ok_or("`secretSeed` is not 32 bytes of hex")?;
    MiniSecretKey::from_bytes(seed.as_slice())
        .map(|seed| seed.expand_to_keypair(ExpansionMode::Ed25519))
        .map_err(|_| "`secretSeed` is not a seed")
}

fn from_private_key(hex: &str) -> Result<Keypair, &'static str> {
    let key: Zeroizing<[u8; 64]> = unhex(hex).ok_or("`privateKey` is not 64 bytes of hex")?;
    SecretKey::from_bytes(key.as_slice())
        .map(SecretKey::to_keypair)
        .map_err(|_| "`privateKey` is not an sr25519 key")
}

fn public_key(hex: &str) -> Option<Hotkey> {
    unhex::<32>(hex).map(|key| Hotkey::from_public_key(*key))
}

fn unhex<const N: usize>(text: &str) -> Option<Zeroizing<[u8; N]>> {
    let mut bytes = Zeroizing::new([0; N]);
    hex::decode_to_slice(text.strip_prefix("0x").unwrap_or(text), bytes.as_mut()).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests;
