//! Random models of the real architecture, at any width, in the hub's layout: the beginning of a
//! subnet on one machine, and what speed is measured with.

mod generate;
mod presets;

use std::{collections::BTreeMap, path::Path};

use checkpoint::ExpertGroups;
use domain::{ExpertGroup, Seed};
use serde_json::Value;
use tokenizers::{
    AddedToken, TokenizerBuilder,
    models::bpe::{BPE, BpeTrainerBuilder},
    normalizers::Sequence,
    pre_tokenizers::byte_level::ByteLevel,
};

pub(crate) use self::generate::parameters;
pub use self::{
    generate::{GenerateOptions, generate},
    presets::{DEMO_VOCABULARY, ParseWidthError, Width, deepseek_config, demo_config},
};
use crate::{ModelConfig, ModelError};

/// How much wider than everything else the embedding is drawn. Only routed experts are ever trained,
/// all the rest stays random: a token must stay recognisable behind random attention.
pub const EMBEDDING_SPREAD: f32 = 5.0;

/// How much wider the output projection is drawn: experts can only turn the residual stream, which
/// is normed before it, so the width decides how confident a prediction can be.
pub const HEAD_SPREAD: f32 = 2.0;

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

/// Writes a random model and `tokenizer.json` (trained on `texts`): [`generate()`] in float32 and one
/// file, and [`tokenizer`].
pub fn random(
    folder: &Path,
    config: &Value,
    seed: &Seed,
    texts: &[String],
) -> Result<(), ModelError> {
    generate(folder, config, seed, &GenerateOptions::default())?;
    let vocabulary = ModelConfig::from_json(config)?.vocab_size;
    let vocabulary = usize::try_from(vocabulary).unwrap_or(usize::MAX);
    tokenizer(&folder.join("tokenizer.json"), vocabulary, texts)
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
