//! The forward pass of DeepSeek-V2 (protocol, section 7; DeepSeek-AI, arXiv:2405.04434), with the
//! deployed implementation's quirks. Knows nothing of files, miners or rounds.
//!
//! Every operation is in its fallible form: a miner's numbers must not be able to end the process.

mod attention;
mod experts;
mod finite;
mod rope;
mod router;
mod sdpa;

use tch::{Kind, Tensor};

use self::{attention::Attention, experts::Moe, sdpa::Padding};
pub(crate) use self::{
    experts::{Expert, ExpertSet},
    finite::FiniteCheck,
    sdpa::BLOCK,
};
use crate::{LoadOptions, ModelError, weights::Weights};

const NO_TENSOR: Option<&Tensor> = None;

/// Matrix products in the compute type, everything else as it comes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Compute {
    autocast: Option<Kind>,
}

impl Compute {
    fn cast(self, x: &Tensor) -> Result<Tensor, ModelError> {
        Ok(match self.autocast {
            Some(kind) => x.f_to_kind(kind)?,
            None => x.shallow_clone(),
        })
    }

    /// `x wᵀ`, `w` being `[out, in]`.
    fn linear(self, x: &Tensor, w: &Tensor) -> Result<Tensor, ModelError> {
        Ok(self.cast(x)?.f_linear(&self.cast(w)?, NO_TENSOR)?)
    }
}

/// A gated MLP: `down(silu(gate x) · up x)`.
#[derive(Debug)]
struct Mlp {
    gate: Tensor,
    up: Tensor,
    down: Tensor,
}

impl Mlp {
    fn load(weights: &Weights<'_>, at: &str, inner: i64) -> Result<Self, ModelError> {
        let hidden = weights.config().hidden_size;
        Ok(Self {
            gate: weights.take(&format!("{at}gate_proj.weight"), &[inner, hidden])?,
            up: weights.take(&format!("{at}up_proj.weight"), &[inner, hidden])?,
            down: weights.take(&format!("{at}down_proj.weight"), &[hidden, inner])?,
        })
    }

    fn parameters(&self) -> impl Iterator<Item = &Tensor> {
        [&self.gate, &self.up, &self.down].into_iter()
    }

    fn forward(&self, compute: Compute, x: &Tensor) -> Result<Tensor, ModelError> {
        let gate = compute.linear(x, &self.gate)?;
        let inner = gate.f_silu()?.f_mul(&compute.linear(x, &self.up)?)?;
        compute.linear(&inner, &self.down)
    }
}

/// Root mean square norm in float32, cast back before the weight.
#[derive(Debug)]
struct Norm {
    weight: Tensor,
    eps: f64,
}

impl Norm {
    fn forward(&self, x: &Tensor, check: &mut FiniteCheck) -> Result<Tensor, ModelError> {
        let kind = x.f_kind()?;
        let x = x.f_to_kind(Kind::Float)?;
        let variance = x.f_square()?.f_mean_dim([-1i64].as_slice(), true, None)?;
        // An infinite variance would turn the row into zeros and hide.
        check.see(&variance)?;
        let x = x.f_mul(&variance.f_add_scalar(self.eps)?.f_rsqrt()?)?;
        Ok(self.weight.f_mul(&x.f_to_kind(kind)?)?)
    }
}

#[derive(Debug)]
enum FeedForward {
    Dense(Mlp),
    Moe(Moe),
}

#[derive(Debug)]
struct Layer {
    before_attention: Norm,
    attention: Attention,
    before_mlp: Norm,
    mlp: FeedForward,
}

/// The parameters that all miners share, and the way a token takes through them. The routed experts
/// come from outside, so that one network can run with several sets of them.
#[derive(Debug)]
pub(crate) struct Network {
    compute: Compute,
    device: tch::Device,
    rope: rope::Frequencies,
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: Norm,
    head: Tensor,
}

impl Network {
    /// Takes the shared parameters out of `weights`. `group` masks the routing; `None` routes over
    /// all experts.
    pub(crate) fn load(
        weights: &Weights<'_>,
        group: Option<&[Vec<i64>]>,
        options: &LoadOptions,
    ) -> Result<Self, ModelError> {
        let config = weights.config();
        let device = options.device.tch();
        let vocabulary = [config.vocab_size, config.hidden_size];
        let embedding = weights.take("model.embed_tokens.weight", &vocabulary)?;
        let head = if config.tied {
            embedding.shallow_clone()
        } else {
            weights.take("lm_head.weight", &vocabulary)?
        };
        let mut layers = Vec::new();
        for layer in 0..config.layers {
            let at = format!("model.layers.{layer}.");
            let moe = usize::try_from(layer - config.dense_layers).ok();
            let mlp = match moe {
                None => FeedForward::Dense(Mlp::load(
                    weights,
                    &format!("{at}mlp."),
                    config.intermediate_size,
                )?),
                Some(n) => {
                    let allowed = group.and_then(|group| group.get(n)).map(Vec::as_slice);
                    FeedForward::Moe(Moe::load(weights, &format!("{at}mlp."), allowed)?)
                }
            };
            layers.push(Layer {
                before_attention: norm(weights, &format!("{at}input_layernorm.weight"))?,
                attention: Attention::load(weights, &format!("{at}self_attn."), options)?,
                before_mlp: norm(weights, &format!("{at}post_attention_layernorm.weight"))?,
                mlp,
            });
        }
        Ok(Self {
            compute: Compute { autocast: options.autocast.map(crate::Autocast::kind) },
            device,
            rope: rope::Frequencies::new(config)?,
            embedding,
            layers,
            norm: norm(weights, "model.norm.weight")?,
            head,
        })
    }

    /// The residual stream behind the last norm, `[B, T, H]`, for token ids `[B, T]`; `attended`
    /// `[B, T]` is false at padding, where there is any. Whatever could hide a number that is not
    /// finite is shown to `check`.
    pub(crate) fn forward(
        &self,
        ids: &Tensor,
        attended: Option<&Tensor>,
        experts: &ExpertSet,
        check: &mut FiniteCheck,
    ) -> Result<Tensor, ModelError> {
        let ids = ids.f_to_device(self.device)?;
        let length = ids.size().get(1).copied().unwrap_or(0);
        let rotation = self.rope.up_to(length, self.device)?;
        let padding = attended
            .map(|attended| Padding::new(&attended.f_to_device(self.device)?))
            .transpose()?;
        let mut h = Tensor::f_embedding(&self.embedding, &ids, -1, false, false)?;
        let mut sets = experts.layers().iter();
        for (n, layer) in self.layers.iter().enumerate() {
            // What this norm sees is the layer before's doing.
            let x = layer.before_attention.forward(&h, check)?;
            check.enter(n);
            let x =
                layer.attention.forward(self.compute, &x, &rotation, padding.as_ref(), check)?;
            h = h.f_add(&x)?;
            let x = layer.before_mlp.forward(&h, check)?;
            let x = match &layer.mlp {
                FeedForward::Dense(mlp) => mlp.forward(self.compute, &x)?,
                FeedForward::Moe(moe) => {
                    let set = sets.next().map_or(&[][..], Vec::as_slice);
                    moe.forward(self.compute, &x, set, check)?
                }
            };
            h = h.f_add(&x)?;
        }
        let h = self.norm.forward(&h, check)?;
        check.enter(self.layers.len());
        Ok(h)
    }

    /// Logits `[.., V]` of what [`Self::forward`] gives.
    pub(crate) fn logits(&self, h: &Tensor, check: &mut FiniteCheck) -> Result<Tensor, ModelError> {
        let logits = self.compute.linear(h, &self.head)?;
        check.see(&logits)?;
        Ok(logits)
    }

    /// Shows every parameter, in an order of its own; a tied head once.
    pub(crate) fn for_each_parameter(
        &self,
        see: &mut dyn FnMut(&Tensor) -> Result<(), ModelError>,
    ) -> Result<(), ModelError> {
        see(&self.embedding)?;
        for layer in &self.layers {
            see(&layer.before_attention.weight)?;
            layer.attention.parameters().try_for_each(&mut *see)?;
            see(&layer.before_mlp.weight)?;
            match &layer.mlp {
                FeedForward::Dense(mlp) => mlp.parameters().try_for_each(&mut *see)?,
                FeedForward::Moe(moe) => moe.parameters().try_for_each(&mut *see)?,
            }
        }
        see(&self.norm.weight)?;
        if self.head.data_ptr() == self.embedding.data_ptr() { Ok(()) } else { see(&self.head) }
    }

    pub(crate) fn device(&self) -> tch::Device {
        self.device
    }
}

fn norm(weights: &Weights<'_>, name: &str) -> Result<Norm, ModelError> {
    let config = weights.config();
    Ok(Norm { weight: weights.take(name, &[config.hidden_size])?, eps: config.rms_norm_eps })
}
