//! Staging: a submission is checked and brought into the model's type in the host's memory while the
//! model runs another one. What is left for the device's thread is a swap of pointers, or on a GPU a
//! copy out of pinned memory.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

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

    /// Room for one tensor in the host's memory.
    fn empty(&self, shape: &[i64]) -> Result<Tensor, ModelError> {
        let room = Tensor::f_empty(shape, (self.kind, tch::Device::Cpu))?;
        Ok(match self.device {
            Device::Cpu => room,
            // Pinning copies, here pages that nobody has touched yet. The public function warns at every call
            // that it was told the device.
            Device::Cuda(_) => room.f_internal_pin_memory(self.device.tch())?,
        })
    }

    /// Overwrites every tensor of `experts` by the submission's.
    fn read(
        &self,
        submission: &dyn TensorSource,
        experts: &mut ExpertSet,
    ) -> Result<(), ModelError> {
        for (n, expert) in experts.iter_mut() {
            let layer = self.layers.get(n).map_or(0, |(layer, _)| *layer);
            for (part, tensor) in PARTS.into_iter().zip([&mut expert.gate_up, &mut expert.down]) {
                read_into(submission, &expert_name(layer, expert.id, part), tensor)?;
            }
        }
        Ok(())
    }

    /// Bytes of one expert set.
    pub(crate) fn bytes(&self) -> u64 {
        let experts: usize = self.layers.iter().map(|(_, ids)| ids.len()).sum();
        let each: i64 = self.shapes.iter().map(|[rows, columns]| rows * columns).sum();
        experts as u64 * each.unsigned_abs() * self.kind.elt_size_in_bytes() as u64
    }
}

/// A set of experts that nobody routes through any more. The next submission is staged into it: to
/// get as much fresh memory from the system, page by page, takes as long as to fill it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Room(Arc<Mutex<Option<ExpertSet>>>);

impl Room {
    fn take(&self) -> Option<ExpertSet> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(crate) fn leave(&self, experts: ExpertSet) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(experts);
    }
}

/// Stages submissions to one model, on any thread, as often as wanted; it holds nothing of the model
/// but its layout, and the room that an earlier submission has left.
#[derive(Debug, Clone)]
pub struct Stager {
    layout: Arc<Layout>,
    room: Room,
}

/// A submission's experts in the host's memory, checked, in the model's type: pinned where the model
/// is on a GPU. It fits every model of the same layout, type and device.
#[derive(Debug)]
pub struct Staged {
    layout: Arc<Layout>,
    pub(crate) experts: ExpertSet,
}

impl Stager {
    pub(crate) fn new(layout: Arc<Layout>, room: Room) -> Self {
        Self { layout, room }
    }

    /// Bytes of the host's memory that one [`Staged`] holds.
    pub fn bytes(&self) -> u64 {
        self.layout.bytes()
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
        let layout = &*self.layout;
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
        let mut experts = match self.room.take() {
            Some(experts) => experts,
            None => layout.fill(|_, shape| layout.empty(shape))?,
        };
        match layout.read(submission, &mut experts) {
            Ok(()) => Ok(Staged { layout: self.layout.clone(), experts }),
            Err(error) => {
                self.room.leave(experts);
                Err(error)
            }
        }
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

#[cfg(test)]
mod tests {
    use checkpoint::MemoryTensors;
    use domain::Seed;

    use super::*;
    use crate::{LanguageModel, init, single_threaded};

    fn submission(layout: &Layout, value: f32) -> MemoryTensors {
        let mut tensors = MemoryTensors::default();
        for (layer, ids) in &layout.layers {
            for (id, (part, [rows, columns])) in
                ids.iter().flat_map(|id| PARTS.into_iter().zip(layout.shapes).map(move |p| (id, p)))
            {
                let values = vec![value; (rows * columns) as usize];
                let shape = vec![rows as usize, columns as usize];
                tensors.insert_f32(&expert_name(*layer, *id, part), shape, &values).unwrap();
            }
        }
        tensors
    }

    fn first(staged: &Staged) -> &Tensor {
        &staged.experts.layers()[0][0].gate_up
    }

    #[test]
    fn a_submission_is_staged_where_an_earlier_one_was_and_a_refused_one_leaves_the_room() {
        single_threaded();
        let dir = tempfile::tempdir().unwrap();
        let config = init::demo_config();
        init::random(dir.path(), &config, &Seed([3; 32]), &["text".to_owned()]).unwrap();
        let mut model = LanguageModel::from_hub(dir.path(), None, LoadOptions::default()).unwrap();
        let stager = model.stager();
        let one = stager.stage(&submission(&stager.layout, 0.5)).unwrap();
        let two = stager.stage(&submission(&stager.layout, 0.75)).unwrap();
        let place = first(&one).data_ptr();
        assert_ne!(place, first(&two).data_ptr(), "two that are held at a time lie apart");

        model.overlay_staged(one).unwrap();
        model.restore();
        assert!(stager.stage(&submission(&stager.layout, f32::NAN)).is_err());
        let next = stager.stage(&submission(&stager.layout, 0.25)).unwrap();
        assert_eq!(first(&next).data_ptr(), place);
        for (staged, value) in [(&two, 0.75), (&next, 0.25)] {
            staged
                .experts
                .for_each_parameter(&mut |tensor| {
                    assert_eq!(tensor.min().double_value(&[]), value);
                    assert_eq!(tensor.max().double_value(&[]), value);
                    Ok(())
                })
                .unwrap();
        }
    }
}
