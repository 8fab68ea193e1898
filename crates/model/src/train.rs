//! Training of a group's experts, as a demonstration's miners do it. All other parameters stay as
//! they are.

use std::path::Path;

use checkpoint::{FileInfo, Format, MemoryTensors};
use data::{Batch, TokenizedCorpus};
use domain::Seed;
use tch::{Device, Kind, Tensor};

use crate::{
    LanguageModel, ModelConfig, ModelError,
    loss::batch_loss,
    net::{ExpertSet, FiniteCheck, Network},
    stage::expert_name,
};

/// What a training does. The default is tuned for the demonstration's model and corpus.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrainOptions {
    /// Steps, at most.
    pub steps: usize,
    /// Sequences of a step.
    pub batch_size: usize,
    /// Tokens of a sequence.
    pub sequence_length: usize,
    /// Step size of Adam.
    pub learning_rate: f64,
}

/// Steps of a demonstration's training.
pub const DEMO_STEPS: usize = 48;
/// Its step size: small, so that the outer optimizer, whose first step is 1.33 times a miner's
/// difference and whose momentum grows, still goes downhill after several cycles.
pub const DEMO_LEARNING_RATE: f64 = 3e-4;
/// Its sequences per step.
pub const DEMO_BATCH_SIZE: usize = 8;
/// Tokens of a sequence of the demonstration.
pub const DEMO_SEQUENCE_LENGTH: usize = 64;

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            steps: DEMO_STEPS,
            batch_size: DEMO_BATCH_SIZE,
            sequence_length: DEMO_SEQUENCE_LENGTH,
            learning_rate: DEMO_LEARNING_RATE,
        }
    }
}

/// How a training went.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainReport {
    /// Loss of each step's batch, before the step.
    pub losses: Vec<f64>,
}

/// One expert's matrix and what Adam remembers of it.
#[derive(Debug)]
struct Trained {
    name: String,
    value: Tensor,
    mean: Tensor,
    square: Tensor,
}

/// A partial model whose experts are trained by Adam (Kingma and Ba, arXiv:1412.6980).
#[derive(Debug)]
pub struct Trainer {
    config: ModelConfig,
    network: Network,
    experts: ExpertSet,
    trained: Vec<Trained>,
    steps: i32,
}

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.99;
const EPSILON: f64 = 1e-8;

impl Trainer {
    /// Starts from `model`, which must be in float32; an overlay is forgotten.
    pub fn new(model: LanguageModel) -> Result<Self, ModelError> {
        let (config, network, mut experts) = model.into_parts();
        let layers: Vec<u32> = config.moe_layers().collect();
        let mut trained = Vec::new();
        for (n, expert) in experts.iter_mut() {
            let layer = layers.get(n).copied().unwrap_or_default();
            let id = expert.id;
            for (value, part) in
                [(&mut expert.gate_up, "gate_up_proj"), (&mut expert.down, "down_proj")]
            {
                *value = value.f_set_requires_grad(true)?;
                trained.push(Trained {
                    name: expert_name(layer, id, part),
                    value: value.shallow_clone(),
                    mean: value.f_detach()?.f_zeros_like()?,
                    square: value.f_detach()?.f_zeros_like()?,
                });
            }
        }
        Ok(Self { config, network, experts, trained, steps: 0 })
    }

    /// Trains on batches drawn from `corpus` by `seed` until the steps are done or `stop` says so.
    /// The same model, texts, seed and options give the same experts.
    pub fn train(
        &mut self,
        corpus: &TokenizedCorpus,
        seed: &Seed,
        options: &TrainOptions,
        mut stop: impl FnMut() -> bool,
    ) -> Result<TrainReport, ModelError> {
        let batches =
            corpus.draw(seed, options.steps, options.batch_size, options.sequence_length)?;
        let mut losses = Vec::new();
        for batch in &batches {
            if stop() {
                break;
            }
            losses.push(self.step(batch, options.learning_rate)?);
        }
        Ok(TrainReport { losses })
    }

    /// One step on one batch; the loss before it.
    pub fn step(&mut self, batch: &Batch, learning_rate: f64) -> Result<f64, ModelError> {
        let mut check = FiniteCheck::default();
        let loss = tch::with_grad(|| {
            let loss = batch_loss(&self.network, &self.experts, &self.config, batch, &mut check)?;
            loss.f_backward()?;
            Ok::<_, ModelError>(loss)
        })?;
        check.verdict()?;
        let _no_grad = tch::no_grad_guard();
        self.steps += 1;
        let (bias1, bias2) = (1.0 - BETA1.powi(self.steps), 1.0 - BETA2.powi(self.steps));
        for one in &mut self.trained {
            let gradient = one.value.f_grad()?;
            // An expert that no token went through has none.
            if !gradient.defined() {
                continue;
            }
            one.mean = one.mean.f_lerp(&gradient, 1.0 - BETA1)?;
            one.square = one.square.f_lerp(&gradient.f_square()?, 1.0 - BETA2)?;
            let scale = one.square.f_div_scalar(bias2)?.f_sqrt()?.f_add_scalar(EPSILON)?;
            let change = one.mean.f_div_scalar(bias1)?.f_div(&scale)?;
            let _ = one.value.f_sub_(&change.f_mul_scalar(learning_rate)?)?;
            one.value.zero_grad();
        }
        Ok(loss.f_detach()?.f_double_value(&[])?)
    }

    /// The experts as they are now, float32, under the subnet's names.
    pub fn experts(&self) -> Result<MemoryTensors, ModelError> {
        let _no_grad = tch::no_grad_guard();
        let mut tensors = MemoryTensors::default();
        for one in &self.trained {
            let value = one.value.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?;
            let shape = value.size().iter().filter_map(|n| usize::try_from(*n).ok()).collect();
            let values: Vec<f32> = Vec::try_from(value.f_reshape([-1])?)?;
            tensors.insert_f32(&one.name, shape, &values)?;
        }
        Ok(tensors)
    }

    /// Writes the experts as a submission.
    pub fn export(&self, path: &Path, format: Format) -> Result<FileInfo, ModelError> {
        let tensors = self.experts()?;
        match format {
            Format::Safetensors => checkpoint::write_safetensors(path, &tensors),
            Format::Pt => checkpoint::write_pt(path, &tensors),
        }
        .map_err(|error| ModelError::file(path, error))
    }
}
