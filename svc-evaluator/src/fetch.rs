//! Brings what a job needs from the artifact store to files on this host.

use std::{path::PathBuf, sync::Arc, time::Duration};

use backon::{ExponentialBuilder, Retryable as _};
use checkpoint::{Format, Manifest, SliceId};
use store::{ArtifactError, Artifacts, Fetched};
use tracing::warn;

use crate::{
    error::OwnFailure,
    job::{BaseId, Job, ModelRef, Submission},
    metrics,
};

/// A manifest names every tensor of a model several times over; far more than any real one.
const MANIFEST_LIMIT: u64 = 256 << 20;
/// Tries again after the first one; what was copied of a file is kept from one to the next.
const RETRIES: usize = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// The files of a model with one group's experts. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct ModelFiles {
    pub(crate) id: BaseId,
    pub(crate) manifest: Arc<Manifest>,
    pub(crate) shared: PathBuf,
    pub(crate) experts: PathBuf,
    /// Of the two files.
    keys: [String; 2],
}

#[derive(Debug)]
pub(crate) struct Fetcher {
    artifacts: Artifacts,
    /// The model that was asked for last.
    model: Option<ModelFiles>,
}

impl Fetcher {
    pub(crate) fn new(artifacts: Artifacts) -> Self {
        Self { artifacts, model: None }
    }

    /// The model of `job`; the manifest must be of the model that the job names.
    pub(crate) async fn model(&mut self, job: &Job) -> Result<ModelFiles, OwnFailure> {
        if let Some(known) = self.model.as_ref().filter(|known| known.id == job.base()) {
            return Ok(known.clone());
        }
        let ModelRef { version, hash, prefix } = &job.model;
        let key = format!("{prefix}/{}", Manifest::FILE_NAME);
        let bytes = retried(|| self.artifacts.get_bytes(&key, MANIFEST_LIMIT)).await?;
        let manifest = Manifest::from_json(&bytes)?;
        // The manifest's own hash is that of the validator's group, which the job names too.
        if manifest.model_hash != *hash || manifest.global_version != *version {
            let told = |version, hash| format!("version {version} with hash {hash}");
            return Err(OwnFailure::OtherModel {
                expected: told(*version, *hash),
                found: told(manifest.global_version, manifest.model_hash),
            });
        }
        let shared_key = key_of(&manifest, prefix, SliceId::Shared)?;
        let experts_key = key_of(&manifest, prefix, SliceId::Group(job.group))?;
        let shared = self.file("model", &shared_key).await?;
        let experts = self.file("model", &experts_key).await?;
        let files = ModelFiles {
            id: job.base(),
            manifest: Arc::new(manifest),
            shared,
            experts,
            keys: [shared_key, experts_key],
        };
        self.model = Some(files.clone());
        Ok(files)
    }

    /// Forgets the model, and the copies of its files: one of them was not what it should be.
    pub(crate) async fn forget_model(&mut self) {
        for key in self.model.take().into_iter().flat_map(|files| files.keys) {
            self.drop_copy(&key).await;
        }
    }

    pub(crate) async fn submission(&self, submission: &Submission) -> Result<PathBuf, OwnFailure> {
        self.file("submission", &submission.key).await
    }

    /// Removes the copy of an artifact, and says whether there was one.
    pub(crate) async fn drop_copy(&self, key: &str) -> bool {
        self.artifacts.drop_copy(key).await.unwrap_or_else(|error| {
            warn!(key, %error, "a copy of an artifact is left");
            false
        })
    }

    async fn file(&self, what: &'static str, key: &str) -> Result<PathBuf, OwnFailure> {
        let Fetched { path, copied } = retried(|| self.artifacts.fetch(key)).await?;
        metrics::fetched(what, copied);
        Ok(path)
    }
}

/// The artifact that holds a slice of the model at `prefix`.
fn key_of(manifest: &Manifest, prefix: &str, id: SliceId) -> Result<String, OwnFailure> {
    let file = manifest
        .slice(id)
        .and_then(|slice| slice.files.get(&Format::Safetensors))
        .ok_or_else(|| OwnFailure::NoSlice(format!("slice {id} as safetensors")))?;
    Ok(format!("{prefix}/{}", file.name))
}

/// Asks the store again where that may help.
async fn retried<T, F>(call: impl Fn() -> F) -> Result<T, ArtifactError>
where
    F: Future<Output = Result<T, ArtifactError>>,
{
    let retries = ExponentialBuilder::default()
        .with_min_delay(FIRST_PAUSE)
        .with_max_times(RETRIES)
        .with_jitter();
    call.retry(retries)
        .when(|error| matches!(error, ArtifactError::Engine { .. }))
        .notify(|error, pause| warn!(%error, ?pause, "fetching again"))
        .await
}
