//! `connito model`: makes the first global model of a validator out of a hub's folder.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use checkpoint::{ExpertGroups, HubModel, Manifest, Publication, publish_model};
use domain::{ExpertGroup, GlobalVersion};
use model::expert_group::GroupFolder;
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
}

pub(crate) fn main(command: &Command) -> anyhow::Result<()> {
    let Command::Import { config, model, groups } = command;
    let config = crate::ValidatorConfig::load(config.as_deref())?;
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
