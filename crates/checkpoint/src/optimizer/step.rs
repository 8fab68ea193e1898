//! From a base model and a reduced vector to the next model and its optimizer state, in one pass over the tensors.

use std::{borrow::Cow, collections::BTreeMap, path::Path};

use rayon::prelude::*;

use super::{
    OptimizerState, OuterSgd,
    outer::UnequalLengths,
    state::{NextState, StateError},
};
use crate::{
    dtype::{decode_into, encode_into},
    finite::first_non_finite,
    layout::SliceId,
    manifest::Manifest,
    publish::{Publication, PublishError, Publishing},
    refusal::{Refusal, clip},
    source::TensorSource,
    state_file::StateFileError,
    tensor::TensorSpec,
    vector::{ReadError, Values, VectorLayout},
};

/// One outer step: everything that the next model depends on.
pub struct OuterStep<'a> {
    /// The whole model, as published.
    pub base: &'a dyn TensorSource,
    /// The tensors that are stepped, of the group that is merged; the others are copied.
    pub tensors: &'a BTreeMap<String, TensorSpec>,
    pub state: &'a OptimizerState,
    pub optimizer: OuterSgd,
    /// The reduced vector over `tensors`.
    pub gradient: &'a dyn Values,
}

/// A step that did not make a model. What it wrote has no manifest, so that it is none.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    #[error("a gradient of {found} elements for {expected} parameters")]
    Gradient { expected: usize, found: usize },
    #[error("the gradient cannot be read: {0}")]
    Values(#[from] ReadError),
    #[error("the base model: {0}")]
    Base(#[from] Refusal),
    #[error("the publication is of a group without these tensors")]
    Group,
    #[error("the float32 parameters of {name} are not those that were published")]
    Master { name: String },
    #[error("{name}[{index}] would be {value}")]
    NonFinite { name: String, index: usize, value: &'static str },
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Publish(#[from] PublishError),
    #[error(transparent)]
    Lengths(#[from] UnequalLengths),
}

impl From<StateFileError> for StepError {
    fn from(error: StateFileError) -> Self {
        Self::State(error.into())
    }
}

/// Elements that one thread steps at a time.
const PIECE: usize = 32 << 10;

/// A tensor of the next model.
struct Stepped<'a> {
    name: &'a str,
    bytes: Cow<'a, [u8]>,
    /// Of a tensor of the group.
    state: Option<StepState>,
}

struct StepState {
    momentum: Vec<f32>,
    master: Option<Vec<f32>>,
}

impl OuterStep<'_> {
    /// Makes the next model in `folder`, as [`crate::publish_model`] does, with its optimizer state in the file
    /// `state_name` beside it. Each tensor is read once and written to all its files while the next one is stepped: two
    /// tensors are in memory, never the model. The state is there before the manifest, so that a model that is complete
    /// has its state.
    ///
    /// A parameter that would not be finite, in float32 or as published, is refused; so are float32 parameters that do not
    /// round to the base's, bit for bit.
    pub fn publish(
        &self,
        folder: &Path,
        state_name: &str,
        publication: Publication,
    ) -> Result<Manifest, StepError> {
        let layout = VectorLayout::new(self.tensors);
        let (expected, found) = (layout.len(), self.gradient.len());
        if expected != found {
            return Err(StepError::Gradient { expected, found });
        }
        for (name, spec) in self.tensors {
            if self.base.spec(name)? != spec {
                return Err(Refusal::missing(name).into());
            }
        }
        let group = SliceId::Group(publication.expert_group);
        let mut publishing = Publishing::create(folder, self.base.specs(), publication)?;
        if publishing.tensors(group) != Some(self.tensors) {
            return Err(StepError::Group);
        }
        let mut state = NextState::create(&folder.join(state_name), self.tensors)?;
        let mut names = self.base.specs().keys();
        let mut step = || names.next().map(|name| self.tensor(&layout, name)).transpose();
        let mut next = step()?;
        while let Some(stepped) = next.take() {
            let write = || -> Result<(), StepError> {
                let Stepped { name, bytes, state: own } = &stepped;
                let keep = || match own {
                    Some(own) => state.write(name, &own.momentum, own.master.as_deref()),
                    None => Ok(()),
                };
                let (published, kept) = rayon::join(|| publishing.write(name, bytes), keep);
                published.map_err(PublishError::from)?;
                Ok(kept?)
            };
            let (written, made) = rayon::join(write, &mut step);
            written?;
            next = made?;
        }
        let manifest = publishing.finish()?;
        state.finish(&manifest.model_hash)?;
        manifest.write(folder)?;
        Ok(manifest)
    }

    fn tensor<'b>(
        &'b self,
        layout: &VectorLayout,
        name: &'b str,
    ) -> Result<Stepped<'b>, StepError> {
        let (Some(spec), Some(range)) = (self.tensors.get(name), layout.range(name)) else {
            return Ok(Stepped { name, bytes: self.base.bytes(name)?, state: None });
        };
        let size = spec.dtype.size();
        let mut bytes = vec![0; spec.bytes()];
        let mut momentum = vec![0.0; spec.elements()];
        let mut master = vec![0.0; spec.elements()];
        bytes
            .par_chunks_mut(PIECE * size)
            .zip(momentum.par_chunks_mut(PIECE))
            .zip(master.par_chunks_mut(PIECE))
            .enumerate()
            .try_for_each(|(nth, ((bytes, momentum), master))| {
                let part = Part { name, spec, start: nth * PIECE, at: range.start };
                self.part(&part, bytes, momentum, master)
            })?;
        let master = (spec.dtype != crate::Dtype::F32).then_some(master);
        Ok(Stepped { name, bytes: Cow::Owned(bytes), state: Some(StepState { momentum, master }) })
    }

    fn part(
        &self,
        part: &Part<'_>,
        bytes: &mut [u8],
        momentum: &mut [f32],
        master: &mut [f32],
    ) -> Result<(), StepError> {
        let Part { name, spec, start, at } = *part;
        let dtype = spec.dtype;
        let wrong = || Refusal::WrongDtype { name: clip(name), found: dtype };
        let published = self.base.part(name, start..start + master.len())?;
        if self.state.master(name, start, master)? {
            if !encode_into(dtype, master, bytes) {
                return Err(wrong().into());
            }
            if *bytes != *published {
                return Err(StepError::Master { name: name.to_owned() });
            }
        } else if !decode_into(dtype, &published, master) {
            return Err(wrong().into());
        }
        self.state.momentum(name, start, momentum)?;
        let mut gradient = vec![0.0; master.len()];
        self.gradient.read(at + start, &mut gradient)?;
        self.optimizer.step(master, momentum, &gradient)?;
        encode_into(dtype, master, bytes);
        let finite = |found: Option<(usize, &'static str)>| match found {
            None => Ok(()),
            Some((index, value)) => {
                let (name, index) = (name.to_owned(), start + index);
                Err(StepError::NonFinite { name, index, value })
            }
        };
        finite(first_non_finite(dtype, bytes))?;
        let bad = momentum.iter().position(|v| !v.is_finite());
        finite(bad.map(|index| (index, "of no finite momentum")))
    }
}

/// A part of a tensor of the group.
struct Part<'a> {
    name: &'a str,
    spec: &'a TensorSpec,
    /// Its first element in the tensor.
    start: usize,
    /// The tensor's first element in the vector.
    at: usize,
}

impl std::fmt::Debug for OuterStep<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OuterStep")
            .field("tensors", &self.tensors.len())
            .field("state", self.state)
            .field("optimizer", &self.optimizer)
            .finish()
    }
}
