//! Makes a whole model of the files that have come, and tells whether they are what was signed.
//!
//! All files of a model follow from its tensors: they are written anew and hashed on the way, so that
//! every slice is checked, and nothing but tensors is taken over. Belongs on a blocking thread.

use std::path::Path;

use checkpoint::{
    Format, Manifest, OptimizerState, Publication, PublishError, PublishedModel, Refusal, SliceId,
    StateError, StateFileError, WriteError, publish_model,
};
use domain::{ExpertGroup, GlobalVersion, ModelHash};

use super::{
    lists::{List, enough, optimizer_file},
    message::ModelFile,
};

/// Why files are no model.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unfit {
    /// Whoever signed them has lied: every byte is what was signed.
    #[error("{detail}")]
    Lie {
        /// Stable snake_case reason.
        reason: &'static str,
        /// What is wrong, for a person.
        detail: String,
    },
    /// This host failed.
    #[error("{0}")]
    Own(String),
}

fn lie(reason: &'static str, detail: impl ToString) -> Unfit {
    Unfit::Lie { reason, detail: detail.to_string() }
}

fn own(error: impl ToString) -> Unfit {
    Unfit::Own(error.to_string())
}

/// The model that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) version: GlobalVersion,
    pub(crate) group: ExpertGroup,
    pub(crate) model: ModelHash,
}

/// Reads a manifest that came, and says which files of `list` are needed with it.
pub(crate) fn needed(
    target: &Target,
    list: &List,
    json: &[u8],
) -> Result<(Manifest, Vec<ModelFile>), Unfit> {
    let manifest = Manifest::from_json(json).map_err(|error| lie("bad_manifest", error))?;
    let is = (manifest.global_version, manifest.expert_group, manifest.model_hash);
    if is != (target.version, target.group, target.model) || list.version != target.version {
        let (version, group, model) = is;
        return Err(lie(
            "bad_manifest",
            format!("it is of version {version}, group {group}, hash {model}"),
        ));
    }
    let file = |name: &str| list.files.iter().find(|file| file.name == name);
    let names = enough(&manifest, |name| file(name).is_some())
        .ok_or_else(|| lie("incomplete_list", "its files do not make a whole model"))?;
    let files: Vec<ModelFile> = names.iter().filter_map(|name| file(name)).cloned().collect();
    let described = manifest.slices.values().filter_map(|s| s.files.get(&Format::Safetensors));
    for info in described {
        if files.iter().any(|file| file.name == info.name && file.len != info.bytes) {
            return Err(lie("bad_manifest", format!("{} has another length", info.name)));
        }
    }
    Ok((manifest, files))
}

/// Writes the model of which `whole` has the needed files into `folder`.
pub(crate) fn assemble(
    target: &Target,
    manifest: &Manifest,
    whole: &Path,
    folder: &Path,
) -> Result<(), Unfit> {
    let model = PublishedModel::open(whole).map_err(unfit)?;
    let publication = Publication {
        global_version: manifest.global_version,
        expert_group: manifest.expert_group,
        parent: manifest.parent,
        config: manifest.config.clone(),
        groups: manifest.groups.clone(),
    };
    let made = publish_model(folder, &model, publication).map_err(unfit)?;
    if made.model_hash != target.model {
        return Err(lie(
            "wrong_model_hash",
            format!("its tensors have the hash {}", made.model_hash),
        ));
    }
    let said = |manifest: &Manifest| -> Vec<(SliceId, ModelHash)> {
        manifest.slices.iter().map(|(id, slice)| (*id, slice.model_hash)).collect()
    };
    if said(&made) != said(manifest) {
        return Err(lie("bad_manifest", "its slices are not those of its tensors"));
    }
    let state = optimizer_file(target.group);
    let path = whole.join(&state);
    if path.exists() {
        let slice = made.slice(SliceId::Group(target.group));
        let tensors = slice.map(|slice| slice.tensors.clone()).unwrap_or_default();
        OptimizerState::load(&path, &tensors, &target.model).map_err(unfit_state)?;
        std::fs::copy(&path, folder.join(&state)).map_err(own)?;
    }
    Ok(())
}

fn unfit(error: PublishError) -> Unfit {
    match error {
        PublishError::Io { .. } | PublishError::Write(WriteError::Io { .. }) => own(error),
        PublishError::Read(Refusal::Unreadable { .. })
        | PublishError::Write(WriteError::Source(Refusal::Unreadable { .. })) => own(error),
        PublishError::Write(_)
        | PublishError::Manifest(_)
        | PublishError::Read(_)
        | PublishError::NoGroup(_)
        | PublishError::NoExpert { .. }
        | PublishError::Form { .. }
        | PublishError::Differs { .. } => lie("bad_model", error),
    }
}

fn unfit_state(error: StateError) -> Unfit {
    match error {
        StateError::File(StateFileError::Io { .. })
        | StateError::File(StateFileError::Read(Refusal::Unreadable { .. })) => own(error),
        StateError::File(_)
        | StateError::Model { .. }
        | StateError::Layout(_)
        | StateError::Tensors { .. } => lie("bad_optimizer", error),
    }
}
