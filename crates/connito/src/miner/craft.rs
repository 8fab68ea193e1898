//! What a miner makes of the model that it downloaded: blocking work, and the cheating.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use checkpoint::{
    Dtype, Format, Limits, MemoryTensors, TensorSource, TensorSpec, encode_f32, model_hash, open,
};
use data::{Corpus, TokenizedCorpus, Tokenizer};
use domain::{ModelHash, Seed};
use model::{
    GroupExperts, LanguageModel, LoadOptions, ModelConfig,
    train::{TrainOptions, Trainer},
};
use sha2::{Digest as _, Sha256};

use super::MinerConfig;

/// Shortest text that is trained on, in bytes: as the evaluators have it.
const MINIMUM_TEXT: usize = 16;

/// The files of a global model that were downloaded.
#[derive(Debug, Clone)]
pub(super) struct Base {
    pub(super) shared: PathBuf,
    pub(super) experts: PathBuf,
}

/// A file to submit.
#[derive(Debug, Clone)]
pub(super) struct Crafted {
    pub(super) path: PathBuf,
    pub(super) hash: ModelHash,
    /// How it came about, for people.
    pub(super) story: String,
    /// Steps trained.
    pub(super) steps: u64,
}

/// The base model's experts, as they are.
pub(super) fn unchanged(base: &Base, folder: &Path, format: Format) -> anyhow::Result<Crafted> {
    let experts = open(&base.experts, Limits::default())?;
    let path = write(&experts, folder, format)?;
    let story = "submits the base model unchanged".to_owned();
    Ok(Crafted { path, hash: model_hash(&experts)?, story, steps: 0 })
}

/// Trains until the steps are done or `stop` says so.
pub(super) fn trained(
    base: &Base,
    config: &MinerConfig,
    experts: &GroupExperts,
    cycle: u64,
    stop: impl FnMut() -> bool,
) -> anyhow::Result<Crafted> {
    model::single_threaded();
    let path = config.model.join("config.json");
    let json = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let json: serde_json::Value = serde_json::from_slice(&json)?;
    let pad = ModelConfig::from_json(&json)?.pad_token.unwrap_or_default();
    let pad = u32::try_from(pad).context("the pad token is negative")?;
    let tokenizer = Tokenizer::open(&config.model.join("tokenizer.json"))?;
    let corpus = Corpus::open(&config.corpus, MINIMUM_TEXT)?;
    let corpus = TokenizedCorpus::new(&corpus, &tokenizer, pad)?;

    let shared = open(&base.shared, Limits::default())?;
    let slice = open(&base.experts, Limits::default())?;
    let options = LoadOptions { device: config.device, ..LoadOptions::default() };
    let model = LanguageModel::load(&json, &[&shared, &slice], Some(experts), options)?;
    let mut trainer = Trainer::new(model)?;
    let seed = seed_of(&config.seed, cycle);
    let options: TrainOptions = config.options;
    let report = trainer.train(&corpus, &seed, &options, stop)?;
    let tensors = trainer.experts()?;
    let path = write(&tensors, &config.folder, config.format)?;
    let (first, last) = (report.losses.first(), report.losses.last());
    let story = match (first, last) {
        (Some(first), Some(last)) => {
            format!("trained {} steps, loss {first:.3} → {last:.3}", report.losses.len())
        }
        _ => "had no time to train".to_owned(),
    };
    let steps = report.losses.len() as u64;
    Ok(Crafted { path, hash: model_hash(&tensors)?, story, steps })
}

/// Puts a NaN into the first tensor.
pub(super) fn poisoned(
    crafted: &Crafted,
    folder: &Path,
    format: Format,
) -> anyhow::Result<Crafted> {
    let honest = open(&crafted.path, Limits::default())?;
    let mut tensors = MemoryTensors::default();
    for (n, (name, spec)) in TensorSource::specs(&honest).iter().enumerate() {
        let mut values = TensorSource::to_f32(&honest, name)?;
        if n == 0
            && let Some(value) = values.first_mut()
        {
            *value = f32::NAN;
        }
        let bytes = encode_f32(Dtype::F32, &values).context("float32 can be encoded")?;
        let spec = TensorSpec { dtype: Dtype::F32, shape: spec.shape.clone() };
        tensors.insert(name, spec, bytes)?;
    }
    drop(honest);
    let path = write(&tensors, folder, format)?;
    let story = format!("{}, then put a NaN in", crafted.story);
    Ok(Crafted { path, hash: model_hash(&tensors)?, story, steps: crafted.steps })
}

fn write(source: &dyn TensorSource, folder: &Path, format: Format) -> anyhow::Result<PathBuf> {
    let path = folder.join(format!("submission.{}", format.extension()));
    match format {
        Format::Safetensors => checkpoint::write_safetensors(&path, source),
        Format::Pt => checkpoint::write_pt(&path, source),
    }
    .with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

/// A seed for one cycle.
fn seed_of(seed: &Seed, cycle: u64) -> Seed {
    Seed(Sha256::new().chain_update(seed.0).chain_update(cycle.to_be_bytes()).finalize().into())
}
