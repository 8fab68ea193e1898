//! Miners with keys and files of the vectors.

use std::path::{Path, PathBuf};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use domain::{Hotkey, ModelHash};
use proto::scheduler::v1 as wire;
use schnorrkel::{ExpansionMode, Keypair, MiniSecretKey};
use serde_json::Value;

/// Folder of the golden vectors.
pub(crate) fn vectors() -> PathBuf {
    // The client's tests are built of this file too, and lie deeper.
    let above = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|p| p.join("tests/vectors"));
    let given = std::env::var_os("CONNITO_VECTORS").map(PathBuf::from);
    given.or_else(|| above.into_iter().find(|folder| folder.is_dir())).unwrap()
}

/// A key of its own for every number.
pub(crate) fn keypair(number: u8) -> Keypair {
    MiniSecretKey::from_bytes(&[number; 32]).unwrap().expand_to_keypair(ExpansionMode::Ed25519)
}

pub(crate) fn hotkey_of(keys: &Keypair) -> Hotkey {
    Hotkey::from_public_key(keys.public.to_bytes())
}

pub(crate) fn sign(keys: &Keypair, message: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(keys.sign_simple(b"substrate", message).to_bytes())
}

/// A miner of the roster, with its key.
pub(crate) struct Miner {
    pub(crate) keys: Keypair,
    pub(crate) hotkey: Hotkey,
    pub(crate) hash: ModelHash,
    pub(crate) file: PathBuf,
}

impl Miner {
    /// Miner `number`, which committed to a file of the vectors.
    pub(crate) fn new(number: u8, file: &str) -> Self {
        let file = vectors().join("model").join(file);
        let expected: Value =
            serde_json::from_slice(&std::fs::read(vectors().join("model/expected.json")).unwrap())
                .unwrap();
        let stem = file.file_stem().unwrap().to_str().unwrap();
        // Of a hostile file nobody knows the hash: it must be refused for what it is.
        let hash = expected[stem]["model_hash"]
            .as_str()
            .map_or(ModelHash([number; 24]), |hash| hash.parse().unwrap());
        let keys = keypair(number);
        Self { hotkey: hotkey_of(&keys), keys, hash, file }
    }

    /// Its line of the roster: committed and not yet submitted.
    pub(crate) fn on_roster(&self, uid: u32) -> wire::Miner {
        wire::Miner {
            hotkey: self.hotkey.to_string(),
            uid,
            assigned: true,
            may_upload: true,
            model_hash: self.hash.to_hex(),
            signature: sign(&self.keys, self.hash.to_hex().as_bytes()),
            outcome: "pending".into(),
            ..wire::Miner::default()
        }
    }
}
