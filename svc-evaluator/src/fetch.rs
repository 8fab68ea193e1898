//! Brings what a job needs from the artifact store to files on this host.

use std::path::PathBuf;

use checkpoint::{Format, Manifest, SliceId};
use store::Artifacts;

use crate::{
    error::{Failure, OwnFailure},
    job::{Job, Work},
};

/// A manifest names every tensor of a model several times over; far more than any real one.
const MANIFEST_LIMIT: u64 = 256 << 20;

/// The files of one job.
#[derive(Debug)]
pub(crate) struct Files {
    pub(crate) manifest: Manifest,
    pub(crate) shared: PathBuf,
    pub(crate) experts: PathBuf,
    pub(crate) submission: Option<PathBuf>,
}

#[derive(Debug)]
pub(crate) struct Fetcher {
    artifacts: Artifacts,
}

impl Fetcher {
    pub(crate) fn new(artifacts: Artifacts) -> Self {
        Self { artifacts }
    }

    /// Everything for `job`; the manifest must be of the model that the job names.
    pub(crate) async fn fetch(&self, job: &Job) -> Result<Files, Failure> {
        let model = &job.model;
        let key = format!("{}/{}", model.prefix, Manifest::FILE_NAME);
        let bytes = self.artifacts.get_bytes(&key, MANIFEST_LIMIT).await.map_err(own)?;
        let manifest = Manifest::from_json(&bytes).map_err(own)?;
        // The manifest's own hash is that of the validator's group, which the job names too.
        if manifest.model_hash != model.hash || manifest.global_version != model.version {
            let told = |version, hash| format!("version {version} with hash {hash}");
            return Err(Failure::Own(OwnFailure::OtherModel {
                expected: told(model.version, model.hash),
                found: told(manifest.global_version, manifest.model_hash),
            }));
        }
        let shared = self.slice(&manifest, &model.prefix, SliceId::Shared).await?;
        let experts = self.slice(&manifest, &model.prefix, SliceId::Group(job.group)).await?;
        let submission = match &job.work {
            Work::Score(submission) => {
                Some(self.artifacts.local_file(&submission.key).await.map_err(own)?)
            }
            Work::Baseline | Work::HeldOut => None,
        };
        Ok(Files { manifest, shared, experts, submission })
    }

    async fn slice(
        &self,
        manifest: &Manifest,
        prefix: &str,
        id: SliceId,
    ) -> Result<PathBuf, Failure> {
        let missing = || OwnFailure::NoSlice(format!("slice {id} as safetensors"));
        let file = manifest
            .slice(id)
            .and_then(|slice| slice.files.get(&Format::Safetensors))
            .ok_or_else(missing)?;
        self.artifacts.local_file(&format!("{prefix}/{}", file.name)).await.map_err(own)
    }
}

fn own(error: impl Into<OwnFailure>) -> Failure {
    Failure::Own(error.into())
}
