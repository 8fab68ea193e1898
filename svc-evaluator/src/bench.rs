//! The measuring itself: blocking, with libtorch, on one device. Keeps the base model and its losses
//! from one job to the next.

use std::collections::BTreeMap;

use model::{LanguageModel, LoadOptions, ModelError, Next, Staged};
use tokio::{sync::watch, time::Instant};
use tracing::{error, info, info_span};

use crate::{
    error::{Failure, OwnFailure},
    fetch::ModelFiles,
    job::{BaseId, Measured},
    lease::LeaseWatch,
    memory, metrics,
    prepare::{Candidate, Experts, Prepared},
    round_data::Drawn,
    status::OnDevice,
};

/// Sets of losses of base models that are remembered.
const REMEMBERED: usize = 8;

/// How a model is loaded and checked.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) options: LoadOptions,
    /// Bytes that the model may need; `None` for what there is.
    pub(crate) memory_limit: Option<u64>,
}

/// What is on the device, for those who prepare for it and those who ask.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    pub(crate) stager: Option<(BaseId, model::Stager)>,
    pub(crate) on_device: OnDevice,
    /// The model that could not be loaded last.
    pub(crate) refused: Option<BaseId>,
}

/// One device and what is on it.
#[derive(Debug)]
pub(crate) struct Bench {
    setup: Setup,
    base: Option<Base>,
    /// Losses of base models by the digest of the batches.
    remembered: BTreeMap<(BaseId, String), Vec<f64>>,
    loaded: watch::Sender<Loaded>,
}

#[derive(Debug)]
struct Base {
    id: BaseId,
    model: LanguageModel,
    /// Right after loading.
    digest: String,
}

impl Bench {
    pub(crate) fn new(setup: Setup, loaded: watch::Sender<Loaded>) -> Self {
        Self { setup, base: None, remembered: BTreeMap::new(), loaded }
    }

    /// Does the prepared job, as long as its lease says so, and checks that it has left no trace in
    /// the base, however it ended.
    pub(crate) fn measure(
        &mut self,
        prepared: Prepared,
        lease: &LeaseWatch,
    ) -> Result<Measured, Failure> {
        let outcome = self.run(prepared, lease);
        if !outcome.as_ref().is_err_and(Failure::spoils_the_device) {
            self.check_base()?;
        }
        outcome
    }

    fn run(&mut self, prepared: Prepared, lease: &LeaseWatch) -> Result<Measured, Failure> {
        let Prepared { job, model, batches, candidate } = prepared;
        self.load(&model, job.batches.size, job.batches.length)?;
        let Self { base: Some(base), remembered, .. } = self else { return Err(nothing_loaded()) };
        let mut run = Run { base, remembered, lease };
        let mut measured = Measured::default();
        if let Some(drawn) = batches.main() {
            measured.batches_digest.clone_from(&drawn.digest);
            measured.sources_digest.clone_from(&drawn.sources_digest);
        }
        if let Some(round) = &batches.round {
            measured.baseline = run.of_base(round)?;
        }
        if let Some(held_out) = &batches.held_out {
            measured.held_out = run.of_base(held_out)?;
        }
        if let (Some(candidate), Some(round)) = (candidate, &batches.round) {
            if let Some(own) = &batches.own {
                measured.own_baseline = run.losses(own, false).map_err(of_base)?;
            }
            let outcome =
                run.of_submission(candidate, round, batches.own.as_deref(), &mut measured);
            run.base.model.restore();
            outcome?;
        }
        Ok(measured)
    }

    /// Puts a model on the device, unless it is there.
    fn load(&mut self, files: &ModelFiles, rows: usize, length: usize) -> Result<(), Failure> {
        if self.base.as_ref().is_some_and(|base| base.id == files.id) {
            return Ok(());
        }
        let _span = info_span!("load", model = %files.id.hash, group = files.id.group.0).entered();
        // Room for the new one first: a device rarely holds two.
        self.clear();
        let began = Instant::now();
        let memory = memory::plan(files, &self.setup, rows, length)?;
        let model = LanguageModel::from_slices(
            &files.manifest,
            files.id.group,
            &files.shared,
            &files.experts,
            self.setup.options,
        )
        .map_err(|error| {
            self.loaded.send_modify(|loaded| loaded.refused = Some(files.id));
            of_loading(error)
        })?;
        let digest = model.digest().map_err(of_base)?;
        metrics::model_loaded();
        metrics::step("load", began.elapsed());
        info!(digest, took = ?began.elapsed(), "the base model is on the device");
        self.loaded.send_replace(Loaded {
            stager: Some((files.id, model.stager())),
            on_device: OnDevice { base: Some(files.id.hash), digest: digest.clone(), memory },
            refused: None,
        });
        self.base = Some(Base { id: files.id, model, digest });
        Ok(())
    }

    /// Takes everything off the device.
    pub(crate) fn clear(&mut self) {
        self.loaded.send_replace(Loaded::default());
        self.base = None;
    }

    /// Whether the base is bit for bit what was loaded.
    fn check_base(&self) -> Result<(), Failure> {
        let Some(base) = &self.base else { return Ok(()) };
        let found = base.model.digest().map_err(of_base)?;
        if found == base.digest {
            return Ok(());
        }
        metrics::base_changed();
        error!(
            expected = base.digest,
            found, "a run has changed the base model: its result is not told"
        );
        Err(Failure::Own(OwnFailure::BaseChanged { expected: base.digest.clone(), found }))
    }
}

/// One job on the device.
struct Run<'a> {
    base: &'a mut Base,
    remembered: &'a mut BTreeMap<(BaseId, String), Vec<f64>>,
    lease: &'a LeaseWatch,
}

impl Run<'_> {
    /// The base model's losses: measured once for every set of batches.
    fn of_base(&mut self, drawn: &Drawn) -> Result<Vec<f64>, Failure> {
        let key = (self.base.id, drawn.digest.clone());
        if let Some(losses) = self.remembered.get(&key) {
            return Ok(losses.clone());
        }
        self.base.model.restore();
        let losses = self.losses(drawn, false).map_err(of_base)?;
        if self.remembered.len() >= REMEMBERED {
            self.remembered.clear();
        }
        self.remembered.insert(key, losses.clone());
        Ok(losses)
    }

    fn of_submission(
        &mut self,
        candidate: Candidate,
        round: &Drawn,
        own: Option<&Drawn>,
        measured: &mut Measured,
    ) -> Result<(), Failure> {
        let staged: Staged = match candidate.experts {
            Experts::Staged(staged) => staged,
            Experts::File(file) => {
                self.base.model.stager().stage(&file).map_err(Failure::of_submission)?
            }
        };
        self.base.model.overlay_staged(staged).map_err(Failure::of_submission)?;
        measured.sketch = Some(candidate.sketch);
        measured.submission = self.losses(round, true).map_err(of_submission)?;
        let saved = round.batches.len().saturating_sub(measured.submission.len());
        measured.out_of_reach = saved > 0;
        if measured.out_of_reach {
            metrics::stopped_early(saved);
        } else if let Some(own) = own {
            measured.own = self.losses(own, false).map_err(of_submission)?;
        }
        // A submission that was stopped has no own data measured: neither has its base.
        if measured.own.is_empty() {
            measured.own_baseline.clear();
        }
        Ok(())
    }

    /// Losses of what is overlaid, or of the base; `rivalled` when a hopeless one may be stopped.
    fn losses(&self, drawn: &Drawn, rivalled: bool) -> Result<Vec<f64>, ModelError> {
        let _span = info_span!("run", batches = drawn.batches.len()).entered();
        let began = Instant::now();
        let losses = self.base.model.losses_until(&drawn.batches, &mut |losses| {
            if self.lease.interrupt().is_some() {
                Next::Cancel
            } else if rivalled && self.lease.is_out_of_reach(losses) {
                Next::Enough
            } else {
                Next::Go
            }
        })?;
        let run = drawn.batches.iter().take(losses.len());
        let tokens: usize = run.map(|batch| batch.rows() * batch.length()).sum();
        metrics::tokens(tokens as u64, began.elapsed());
        Ok(losses)
    }
}

/// An error of running the base: ours.
fn of_base(error: ModelError) -> Failure {
    if matches!(error, ModelError::Stopped) {
        return Failure::Lost;
    }
    Failure::Own(OwnFailure::of_model(error))
}

fn of_submission(error: ModelError) -> Failure {
    if matches!(error, ModelError::Stopped) {
        return Failure::Lost;
    }
    Failure::of_submission(error)
}

fn of_loading(error: ModelError) -> Failure {
    Failure::Own(match error.is_out_of_memory() {
        true => OwnFailure::OutOfMemory(error),
        false => OwnFailure::Load(error),
    })
}

/// Never happens after [`Bench::load`].
fn nothing_loaded() -> Failure {
    Failure::Own(OwnFailure::NoSlice("model on the device".to_owned()))
}

#[cfg(test)]
mod tests;
