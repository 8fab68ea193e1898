//! The round's base model, opened for the expert group that is merged.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use checkpoint::{
    Codec, Format, Manifest, OptimizerState, OuterSgd, PublishedModel, SliceId, SliceLayout,
    TensorSpec, VectorLayout,
};
use merge::Digest;
use store::{ArtifactError, Artifacts};

use crate::{chunks::Cut, plan::Plan, report::Failure};

/// The base model with its optimizer's state. Its files are mapped, and read where they are needed.
#[derive(Debug)]
pub(crate) struct Model {
    published: PublishedModel,
    layout: SliceLayout,
    vector: VectorLayout,
    state: OptimizerState,
}

impl Model {
    /// Opens the model in `folder`, which must be the plan's base, with the optimizer's state at `state`;
    /// without one it was never stepped. Reads the state once: belongs on a blocking thread.
    pub(crate) fn open(folder: &Path, state: Option<&Path>, plan: &Plan) -> Result<Self, Failure> {
        let unusable = |error: &dyn fmt::Display| Failure::Base(error.to_string());
        let published = PublishedModel::open(folder).map_err(|error| unusable(&error))?;
        let manifest = published.manifest();
        if manifest.model_hash != plan.base.model_hash {
            let (is, should) = (manifest.model_hash, plan.base.model_hash);
            return Err(Failure::Base(format!("its hash is {is}, not {should}")));
        }
        if manifest.expert_group != plan.group {
            let (is, should) = (manifest.expert_group, plan.group);
            return Err(Failure::Base(format!("it was published for group {is}, not {should}")));
        }
        let layout = manifest
            .layout(plan.group)
            .ok_or_else(|| Failure::Base(format!("it has no slice of group {}", plan.group)))?;
        if let Some((name, spec)) = layout.tensors.iter().find(|(_, s)| !s.dtype.is_float()) {
            return Err(Failure::Base(format!("{name} is {:?}, not a float", spec.dtype)));
        }
        let state = match state {
            Some(path) => OptimizerState::load(path, &layout.tensors, &plan.base.model_hash)
                .map_err(|error| Failure::Base(format!("its optimizer's state: {error}")))?,
            None => OptimizerState::fresh(),
        };
        let vector = VectorLayout::new(&layout.tensors);
        Ok(Self { published, layout, vector, state })
    }

    /// The whole model.
    pub(crate) fn published(&self) -> &PublishedModel {
        &self.published
    }

    /// What miners submit, and what is stepped.
    pub(crate) fn layout(&self) -> &SliceLayout {
        &self.layout
    }

    /// The group's tensors, ascending by name.
    pub(crate) fn tensors(&self) -> &BTreeMap<String, TensorSpec> {
        &self.layout.tensors
    }

    /// The order of every vector's elements.
    pub(crate) fn vector(&self) -> &VectorLayout {
        &self.vector
    }

    /// Momentum and float32 parameters.
    pub(crate) fn state(&self) -> &OptimizerState {
        &self.state
    }

    /// How gradients of this model are cut, with `chunk` elements in each chunk.
    pub(crate) fn cut(&self, codec: Codec, chunk: usize) -> Cut {
        Cut { elements: self.vector.len(), chunk, codec }
    }

    /// What validators must share to add their vectors up and to make the same model of the sum: names,
    /// shapes, order and types of the tensors, the outer optimizer, and its state.
    ///
    /// The state is in it because equal bases with unequal momentum make unequal models: better to be
    /// left out by name than to find another hash on chain.
    pub(crate) fn layout_digest(&self, optimizer: &OuterSgd) -> Digest {
        layout_digest(self.tensors(), &self.vector, optimizer, self.state.digest())
    }
}

fn layout_digest(
    tensors: &BTreeMap<String, TensorSpec>,
    vector: &VectorLayout,
    optimizer: &OuterSgd,
    state: Option<[u8; 32]>,
) -> Digest {
    let mut hash = blake3::Hasher::new_derive_key("connito merge layout v2");
    hash.update(&vector.digest().0);
    for spec in tensors.values() {
        let dtype = format!("{:?}", spec.dtype);
        hash.update(&(dtype.len() as u64).to_le_bytes());
        hash.update(dtype.as_bytes());
    }
    let OuterSgd { lr, momentum, nesterov } = optimizer;
    hash.update(&lr.to_le_bytes());
    hash.update(&momentum.to_le_bytes());
    hash.update(&[u8::from(*nesterov), u8::from(state.is_some())]);
    hash.update(&state.unwrap_or_default());
    Digest(hash.finalize().into())
}

/// Brings the base model of `plan` to this host: its folder, and its optimizer's state where it has one.
pub(crate) async fn fetch(
    artifacts: &Artifacts,
    plan: &Plan,
) -> Result<(PathBuf, Option<PathBuf>), Failure> {
    let prefix = &plan.base.prefix;
    let path = artifacts.local_file(&format!("{prefix}/{}", Manifest::FILE_NAME)).await?;
    let Some(folder) = path.parent().map(Path::to_owned) else {
        return Err(Failure::Base(format!("{} is in no folder", path.display())));
    };
    let full = SliceId::Full.file_name(Format::Safetensors);
    match artifacts.local_file(&format!("{prefix}/{full}")).await {
        Ok(_) => {}
        Err(ArtifactError::NotFound { .. }) => {
            let manifest = Manifest::read(&folder).map_err(|e| Failure::Base(e.to_string()))?;
            for id in manifest.slices.keys().filter(|id| **id != SliceId::Full) {
                let name = id.file_name(Format::Safetensors);
                artifacts.local_file(&format!("{prefix}/{name}")).await?;
            }
        }
        Err(error) => return Err(error.into()),
    }
    match artifacts.local_file(&format!("{prefix}/{}", plan.optimizer_file())).await {
        Ok(path) => Ok((folder, Some(path))),
        Err(ArtifactError::NotFound { .. }) => Ok((folder, None)),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests;
