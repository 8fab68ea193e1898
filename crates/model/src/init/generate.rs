//! Random parameters, written tensor by tensor.

use std::{borrow::Cow, collections::BTreeMap, path::Path};

use blake2::{Blake2b, Digest as _, digest::consts::U8};
use checkpoint::{Dtype, Refusal, TensorSource, TensorSpec};
use domain::Seed;
use serde_json::{Value, json};

use super::{EMBEDDING_SPREAD, HEAD_SPREAD};
use crate::{ModelConfig, ModelError, WeightType};

/// How a generated model is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GenerateOptions {
    /// Type of all parameters.
    pub weights: WeightType,
    /// Bytes of a file, at most, unless one tensor is larger; `None` writes one file without an
    /// index.
    pub shard_bytes: Option<u64>,
}

/// Writes a random model of this `config.json` as a folder in the hub's layout: `config.json` and
/// `model.safetensors`, or several files with `model.safetensors.index.json`, with the hub's names.
/// Norms are 1; everything else is spread around 0 like the sum of four dice, with a standard deviation
/// of the configuration's `initializer_range` (0.02 where it has none), embedding and output projection
/// wider by [`EMBEDDING_SPREAD`] and [`HEAD_SPREAD`]. Every number is a pure function of seed, tensor
/// name and place; it does not depend on how the files are cut.
///
/// One tensor at a time is in memory.
pub fn generate(
    folder: &Path,
    config: &Value,
    seed: &Seed,
    options: &GenerateOptions,
) -> Result<(), ModelError> {
    let parsed = ModelConfig::from_json(config)?;
    std::fs::create_dir_all(folder).map_err(|error| ModelError::file(folder, error))?;
    let mut config = config.clone();
    let (dtype, name) = match options.weights {
        WeightType::Float32 => (Dtype::F32, "float32"),
        WeightType::BFloat16 => (Dtype::BF16, "bfloat16"),
        WeightType::Float16 => (Dtype::F16, "float16"),
    };
    if let Some(object) = config.as_object_mut() {
        object.insert("dtype".to_owned(), name.into());
    }
    write_json(&folder.join("config.json"), &config)?;

    let spread = config.get("initializer_range").and_then(Value::as_f64).unwrap_or(0.02);
    let mut shards = vec![RandomTensors { seed: *seed, spread, specs: BTreeMap::new() }];
    let (mut bytes, mut total) = (0, 0);
    for (name, shape) in parameters(&parsed) {
        let spec = TensorSpec { dtype, shape };
        let size = spec.bytes() as u64;
        let full = options.shard_bytes.is_some_and(|most| bytes > 0 && bytes + size > most);
        if full {
            shards.push(RandomTensors { seed: *seed, spread, specs: BTreeMap::new() });
            bytes = 0;
        }
        (bytes, total) = (bytes + size, total + size);
        if let Some(shard) = shards.last_mut() {
            shard.specs.insert(name, spec);
        }
    }
    let mut weight_map = BTreeMap::new();
    for (n, shard) in shards.iter().enumerate() {
        let file = match options.shard_bytes {
            None => "model.safetensors".to_owned(),
            Some(_) => format!("model-{:05}-of-{:05}.safetensors", n + 1, shards.len()),
        };
        let path = folder.join(&file);
        checkpoint::write_safetensors(&path, shard)
            .map_err(|error| ModelError::file(&path, error))?;
        weight_map.extend(shard.specs.keys().map(|name| (name.clone(), file.clone())));
    }
    if options.shard_bytes.is_some() {
        let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
        write_json(&folder.join("model.safetensors.index.json"), &index)?;
    }
    Ok(())
}

fn write_json(path: &Path, value: &Value) -> Result<(), ModelError> {
    std::fs::write(path, format!("{value:#}\n")).map_err(|error| ModelError::file(path, error))
}

/// Tensors whose elements are made when they are read.
struct RandomTensors {
    seed: Seed,
    spread: f64,
    specs: BTreeMap<String, TensorSpec>,
}

impl TensorSource for RandomTensors {
    fn specs(&self) -> &BTreeMap<String, TensorSpec> {
        &self.specs
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, Refusal> {
        let spec = self.spec(name)?;
        let values: Vec<f32> = match spec.shape.as_slice() {
            [_] => vec![1.0; spec.elements()],
            _ => self.dice(name).take(spec.elements()).collect(),
        };
        Ok(Cow::Owned(checkpoint::encode_f32(spec.dtype, &values).unwrap_or_default()))
    }
}

impl RandomTensors {
    /// The numbers of one tensor: each is the sum of the four 16-bit parts of one step of SplitMix64,
    /// so only integers are added and every machine makes the same.
    fn dice(&self, name: &str) -> impl Iterator<Item = f32> {
        /// Mean of the sum, and its standard deviation: 4 times (2^32 - 1) / 12, rooted.
        const MEAN: i32 = 2 * 65_535;
        const DEVIATION: f64 = 37_837.227;
        let hash = Blake2b::<U8>::new().chain_update(self.seed.0).chain_update(name).finalize();
        let mut state = u64::from_le_bytes(hash.into());
        let scale = (self.spread * f64::from(spread_of(name)) / DEVIATION) as f32;
        std::iter::repeat_with(move || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
            let part = |n: u32| ((z >> (16 * n)) & 0xffff) as i32;
            (part(0) + part(1) + part(2) + part(3) - MEAN) as f32 * scale
        })
    }
}

fn spread_of(name: &str) -> f32 {
    match name {
        "model.embed_tokens.weight" => EMBEDDING_SPREAD,
        "lm_head.weight" => HEAD_SPREAD,
        _ => 1.0,
    }
}

/// Names (the hub's) and shapes of all parameters, in ascending order of name.
pub(crate) fn parameters(c: &ModelConfig) -> BTreeMap<String, Vec<usize>> {
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
    let inner = c.moe_intermediate_size;
    for layer in c.moe_layers() {
        for id in 0..c.routed_experts {
            let at = format!("model.layers.{layer}.mlp.experts.{id}.");
            add(format!("{at}gate_proj.weight"), &[inner, h]);
            add(format!("{at}up_proj.weight"), &[inner, h]);
            add(format!("{at}down_proj.weight"), &[h, inner]);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use checkpoint::HubModel;

    use super::*;
    use crate::init::{Width, deepseek_config};

    #[test]
    fn numbers_have_the_spread_that_the_configuration_names() {
        let source = RandomTensors { seed: Seed([1; 32]), spread: 0.02, specs: BTreeMap::new() };
        let values: Vec<f64> = source.dice("any").take(100_000).map(f64::from).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let square = values.iter().map(|x| x * x).sum::<f64>() / values.len() as f64;
        assert!(mean.abs() < 3e-4, "{mean}");
        assert!((square.sqrt() / 0.02 - 1.0).abs() < 0.01, "{}", square.sqrt());
        let within = values.iter().filter(|x| x.abs() < 0.02).count() as f64 / 1e5;
        assert!((0.64..0.69).contains(&within), "bell-shaped: {within}");
        assert!(source.dice("other").next() != source.dice("any").next());
    }

    #[test]
    fn however_the_files_are_cut_the_model_is_the_same() {
        let (one, many) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let config = deepseek_config(Width::Tiny);
        let write = |dir: &tempfile::TempDir, shard_bytes| {
            let options = GenerateOptions { shard_bytes, ..GenerateOptions::default() };
            generate(dir.path(), &config, &Seed([7; 32]), &options).unwrap();
            HubModel::open(dir.path()).unwrap()
        };
        let (one, parts) = (write(&one, None), write(&many, Some(300_000)));
        assert_eq!(one.specs(), parts.specs());
        for name in one.specs().keys() {
            assert_eq!(one.bytes(name).unwrap(), parts.bytes(name).unwrap(), "{name}");
        }
        let files: Vec<_> = std::fs::read_dir(many.path()).unwrap().map(|f| f.unwrap()).collect();
        let shards = files.iter().filter(|file| file.path().extension().unwrap() == "safetensors");
        let sizes: Vec<_> = shards.map(|file| file.metadata().unwrap().len()).collect();
        assert!(sizes.len() > 4 && sizes.iter().all(|size| *size < 320_000), "{sizes:?}");
    }

    #[test]
    fn the_widths_have_the_parameters_that_they_are_named_for() {
        let count = |width| -> usize {
            let config = ModelConfig::from_json(&deepseek_config(width)).unwrap();
            parameters(&config).values().map(|shape| shape.iter().product::<usize>()).sum()
        };
        // What the hub says of DeepSeek-V2-Lite.
        assert_eq!(count(Width::Full), 15_706_484_224);
        assert!((190_000_000..220_000_000).contains(&count(Width::Small)));
        for width in [Width::Tiny, Width::Small, Width::Full] {
            assert_eq!(width.to_string().parse(), Ok(width));
        }
    }
}
