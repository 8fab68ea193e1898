//! Everything that can be done for a job before the device is free for it: fetch, draw, verify,
//! sketch, stage.

use checkpoint::Checkpoint;
use domain::Sketch;
use model::{ModelConfig, Staged, Stager};
use tokio::time::Instant;
use tracing::{Instrument as _, Span, info_span};

use crate::{
    error::{Failure, OwnFailure},
    fetch::{Fetcher, ModelFiles},
    job::{Job, Score},
    lease::{Lease, LeaseWatch},
    metrics,
    round_data::{JobBatches, RoundData},
    verify,
};

/// A job with all that it needs.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) job: Job,
    pub(crate) model: ModelFiles,
    pub(crate) batches: JobBatches,
    pub(crate) candidate: Option<Candidate>,
}

/// A submission that may be run.
#[derive(Debug)]
pub(crate) struct Candidate {
    pub(crate) sketch: Sketch,
    pub(crate) experts: Experts,
}

/// A submission's experts.
#[derive(Debug)]
pub(crate) enum Experts {
    /// In its mapped file: there was no model to stage it for.
    File(Checkpoint),
    /// In the host's memory, as the model takes them.
    Staged(Staged),
}

impl Prepared {
    /// Whether nothing is left to do but the run.
    pub(crate) fn is_staged(&self) -> bool {
        match &self.candidate {
            None => true,
            Some(candidate) => matches!(candidate.experts, Experts::Staged(_)),
        }
    }
}

/// Prepares one job at a time.
#[derive(Debug)]
pub(crate) struct Preparer {
    pub(crate) fetcher: Fetcher,
    pub(crate) data: RoundData,
}

impl Preparer {
    /// Fetches, draws, verifies and sketches; gives up when the lease says so.
    pub(crate) async fn prepare(&mut self, job: Job, lease: &Lease) -> Result<Prepared, Failure> {
        let inputs = tokio::select! {
            inputs = self.inputs(&job) => inputs,
            why = lease.interrupted() => return Err(why.into()),
        };
        let (model, batches) = inputs?;
        let candidate = match job.work.score() {
            Some(score) => Some(self.candidate(&job, score, &model, lease).await),
            None => None,
        };
        if matches!(candidate, Some(Err(Failure::Own(OwnFailure::Slice(_))))) {
            self.fetcher.forget_model().await;
        }
        Ok(Prepared { job, model, batches, candidate: candidate.transpose()? })
    }

    /// The model's files and the batches.
    async fn inputs(&mut self, job: &Job) -> Result<(ModelFiles, JobBatches), Failure> {
        let began = Instant::now();
        let model = self.fetcher.model(job).instrument(info_span!("fetch_model")).await?;
        metrics::step("fetch_model", began.elapsed());
        let config = ModelConfig::from_json(&model.manifest.config).map_err(OwnFailure::Load)?;
        let began = Instant::now();
        let batches = self.data.batches(job, &config).instrument(info_span!("draw")).await?;
        metrics::step("draw", began.elapsed());
        Ok((model, batches))
    }

    /// Fetches the submission, and once more where the copy in the cache is not what it should be.
    async fn candidate(
        &self,
        job: &Job,
        score: &Score,
        model: &ModelFiles,
        lease: &Lease,
    ) -> Result<Candidate, Failure> {
        let key = &score.submission.key;
        let mut again = true;
        loop {
            let began = Instant::now();
            let path = tokio::select! {
                path = self.fetcher.submission(&score.submission)
                    .instrument(info_span!("fetch")) => path?,
                why = lease.interrupted() => return Err(why.into()),
            };
            metrics::step("fetch", began.elapsed());
            let checked = blocking(lease, info_span!("verify"), {
                let (submission, model) = (score.submission.clone(), model.clone());
                let (seed, watch) = (job.batches.seed, lease.watch());
                move || {
                    let began = Instant::now();
                    let stop = || watch.interrupt().is_some();
                    let file = verify::submission(&submission, &path, &model, &stop)?;
                    metrics::step("verify", began.elapsed());
                    let began = Instant::now();
                    let sketch = verify::sketch(&file, &model, &seed)?;
                    metrics::step("sketch", began.elapsed());
                    Ok(Candidate { sketch, experts: Experts::File(file) })
                }
            });
            match checked.await {
                Err(Failure::Own(OwnFailure::Stored(_)))
                    if again && self.fetcher.drop_copy(key).await =>
                {
                    again = false;
                }
                checked => {
                    // It is mapped, or refused: a copy in the cache is not read again.
                    self.fetcher.drop_copy(key).await;
                    return checked;
                }
            }
        }
    }

    /// Brings the submission, where there is one, into the form that the model takes.
    pub(crate) async fn stage(
        &self,
        mut prepared: Prepared,
        stager: Stager,
        lease: &Lease,
    ) -> Result<Prepared, Failure> {
        let Some(Candidate { sketch, experts: Experts::File(file) }) = prepared.candidate.take()
        else {
            return Ok(prepared);
        };
        let staging = blocking(lease, info_span!("stage"), move || {
            let began = Instant::now();
            let staged = stager.stage(&file).map_err(Failure::of_submission)?;
            metrics::step("stage", began.elapsed());
            Ok(staged)
        });
        let experts = Experts::Staged(staging.await?);
        prepared.candidate = Some(Candidate { sketch, experts });
        Ok(prepared)
    }
}

/// Runs `work` off the runtime to its end, so that there is never more than one of it. An
/// interruption meanwhile wins over what came out.
async fn blocking<T: Send + 'static>(
    lease: &Lease,
    span: Span,
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let watch: LeaseWatch = lease.watch();
    let joined = tokio::task::spawn_blocking(move || span.in_scope(work)).await;
    if let Some(why) = watch.interrupt() {
        return Err(why.into());
    }
    joined.unwrap_or_else(|error| {
        let what = crate::device::panic_text(error.try_into_panic().ok());
        Err(Failure::Own(OwnFailure::Panicked { place: "preparation", what }))
    })
}
