//! The runtimes that tests run on: the embedded one, and others where they are at hand.

use std::path::PathBuf;

use devchain::Genesis;

/// The saved metadata of a runtime by its file's name; `None`, with a word of it, where
/// `CONNITO_METADATA_DIR` is not set.
pub(crate) fn saved(name: &str) -> Option<Vec<u8>> {
    let Some(folder) = std::env::var_os("CONNITO_METADATA_DIR").map(PathBuf::from) else {
        eprintln!("skipped: CONNITO_METADATA_DIR does not say where {name} is");
        return None;
    };
    Some(std::fs::read(folder.join(name)).unwrap())
}

/// The runtime with stateful epochs.
pub(crate) fn stateful() -> Option<Vec<u8>> {
    saved("subtensor_finney_spec424_v16.scale")
}

/// A chain on every rule of epochs: the embedded runtime's, and the stateful one's.
pub(crate) fn both(genesis: Genesis) -> Vec<Genesis> {
    let newer = stateful().map(|raw| Genesis { metadata: Some(raw), ..genesis.clone() });
    [genesis].into_iter().chain(newer).collect()
}
