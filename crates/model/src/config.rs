//! `config.json` of a DeepSeek-V2 model, in both forms that are found: `rope_parameters` (written
//! by transformers 5) and `rope_theta` with `rope_scaling` (on the hub). Whatever this port does
//! not compute is refused by name, never ignored.

use serde::Deserialize;
use serde_json::Value;

use crate::ModelError;

/// Sizes and constants of the architecture (protocol, section 7). All sizes are at least 1.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Token ids.
    pub vocab_size: i64,
    /// Width of the residual stream, `H`.
    pub hidden_size: i64,
    /// Inner width of the dense layers' MLP.
    pub intermediate_size: i64,
    /// Inner width of one expert, `I`.
    pub moe_intermediate_size: i64,
    /// Layers.
    pub layers: i64,
    /// Layers at the start that have a plain MLP instead of experts.
    pub dense_layers: i64,
    /// Attention heads.
    pub heads: i64,
    /// Part of a query's or key's head without position.
    pub qk_nope_head_dim: i64,
    /// Part of a query's or key's head with rotary position.
    pub qk_rope_head_dim: i64,
    /// A value's head.
    pub v_head_dim: i64,
    /// Rank of the compressed keys and values.
    pub kv_lora_rank: i64,
    /// Routed experts of a layer.
    pub routed_experts: i64,
    /// Shared experts: one MLP of this many times `I`.
    pub shared_experts: i64,
    /// Routed experts that a token goes through.
    pub top_k: i64,
    /// How they are chosen.
    pub method: TopK,
    /// Factor of the router's weights.
    pub routed_scaling_factor: f64,
    /// Epsilon of all norms but `kv_a_layernorm`, whose is always 1e-6.
    pub rms_norm_eps: f64,
    /// Rotary embedding.
    pub rope: Rope,
    /// Whether the output projection is the embedding.
    pub tied: bool,
    /// Token that fills rows up.
    pub pad_token: Option<i64>,
}

/// How a token's experts are chosen: `topk_method`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TopK {
    /// `greedy`: the most probable ones.
    Greedy,
    /// `group_limited_greedy`: the most probable ones of the best routing groups.
    GroupLimited {
        /// Routing groups of equal size that a layer's experts are divided into, in order of id.
        groups: i64,
        /// Groups that a token may go to.
        chosen: i64,
    },
}

/// Rotary embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Its stretching to longer sequences; `None` leaves the frequencies as they are.
    pub yarn: Option<Yarn>,
}

/// YaRN (Peng et al., arXiv:2309.00071).
#[derive(Debug, Clone, PartialEq)]
pub struct Yarn {
    /// Ratio of the longer to the original length.
    pub factor: f64,
    /// Length that the model was trained on first.
    pub original_length: f64,
    /// Rotations above which a frequency stays as it is.
    pub beta_fast: f64,
    /// Rotations below which a frequency is divided by `factor`.
    pub beta_slow: f64,
    /// Numerator of the scale of cosine and sine; 0 when absent.
    pub mscale: f64,
    /// Its denominator, and the scale of attention; 0 when absent.
    pub mscale_all_dim: f64,
}

impl Yarn {
    /// `0.1 m ln(factor) + 1`.
    fn temperature(&self, m: f64) -> f64 {
        if self.factor <= 1.0 { 1.0 } else { 0.1 * m * self.factor.ln() + 1.0 }
    }

    /// Factor of cosine and sine.
    pub fn attention_factor(&self) -> f64 {
        if self.mscale != 0.0 && self.mscale_all_dim != 0.0 {
            self.temperature(self.mscale) / self.temperature(self.mscale_all_dim)
        } else {
            self.temperature(1.0)
        }
    }

    /// The mscale that some implementations square into the attention scale.
    pub fn attention_mscale(&self) -> f64 {
        self.temperature(self.mscale_all_dim)
    }
}

#[derive(Deserialize)]
struct RawConfig {
    model_type: Option<String>,
    vocab_size: i64,
    hidden_size: i64,
    intermediate_size: i64,
    moe_intermediate_size: i64,
    num_hidden_layers: i64,
    first_k_dense_replace: i64,
    num_attention_heads: i64,
    qk_nope_head_dim: i64,
    qk_rope_head_dim: i64,
    v_head_dim: i64,
    kv_lora_rank: i64,
    q_lora_rank: Option<i64>,
    n_routed_experts: i64,
    n_shared_experts: i64,
    num_experts_per_tok: i64,
    #[serde(default = "one")]
    routed_scaling_factor: f64,
    #[serde(default = "default_eps")]
    rms_norm_eps: f64,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    hidden_act: Option<String>,
    topk_method: Option<String>,
    n_group: Option<i64>,
    topk_group: Option<i64>,
    pad_token_id: Option<i64>,
    max_position_embeddings: Option<f64>,
    rope_theta: Option<f64>,
    rope_scaling: Option<RawRope>,
    rope_parameters: Option<RawRope>,
}

#[derive(Deserialize)]
struct RawRope {
    rope_type: Option<String>,
    r#type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    attention_factor: Option<f64>,
    truncate: Option<bool>,
}

fn one() -> f64 {
    1.0
}

fn default_eps() -> f64 {
    1e-6
}

fn bad(field: &'static str, why: impl Into<String>) -> ModelError {
    ModelError::Config { field, why: why.into() }
}

impl ModelConfig {
    /// Reads the object of a `config.json`.
    pub fn from_json(json: &Value) -> Result<Self, ModelError> {
        let raw =
            RawConfig::deserialize(json).map_err(|error| bad("(whole)", error.to_string()))?;
        raw.check()?;
        let rope = raw.rope()?;
        let method = raw.method()?;
        let config = Self {
            vocab_size: raw.vocab_size,
            hidden_size: raw.hidden_size,
            intermediate_size: raw.intermediate_size,
            moe_intermediate_size: raw.moe_intermediate_size,
            layers: raw.num_hidden_layers,
            dense_layers: raw.first_k_dense_replace,
            heads: raw.num_attention_heads,
            qk_nope_head_dim: raw.qk_nope_head_dim,
            qk_rope_head_dim: raw.qk_rope_head_dim,
            v_head_dim: raw.v_head_dim,
            kv_lora_rank: raw.kv_lora_rank,
            routed_experts: raw.n_routed_experts,
            shared_experts: raw.n_shared_experts,
            top_k: raw.num_experts_per_tok,
            method,
            routed_scaling_factor: raw.routed_scaling_factor,
            rms_norm_eps: raw.rms_norm_eps,
            rope,
            tied: raw.tie_word_embeddings,
            pad_token: raw.pad_token_id,
        };
        Ok(config)
    }

    /// The layers that have routed experts.
    pub fn moe_layers(&self) -> impl Iterator<Item = u32> + use<> {
        let (from, to) = (self.dense_layers.min(self.layers), self.layers);
        (from..to).filter_map(|layer| u32::try_from(layer).ok())
    }
}

impl RawConfig {
    fn check(&self) -> Result<(), ModelError> {
        if let Some(kind) = self.model_type.as_deref().filter(|kind| *kind != "deepseek_v2") {
            return Err(bad("model_type", format!("`{kind}` is not `deepseek_v2`")));
        }
        // Far above every real model: products of two sizes stay far inside 64 bits.
        const MOST: i64 = 1 << 24;
        for (field, size) in [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("moe_intermediate_size", self.moe_intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("qk_nope_head_dim", self.qk_nope_head_dim),
            ("qk_rope_head_dim", self.qk_rope_head_dim),
            ("v_head_dim", self.v_head_dim),
            ("kv_lora_rank", self.kv_lora_rank),
            ("n_routed_experts", self.n_routed_experts),
            ("n_shared_experts", self.n_shared_experts),
            ("num_experts_per_tok", self.num_experts_per_tok),
        ] {
            if !(1..=MOST).contains(&size) {
                return Err(bad(field, format!("{size} is not a size")));
            }
        }
        if self.first_k_dense_replace < 0 {
            return Err(bad("first_k_dense_replace", "negative"));
        }
        if self.qk_rope_head_dim % 2 != 0 {
            return Err(bad("qk_rope_head_dim", "rotates pairs, so it must be even"));
        }
        if self.num_experts_per_tok > self.n_routed_experts {
            return Err(bad("num_experts_per_tok", "more than there are experts"));
        }
        for (field, number) in [
            ("routed_scaling_factor", self.routed_scaling_factor),
            ("rms_norm_eps", self.rms_norm_eps),
        ] {
            if !number.is_finite() || number <= 0.0 {
                return Err(bad(field, format!("{number} is not a positive number")));
            }
        }
        if self.q_lora_rank.is_some() {
            return Err(bad("q_lora_rank", "compressed queries are not supported"));
        }
        if self.attention_bias || self.mlp_bias {
            return Err(bad("attention_bias", "biases are not supported"));
        }
        if let Some(act) = self.hidden_act.as_deref().filter(|act| *act != "silu") {
            return Err(bad("hidden_act", format!("`{act}` is not `silu`")));
        }
        if self.pad_token_id.is_some_and(|id| !(0..self.vocab_size).contains(&id)) {
            return Err(bad("pad_token_id", "outside the vocabulary"));
        }
        Ok(())
    }

    fn method(&self) -> Result<TopK, ModelError> {
        let method = self.topk_method.as_deref().unwrap_or("greedy");
        match method {
            "greedy" => return Ok(TopK::Greedy),
            "group_limited_greedy" => (),
            _ => return Err(bad("topk_method", format!("`{method}` is not supported"))),
        }
        let groups = self.n_group.ok_or_else(|| bad("n_group", "missing"))?;
        let chosen = self.topk_group.ok_or_else(|| bad("topk_group", "missing"))?;
        let experts = self.n_routed_experts;
        if groups < 1 || experts % groups != 0 {
            return Err(bad("n_group", format!("{experts} experts do not make {groups} groups")));
        }
        if !(1..=groups).contains(&chosen) || chosen * (experts / groups) < self.num_experts_per_tok
        {
            let why = format!("{chosen} of {groups} groups have too few experts for a token");
            return Err(bad("topk_group", why));
        }
        Ok(TopK::GroupLimited { groups, chosen })
    }

    fn rope(&self) -> Result<Rope, ModelError> {
        let raw = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref());
        let theta = raw.and_then(|raw| raw.rope_theta).or(self.rope_theta).unwrap_or(10_000.0);
        let yarn = match raw {
            None => None,
            Some(raw) => {
                match raw.rope_type.as_deref().or(raw.r#type.as_deref()).unwrap_or("default") {
                    "default" => None,
                    "yarn" => Some(self.yarn(raw)?),
                    other => return Err(bad("rope_type", format!("`{other}` is not supported"))),
                }
            }
        };
        if !theta.is_finite() || theta <= 1.0 {
            return Err(bad("rope_theta", format!("{theta} is not a number above 1")));
        }
        Ok(Rope { theta, yarn })
    }

    fn yarn(&self, raw: &RawRope) -> Result<Yarn, ModelError> {
        if raw.attention_factor.is_some() {
            return Err(bad("attention_factor", "not supported"));
        }
        if raw.truncate == Some(false) {
            return Err(bad("truncate", "an untruncated range is not supported"));
        }
        let yarn = Yarn {
            factor: raw.factor.ok_or_else(|| bad("factor", "missing"))?,
            original_length: raw
                .original_max_position_embeddings
                .or(self.max_position_embeddings)
                .ok_or_else(|| bad("original_max_position_embeddings", "missing"))?,
            beta_fast: raw.beta_fast.unwrap_or(32.0),
            beta_slow: raw.beta_slow.unwrap_or(1.0),
            mscale: raw.mscale.unwrap_or(0.0),
            mscale_all_dim: raw.mscale_all_dim.unwrap_or(0.0),
        };
        for (field, number) in [
            ("factor", yarn.factor),
            ("original_max_position_embeddings", yarn.original_length),
            ("beta_fast", yarn.beta_fast),
            ("beta_slow", yarn.beta_slow),
        ] {
            if !number.is_finite() || number <= 0.0 {
                return Err(bad(field, format!("{number} is not a positive number")));
            }
        }
        Ok(yarn)
    }
}

#[cfg(test)]
mod tests;
