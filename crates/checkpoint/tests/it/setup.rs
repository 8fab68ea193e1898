//! What several tests start from.

use std::{
    fs,
    path::{Path, PathBuf},
};

use checkpoint::{
    Checkpoint, ExpertGroups, HubModel, Limits, Manifest, Publication, open, publish_model,
};
use domain::{ExpertGroup, GlobalVersion, Hotkey};

/// The golden vectors of the model.
pub(crate) fn vectors() -> PathBuf {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors");
    let folder = std::env::var("CONNITO_VECTORS").unwrap_or_else(|_| default.to_owned());
    Path::new(&folder).join("model")
}

pub(crate) fn open_vector(name: &str) -> Checkpoint {
    open(&vectors().join(name), Limits::default()).unwrap_or_else(|e| panic!("{name}: {e}"))
}

pub(crate) fn groups() -> ExpertGroups {
    let json = fs::read(vectors().join("expert_groups.json")).unwrap();
    serde_json::from_slice(&json).unwrap()
}

pub(crate) fn publication(config: serde_json::Value) -> Publication {
    Publication {
        global_version: GlobalVersion(472),
        expert_group: ExpertGroup(0),
        parent: None,
        config,
        groups: groups(),
    }
}

/// The vectors' base model, published into a folder.
pub(crate) fn publish_base(folder: &Path) -> Manifest {
    let hub = HubModel::open(&vectors().join("base")).unwrap();
    let publication = publication(hub.config().clone());
    publish_model(folder, &hub, publication).unwrap()
}

pub(crate) fn hotkey(n: u8) -> Hotkey {
    Hotkey::from_public_key([n; 32])
}

pub(crate) fn file_names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> =
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
