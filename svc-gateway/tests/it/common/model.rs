//! Models that are larger than those of the vectors: what they are made of does not matter to a download.

use std::{io, path::Path};

use checkpoint::{Format, Manifest, SliceId};
use domain::{GlobalVersion, ModelHash};
use proto::common::v1::ModelRef;
use sha2::{Digest as _, Sha256};

use super::World;

/// Publishes the world's model once more, with `file` in the place of one file of it, as another model of
/// this version. The file is taken.
pub(crate) fn republish(
    world: &World,
    version: u64,
    (slice, format): (SliceId, Format),
    file: &Path,
) -> (ModelRef, Manifest) {
    let models = world.disk.path().join("artifacts/models");
    let (old, new) = (models.join("100"), models.join(version.to_string()));
    std::fs::create_dir_all(&new).unwrap();
    for entry in std::fs::read_dir(&old).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), new.join(entry.file_name())).unwrap();
    }
    let mut digest = Sha256::new();
    let bytes = io::copy(&mut std::fs::File::open(file).unwrap(), &mut digest).unwrap();
    let digest = digest.finalize();
    let hash = ModelHash(digest[..24].try_into().unwrap());

    let mut manifest = world.manifest.clone();
    let own = SliceId::Group(manifest.expert_group);
    manifest.global_version = GlobalVersion(version);
    manifest.model_hash = hash;
    // Only one file changes, and two hashes: of what it is of, and of what the chain is told.
    manifest.slices.get_mut(&own).unwrap().model_hash = hash;
    let changed = manifest.slices.get_mut(&slice).unwrap();
    changed.model_hash = hash;
    let info = changed.files.get_mut(&format).unwrap();
    info.bytes = bytes;
    info.sha256 = hex::encode(digest);
    std::fs::rename(file, new.join(&info.name)).unwrap();
    std::fs::write(new.join(Manifest::FILE_NAME), manifest.to_json().unwrap()).unwrap();
    let prefix = format!("models/{version}");
    (ModelRef { global_version: version, model_hash: hash.to_hex(), prefix }, manifest)
}
