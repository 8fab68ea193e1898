//! Digests of models on the disk: a file for each, beside the models and not among them.

use std::path::{Path, PathBuf};

use checkpoint::ChunkDigests;
use domain::{GlobalVersion, ModelHash};
use serde::{Deserialize, Serialize};
use store::Artifacts;
use tracing::warn;

use super::{
    super::message::{CHUNK, ModelFile},
    Found, Held, HeldFile,
};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    version: GlobalVersion,
    files: Vec<KeptFile>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeptFile {
    name: String,
    len: u64,
    /// Joined, hex.
    digests: String,
}

fn path(folder: &Path, model: &ModelHash) -> PathBuf {
    folder.join(format!("{model}.json"))
}

/// Keeps the digests of a model. Where that fails they are computed again after a restart.
pub(super) async fn write(folder: &Path, model: &ModelHash, held: &Held) {
    let file = |held: &HeldFile| KeptFile {
        name: held.file.name.clone(),
        len: held.file.len,
        digests: hex::encode(held.list.digests().as_flattened()),
    };
    let kept = Kept { version: held.version, files: held.files.iter().map(file).collect() };
    let (path, draft) = (path(folder, model), folder.join(format!("{model}.draft")));
    let write = async {
        let json = serde_json::to_vec(&kept)?;
        tokio::fs::create_dir_all(folder).await?;
        tokio::fs::write(&draft, json).await?;
        tokio::fs::rename(&draft, &path).await
    };
    if let Err(error) = write.await {
        warn!(%error, path = %path.display(), "digests cannot be kept");
    }
}

/// The digests of a model as they were kept; none where a file of it is not as long any more.
pub(super) async fn read(folder: &Path, found: &Found, artifacts: &Artifacts) -> Option<Held> {
    let json = tokio::fs::read(path(folder, &found.model)).await.ok()?;
    let kept: Kept = serde_json::from_slice(&json).ok()?;
    let mut files = Vec::new();
    for KeptFile { name, len, digests } in kept.files {
        let key = format!("{}/{name}", found.prefix);
        if artifacts.size(&key).await.ok()? != Some(len) {
            return None;
        }
        let bytes = hex::decode(digests).ok()?;
        let digests = bytes.as_chunks::<32>().0.to_vec();
        let list = ChunkDigests::from_parts(CHUNK as usize, len, digests).ok()?;
        let file = ModelFile { name, len, chunk: CHUNK, root: list.root() };
        files.push(HeldFile { file, list });
    }
    let Found { prefix, version, group, .. } = found.clone();
    (kept.version == version).then_some(Held { prefix, version, group, files })
}

/// Removes what is kept of models that are gone.
pub(super) async fn sweep(folder: &Path, gone: impl Fn(&ModelHash) -> bool) {
    let Ok(mut entries) = tokio::fs::read_dir(folder).await else { return };
    while let Ok(Some(entry)) = entries.next_entry().await {
        let name = entry.file_name();
        let model = name.to_str().and_then(|name| name.strip_suffix(".json")?.parse().ok());
        if model.is_some_and(|model| gone(&model)) {
            let _ = tokio::fs::remove_file(entry.path()).await;
        }
    }
}
