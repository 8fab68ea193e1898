//! What models are measured on: batches of the round's, the held-out and a miner's own data, drawn
//! once and shared by all jobs.

use std::{path::PathBuf, sync::Arc};

use data::{DataError, Draw, Drawer, Settings, Source, Sources, Tokenizer, Weight, parse_sources};
pub(crate) use data::Drawn;
use model::ModelConfig;
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

#[derive(Debug)]
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
    /// The sources are opened anew after an error: a folder may have got what it lacked.
    pub(crate) async fn batches(
        &mut self,
        job: &Job,
        config: &ModelConfig,
    ) -> Result<JobBatches, OwnFailure> {
        let drawn = self.draw(job, config).await;
        if drawn.is_err() {
            self.opened = None;
        }
        Ok(drawn?)
    }

    async fn draw(&mut self, job: &Job, config: &ModelConfig) -> Result<JobBatches, DataError> {
        let pad = config.pad_token.and_then(|id| u32::try_from(id).ok()).unwrap_or(0);
        let held_out_batches = self.setup.held_out_batches;
        let Opened { round, held_out, .. } = self.open(pad).await?;
        let Batches { seed, count, size, length } = job.batches;
        let by = Draw::new(seed, count, size, length);
        let mut batches = JobBatches::default();
        if !matches!(job.work, Work::HeldOut) {
            batches.round = Some(round.draw(&by).await?);
        }
        if job.work.score().is_none() {
            batches.held_out = Some(held_out.draw(&by.held_out(held_out_batches)).await?);
        }
        if let Some(score) = job.work.score().filter(|score| score.own_batches > 0) {
            let own = by.own(&score.submission.hotkey, job.model.version, score.own_batches);
            batches.own = Some(round.draw(&own).await?);
        }
        Ok(batches)
    }

    async fn open(&mut self, pad: u32) -> Result<&Opened, DataError> {
        let opened = match self.opened.take().filter(|opened| opened.pad == pad) {
            Some(opened) => opened,
            None => {
                let DataSetup { group_config, corpus, held_out_config, held_out, .. } = &self.setup;
                let tokenizer = Tokenizer::open(&self.setup.tokenizer)?;
                let round = open(group_config.as_ref(), corpus, &self.setup.settings).await?;
                let held_out =
                    open(held_out_config.as_ref(), held_out, &self.setup.settings).await?;
                info!(round = round.digest(), held_out = held_out.digest(), "sources are open");
                Opened {
                    pad,
                    round: Drawer::new(round, tokenizer.clone(), pad),
                    held_out: Drawer::new(held_out, tokenizer, pad),
                }
            }
        };
        Ok(self.opened.insert(opened))
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
            let text = tokio::fs::read_to_string(path).await.map_err(|error| DataError::File {
                path: path.clone(),
                why: error.to_string(),
            })?;
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
