//! A random model as the beginning of a subnet on one machine, in the hub's layout.

use std::{collections::BTreeMap, path::Path};

use checkpoint::{ExpertGroups, MemoryTensors};
use domain::{ExpertGroup, Seed};
use rand_chacha::{
    ChaCha20Rng,
    rand_core::{RngCore as _, SeedableRng as _},
};
use serde_json::{Value, json};
use tokenizers::{
    AddedToken, TokenizerBuilder,
    models::bpe::{BPE, BpeTrainerBuilder},
    normalizers::Sequence,
    pre_tokenizers::byte_level::ByteLevel,
};

use crate::{
    ModelConfig, ModelError,
    stage::{expert_name, expert_shapes},
};

/// Token ids of the demonstration's model.
pub const DEMO_VOCABULARY: usize = 320;

/// How much wider than everything else the embedding is drawn. Only routed experts are ever trained,
/// all the rest stays random: a token must stay recognisable behind random attention.
pub const EMBEDDING_SPREAD: f32 = 5.0;

/// How much wider the output projection is drawn: experts can only turn the residual stream, which
/// is normed before it, so the width decides how confident a prediction can be.
pub const HEAD_SPREAD: f32 = 2.0;

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

/// Divides the experts of every layer into `groups` groups of equal size; which ones form a group
/// moves on from layer to layer.
///
/// # Errors
///
/// The experts cannot be divided so.
pub fn demo_groups(config: &Value, groups: u32) -> Result<ExpertGroups, ModelError> {
    let config = ModelConfig::from_json(config)?;
    let experts = u32::try_from(config.routed_experts).unwrap_or(u32::MAX);
    if groups == 0 || !experts.is_multiple_of(groups) {
        return Err(ModelError::Config {
            field: "n_routed_experts",
            why: format!("{experts} experts cannot be divided into {groups} equal groups"),
        });
    }
    let size = experts / groups;
    let of = |group: u32| {
        let layer = |layer: u32| {
            let id = |local| (local, (group * size + 2 * layer + local) % experts);
            (layer, (0..size).map(id).collect())
        };
        config.moe_layers().map(layer).collect::<BTreeMap<_, _>>()
    };
    Ok(ExpertGroups((0..groups).map(|group| (ExpertGroup(group), of(group))).collect()))
}

/// Writes a random model of this `config.json` as a folder in the hub's layout: `config.json`,
/// `model.safetensors` (float32, experts in the subnet's form) and `tokenizer.json` (trained on
/// `texts`). Norms are 1, everything else is normal with the configuration's `initializer_range`
/// (0.02 where it has none), embedding and output projection wider by [`EMBEDDING_SPREAD`] and
/// [`HEAD_SPREAD`]: a pure function of `seed`.
pub fn random(
    folder: &Path,
    config: &Value,
    seed: &Seed,
    texts: &[String],
) -> Result<(), ModelError> {
    std::fs::create_dir_all(folder).map_err(|error| ModelError::file(folder, error))?;
    let parsed = ModelConfig::from_json(config)?;
    let path = folder.join("config.json");
    std::fs::write(&path, format!("{config:#}\n"))
        .map_err(|error| ModelError::file(&path, error))?;

    let spread = config.get("initializer_range").and_then(Value::as_f64).unwrap_or(0.02);
    let mut normal = Normal { rng: ChaCha20Rng::from_seed(seed.0), spare: None, spread };
    let mut tensors = MemoryTensors::default();
    for (name, shape) in parameters(&parsed) {
        let count = shape.iter().product();
        let values: Vec<f32> = match shape.as_slice() {
            [_] => vec![1.0; count],
            _ => (0..count).map(|_| normal.next() * spread_of(&name)).collect(),
        };
        tensors.insert_f32(&name, shape, &values)?;
    }
    let path = folder.join("model.safetensors");
    checkpoint::write_safetensors(&path, &tensors)
        .map_err(|error| ModelError::file(&path, error))?;

    let vocabulary = usize::try_from(parsed.vocab_size).unwrap_or(usize::MAX);
    tokenizer(&folder.join("tokenizer.json"), vocabulary, texts)
}

fn spread_of(name: &str) -> f32 {
    match name {
        "model.embed_tokens.weight" => EMBEDDING_SPREAD,
        "lm_head.weight" => HEAD_SPREAD,
        _ => 1.0,
    }
}

/// Names and shapes of all parameters, in ascending order of name.
fn parameters(c: &ModelConfig) -> BTreeMap<String, Vec<usize>> {
    let mut all = BTreeMap::new();
    let mut add = |name: String, shape: &[i64]| {
        let shape = shape.iter().filter_map(|size| usize::try_from(*size).ok()).collect();
        all.insert(name, shape);
    };
    let h = c.hidden_size;
    add("model.embed_tokens.weight".to_owned(), &[c.vocab_size, h]);
    if !c.tied {
        add("lm_head.weight".to_owned(), &[c.vocab_size, h]);
    }
    add("model.norm.weight".to_owned(), &[h]);
    for layer in 0..c.layers {
        let at = format!("model.layers.{layer}.");
        add(format!("{at}input_layernorm.weight"), &[h]);
        add(format!("{at}post_attention_layernorm.weight"), &[h]);
        let head = c.qk_nope_head_dim + c.qk_rope_head_dim;
        let rank = c.kv_lora_rank;
        let attn = format!("{at}self_attn.");
        add(format!("{attn}q_proj.weight"), &[c.heads * head, h]);
        add(format!("{attn}kv_a_proj_with_mqa.weight"), &[rank + c.qk_rope_head_dim, h]);
        add(format!("{attn}kv_a_layernorm.weight"), &[rank]);
        let kv = c.heads * (c.qk_nope_head_dim + c.v_head_dim);
        add(format!("{attn}kv_b_proj.weight"), &[kv, rank]);
        add(format!("{attn}o_proj.weight"), &[h, c.heads * c.v_head_dim]);
        let (mlp, inner) = if layer < c.dense_layers {
            (format!("{at}mlp."), c.intermediate_size)
        } else {
            (format!("{at}mlp.shared_experts."), c.shared_experts * c.moe_intermediate_size)
        };
        add(format!("{mlp}gate_proj.weight"), &[inner, h]);
        add(format!("{mlp}up_proj.weight"), &[inner, h]);
        add(format!("{mlp}down_proj.weight"), &[h, inner]);
        if layer >= c.dense_layers {
            add(format!("{at}mlp.gate.weight"), &[c.routed_experts, h]);
        }
    }
    let [gate_up, down] = expert_shapes(c);
    for layer in c.moe_layers() {
        for id in 0..c.routed_experts {
            add(expert_name(layer, id, "gate_up_proj"), &gate_up);
            add(expert_name(layer, id, "down_proj"), &down);
        }
    }
    all
}

/// Normal numbers with mean 0, by Box and Muller.
struct Normal {
    rng: ChaCha20Rng,
    spare: Option<f64>,
    spread: f64,
}

impl Normal {
    fn next(&mut self) -> f32 {
        let number = self.spare.take().unwrap_or_else(|| {
            // 53 bits in (0, 1]: the logarithm is finite.
            let mut uniform = || ((self.rng.next_u64() >> 11) + 1) as f64 / (1u64 << 53) as f64;
            let radius = (-2.0 * uniform().ln()).sqrt();
            let angle = std::f64::consts::TAU * uniform();
            self.spare = Some(radius * angle.sin());
            radius * angle.cos()
        });
        (number * self.spread) as f32
    }
}

/// Trains a byte-level BPE of at most `vocabulary` ids on `texts` and writes it. Every text can be
/// encoded with it: all bytes are in the alphabet.
pub fn tokenizer(path: &Path, vocabulary: usize, texts: &[String]) -> Result<(), ModelError> {
    let failed = |error: tokenizers::Error| ModelError::Tokenizer { why: error.to_string() };
    let mut trainer = BpeTrainerBuilder::new()
        .vocab_size(vocabulary)
        .min_frequency(2)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(vec![AddedToken::from("<bos>", true), AddedToken::from("<eos>", true)])
        .build();
    let mut tokenizer = TokenizerBuilder::default()
        .with_model(BPE::default())
        .with_normalizer(None::<Sequence>)
        .with_pre_tokenizer(Some(ByteLevel::default().add_prefix_space(false)))
        .with_post_processor(Some(ByteLevel::default()))
        .with_decoder(Some(ByteLevel::default()))
        .build()
        .map_err(failed)?;
    tokenizer.train(&mut trainer, texts.iter().cloned()).map_err(failed)?;
    tokenizer.save(path, false).map_err(|error| ModelError::file(path, error))
}

#[cfg(test)]
mod tests {
    use data::Tokenizer;

    use super::*;
    use crate::{LanguageModel, LoadOptions, single_threaded};

    #[test]
    fn a_random_model_loads_whole_and_by_group_and_is_the_same_for_the_same_seed() {
        single_threaded();
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let texts = crate::corpus::generate(&Seed([4; 32]), 20);
        for dir in [&a, &b] {
            random(dir.path(), &demo_config(), &Seed([9; 32]), &texts).unwrap();
        }
        for file in ["config.json", "model.safetensors"] {
            let read = |dir: &tempfile::TempDir| std::fs::read(dir.path().join(file)).unwrap();
            assert_eq!(read(&a), read(&b), "{file}");
        }
        LanguageModel::from_hub(a.path(), None, LoadOptions::default()).unwrap();
        for group in demo_groups(&demo_config(), 2).unwrap().0.values() {
            LanguageModel::from_hub(a.path(), Some(group), LoadOptions::default()).unwrap();
        }
        let tokenizer = Tokenizer::open(&a.path().join("tokenizer.json")).unwrap();
        assert!(tokenizer.vocabulary() <= DEMO_VOCABULARY);
        let ids = tokenizer.encode("12 plus 30 equals 42.").unwrap();
        assert!(ids.len() < 12, "words are tokens: {ids:?}");
    }

    #[test]
    fn the_groups_of_a_layer_share_no_expert_and_leave_none_out() {
        let groups = demo_groups(&demo_config(), 2).unwrap();
        for layer in 1..4 {
            let mut ids: Vec<_> = groups
                .0
                .values()
                .flat_map(|group| group[&layer].iter().map(|(_, id)| *id))
                .collect();
            ids.sort_unstable();
            assert_eq!(ids, (0..8).collect::<Vec<_>>());
        }
        assert!(demo_groups(&demo_config(), 3).is_err());
    }

    #[test]
    fn a_group_with_fewer_experts_than_a_token_needs_is_refused_at_the_load() {
        let dir = tempfile::tempdir().unwrap();
        random(dir.path(), &demo_config(), &Seed([9; 32]), &["text".to_owned()]).unwrap();
        let groups = demo_groups(&demo_config(), 8).unwrap();
        let group = &groups.0[&ExpertGroup(0)];
        let error = LanguageModel::from_hub(dir.path(), Some(group), LoadOptions::default());
        assert!(error.unwrap_err().to_string().contains("a token needs 2"));
    }
}
