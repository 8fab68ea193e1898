//! Keys that everyone knows, and keys in files as the wallet tools write them.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use codec::Encode as _;
use schnorrkel::{
    ExpansionMode, Keypair, MiniSecretKey, SignatureError,
    derive::{CHAIN_CODE_LENGTH, ChainCode},
};
use serde_json::json;
use subxt::utils::AccountId32;

/// The seed behind the phrase from which Substrate's development keys are derived.
const DEVELOPMENT_SEED: [u8; 32] = [
    0xfa, 0xc7, 0x95, 0x9d, 0xbf, 0xe7, 0x2f, 0x05, 0x2e, 0x5a, 0x0c, 0x3c, 0x8d, 0x65, 0x30, 0xf2,
    0x02, 0xb0, 0x2f, 0xd8, 0xf9, 0xf5, 0xca, 0x35, 0x80, 0xec, 0x8d, 0xeb, 0x77, 0x97, 0x47, 0x9e,
];
/// The names that every tool knows.
const NAMES: [&str; 8] = ["Alice", "Bob", "Charlie", "Dave", "Eve", "Ferdie", "One", "Two"];

/// The key that the tools call `//name`, such as `//Alice`. It is no secret.
pub fn development_key(name: &str) -> Result<Keypair, SignatureError> {
    let mut code = [0; CHAIN_CODE_LENGTH];
    for (byte, of_name) in code.iter_mut().zip(name.encode()) {
        *byte = of_name;
    }
    let root = MiniSecretKey::from_bytes(&DEVELOPMENT_SEED)?.expand(ExpansionMode::Ed25519);
    let (derived, _) = root.hard_derive_mini_secret_key(Some(ChainCode(code)), b"");
    Ok(derived.expand_to_keypair(ExpansionMode::Ed25519))
}

/// The name of the development key of validator `n`: Alice, Bob, Charlie and so on.
pub(crate) fn validator_name(n: u16) -> String {
    match NAMES.get(usize::from(n)) {
        Some(name) => (*name).to_owned(),
        None => format!("validator-{n}"),
    }
}

/// Writes a hotkey, not encrypted, to `<wallets>/<coldkey>/hotkeys/<hotkey>`, and returns that
/// path. A file that holds this key already stays; any other is never overwritten.
pub fn write_wallet(
    wallets: &Path,
    coldkey: &str,
    hotkey: &str,
    key: &Keypair,
) -> io::Result<PathBuf> {
    let public = key.public.to_bytes();
    let account = format!("0x{}", hex::encode(public));
    let wallet = json!({
        "ss58Address": AccountId32(public).to_string(),
        "accountId": account,
        "publicKey": account,
        "privateKey": format!("0x{}", hex::encode(key.secret.to_bytes())),
        "cryptoType": 1,
    })
    .to_string();
    let folder = wallets.join(coldkey).join("hotkeys");
    fs::create_dir_all(&folder)?;
    let path = folder.join(hotkey);
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
        Ok(mut file) => file.write_all(wallet.as_bytes())?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if fs::read(&path)? != wallet.as_bytes() {
                return Err(error);
            }
        }
        Err(error) => return Err(error),
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn development_keys_have_the_addresses_that_everyone_knows() {
        for (name, address) in [
            ("Alice", "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"),
            ("Bob", "5FHneW46xGXgs5mUiveU4sbTyGBzmstUspZC92UhjJM694ty"),
            ("Charlie", "5FLSigC9HGRKVhB9FiEo4Y3koPsNmBmLJbpXg2mp1hXcS59Y"),
        ] {
            let key = development_key(name).unwrap();
            assert_eq!(AccountId32(key.public.to_bytes()).to_string(), address);
        }
        assert_eq!((validator_name(1), validator_name(8)), ("Bob".into(), "validator-8".into()));
        development_key(&"a name that is longer than a chain code ".repeat(9)).unwrap();
    }

    #[test]
    fn a_wallet_is_for_its_owner_alone_and_never_overwritten_by_another_key() {
        let folder = tempfile::tempdir().unwrap();
        let write =
            |name| write_wallet(folder.path(), "cold", "hot", &development_key(name).unwrap());
        let path = write("Alice").unwrap();
        assert_eq!(path, folder.path().join("cold/hotkeys/hot"));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let written = fs::read_to_string(&path).unwrap();
        // As the wallet tool has it.
        let private = "33a6f3093f158a7109f679410bef1a0c54168145e0cecb4df006c1c2fffb1f09\
            925a225d97aa00682d6a59b95b18780c10d7032336e88f3442b42361f4a66011";
        assert!(written.contains(private), "{written}");
        assert_eq!(write("Bob").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        write("Alice").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), written);
    }
}
