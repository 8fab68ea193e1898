//! The measuring itself: blocking, with libtorch, on one device. Keeps the base model, the texts and
//! the base model's losses from one job to the next.

use std::{collections::BTreeMap, fs::File, io, path::Path};

use checkpoint::{Limits, Refusal};
use domain::{ExpertGroup, ModelHash};
use model::{LanguageModel, LoadOptions, ModelError, Next};
use sha2::{Digest as _, Sha256};

use crate::{
    Config,
    error::{Failure, OwnFailure},
    fetch::Files,
    job::{Batches, Job, Measured, Submission, Work},
    metrics,
    texts::{TextPaths, Texts},
};

/// Sets of losses of base models that are remembered.
const REMEMBERED: usize = 8;

/// What a bench is made of.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    options: LoadOptions,
    texts: TextPaths,
    held_out_batches: usize,
}

impl From<&Config> for Setup {
    fn from(config: &Config) -> Self {
        Self {
            options: LoadOptions {
                device: config.device,
                weights: config.weights,
                autocast: None,
                mscale_in_attention: config.mscale_in_attention,
            },
            texts: TextPaths {
                tokenizer: config.tokenizer.clone(),
                corpus: config.corpus.clone(),
                held_out: config.held_out.clone(),
                minimum_length: config.minimum_text_length,
            },
            held_out_batches: config.held_out_batches as usize,
        }
    }
}

/// One device and what is on it.
#[derive(Debug)]
pub(crate) struct Bench {
    setup: Setup,
    base: Option<Base>,
    texts: Option<Texts>,
    /// Losses of base models on the round's batches (`false`) and on the held-out ones (`true`).
    remembered: BTreeMap<(BaseId, bool, Batches), Vec<f64>>,
}

type BaseId = (ModelHash, ExpertGroup);

#[derive(Debug)]
struct Base {
    id: BaseId,
    model: LanguageModel,
}

impl Bench {
    pub(crate) fn new(setup: Setup) -> Self {
        Self { setup, base: None, texts: None, remembered: BTreeMap::new() }
    }

    /// Hash of the model on the device.
    pub(crate) fn base(&self) -> Option<ModelHash> {
        self.base.as_ref().map(|base| base.id.0)
    }

    /// Does `job`. Asks `stop` before each batch.
    pub(crate) fn measure(
        &mut self,
        job: &Job,
        files: &Files,
        stop: &dyn Fn() -> bool,
    ) -> Result<Measured, Failure> {
        self.load(job, files)?;
        match &job.work {
            Work::Baseline => {
                let (baseline, digest) = self.base_losses(job.batches, false, stop)?;
                let (held_out, _) = self.base_losses(job.batches, true, stop)?;
                Ok(Measured { baseline, held_out, digest, ..Measured::default() })
            }
            Work::HeldOut => {
                let (held_out, digest) = self.base_losses(job.batches, true, stop)?;
                Ok(Measured { held_out, digest, ..Measured::default() })
            }
            Work::Score(submission) => {
                let path = files.submission.as_deref().ok_or_else(|| {
                    Failure::Own(OwnFailure::Stored("it was not fetched".to_owned()))
                })?;
                let (baseline, digest) = self.base_losses(job.batches, false, stop)?;
                let losses = self.submission_losses(job, files, submission, path, stop)?;
                Ok(Measured { baseline, submission: losses, digest, ..Measured::default() })
            }
        }
    }

    /// Puts the job's model on the device, unless it is there.
    fn load(&mut self, job: &Job, files: &Files) -> Result<(), Failure> {
        let id = (job.model.hash, job.group);
        if self.base.as_ref().is_some_and(|base| base.id == id) {
            return Ok(());
        }
        // Room for the new one first: a device rarely holds two.
        self.base = None;
        let model = LanguageModel::from_slices(
            &files.manifest,
            job.group,
            &files.shared,
            &files.experts,
            self.setup.options,
        )?;
        metrics::model_loaded();
        if self.texts.is_none() {
            self.texts = Some(Texts::open(&self.setup.texts, model.config())?);
        }
        self.base = Some(Base { id, model });
        Ok(())
    }

    /// The base model's losses and the digest of the batches.
    fn base_losses(
        &mut self,
        by: Batches,
        held_out: bool,
        stop: &dyn Fn() -> bool,
    ) -> Result<(Vec<f64>, String), Failure> {
        let Self { base: Some(base), texts: Some(texts), remembered, setup } = self else {
            return Err(nothing_loaded());
        };
        base.model.restore();
        let drawn =
            if held_out { texts.held_out(by, setup.held_out_batches)? } else { texts.round(by)? };
        let digest = drawn.digest.clone();
        let key = (base.id, held_out, drawn.by);
        if let Some(losses) = remembered.get(&key) {
            return Ok((losses.clone(), digest));
        }
        let losses = base.model.losses_until(&drawn.batches, &mut |_| next(stop))?;
        if remembered.len() >= REMEMBERED {
            remembered.clear();
        }
        remembered.insert(key, losses.clone());
        Ok((losses, digest))
    }

    /// Verifies the submission once more, whoever did before, and measures it.
    fn submission_losses(
        &mut self,
        job: &Job,
        files: &Files,
        submission: &Submission,
        path: &Path,
        stop: &dyn Fn() -> bool,
    ) -> Result<Vec<f64>, Failure> {
        // Bytes that are not those that the gateway took are not the miner's.
        check_stored(submission, path).map_err(|why| Failure::Own(OwnFailure::Stored(why)))?;
        let layout = files
            .manifest
            .layout(job.group)
            .ok_or_else(|| Failure::Own(OwnFailure::NoSlice(format!("group {}", job.group))))?;
        let limits = Limits { max_file_bytes: submission.bytes, ..Limits::default() };
        let verified = || -> Result<_, Refusal> {
            let file = checkpoint::open(path, limits)?;
            checkpoint::verify(&file, &layout, Some(&submission.hash))?;
            Ok(file)
        };
        let file = verified().map_err(Failure::of_file)?;
        let Self { base: Some(base), texts: Some(texts), .. } = self else {
            return Err(nothing_loaded());
        };
        let drawn = texts.round(job.batches)?;
        let mut run = || -> Result<Vec<f64>, ModelError> {
            base.model.overlay(&file)?;
            base.model.losses_until(&drawn.batches, &mut |_| next(stop))
        };
        let losses = run();
        base.model.restore();
        losses.map_err(Failure::of_submission)
    }
}

fn next(stop: &dyn Fn() -> bool) -> Next {
    if stop() { Next::Cancel } else { Next::Go }
}

/// Never happens after [`Bench::load`].
fn nothing_loaded() -> Failure {
    Failure::Own(OwnFailure::NoSlice("model on the device".to_owned()))
}

/// Whether the stored file is the one that the scheduler means.
fn check_stored(submission: &Submission, path: &Path) -> Result<(), String> {
    let mut file = File::open(path).map_err(|error| error.to_string())?;
    let mut hash = Sha256::new();
    let bytes = io::copy(&mut file, &mut hash).map_err(|error| error.to_string())?;
    if bytes != submission.bytes {
        return Err(format!("{bytes} bytes instead of {}", submission.bytes));
    }
    if hash.finalize()[..] != submission.sha256 {
        return Err("its SHA-256 is not the one that was stored".to_owned());
    }
    Ok(())
}
