//! Multi-head latent attention: keys and values are expanded from one small latent per token.

use tch::Tensor;

use super::{
    Compute, FiniteCheck, Norm,
    rope::Rotation,
    sdpa::{Padding, attend},
};
use crate::{LoadOptions, ModelError, weights::Weights};

/// The latent's norm keeps this epsilon, whatever the configuration says.
const KV_NORM_EPS: f64 = 1e-6;

#[derive(Debug)]
pub(crate) struct Attention {
    heads: i64,
    nope: i64,
    rope: i64,
    value: i64,
    rank: i64,
    scale: f64,
    q: Tensor,
    kv_a: Tensor,
    kv_norm: Norm,
    kv_b: Tensor,
    o: Tensor,
}

impl Attention {
    pub(crate) fn load(
        weights: &Weights<'_>,
        at: &str,
        options: &LoadOptions,
    ) -> Result<Self, ModelError> {
        let c = weights.config();
        let head = c.qk_nope_head_dim + c.qk_rope_head_dim;
        let mut scale = (head as f64).powf(-0.5);
        if let Some(yarn) = c.rope.yarn.as_ref().filter(|_| options.mscale_in_attention) {
            scale *= yarn.attention_mscale().powi(2);
        }
        let take = |name: &str, shape: [i64; 2]| weights.take(&format!("{at}{name}"), &shape);
        let kv_out = c.heads * (c.qk_nope_head_dim + c.v_head_dim);
        let kv_in = c.kv_lora_rank + c.qk_rope_head_dim;
        Ok(Self {
            heads: c.heads,
            nope: c.qk_nope_head_dim,
            rope: c.qk_rope_head_dim,
            value: c.v_head_dim,
            rank: c.kv_lora_rank,
            scale,
            q: take("q_proj.weight", [c.heads * head, c.hidden_size])?,
            kv_a: take("kv_a_proj_with_mqa.weight", [kv_in, c.hidden_size])?,
            kv_norm: Norm {
                weight: weights.take(&format!("{at}kv_a_layernorm.weight"), &[c.kv_lora_rank])?,
                eps: KV_NORM_EPS,
            },
            kv_b: take("kv_b_proj.weight", [kv_out, c.kv_lora_rank])?,
            o: take("o_proj.weight", [c.hidden_size, c.heads * c.v_head_dim])?,
        })
    }

    pub(crate) fn parameters(&self) -> impl Iterator<Item = &Tensor> {
        [&self.q, &self.kv_a, &self.kv_norm.weight, &self.kv_b, &self.o].into_iter()
    }

    /// `x` is `[B, T, H]`, and so is the result.
    pub(crate) fn forward(
        &self,
        compute: Compute,
        x: &Tensor,
        rotation: &Rotation,
        padding: Option<&Padding>,
        check: &mut FiniteCheck,
    ) -> Result<Tensor, ModelError> {
        let (b, t, _) = x.size3()?;
        let q = compute.linear(x, &self.q)?.f_view([b, t, self.heads, self.nope + self.rope])?;
        // In place: only a third of a head turns.
        let mut turning = q.f_narrow(-1, self.nope, self.rope)?;
        turning.f_copy_(&rotation.apply(&turning)?)?;
        let latent = compute.linear(x, &self.kv_a)?;
        let k_rope = latent.f_narrow(-1, self.rank, self.rope)?;
        let latent = self.kv_norm.forward(&latent.f_narrow(-1, 0, self.rank)?, check)?;
        let kv = compute.linear(&latent, &self.kv_b)?.f_view([
            b,
            t,
            self.heads,
            self.nope + self.value,
        ])?;
        // One rotated key part, shared by all heads.
        let k_rope = rotation.apply(&k_rope.f_unsqueeze(2)?)?;
        // The softmax would turn a negative infinity into a zero, and padding hides anything.
        check.see(&q)?;
        check.see(&kv)?;
        check.see(&k_rope)?;

        let kv = kv.f_transpose(1, 2)?;
        let k_rope = k_rope.f_transpose(1, 2)?.f_expand([b, self.heads, t, self.rope], false)?;
        let k = Tensor::f_cat(&[kv.f_narrow(-1, 0, self.nope)?, k_rope], -1)?;
        let v = kv.f_narrow(-1, self.nope, self.value)?;
        let out = attend(&q.f_transpose(1, 2)?, &k, &v, self.scale, padding)?;
        compute.linear(&out.f_reshape([b, t, self.heads * self.value])?, &self.o)
    }
}
