//! The task of one resync: ask, bring, put together, publish, and say how it ended.
//!
//! It can be killed at any point and started again: what has come stays on the disk, see `parts`.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use checkpoint::Manifest;
use domain::{Hotkey, RoundId};
use futures::future::join_all;
use store::{ArtifactError, Artifacts};
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{Instant, sleep_until, timeout_at},
};
use tracing::{debug, info, warn};

use super::{
    assemble::{Target, Unfit, assemble, needed},
    fetch::{Brought, Fetch, Out, blocking},
    holders::{Holder, Holders},
    holdings::MAX_MANIFEST,
    line::Line,
    lists::{List, Word},
    message::ModelFile,
    parts::Parts,
    status::{Failure, Shown, State},
};
use crate::{config::Config, metrics, plan::Model, report, step};

/// Pause between two times that holders are asked; it doubles up to [`MOST`].
const PAUSE: Duration = Duration::from_millis(200);
const MOST: Duration = Duration::from_secs(5);

/// Which model, and from whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Round in which this validator is.
    pub(crate) round: RoundId,
    /// The model; its prefix is where it goes to.
    pub(crate) model: Model,
    /// What it has to be.
    pub(crate) target: Target,
    /// Who has revealed it.
    pub(crate) holders: BTreeMap<Hotkey, Holder>,
    /// This validator.
    pub(crate) hotkey: Hotkey,
    /// How long it may take.
    pub(crate) deadline: Duration,
    /// Trace context.
    pub(crate) traceparent: String,
}

impl Wanted {
    /// Where the model may go: below its prefix where that has another model already.
    pub(crate) fn prefixes(&self) -> [String; 2] {
        let Model { prefix, model_hash, .. } = &self.model;
        let hash = model_hash.to_hex();
        [prefix.clone(), format!("{prefix}/{}", hash.get(..12).unwrap_or(&hash))]
    }
}

/// Everything that a resync works with.
pub(crate) struct Task {
    pub(crate) wanted: Arc<Wanted>,
    pub(crate) line: Line,
    pub(crate) config: Arc<Config>,
    pub(crate) artifacts: Artifacts,
    /// Folder for files that are on their way.
    pub(crate) folder: PathBuf,
    pub(crate) holders: Holders,
    pub(crate) start: Instant,
    pub(crate) shown: watch::Sender<Shown>,
}

/// All files of a model, as a list says.
struct Whole {
    list: List,
    manifest: Manifest,
    files: Vec<ModelFile>,
}

impl Task {
    /// Goes through the resync to its end, whatever that is, and shows it.
    pub(crate) async fn run(mut self) {
        let ended = self.stages().await;
        let blamed = self.holders.blamed();
        self.shown.send_modify(|shown| {
            shown.blamed = blamed;
            match ended {
                Ok(model) => {
                    shown.state = State::Done;
                    shown.detail = self.holders.detail();
                    shown.model = Some(model);
                }
                Err(failure) => {
                    shown.state = State::Failed;
                    shown.reason = failure.reason();
                    shown.detail = failure.to_string();
                }
            }
        });
        let shown = self.shown.borrow();
        let (outcome, reason, detail) = (shown.state.as_str(), shown.reason, &shown.detail);
        metrics::resync_ended(outcome, self.start.elapsed());
        match shown.state {
            State::Failed => warn!(reason, detail, "resync failed"),
            State::Running | State::Done => info!(bytes = shown.bytes, detail, "resync ended"),
        }
    }

    async fn stages(&mut self) -> Result<Model, Failure> {
        let (folder, model) = (self.folder.clone(), self.wanted.target.model);
        let parts = blocking(move || Parts::open(&folder, &model)).await?;
        loop {
            let whole = self.bring(&parts).await?;
            match self.assemble(&parts, &whole).await {
                Ok(folder) => {
                    let model = self.publish(&parts, &whole, folder).await?;
                    if let Err(error) = blocking(move || parts.remove_all()).await {
                        warn!(%error, "files of a resync are left behind");
                    }
                    return Ok(model);
                }
                Err(Unfit::Own(detail)) => return Err(Failure::Assemble(detail)),
                Err(Unfit::Lie { reason, detail }) => {
                    self.refute(&parts, &whole.files, &whole.list, reason, &detail).await?;
                }
            }
        }
    }

    /// When nothing more is asked of others. What has come by then is put together all the same.
    fn until(&self) -> Instant {
        self.start + self.wanted.deadline
    }

    fn late(&self) -> Failure {
        let holders = self.holders.detail();
        if self.holders.any_had_it() {
            Failure::OutOfTime { holders }
        } else {
            Failure::NobodyHasIt { holders }
        }
    }

    /// Brings all files of the list that most stake stands for, and that can be had.
    async fn bring(&mut self, parts: &Parts) -> Result<Whole, Failure> {
        let patience = self.start + self.wanted.deadline / 3;
        let mut pause = PAUSE;
        loop {
            let _late = timeout_at(self.until(), self.ask()).await;
            if self.holders.all_lied() {
                return Err(Failure::NobodyHonest);
            }
            if Instant::now() >= self.until() {
                return Err(self.late());
            }
            if let Some(list) = self.holders.next(Instant::now() >= patience)
                && let Some(whole) = self.bring_list(parts, list).await?
            {
                return Ok(whole);
            }
            let (detail, blamed) = (self.holders.detail(), self.holders.blamed());
            self.shown.send_modify(|shown| (shown.detail, shown.blamed) = (detail, blamed));
            sleep_until(self.until().min(Instant::now() + pause)).await;
            pause = (pause * 2).min(MOST);
        }
    }

    /// Asks those that have not said yet what they have.
    async fn ask(&mut self) {
        let to_ask = self.holders.to_ask();
        let group = self.wanted.target.group;
        let asking = to_ask.iter().map(|holder| self.line.holdings(holder, group));
        let answers = join_all(asking).await;
        for (holder, answer) in to_ask.iter().zip(answers) {
            match answer {
                Ok((holdings, signed)) => {
                    self.holders.said(holder.clone(), Word { stake: 0, holdings, signed });
                }
                Err(error) => {
                    debug!(%holder, %error, "a holder does not say what it has");
                    self.holders.failed(holder.clone(), error.reason());
                }
            }
        }
    }

    async fn bring_list(&mut self, parts: &Parts, list: List) -> Result<Option<Whole>, Failure> {
        let first = list.files.iter().find(|file| file.name == Manifest::FILE_NAME);
        let total: u128 = list.files.iter().map(|file| u128::from(file.len)).sum();
        let fits = total <= u128::from(self.config.resync.max_model_bytes);
        let Some(first) = first.filter(|file| fits && file.len <= MAX_MANIFEST).cloned() else {
            warn!(total, signers = list.signers.len(), "a list of files that is not taken");
            self.holders.starved(&list);
            return Ok(None);
        };
        self.shown.send_modify(|shown| (shown.bytes, shown.total) = (0, 0));
        if !self.fetch(parts, std::slice::from_ref(&first), &list).await? {
            return Ok(None);
        }
        let (folder, file) = (parts.clone(), first.clone());
        let json = blocking(move || folder.read(&file)).await?;
        let (manifest, files) = match needed(&self.wanted.target, &list, &json) {
            Ok(needed) => needed,
            Err(Unfit::Own(detail)) => return Err(Failure::Assemble(detail)),
            Err(Unfit::Lie { reason, detail }) => {
                self.refute(parts, &[first], &list, reason, &detail).await?;
                return Ok(None);
            }
        };
        let total = files.iter().map(|file| file.len).sum();
        info!(total, signers = list.signers.len(), "bringing a model");
        self.shown.send_modify(|shown| shown.total = total);
        let rest: Vec<ModelFile> = files.iter().filter(|file| **file != first).cloned().collect();
        let whole = self.fetch(parts, &rest, &list).await?;
        Ok(whole.then_some(Whole { list, manifest, files }))
    }

    /// Brings files from those that have signed for them; whether all are here.
    async fn fetch(
        &mut self,
        parts: &Parts,
        files: &[ModelFile],
        list: &List,
    ) -> Result<bool, Failure> {
        let shown = &self.shown;
        let came = |bytes| shown.send_modify(|shown| shown.bytes += bytes);
        let fetch = Fetch {
            line: &self.line,
            parts,
            files,
            holders: &list.signers,
            streams: self.config.resync.streams_per_holder,
            until: self.until(),
            came: &came,
        };
        let Brought { whole, out } = fetch.run().await?;
        for (holder, out) in out {
            match out {
                Out::Gone(reason) => self.holders.failed(holder, reason),
                Out::Liar { reason, detail } => self.holders.blame(&holder, reason, &detail).await,
            }
        }
        if !whole {
            self.holders.starved(list);
        }
        Ok(whole)
    }

    /// Blames all who have signed a list for what its files have turned out to be, and forgets them.
    /// Not where they are other than signed by now: then it is this host's disk, and they are asked
    /// for again.
    async fn refute(
        &mut self,
        parts: &Parts,
        files: &[ModelFile],
        list: &List,
        reason: &'static str,
        detail: &str,
    ) -> Result<(), Failure> {
        for file in files.iter().cloned() {
            let (folder, name) = (parts.clone(), file.name.clone());
            if !blocking(move || folder.is_sound(&file)).await? {
                warn!(name, reason, detail, "a file that had come has changed on the disk");
                return Ok(());
            }
        }
        for signer in &list.signers {
            self.holders.blame(signer, reason, detail).await;
        }
        let still = self.holders.roots();
        list.files.iter().filter(|file| !still.contains(&file.root)).for_each(|f| parts.remove(f));
        Ok(())
    }

    async fn assemble(&self, parts: &Parts, whole: &Whole) -> Result<PathBuf, Unfit> {
        let (target, parts) = (self.wanted.target, parts.clone());
        let (manifest, files) = (whole.manifest.clone(), whole.files.clone());
        let span = tracing::Span::current();
        let work = move || {
            let _in = span.enter();
            let own = |error: std::io::Error| Unfit::Own(error.to_string());
            let whole = parts.show(&files).map_err(own)?;
            let folder = parts.fresh_folder("made").map_err(own)?;
            assemble(&target, &manifest, &whole, &folder)?;
            Ok(folder)
        };
        spawn_blocking(work).await.unwrap_or_else(|error| Err(Unfit::Own(error.to_string())))
    }

    /// Puts the model where nothing else is, its manifest last.
    async fn publish(
        &self,
        parts: &Parts,
        whole: &Whole,
        folder: PathBuf,
    ) -> Result<Model, Failure> {
        let mut folder = Some(folder);
        for prefix in self.wanted.prefixes() {
            match step::published(&self.artifacts, &prefix).await {
                Ok(None) => {}
                Ok(Some(there)) if there.model_hash == self.wanted.target.model => {
                    return Ok(self.model(prefix));
                }
                Ok(Some(_)) => continue,
                Err(report::Failure::Store(error)) => return Err(error.into()),
                Err(error) => {
                    warn!(prefix, %error, "what is there cannot be read");
                    continue;
                }
            }
            let made = match folder.take() {
                Some(folder) => folder,
                // Some files have gone to the other place.
                None => {
                    let made = self.assemble(parts, whole).await;
                    made.map_err(|error| Failure::Assemble(error.to_string()))?
                }
            };
            match step::publish(&self.artifacts, &made, &prefix).await {
                Ok(()) => return Ok(self.model(prefix)),
                Err(report::Failure::Store(ArtifactError::Conflict { key })) => {
                    warn!(key, "another model is there");
                }
                Err(report::Failure::Store(error)) => return Err(error.into()),
                Err(error) => return Err(Failure::Publish(error.to_string())),
            }
        }
        Err(Failure::Publish("other files are where it should go".to_owned()))
    }

    fn model(&self, prefix: String) -> Model {
        Model { prefix, ..self.wanted.model.clone() }
    }
}
