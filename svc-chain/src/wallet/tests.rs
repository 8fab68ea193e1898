use super::*;

const ALICE: &str = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY";

fn vectors() -> PathBuf {
    std::env::var_os("CONNITO_VECTORS").map_or_else(
        || concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors").into(),
        PathBuf::from,
    )
}

fn wallet(name: &str) -> PathBuf {
    hotkey_file(&vectors().join("wallets"), name, "default", None)
}

fn json(text: &str) -> Result<SigningKey, WalletError> {
    parse(Path::new("wallet"), text.as_bytes(), None)
}

#[test]
fn plain_wallets_of_the_vectors_open_and_have_their_addresses() {
    for (name, address) in [
        ("validator", ALICE),
        ("validator2", "5FHneW46xGXgs5mUiveU4sbTyGBzmstUspZC92UhjJM694ty"),
        ("miner", "5FLSigC9HGRKVhB9FiEo4Y3koPsNmBmLJbpXg2mp1hXcS59Y"),
    ] {
        let key = load(&wallet(name), None).unwrap();
        assert_eq!(key.hotkey().as_str(), address, "{name}");
    }
}

#[test]
fn the_encrypted_wallet_of_the_vectors_opens_with_its_password_only() {
    let path = wallet("encrypted");
    let key = load(&path, Some(&"correct horse battery staple".into())).unwrap();
    assert_eq!(key.hotkey().as_str(), "5DAAnrj7VHTznn2AWBemMuyBwZWs6FNFjdyVXUeYum3PTXFy");
    let wrong = load(&path, Some(&"correct horse battery stable".into())).unwrap_err();
    assert!(matches!(wrong, WalletError::WrongPassword { .. }), "{wrong}");
}

#[test]
fn an_encrypted_wallet_without_a_password_says_where_to_put_it() {
    let error = load(&wallet("encrypted"), None).unwrap_err().to_string();
    assert!(error.contains("CONNITO_WALLET_PASSWORD"), "{error}");
    assert!(error.contains("wallet_password_file"), "{error}");
}

#[test]
fn a_seed_is_preferred_and_an_old_file_without_a_key_type_is_understood() {
    let seed = "0xe5be9a5092b81bca64be81d212e7f2f9eba183bb7a90954f7b76361f6edb5c0a";
    let key = json(&format!(r#"{{"secretSeed": "{seed}", " ss58Address": "{ALICE}"}}"#)).unwrap();
    assert_eq!(key.hotkey().as_str(), ALICE);
}

#[test]
fn a_key_that_is_not_the_address_of_its_file_is_refused() {
    let seed = "0x".to_owned() + &"11".repeat(32);
    let error =
        json(&format!(r#"{{"secretSeed": "{seed}", "ss58Address": "{ALICE}"}}"#)).unwrap_err();
    assert!(matches!(error, WalletError::WrongAddress { .. }), "{error}");
}

#[test]
fn what_is_not_supported_says_how_to_get_a_file_that_is() {
    let vault = json("$ANSIBLE_VAULT;1.1;AES256\n6162").unwrap_err().to_string();
    assert!(vault.contains("Ansible Vault") && vault.contains("btcli wallet update"), "{vault}");
    let fernet = json("gAAAAABk3q").unwrap_err().to_string();
    assert!(fernet.contains("Fernet") && fernet.contains("btcli wallet update"), "{fernet}");
    let ed25519 = json(r#"{"privateKey": "0x00", "cryptoType": 0}"#).unwrap_err().to_string();
    assert!(ed25519.contains("ed25519") && ed25519.contains("new-hotkey"), "{ed25519}");
    let phrase = json(r#"{"secretPhrase": "bottom drive obey"}"#).unwrap_err().to_string();
    assert!(phrase.contains("regen-hotkey") && !phrase.contains("bottom"), "{phrase}");
}

#[test]
fn a_broken_file_is_an_error_that_does_not_quote_it() {
    for text in [
        "",
        "$NACL",
        r#"{"privateKey": "0xSECRET"}"#,
        r#"{"privateKey": 7, "secret": "SECRET"}"#,
        r#"{"secretSeed": "0x1234SECRET"}"#,
        r#"{"cryptoType": 9, "privateKey": "SECRET"}"#,
    ] {
        let error = parse(Path::new("wallet"), text.as_bytes(), Some(&"x".into())).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("SECRET"), "{text}: {error}");
    }
}

#[test]
fn a_path_under_the_home_folder_may_be_written_with_a_tilde() {
    let path = hotkey_file(Path::new("~/wallets"), "c", "h", Some(Path::new("/home/me")));
    assert_eq!(path, Path::new("/home/me/wallets/c/hotkeys/h"));
    let path = hotkey_file(Path::new("/wallets"), "c", "h", Some(Path::new("/home/me")));
    assert_eq!(path, Path::new("/wallets/c/hotkeys/h"));
}
