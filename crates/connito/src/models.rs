//! `connito model`: makes the first global model of a validator out of a hub's folder, and folders of
//! random models to try out and to measure with.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use checkpoint::{ExpertGroups, HubModel, Manifest, Publication, publish_model};
use domain::{ExpertGroup, GlobalVersion, Seed};
use model::{
    WeightType,
    expert_group::GroupFolder,
    init::{self, GenerateOptions, Width},
};
use store::Artifacts;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Publish a model folder in the artifact store as the model to begin with
    Import {
        /// Configuration file of this host
        #[arg(long, env = "CONNITO_CONFIG")]
        config: Option<PathBuf>,
        /// Folder in the hub's layout: config.json and safetensors
        #[arg(long)]
        model: PathBuf,
        /// Folder of an expert group (config.yaml, expert_assignment.json); once per group
        #[arg(long = "group", required = true)]
        groups: Vec<PathBuf>,
    },
    /// Write a random model of the real architecture in the hub's layout, with its tokenizer
    Generate {
        /// Folder to write to; must be empty or not exist
        #[arg(long)]
        out: PathBuf,
        /// `tiny` (0.4 million parameters), `small` (0.2 billion) or `full` (15.7 billion)
        #[arg(long, default_value = "small")]
        width: Width,
        /// Type of the parameters: float32, bfloat16 or float16
        #[arg(long, default_value = "bfloat16", value_parser = weight_type)]
        weights: WeightType,
        /// What every number is drawn from
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Largest file, in MiB
        #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
        shard_mib: u64,
    },
}

pub(crate) fn main(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Import { config, model, groups } => {
            import_configured(config.as_deref(), model, groups)
        }
        Command::Generate { out, width, weights, seed, shard_mib } => {
            let options = GenerateOptions { weights: *weights, shard_bytes: Some(shard_mib << 20) };
            generate(out, *width, *seed, &options)
        }
    }
}

fn weight_type(text: &str) -> Result<WeightType, String> {
    serde_json::from_value(serde_json::Value::from(text)).map_err(|error| error.to_string())
}

/// Texts that the tokenizer of a generated model is trained on.
const TEXTS: usize = 200;

fn generate(out: &Path, width: Width, seed: u64, options: &GenerateOptions) -> anyhow::Result<()> {
    let empty = || std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_none());
    anyhow::ensure!(!out.exists() || empty(), "{} is not an empty folder", out.display());
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let (seed, config) = (Seed(bytes), init::deepseek_config(width));
    init::generate(out, &config, &seed, options)?;
    let vocabulary = config.get("vocab_size").and_then(serde_json::Value::as_u64).unwrap_or(0);
    let texts = model::corpus::generate(&seed, TEXTS);
    init::tokenizer(&out.join("tokenizer.json"), usize::try_from(vocabulary)?, &texts)?;
    crate::config::write_out(&format!("{}: a random model of width {width}\n", out.display()));
    Ok(())
}

fn import_configured(
    config: Option<&Path>,
    model: &Path,
    groups: &[PathBuf],
) -> anyhow::Result<()> {
    let config = crate::ValidatorConfig::load(config)?;
    let groups = read_groups(groups)?;
    let runtime = tokio::runtime::Runtime::new().context("build the runtime")?;
    let manifest = runtime.block_on(async {
        let cache = config.common.data_dir.join("cache");
        let artifacts = Artifacts::open(&config.common.artifacts_url, &cache)?;
        let group = ExpertGroup(config.scheduler.expert_group);
        let version = GlobalVersion(config.scheduler.initial_version);
        import(&artifacts, model, groups, group, version).await
    })?;
    crate::config::write_out(&format!(
        "models/{}: hash {} of expert group {}\n",
        manifest.global_version, manifest.model_hash, manifest.expert_group
    ));
    Ok(())
}

/// Reads the folders of expert groups.
pub(crate) fn read_groups(folders: &[PathBuf]) -> anyhow::Result<ExpertGroups> {
    let mut groups = BTreeMap::new();
    for folder in folders {
        let read = GroupFolder::read(folder)?;
        let known = groups.insert(read.config.group_id, read.experts);
        anyhow::ensure!(known.is_none(), "group {} is given twice", read.config.group_id);
    }
    Ok(ExpertGroups(groups))
}

/// Publishes the model in `folder` as `models/<version>/`: the manifest last, so that whoever sees
/// it sees the whole model.
pub(crate) async fn import(
    artifacts: &Artifacts,
    folder: &Path,
    groups: ExpertGroups,
    group: ExpertGroup,
    version: GlobalVersion,
) -> anyhow::Result<Manifest> {
    let scratch = tempfile::tempdir().context("make a scratch folder")?;
    let (source, target) = (folder.to_owned(), scratch.path().to_owned());
    let manifest = tokio::task::spawn_blocking(move || -> anyhow::Result<Manifest> {
        let hub = HubModel::open(&source)?;
        let config = hub.config().clone();
        let publication = Publication {
            global_version: version,
            expert_group: group,
            parent: None,
            config,
            groups,
        };
        Ok(publish_model(&target, &hub, publication)?)
    });
    let manifest = manifest.await.context("the import panicked")??;
    let prefix = format!("models/{version}");
    for slice in manifest.slices.values() {
        for file in slice.files.values() {
            let path = scratch.path().join(&file.name);
            artifacts.put_file(&format!("{prefix}/{}", file.name), &path).await?;
        }
    }
    let path = scratch.path().join(Manifest::FILE_NAME);
    artifacts.put_file(&format!("{prefix}/{}", Manifest::FILE_NAME), &path).await?;
    Ok(manifest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generated_model_opens_and_nothing_is_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("model");
        let options =
            GenerateOptions { weights: WeightType::BFloat16, shard_bytes: Some(256 << 10) };
        generate(&out, Width::Tiny, 7, &options).unwrap();
        let hub = HubModel::open(&out).unwrap();
        assert!(out.join("model.safetensors.index.json").exists());
        assert!(out.join("tokenizer.json").exists());
        assert_eq!(hub.config()["dtype"], "bfloat16");
        let error = generate(&out, Width::Tiny, 7, &options).unwrap_err().to_string();
        assert!(error.contains("not an empty folder"), "{error}");
    }

    #[test]
    fn a_type_that_is_none_is_refused_by_name() {
        assert_eq!(weight_type("float16"), Ok(WeightType::Float16));
        assert!(weight_type("int8").unwrap_err().contains("int8"));
    }
}
