//! What models are measured on: batches of the round's, the held-out and a miner's own data, drawn
//! once and shared by all jobs.

use std::{path::PathBuf, sync::Arc};

pub(crate) use data::Drawn;
use data::{DataError, Draw, Drawer, Settings, Source, Sources, Tokenizer, Weight, parse_sources};
use model::ModelConfig;
use tokio::task::JoinError;
use tracing::info;

use crate::{
    error::OwnFailure,
    job::{Batches, Job, Work},
};

/// The column or JSON key of a text in a folder that is given without a `config.yaml`.
const TEXT_FIELD: &str = "text";

/// Where texts come from.
#[derive(Debug, Clone)]
pub(crate) struct DataSetup {
    pub(crate) tokenizer: PathBuf,
    /// `config.yaml` of the expert group, which names the sources; without it, `corpus` is the one.
    pub(crate) group_config: Option<PathBuf>,
    pub(crate) corpus: PathBuf,
    /// The same for the held-out data.
    pub(crate) held_out_config: Option<PathBuf>,
    pub(crate) held_out: PathBuf,
    pub(crate) held_out_batches: usize,
    pub(crate) settings: Settings,
}

/// The sources, opened with the first job.
#[derive(Debug)]
pub(crate) struct RoundData {
    setup: DataSetup,
    opened: Option<Opened>,
}

#[derive(Debug, Clone)]
struct Opened {
    pad: u32,
    round: Drawer,
    held_out: Drawer,
}

/// The batches of one job.
#[derive(Debug, Default)]
pub(crate) struct JobBatches {
    pub(crate) round: Option<Arc<Drawn>>,
    pub(crate) held_out: Option<Arc<Drawn>>,
    pub(crate) own: Option<Arc<Drawn>>,
}

impl JobBatches {
    /// Those that tell of the job: the round's, or else the held-out ones.
    pub(crate) fn main(&self) -> Option<&Drawn> {
        self.round.as_deref().or(self.held_out.as_deref())
    }
}

impl RoundData {
    pub(crate) fn new(setup: DataSetup) -> Self {
        Self { setup, opened: None }
    }

    /// Draws what `job` needs; rows are filled up as the model's `config` says.
    ///
    /// Sources that could not be opened are tried again with the next job; once open they stay as they
    /// are, so that no round is measured on two versions of them. A draw that nobody waits for any
    /// more goes on: the next job may want it.
    pub(crate) async fn batches(
        &mut self,
        job: &Job,
        config: &ModelConfig,
    ) -> Result<JobBatches, OwnFailure> {
        let pad = config.pad_token.and_then(|id| u32::try_from(id).ok()).unwrap_or(0);
        let opened = self.opened.take().filter(|opened| opened.pad == pad);
        let (setup, job) = (self.setup.clone(), job.clone());
        // On a thread of its own: what is drawn from is read and tokenised there.
        let runtime = tokio::runtime::Handle::current();
        let drawing = tokio::task::spawn_blocking(move || {
            runtime.block_on(async move {
                let opened = match opened {
                    Some(opened) => opened,
                    None => Opened::open(&setup, pad).await?,
                };
                let batches = opened.draw(&job, setup.held_out_batches).await;
                Ok::<_, DataError>((opened, batches))
            })
        });
        let broken = |error: JoinError| DataError::Broken { why: error.to_string() };
        let (opened, batches) = drawing.await.map_err(broken)??;
        self.opened = Some(opened);
        Ok(batches?)
    }
}

impl Opened {
    async fn open(setup: &DataSetup, pad: u32) -> Result<Self, DataError> {
        let tokenizer = Tokenizer::open(&setup.tokenizer)?;
        let round = open(setup.group_config.as_ref(), &setup.corpus, &setup.settings).await?;
        let held_out =
            open(setup.held_out_config.as_ref(), &setup.held_out, &setup.settings).await?;
        info!(round = round.digest(), held_out = held_out.digest(), "the sources are open");
        Ok(Self {
            pad,
            round: Drawer::new(round, tokenizer.clone(), pad),
            held_out: Drawer::new(held_out, tokenizer, pad),
        })
    }

    async fn draw(&self, job: &Job, held_out_batches: usize) -> Result<JobBatches, DataError> {
        let Batches { seed, count, size, length } = job.batches;
        let by = Draw::new(seed, count, size, length);
        let mut batches = JobBatches::default();
        if !matches!(job.work, Work::HeldOut) {
            batches.round = Some(self.round.draw(&by).await?);
        }
        if job.work.score().is_none() {
            batches.held_out = Some(self.held_out.draw(&by.held_out(held_out_batches)).await?);
        }
        if let Some(score) = job.work.score().filter(|score| score.own_batches > 0) {
            let own = by.own(&score.submission.hotkey, job.model.version, score.own_batches);
            batches.own = Some(self.round.draw(&own).await?);
        }
        Ok(batches)
    }
}

/// Opens the sources of a `config.yaml`, or one folder.
async fn open(
    config: Option<&PathBuf>,
    folder: &std::path::Path,
    settings: &Settings,
) -> Result<Sources, DataError> {
    let mut settings = settings.clone();
    let sources = match config {
        Some(path) => {
            let text = tokio::fs::read_to_string(path)
                .await
                .map_err(|error| DataError::File { path: path.clone(), why: error.to_string() })?;
            settings.base = path.parent().unwrap_or(std::path::Path::new(".")).to_owned();
            parse_sources(&text)?
        }
        None => {
            settings.base = ".".into();
            vec![Source {
                place: data::Place::Folder(folder.to_owned()),
                files: None,
                text_field: TEXT_FIELD.to_owned(),
                weight: Weight::ONE,
            }]
        }
    };
    Sources::open(&sources, &settings).await
}
