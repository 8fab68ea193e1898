//! Digests of a model's files, each read once.

use std::{fs::File, io::Read as _, path::Path};

use checkpoint::{ChunkDigests, Format, Manifest, OptimizerState, SliceId};
use sha2::{Digest as _, Sha256};
use store::{ArtifactError, Artifacts};
use tokio::task::spawn_blocking;

use super::{
    super::{
        lists::{enough, optimizer_file},
        message::{CHUNK, ModelFile},
    },
    Found, Held, HeldFile, MAX_MANIFEST,
};

/// Why a model is not given to others.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CountError {
    /// Its files are not what its manifest says.
    #[error("{what}")]
    Damaged {
        /// What is wrong.
        what: String,
    },
    /// The artifact store failed.
    #[error(transparent)]
    Store(#[from] ArtifactError),
    /// This host failed.
    #[error("{0}")]
    Failed(String),
}

fn damaged(what: impl ToString) -> CountError {
    CountError::Damaged { what: what.to_string() }
}

/// Reads the files that the model at `found` can be made of, and compares them with its manifest.
pub(super) async fn count(artifacts: &Artifacts, found: &Found) -> Result<Held, CountError> {
    let Found { prefix, version, group, model } = found;
    let key = |name: &str| format!("{prefix}/{name}");
    let json = artifacts.get_bytes(&key(Manifest::FILE_NAME), MAX_MANIFEST).await?;
    let manifest = Manifest::from_json(&json).map_err(damaged)?;
    let keys = artifacts.list(prefix).await?;
    let names = enough(&manifest, |name| keys.contains(&key(name)))
        .ok_or_else(|| damaged("files are missing"))?;
    let mut files = Vec::new();
    for name in names {
        let path = artifacts.local_file(&key(&name)).await?;
        let expected = sha256(&manifest, &name);
        let state = (name == optimizer_file(manifest.expert_group)).then(|| {
            let group = SliceId::Group(manifest.expert_group);
            manifest.slice(group).map(|slice| slice.tensors.clone()).unwrap_or_default()
        });
        let model = *model;
        let work = move || {
            if let Some(tensors) = state {
                OptimizerState::load(&path, &tensors, &model).map_err(damaged)?;
            }
            file(&path, name, expected)
        };
        let held = spawn_blocking(work).await.map_err(|e| CountError::Failed(e.to_string()))??;
        files.push(held);
    }
    Ok(Held { prefix: prefix.clone(), version: *version, group: *group, files })
}

/// What the manifest says that a slice's file is.
fn sha256(manifest: &Manifest, name: &str) -> Option<String> {
    let mut files = manifest.slices.values().filter_map(|s| s.files.get(&Format::Safetensors));
    files.find(|file| file.name == name).map(|file| file.sha256.clone())
}

fn file(path: &Path, name: String, sha256: Option<String>) -> Result<HeldFile, CountError> {
    let io = |error: std::io::Error| CountError::Failed(format!("{}: {error}", path.display()));
    let mut open = File::open(path).map_err(io)?;
    let mut buffer = Vec::with_capacity(CHUNK as usize);
    let (mut digests, mut len, mut hash) = (Vec::new(), 0, Sha256::new());
    loop {
        buffer.clear();
        let read = (&mut open).take(u64::from(CHUNK)).read_to_end(&mut buffer).map_err(io)?;
        if read == 0 {
            break;
        }
        len += read as u64;
        digests.push(ChunkDigests::of_chunk(&buffer));
        if sha256.is_some() {
            hash.update(&buffer);
        }
    }
    if sha256.is_some_and(|expected| expected != hex::encode(hash.finalize())) {
        return Err(damaged(format!("{name} is not the file that its manifest describes")));
    }
    let list = ChunkDigests::from_parts(CHUNK as usize, len, digests);
    let list = list.map_err(|error| CountError::Failed(error.to_string()))?;
    let file = ModelFile { name, len, chunk: CHUNK, root: list.root() };
    Ok(HeldFile { file, list })
}
