//! `config.json` at several widths.

use std::{fmt, str::FromStr};

use serde_json::{Value, json};

/// Token ids of the demonstration's model.
pub const DEMO_VOCABULARY: usize = 320;

/// The `config.json` of the demonstration's model: DeepSeek-V2, small enough for a step of training
/// in a few hundredths of a second on one thread. `routed_scaling_factor` gives the experts, whose
/// weights are not renormalised, a voice against the rest.
pub fn demo_config() -> Value {
    json!({
        "architectures": ["DeepseekV2ForCausalLM"],
        "attention_bias": false,
        "bos_token_id": 0,
        "dtype": "float32",
        "eos_token_id": 1,
        "first_k_dense_replace": 1,
        "hidden_act": "silu",
        "hidden_size": 64,
        "initializer_range": 0.1,
        "intermediate_size": 128,
        "kv_lora_rank": 16,
        "max_position_embeddings": 512,
        "mlp_bias": false,
        "model_type": "deepseek_v2",
        "moe_intermediate_size": 32,
        "n_group": 1,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "norm_topk_prob": false,
        "num_attention_heads": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 4,
        "num_key_value_heads": 4,
        "pad_token_id": 1,
        "q_lora_rank": null,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 40.0,
            "mscale": 0.707,
            "mscale_all_dim": 0.707,
            "original_max_position_embeddings": 64,
            "rope_theta": 10_000.0,
            "rope_type": "yarn"
        },
        "routed_scaling_factor": 4.0,
        "tie_word_embeddings": false,
        "topk_group": 1,
        "topk_method": "greedy",
        "v_head_dim": 16,
        "vocab_size": DEMO_VOCABULARY
    })
}

/// A width of the architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Width {
    /// The demonstration's: 4 layers, 8 experts, 0.4 million parameters.
    #[default]
    Tiny,
    /// An eighth of the real width, with all layers and experts: 0.2 billion parameters, for a
    /// processor.
    Small,
    /// DeepSeek-V2-Lite: 15.7 billion parameters.
    Full,
}

/// A text that names no width.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a width: `tiny`, `small` or `full`")]
pub struct ParseWidthError(String);

impl FromStr for Width {
    type Err = ParseWidthError;

    fn from_str(text: &str) -> Result<Self, ParseWidthError> {
        let all = [Self::Tiny, Self::Small, Self::Full];
        let found = all.into_iter().find(|width| width.to_string() == text);
        found.ok_or_else(|| ParseWidthError(text.to_owned()))
    }
}

impl fmt::Display for Width {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tiny => "tiny",
            Self::Small => "small",
            Self::Full => "full",
        })
    }
}

/// The `config.json` of a width. [`Width::Small`] and [`Width::Full`] have the structure of
/// DeepSeek-V2-Lite: 27 layers, the first one dense, 64 routed experts of which a token goes through
/// 6, 2 shared ones, YaRN by 40.
pub fn deepseek_config(width: Width) -> Value {
    match width {
        Width::Tiny => demo_config(),
        Width::Small => lite(&Sizes {
            vocabulary: 12_800,
            hidden: 256,
            dense: 1368,
            expert: 144,
            heads: 4,
            nope: 64,
            rope: 32,
            value: 64,
            rank: 128,
        }),
        Width::Full => lite(&Sizes {
            vocabulary: 102_400,
            hidden: 2048,
            dense: 10_944,
            expert: 1408,
            heads: 16,
            nope: 128,
            rope: 64,
            value: 128,
            rank: 512,
        }),
    }
}

struct Sizes {
    vocabulary: u32,
    hidden: u32,
    dense: u32,
    expert: u32,
    heads: u32,
    nope: u32,
    rope: u32,
    value: u32,
    rank: u32,
}

fn lite(sizes: &Sizes) -> Value {
    json!({
        "architectures": ["DeepseekV2ForCausalLM"],
        "attention_bias": false,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "first_k_dense_replace": 1,
        "head_dim": sizes.rope,
        "hidden_act": "silu",
        "hidden_size": sizes.hidden,
        "initializer_range": 0.02,
        "intermediate_size": sizes.dense,
        "kv_lora_rank": sizes.rank,
        "max_position_embeddings": 163_840,
        "mlp_bias": false,
        "model_type": "deepseek_v2",
        "moe_intermediate_size": sizes.expert,
        "n_group": 1,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "norm_topk_prob": false,
        "num_attention_heads": sizes.heads,
        "num_experts_per_tok": 6,
        "num_hidden_layers": 27,
        "num_key_value_heads": sizes.heads,
        "pad_token_id": 1,
        "q_lora_rank": null,
        "qk_nope_head_dim": sizes.nope,
        "qk_rope_head_dim": sizes.rope,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 40.0,
            "mscale": 0.707,
            "mscale_all_dim": 0.707,
            "original_max_position_embeddings": 4096,
            "rope_theta": 10_000.0,
            "rope_type": "yarn"
        },
        "routed_scaling_factor": 1.0,
        "tie_word_embeddings": false,
        "topk_group": 1,
        "topk_method": "greedy",
        "v_head_dim": sizes.value,
        "vocab_size": sizes.vocabulary
    })
}
