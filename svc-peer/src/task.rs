//! The task of one round: aggregate, meet, reduce, write, and say how it ended.
//!
//! It can be killed at any point and started again with the same plan: what it computes depends on
//! its inputs alone, and what it has agreed on with others is kept in the artifact store
//! (`rounds/<round>/members.json`, then `reduced.json`, then `merge.json`).

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use checkpoint::OuterSgd;
use domain::Hotkey;
use serde::{Serialize, de::DeserializeOwned};
use store::{ArtifactError, Artifacts};
use tokio::{
    sync::{mpsc, watch},
    task::spawn_blocking,
    time::Instant,
};
use tracing::{info, warn};

use crate::{
    allreduce::{AllReduce, Whole},
    base::{Base, Local},
    calls::Caller,
    config::Config,
    meet::meet,
    members::{Meeting, Members},
    metrics,
    plan::{Model, Plan, Timetable},
    report::{Failure, LeftOut, Outcome, Reduced, Report},
    round::{Heard, Shown, State},
    write,
};

/// Largest of the small files of a round.
const MAX_JSON: u64 = 16 << 20;

/// Everything that the task of a round works with.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) plan: Arc<Plan>,
    pub(crate) config: Arc<Config>,
    pub(crate) artifacts: Artifacts,
    pub(crate) caller: Caller,
    /// Folder for the files of a model until they are published.
    pub(crate) scratch: PathBuf,
    pub(crate) times: Timetable,
    pub(crate) shown: watch::Sender<Shown>,
    pub(crate) heard: mpsc::Receiver<Heard>,
}

/// Whom a merge is with, as it is kept for a restart: `rounds/<round>/members.json`.
#[derive(Debug, Serialize, serde::Deserialize)]
struct Agreed {
    /// Members, and whether each has a gradient.
    members: BTreeMap<Hotkey, bool>,
    missing: Vec<LeftOut>,
}

impl Agreed {
    const FILE: &str = "members.json";
}

impl Task {
    /// Goes through the merge to its end, whatever that is, and shows and keeps its report.
    pub(crate) async fn run(mut self) {
        let mut reduced = Reduced::default();
        let report = match self.stages(&mut reduced).await {
            Ok(model) => self.report(reduced.outcome, String::new(), reduced, model),
            Err(failure) => {
                warn!(error = %failure, "merge failed, the model stays");
                self.report(Outcome::Failed, failure.to_string(), reduced, self.plan.base.clone())
            }
        };
        let mut pause = Duration::from_millis(100);
        while let Err(error) = self.keep(Report::FILE, &report).await {
            if matches!(error, Failure::Store(ArtifactError::Conflict { .. })) {
                // An earlier run got further than this one knows: what it said stays said.
                break;
            }
            warn!(%error, ?pause, "the report cannot be kept yet");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(10));
        }
        let report = self.kept(Report::FILE).await.ok().flatten().unwrap_or(report);
        metrics::merge_ended(report.outcome, self.times.start().elapsed());
        info!(
            outcome = report.outcome.as_str(),
            members = report.members.len(),
            digest = report.digest,
            model_hash = %report.model.model_hash,
            detail = report.detail(),
            "merge ended"
        );
        self.shown.send_modify(|shown| {
            shown.state = State::Ended;
            shown.report = Some(Arc::new(report));
        });
    }

    /// All stages; `reduced` is filled as they go, so that a failure can say how far it came.
    async fn stages(&mut self, reduced: &mut Reduced) -> Result<Model, Failure> {
        if let Some(model) = self.made_before(reduced).await? {
            return Ok(model);
        }
        let (base, local) = self.aggregate().await?;
        let len = base.len();
        let gradient = local.gradient.map(Arc::new);
        reduced.skipped = local.skipped;
        let optimizer = OuterSgd::from(&self.config.optimizer);
        let offer = base.offer(&self.plan, &optimizer, gradient.is_some())?;

        let meeting = Meeting::new(
            self.plan.hotkey.clone(),
            offer.clone(),
            self.plan.validators.keys().cloned().collect(),
        );
        self.shown.send_modify(|shown| {
            shown.state = State::Meeting;
            shown.offer = Some(offer);
            shown.gradient = gradient.clone();
            shown.met = meeting.met().clone();
        });
        let members = self.agree(meeting, reduced).await?;
        let whole = self.all_reduce(&members, gradient, len, reduced).await?;
        patiently(self.times.end(), || self.keep_reduced(reduced)).await?;
        self.write(base, optimizer, whole.vector).await
    }

    /// The model of an earlier run that was cut off after it had written it.
    async fn made_before(&self, reduced: &mut Reduced) -> Result<Option<Model>, Failure> {
        let Some(before) = self.kept::<Reduced>(Reduced::FILE).await? else { return Ok(None) };
        let prefix = self.plan.new_prefix();
        let Some(manifest) = write::published(&self.artifacts, &prefix).await? else {
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

    async fn aggregate(&self) -> Result<(Base, Local), Failure> {
        let fetch = || write::fetch_base(&self.artifacts, &self.plan);
        let (folder, momentum) = patiently(self.times.closed(), fetch).await?;
        let mut unfetched = Vec::new();
        let mut contributions = Vec::new();
        for one in &self.plan.contributions {
            let fetch = async || Ok(self.artifacts.local_file(&one.key).await?);
            match patiently(self.times.closed(), fetch).await {
                Ok(path) => contributions.push(checkpoint::Contribution {
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
        let plan = Arc::clone(&self.plan);
        let span = tracing::Span::current();
        let work = move || {
            let _in = span.enter();
            let base = Base::open(&folder, momentum.as_deref(), &plan)?;
            let local = base.aggregate(contributions)?;
            Ok::<_, Failure>((base, local))
        };
        let (base, mut local) =
            spawn_blocking(work).await.map_err(|e| Failure::Aggregate(e.to_string()))??;
        local.skipped.extend(unfetched);
        local.skipped.sort_by(|a, b| a.hotkey.cmp(&b.hotkey));
        for one in &local.skipped {
            warn!(hotkey = %one.hotkey, reason = one.reason, detail = one.detail, "submission skipped");
        }
        Ok((base, local))
    }

    async fn agree(&mut self, meeting: Meeting, reduced: &mut Reduced) -> Result<Members, Failure> {
        let agreed = match self.kept::<Agreed>(Agreed::FILE).await? {
            Some(agreed) if agreed.members.contains_key(&self.plan.hotkey) => agreed,
            Some(_) => return Err(Failure::Resume("this validator is not among them".to_owned())),
            None => {
                let others: Vec<Hotkey> = self.plan.validators.keys().cloned().collect();
                let interval = self.plan.pace(self.config.hello_interval);
                let Self { caller, times, heard, shown, .. } = self;
                let met = meet(caller, meeting, &others, *times, interval, heard, shown).await;
                reduced.missing = met.missing;
                let Some(members) = met.members else {
                    return Err(Failure::NoAgreement { met: met.others, expected: others.len() });
                };
                let gives = |h: &Hotkey| (h.clone(), members.givers().contains(h));
                let agreed = Agreed {
                    members: members.all().iter().map(gives).collect(),
                    missing: reduced.missing.clone(),
                };
                self.keep(Agreed::FILE, &agreed).await?;
                agreed
            }
        };
        reduced.missing = agreed.missing;
        let members = Members::new(agreed.members);
        self.shown.send_modify(|shown| {
            shown.state = State::Reducing;
            shown.met = members.all().iter().cloned().collect();
            shown.members = Some(Arc::new(members.clone()));
        });
        info!(members = ?members.all(), givers = members.givers().len(), "members agreed");
        Ok(members)
    }

    async fn all_reduce(
        &mut self,
        members: &Members,
        gradient: Option<Arc<Vec<f32>>>,
        len: usize,
        reduced: &mut Reduced,
    ) -> Result<Whole, Failure> {
        reduced.participants = members.all().to_vec();
        let alone = members.all().len() == 1;
        if alone && !self.plan.validators.is_empty() && !self.plan.allow_solo {
            return Err(Failure::LeftAlone);
        }
        if members.givers().is_empty() {
            return Err(Failure::NoGradients);
        }
        let Self { plan, caller, times, shown, heard, .. } = self;
        let all_reduce = AllReduce { caller, me: &plan.hotkey, members, times: *times };
        let gradient = gradient.as_deref().map(Vec::as_slice);
        let whole = all_reduce.run(gradient, len, shown).await?;
        shown.send_modify(|shown| shown.digest = Some(whole.digest));
        reduced.digest = hex::encode(whole.digest);
        reduced.slices.clone_from(&whole.slices);
        reduced.dropped.clone_from(&whole.dropped);
        all_reduce.confirm(whole.digest, heard).await?;
        reduced.outcome = if alone { Outcome::Solo } else { Outcome::Merged };
        reduced.members = members.givers().iter().cloned().collect();
        Ok(whole)
    }

    async fn write(
        &self,
        base: Base,
        optimizer: OuterSgd,
        vector: Vec<f32>,
    ) -> Result<Model, Failure> {
        self.shown.send_modify(|shown| shown.state = State::Writing);
        let (plan, folder) = (Arc::clone(&self.plan), self.scratch.clone());
        let span = tracing::Span::current();
        let work = move || {
            let _in = span.enter();
            // What a run before this one may have left half written.
            match std::fs::remove_dir_all(&folder) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Failure::Write(format!("clear {}: {error}", folder.display())));
                }
                Ok(()) | Err(_) => {}
            }
            write::make_model(base, &plan, &optimizer, &vector, &folder)
        };
        let manifest = spawn_blocking(work).await.map_err(|e| Failure::Write(e.to_string()))??;
        let prefix = self.plan.new_prefix();
        // The others have this model by now: a store that is away for a while must not undo it.
        let publish = || write::publish(&self.artifacts, &self.scratch, &prefix);
        patiently(self.times.end(), publish).await?;
        if let Err(error) = tokio::fs::remove_dir_all(&self.scratch).await {
            warn!(%error, folder = %self.scratch.display(), "temporary folder left behind");
        }
        let (global_version, model_hash) = (self.plan.new_version, manifest.model_hash);
        Ok(Model { global_version, model_hash, prefix })
    }

    fn report(&self, outcome: Outcome, why: String, reduced: Reduced, model: Model) -> Report {
        let Reduced { members, participants, digest, slices, missing, dropped, skipped, .. } =
            reduced;
        let round = self.plan.round;
        Report {
            round,
            outcome,
            why,
            members,
            participants,
            digest,
            slices,
            model,
            missing,
            dropped,
            skipped,
        }
    }

    async fn keep<T: Serialize>(&self, name: &str, value: &T) -> Result<(), Failure> {
        let json = serde_json::to_vec_pretty(value)
            .map_err(|error| Failure::Write(format!("{name}: {error}")))?;
        Ok(self.artifacts.put_bytes(&self.plan.round_key(name), Bytes::from(json)).await?)
    }

    /// Keeps what was agreed; an earlier run must have agreed on the same.
    async fn keep_reduced(&self, reduced: &Reduced) -> Result<(), Failure> {
        let Err(error) = self.keep(Reduced::FILE, reduced).await else { return Ok(()) };
        let before = self.kept::<Reduced>(Reduced::FILE).await?;
        match before {
            Some(before) if before.digest == reduced.digest => Ok(()),
            Some(before) => Err(Failure::Resume(format!(
                "reduced to {} before, and to {} now",
                before.digest, reduced.digest
            ))),
            None => Err(error),
        }
    }

    async fn kept<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Failure> {
        kept(&self.artifacts, &self.plan.round_key(name)).await
    }
}

/// Tries again while the artifact store is away, until it is too late.
async fn patiently<T, F>(until: Instant, mut work: impl FnMut() -> F) -> Result<T, Failure>
where
    F: Future<Output = Result<T, Failure>>,
{
    let mut pause = Duration::from_millis(100);
    loop {
        match work().await {
            Err(error) if error.passes() && Instant::now() + pause < until => {
                warn!(%error, ?pause, "trying again");
            }
            result => return result,
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(10));
    }
}

/// Reads a small JSON file of the artifact store, `None` when it is not there.
pub(crate) async fn kept<T: DeserializeOwned>(
    artifacts: &Artifacts,
    key: &str,
) -> Result<Option<T>, Failure> {
    match artifacts.get_bytes(key, MAX_JSON).await {
        Ok(json) => serde_json::from_slice(&json)
            .map(Some)
            .map_err(|error| Failure::Resume(format!("{key}: {error}"))),
        Err(ArtifactError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn away() -> Failure {
        let (key, reason) = ("models/1".to_owned(), "no route".to_owned());
        Failure::Store(ArtifactError::Engine { key, reason })
    }

    #[tokio::test]
    async fn a_store_that_is_away_for_a_moment_is_waited_for() {
        let mut answers = vec![Ok("there"), Err(away()), Err(away())];
        let until = Instant::now() + Duration::from_secs(600);
        let answer = patiently(until, || std::future::ready(answers.pop().unwrap())).await;
        assert_eq!(answer.unwrap(), "there");
        assert!(answers.is_empty());
    }

    #[tokio::test]
    async fn what_will_not_pass_and_what_is_too_late_is_not_waited_for() {
        let mut asked = 0;
        let mut ask = |failure: Failure| {
            asked += 1;
            std::future::ready(Err::<(), _>(failure))
        };
        let far = Instant::now() + Duration::from_secs(600);
        assert!(patiently(far, || ask(Failure::NoGradients)).await.is_err());
        assert!(patiently(Instant::now(), || ask(away())).await.is_err());
        assert_eq!(asked, 2);
    }
}
