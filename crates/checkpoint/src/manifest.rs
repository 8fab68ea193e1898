//! `manifest.json`: what a published global model consists of.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use domain::{ExpertGroup, GlobalVersion, ModelHash};
use serde::{Deserialize, Serialize};

use crate::{
    checkpoint::Format,
    groups::ExpertGroups,
    layout::{SliceId, SliceLayout},
    publish::PublishError,
    tensor::TensorSpec,
    write::FileInfo,
};

/// Describes a published model: every slice with its hash, its tensors and its files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`Manifest::FORMAT`].
    pub format: u32,
    pub global_version: GlobalVersion,
    /// The hash that is committed on chain: of the slice of `expert_group`.
    pub model_hash: ModelHash,
    /// The group of the validator that published the model.
    pub expert_group: ExpertGroup,
    /// `model_hash` of the model that this one was merged from.
    pub parent: Option<ModelHash>,
    /// The model's `config.json`.
    pub config: serde_json::Value,
    pub groups: ExpertGroups,
    pub slices: BTreeMap<SliceId, Slice>,
}

/// A slice of a published model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slice {
    pub model_hash: ModelHash,
    pub tensors: BTreeMap<String, TensorSpec>,
    pub files: BTreeMap<Format, FileInfo>,
}

/// A manifest that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("cannot read {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("not a manifest: {0}")]
    Json(#[from] serde_json::Error),
    #[error("a manifest of format {found}, understood is {}", Manifest::FORMAT)]
    Format { found: u32 },
    #[error("the manifest has no slice `{0}`")]
    NoSlice(SliceId),
    #[error("slice `{slice}` has a file `{name}`, not `{expected}`")]
    FileName { slice: SliceId, name: String, expected: String },
    #[error("the model hash is not that of the slice of group {0}")]
    Hash(ExpertGroup),
}

impl Manifest {
    /// The manifest's name in a model's folder.
    pub const FILE_NAME: &str = "manifest.json";
    /// The version of the layout on this page.
    pub const FORMAT: u32 = 1;

    /// Reads a manifest and checks that it agrees with itself; file names are exactly those of their slices.
    pub fn from_json(json: &[u8]) -> Result<Self, ManifestError> {
        let manifest: Self = serde_json::from_slice(json)?;
        if manifest.format != Self::FORMAT {
            return Err(ManifestError::Format { found: manifest.format });
        }
        for (id, slice) in &manifest.slices {
            for (format, file) in &slice.files {
                let expected = id.file_name(*format);
                if file.name != expected {
                    let name = file.name.chars().take(100).collect();
                    return Err(ManifestError::FileName { slice: *id, name, expected });
                }
            }
        }
        let own = SliceId::Group(manifest.expert_group);
        for id in [SliceId::Shared, own] {
            manifest.slice(id).ok_or(ManifestError::NoSlice(id))?;
        }
        if manifest.slice(own).is_some_and(|slice| slice.model_hash != manifest.model_hash) {
            return Err(ManifestError::Hash(manifest.expert_group));
        }
        Ok(manifest)
    }

    /// Reads `manifest.json` of a model's folder.
    pub fn read(folder: &Path) -> Result<Self, ManifestError> {
        let path = folder.join(Self::FILE_NAME);
        let json = fs::read(&path).map_err(|source| ManifestError::Io { path, source })?;
        Self::from_json(&json)
    }

    /// The manifest as indented JSON.
    pub fn to_json(&self) -> Result<Vec<u8>, ManifestError> {
        let mut json = serde_json::to_vec_pretty(self)?;
        json.push(b'\n');
        Ok(json)
    }

    /// Writes `manifest.json` into a model's folder, whole or not at all.
    pub(crate) fn write(&self, folder: &Path) -> Result<(), PublishError> {
        let io_error = |path: &Path| {
            let path = path.to_owned();
            move |source| PublishError::Io { path, source }
        };
        let path = folder.join(Self::FILE_NAME);
        let partial = folder.join(format!(".{}", Self::FILE_NAME));
        fs::write(&partial, self.to_json()?).map_err(io_error(&partial))?;
        fs::rename(&partial, &path).map_err(io_error(&path))
    }

    /// A slice of the model.
    pub fn slice(&self, id: SliceId) -> Option<&Slice> {
        self.slices.get(&id)
    }

    /// What a submission for this group must contain; `None` when the model has no such group.
    pub fn layout(&self, group: ExpertGroup) -> Option<SliceLayout> {
        let tensors = self.slice(SliceId::Group(group))?.tensors.clone();
        let shared = self.slice(SliceId::Shared)?.tensors.keys().cloned().collect();
        Some(SliceLayout { tensors, shared })
    }
}
