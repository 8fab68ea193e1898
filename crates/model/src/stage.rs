//! Staging: a submission is checked and brought into the model's type in the host's memory while the
//! model runs another one. What is left for the device's thread is a swap of pointers, or on a GPU a
//! copy out of pinned memory.

use std::{collections::BTreeSet, sync::Arc};

use checkpoint::TensorSource;
use tch::{Kind, Tensor};

use crate::{
    Device, LoadOptions, ModelConfig, ModelError,
    net::{Expert, ExpertSet},
    weights::read_into,
};

/// What a submission to a model must look like.
#[derive(Debug, PartialEq)]
pub(crate) struct Layout {
    /// Layers with routed experts, and the ids of theirs that are overlaid, ascending.
    layers: Vec<(u32, Vec<i64>)>,
    /// Shapes of `gate_up_proj` and `down_proj`.
    shapes: [[i64; 2]; 2],
    kind: Kind,
    device: Device,
}

impl Layout {
    /// `ids` are those of each layer that has experts, ascending.
    pub(crate) fn new(config: &ModelConfig, ids: &[Vec<i64>], options: &LoadOptions) -> Self {
        Self {
            layers: config.moe_layers().zip(ids.iter().cloned()).collect(),
            shapes: expert_shapes(config),
            kind: options.weights.kind(),
            device: options.device,
        }
    }

    /// Fills an expert set, tensor by tensor, by name.
    pub(crate) fn fill(
        &self,
        mut tensor: impl FnMut(&str, &[i64]) -> Result<Tensor, ModelError>,
    ) -> Result<ExpertSet, ModelError> {
        let [gate_up, down] = &self.shapes;
        let mut expert = |layer: u32, id: i64| {
            Ok(Expert {
                id,
                gate_up: tensor(&expert_name(layer, id, "gate_up_proj"), gate_up)?,
                down: tensor(&expert_name(layer, id, "down_proj"), down)?,
            })
        };
        let layers = self
            .layers
            .iter()
            .map(|(layer, ids)| ids.iter().map(|id| expert(*layer, *id)).collect())
            .collect::<Result<_, ModelError>>()?;
        Ok(ExpertSet::new(layers))
    }

    /// Bytes of one expert set.
    pub(crate) fn bytes(&self) -> u64 {
        let experts: usize = self.layers.iter().map(|(_, ids)| ids.len()).sum();
        let each: i64 = self.shapes.iter().map(|[rows, columns]| rows * columns).sum();
        experts as u64 * each.unsigned_abs() * self.kind.elt_size_in_bytes() as u64
    }
}

/// Stages submissions to one model, on any thread, as often as wanted; it holds nothing of the model
/// but its layout.
#[derive(Debug, Clone)]
pub struct Stager(Arc<Layout>);

/// A submission's experts in the host's memory, checked, in the model's type: pinned where the model
/// is on a GPU. It fits every model of the same layout, type and device.
#[derive(Debug)]
pub struct Staged {
    layout: Arc<Layout>,
    pub(crate) experts: ExpertSet,
}

impl Stager {
    pub(crate) fn new(layout: Arc<Layout>) -> Self {
        Self(layout)
    }

    /// Bytes of the host's memory that one [`Staged`] holds.
    pub fn bytes(&self) -> u64 {
        self.0.bytes()
    }

    /// Checks a submission and brings it into the model's type. It must have every expert tensor of
    /// the group and no other, in a floating type, finite before and after the conversion: this is
    /// checked here too, whoever checked it before.
    ///
    /// Each tensor of a mapped file is copied once, conversion included; once more where the file
    /// has it with strides or at an odd byte. Nothing but the result and one such tensor is held.
    ///
    /// # Errors
    ///
    /// See [`ModelError::submission_reason`].
    pub fn stage(&self, submission: &dyn TensorSource) -> Result<Staged, ModelError> {
        let _no_grad = tch::no_grad_guard();
        let layout = &*self.0;
        // Names first: a foreign one is refused before anything is copied.
        let mut names = BTreeSet::new();
        for (layer, ids) in &layout.layers {
            for id in ids {
                names.extend(PARTS.map(|part| expert_name(*layer, *id, part)));
            }
        }
        let found = submission.specs();
        if let Some(name) = found.keys().find(|name| !names.contains(*name)) {
            return Err(ModelError::Foreign { name: name.clone() });
        }
        if let Some(name) = names.iter().find(|name| !found.contains_key(*name)) {
            return Err(ModelError::Missing { name: name.clone() });
        }
        let experts = layout.fill(|name, shape| {
            let mut room = Tensor::f_empty(shape, (layout.kind, tch::Device::Cpu))?;
            if let Device::Cuda(_) = layout.device {
                // Pinning copies, here pages that nobody has touched yet.
                room = room.f_pin_memory(layout.device.tch())?;
            }
            read_into(submission, name, &mut room)?;
            Ok(room)
        })?;
        Ok(Staged { layout: self.0.clone(), experts })
    }
}

impl Staged {
    /// Whether it was made for a model of this layout.
    pub(crate) fn fits(&self, layout: &Arc<Layout>) -> bool {
        Arc::ptr_eq(&self.layout, layout) || self.layout == *layout
    }
}

/// The two tensors of an expert.
const PARTS: [&str; 2] = ["gate_up_proj", "down_proj"];

/// Name of a routed expert's tensor in the subnet's form; `part` is one of [`PARTS`].
pub(crate) fn expert_name(layer: u32, id: i64, part: &str) -> String {
    format!("model.layers.{layer}.mlp.experts.{id}.{part}")
}

/// Shapes of `gate_up_proj` and `down_proj`.
pub(crate) fn expert_shapes(config: &ModelConfig) -> [[i64; 2]; 2] {
    let (inner, hidden) = (config.moe_intermediate_size, config.hidden_size);
    [[2 * inner, hidden], [hidden, inner]]
}
