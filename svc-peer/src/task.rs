//! The task of one round: add up, agree and reduce with the others, step, and say how it ended.
//!
//! It can be killed at any point and started again with the same plan: what it computes depends on
//! its inputs alone, what it has said to others is kept in the state store (see `keep`), and what it
//! has made in the artifact store (`rounds/<round>/reduced.json`, then `merge.json`).

mod agree;
mod keeping;

use std::{path::PathBuf, sync::Arc, time::Duration};

use checkpoint::{Contribution, OuterSgd};
use store::{ArtifactError, Artifacts, Store};
use tokio::{sync::watch, task::spawn_blocking, time::Instant};
use tracing::{info, warn};

pub(crate) use self::keeping::kept;
use self::keeping::patiently;
use crate::{
    call::Caller,
    conduct::Conduct,
    config::Config,
    desk::Desk,
    gradient::{self, Local},
    merger::Clock,
    metrics,
    model::{self, Model as Base},
    plan::{Model, Plan},
    report::{Failure, LeftOut, Outcome, Reduced, Report},
    round::{Shown, State},
    signer::Signer,
    step::{self, ReducedVector},
};

/// Everything that the task of a round works with.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) plan: Arc<Plan>,
    pub(crate) config: Arc<Config>,
    pub(crate) artifacts: Artifacts,
    pub(crate) store: Store,
    pub(crate) caller: Arc<Caller>,
    pub(crate) signer: Signer,
    pub(crate) desk: Arc<Desk>,
    pub(crate) conduct: Arc<dyn Conduct>,
    /// Folder for this merger's own files.
    pub(crate) folder: PathBuf,
    pub(crate) clock: Clock,
    pub(crate) stop: kit::Shutdown,
    pub(crate) shown: watch::Sender<Shown>,
}

impl Task {
    /// Goes through the merge to its end, whatever that is, and shows and keeps its report.
    pub(crate) async fn run(self) {
        let mut report = self.blank();
        match self.stages(&mut report).await {
            Ok(model) => report.model = model,
            // Whoever goes on with it says how it ends.
            Err(failure @ (Failure::TakenOver | Failure::Stopping)) => {
                warn!(error = %failure, "merge left");
                return;
            }
            Err(failure) => {
                warn!(reason = failure.reason(), error = %failure, "merge failed, the model stays");
                report.reduced.outcome = Outcome::Failed;
                report.reason = failure.reason().to_owned();
                report.why = failure.to_string();
            }
        }
        let report = self.keep_report(report).await;
        self.settle(&report);
        metrics::merge_ended(report.outcome(), self.clock.now());
        info!(
            outcome = report.outcome().as_str(),
            members = report.reduced.members.len(),
            digest = report.reduced.digest,
            model_hash = %report.model.model_hash,
            dropped = report.reduced.dropped.len(),
            blamed = report.blamed().len(),
            detail = report.detail(),
            "merge ended"
        );
        self.shown.send_modify(|shown| {
            shown.state = State::Ended;
            shown.report = Some(Arc::new(report));
        });
    }

    fn blank(&self) -> Report {
        Report {
            round: self.plan.round,
            block_hash: self.plan.block_hash,
            reason: String::new(),
            why: String::new(),
            terms: None,
            model: self.plan.base.clone(),
            reduced: Reduced::default(),
        }
    }

    /// All stages; `report` is filled as they go, so that a failure can say how far it came.
    async fn stages(&self, report: &mut Report) -> Result<Model, Failure> {
        if let Some(model) = self.made_before(&mut report.reduced).await? {
            return Ok(model);
        }
        let (base, local) = self.aggregate().await?;
        report.reduced.skipped.clone_from(&local.skipped);
        let reduced = self.agree(&base, local, report).await?;
        patiently(self.patience(), || self.keep_reduced(&report.reduced)).await?;
        self.step(base, reduced).await
    }

    /// The model of an earlier run that was cut off after it had written it.
    async fn made_before(&self, reduced: &mut Reduced) -> Result<Option<Model>, Failure> {
        let Some(before) = self.kept::<Reduced>(Reduced::FILE).await? else { return Ok(None) };
        let prefix = self.plan.new_prefix();
        let Some(manifest) = step::published(&self.artifacts, &prefix).await? else {
            return Ok(None);
        };
        if manifest.parent != Some(self.plan.base.model_hash) {
            return Err(Failure::Write(format!("{prefix} holds a model of another parent")));
        }
        info!(prefix, "the model was written before, nothing to do again");
        *reduced = before;
        let (global_version, model_hash) = (self.plan.new_version, manifest.model_hash);
        Ok(Some(Model { global_version, model_hash, prefix }))
    }

    /// Until when the artifact store is waited for.
    fn patience(&self) -> Instant {
        self.clock.at(self.plan.deadline)
    }

    async fn aggregate(&self) -> Result<(Base, Local), Failure> {
        let fetch = || model::fetch(&self.artifacts, &self.plan);
        let (folder, state) = patiently(self.patience(), fetch).await?;
        let (contributions, unfetched) = self.contributions().await?;
        let (plan, config) = (Arc::clone(&self.plan), Arc::clone(&self.config));
        let (before, own) = (self.lost_before().await?, self.folder.join("gradient"));
        let (residuals, round) = (self.residuals()?, self.plan.round);
        let span = tracing::Span::current();
        let work = move || {
            let _in = span.enter();
            let base = Base::open(&folder, state.as_deref(), &plan)?;
            keeping::fresh(&own)?;
            let cut = base.cut(config.codec, config.chunk_elements);
            let local = gradient::encode(&base, contributions, cut, before.as_deref(), &own)?;
            if local.chunks.is_some() && (local.residual.is_some() || before.is_some()) {
                let offered = residuals.offer(round, local.residual.as_deref());
                offered.map_err(|error| keeping::scratch("keep what encoding has lost", &error))?;
            }
            Ok::<_, Failure>((base, local))
        };
        let (base, mut local) =
            spawn_blocking(work).await.map_err(|e| Failure::Aggregate(e.to_string()))??;
        local.skipped.extend(unfetched);
        local.skipped.sort_by(|a, b| a.hotkey.cmp(&b.hotkey));
        for LeftOut { hotkey, reason, detail } in &local.skipped {
            warn!(%hotkey, reason, detail, "submission skipped");
        }
        Ok((base, local))
    }

    /// The miners' files, and those that are not there.
    async fn contributions(&self) -> Result<(Vec<Contribution>, Vec<LeftOut>), Failure> {
        let (mut fetched, mut unfetched) = (Vec::new(), Vec::new());
        for one in &self.plan.contributions {
            let fetch = async || Ok(self.artifacts.local_file(&one.key).await?);
            match patiently(self.patience(), fetch).await {
                Ok(path) => fetched.push(Contribution {
                    hotkey: one.hotkey.clone(),
                    weight: one.weight,
                    path,
                    model_hash: Some(one.model_hash),
                }),
                Err(Failure::Store(
                    error @ (ArtifactError::NotFound { .. } | ArtifactError::Key { .. }),
                )) => {
                    let (reason, detail) = ("not_stored".to_owned(), error.to_string());
                    metrics::skipped("not_stored");
                    unfetched.push(LeftOut { hotkey: one.hotkey.clone(), reason, detail });
                }
                Err(error) => return Err(error),
            }
        }
        Ok((fetched, unfetched))
    }

    /// Steps the optimizer and publishes the model.
    async fn step(&self, base: Base, reduced: ReducedVector) -> Result<Model, Failure> {
        self.shown.send_modify(|shown| shown.state = State::Writing);
        let (plan, folder) = (Arc::clone(&self.plan), self.folder.join("model"));
        let optimizer = OuterSgd::from(&self.config.optimizer);
        let (span, made) = (tracing::Span::current(), folder.clone());
        let work = move || {
            let _in = span.enter();
            // What a run before this one may have left half written.
            keeping::clear(&made)?;
            step::step(base, &plan, &optimizer, &reduced, &made)
        };
        let manifest = spawn_blocking(work).await.map_err(|e| Failure::Write(e.to_string()))??;
        let prefix = self.plan.new_prefix();
        // The others have this model by now: a store that is away for a while must not undo it.
        let until = Instant::now() + self.plan.deadline.max(Duration::from_secs(60));
        patiently(until, || step::publish(&self.artifacts, &folder, &prefix)).await?;
        if let Err(error) = keeping::clear(&folder) {
            warn!(%error, folder = %folder.display(), "temporary folder left behind");
        }
        let (global_version, model_hash) = (self.plan.new_version, manifest.model_hash);
        Ok(Model { global_version, model_hash, prefix })
    }
}
