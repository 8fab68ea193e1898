//! What the optimizer remembers of a model: momentum, and parameters in float32 where the model is published in less.

use std::{collections::BTreeMap, fmt, path::Path};

use domain::ModelHash;
use rayon::prelude::*;

use crate::{
    checkpoint::{Checkpoint, open},
    dtype::{Dtype, decode_into},
    refusal::{Refusal, clip},
    source::TensorSource as _,
    state_file::{StateFile, StateFileError, StateWriter, limits},
    tensor::TensorSpec,
    vector::{ChunkDigests, LayoutDigest, VectorLayout},
};

/// The optimizer's state of one model and one group, read from its file a part at a time.
pub struct OptimizerState {
    source: Source,
    digest: Option<[u8; 32]>,
}

enum Source {
    /// Before the first step.
    Fresh,
    /// Format 1: a safetensors file of momentum under the tensors' own names, bound to nothing.
    Momentum(Checkpoint),
    /// Format 2.
    File(StateFile),
}

/// A state that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error(transparent)]
    File(#[from] StateFileError),
    #[error("the state belongs to the model {}, not {expected}", found.map_or("?".to_owned(), |hash| hash.to_string()))]
    Model { expected: ModelHash, found: Option<ModelHash> },
    #[error("the state is of another layout than {0}")]
    Layout(LayoutDigest),
    #[error("momentum of other tensors: {name}")]
    Tensors { name: String },
}

impl From<Refusal> for StateError {
    fn from(refusal: Refusal) -> Self {
        Self::File(refusal.into())
    }
}

const KIND: &str = "connito.optimizer";
const MODEL: &str = "model_hash";
const LAYOUT: &str = "layout";

type Specs = BTreeMap<String, TensorSpec>;

fn momentum_of(name: &str) -> String {
    format!("momentum/{name}")
}

fn master_of(name: &str) -> String {
    format!("master/{name}")
}

/// Whether a tensor of this type is less than what is stepped.
fn has_master(spec: &TensorSpec) -> bool {
    spec.dtype != Dtype::F32
}

impl OptimizerState {
    /// The format that is written.
    pub const FORMAT: u32 = 2;

    /// Of a model that was never stepped: no momentum, and parameters as they are published.
    pub fn fresh() -> Self {
        Self { source: Source::Fresh, digest: None }
    }

    /// Reads the state of the model whose slice has this hash. `tensors` are those of the slice, as published.
    ///
    /// Checked are the file's own hash, its version, the model and the layout it is bound to, every tensor's shape, and
    /// that every value is finite. A file of format 1, momentum alone, has only tensors to be checked; parameters are then
    /// taken as published.
    pub fn load(path: &Path, tensors: &Specs, model: &ModelHash) -> Result<Self, StateError> {
        let file = open(path, limits())?;
        let source = if StateFile::is_one(&file) {
            let file = StateFile::check(file, path, KIND, Self::FORMAT)?;
            let found = file.bound(MODEL).and_then(|bytes| bytes.try_into().ok()).map(ModelHash);
            if found != Some(*model) {
                return Err(StateError::Model { expected: *model, found });
            }
            let layout = VectorLayout::new(tensors).digest();
            if file.bound(LAYOUT) != Some(&layout.0) {
                return Err(StateError::Layout(layout));
            }
            let names = names(tensors);
            file.expect(names.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())))?;
            Source::File(file)
        } else {
            check_momentum(&file, tensors)?;
            Source::Momentum(file)
        };
        let mut state = Self { source, digest: None };
        state.digest = Some(state.content(tensors)?);
        Ok(state)
    }

    /// Which format it was read from; `None` before the first step.
    pub fn format(&self) -> Option<u32> {
        match &self.source {
            Source::Fresh => None,
            Source::Momentum(_) => Some(1),
            Source::File(_) => Some(Self::FORMAT),
        }
    }

    /// A digest of momentum and float32 parameters, whatever format they were read from; `None` before the first step.
    /// Two validators that step equal models along equal gradients make equal models where these are equal.
    pub fn digest(&self) -> Option<[u8; 32]> {
        self.digest
    }

    /// Fills `out` with a tensor's momentum from `start`.
    pub(super) fn momentum(
        &self,
        name: &str,
        start: usize,
        out: &mut [f32],
    ) -> Result<(), Refusal> {
        match &self.source {
            Source::Fresh => out.fill(0.0),
            Source::Momentum(file) => {
                let bytes = file.part(name, start..start.saturating_add(out.len()))?;
                decode_into(Dtype::F32, &bytes, out);
            }
            Source::File(file) => file.read(&momentum_of(name), start, out)?,
        }
        Ok(())
    }

    /// Fills `out` with a tensor's float32 parameters from `start`; false where there are none but the published ones.
    pub(super) fn master(
        &self,
        name: &str,
        start: usize,
        out: &mut [f32],
    ) -> Result<bool, Refusal> {
        let Source::File(file) = &self.source else { return Ok(false) };
        let master = master_of(name);
        if file.file().spec(&master).is_err() {
            return Ok(false);
        }
        file.read(&master, start, out)?;
        Ok(true)
    }

    fn content(&self, tensors: &Specs) -> Result<[u8; 32], Refusal> {
        let (file, plain) = match &self.source {
            Source::Fresh => return Ok([0; 32]),
            Source::Momentum(file) => (file, true),
            Source::File(file) => (file.file(), false),
        };
        let root = |name: &str| -> Result<[u8; 32], Refusal> {
            Ok(ChunkDigests::of(1 << 20, &file.bytes(name)?)
                .map(|list| list.root())
                .unwrap_or_default())
        };
        let roots = tensors
            .par_iter()
            .map(|(name, spec)| {
                let momentum = if plain { root(name)? } else { root(&momentum_of(name))? };
                let master = (!plain && has_master(spec)).then(|| root(&master_of(name)));
                Ok((momentum, master.transpose()?))
            })
            .collect::<Result<Vec<_>, Refusal>>()?;
        let mut hash = blake3::Hasher::new_derive_key("connito optimizer state v1");
        hash.update(&VectorLayout::new(tensors).digest().0);
        for (momentum, master) in roots {
            hash.update(&momentum);
            hash.update(&[u8::from(master.is_some())]);
            hash.update(&master.unwrap_or_default());
        }
        Ok(hash.finalize().into())
    }
}

/// Names and shapes in a file of the present format.
fn names(tensors: &Specs) -> Vec<(String, Vec<usize>)> {
    let masters = tensors
        .iter()
        .filter(|(_, spec)| has_master(spec))
        .map(|(name, spec)| (master_of(name), spec.shape.clone()));
    let momenta = tensors.iter().map(|(name, spec)| (momentum_of(name), spec.shape.clone()));
    masters.chain(momenta).collect()
}

fn check_momentum(file: &Checkpoint, tensors: &Specs) -> Result<(), StateError> {
    if let Some(name) = file.tensors().keys().find(|name| !tensors.contains_key(*name)) {
        return Err(StateError::Tensors { name: clip(name) });
    }
    for (name, spec) in tensors {
        let found = file.tensors().get(name);
        if found.is_none_or(|t| t.dtype() != Dtype::F32 || t.shape() != spec.shape) {
            return Err(StateError::Tensors { name: clip(name) });
        }
    }
    Ok(())
}

/// The state of the next model while it is written.
pub(super) struct NextState {
    writer: StateWriter,
    layout: LayoutDigest,
}

impl NextState {
    pub(super) fn create(path: &Path, tensors: &Specs) -> Result<Self, StateFileError> {
        let bound = [(LAYOUT, size_of::<LayoutDigest>()), (MODEL, size_of::<ModelHash>())];
        let format = OptimizerState::FORMAT;
        let writer = StateWriter::create(path, KIND, format, names(tensors), &bound)?;
        Ok(Self { writer, layout: VectorLayout::new(tensors).digest() })
    }

    /// A whole tensor's momentum and parameters.
    pub(super) fn write(
        &mut self,
        name: &str,
        momentum: &[f32],
        master: Option<&[f32]>,
    ) -> Result<(), StateFileError> {
        self.writer.write(&momentum_of(name), 0, momentum)?;
        match master {
            Some(master) => self.writer.write(&master_of(name), 0, master),
            None => Ok(()),
        }
    }

    /// Binds the file to the model that it belongs to and makes it visible.
    pub(super) fn finish(mut self, model: &ModelHash) -> Result<(), StateFileError> {
        self.writer.bind(LAYOUT, &self.layout.0)?;
        self.writer.bind(MODEL, &model.0)?;
        self.writer.finish()
    }
}

impl fmt::Debug for OptimizerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OptimizerState")
            .field("format", &self.format())
            .field("digest", &self.digest.map(hex::encode))
            .finish()
    }
}
