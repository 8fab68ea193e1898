//! What came out of a job: checked again, whoever says it, and taken into the round.

use serde::{Deserialize, Serialize};

use super::{
    Baseline, Cause, DegradationKind, JobKind, JobState, OwnMeasured, Policy, Rejection, Reply,
    Round, Stage, State, Verdict,
    degradation::bounded,
    jobs::{leased, retry},
    ranking,
};
use crate::{
    BlockNumber, Hotkey, Improvement, MeasuredOn, OwnData, Reason, Seed, Sketch, compare, mean,
};

/// What came out of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Finished {
    /// It was measured.
    Measured(Measured),
    /// The submission is invalid: the miner's fault.
    Invalid(Cause),
    /// The worker could not do it.
    Failed(Cause),
}

/// Losses per batch, in nats per token.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Measured {
    /// Of the base model on the round's batches.
    pub baseline: Vec<f64>,
    /// Of the submission on the same; only on the first ones when it was stopped early.
    pub losses: Vec<f64>,
    /// Whether it was stopped early, as it can no longer reach the job's rival.
    pub out_of_reach: bool,
    /// Of the job's model on the held-out batches.
    pub held_out: Vec<f64>,
    /// Of the base model on data that the miner could know.
    pub own_baseline: Vec<f64>,
    /// Of the submission on the same.
    pub own_losses: Vec<f64>,
    /// What the submission changed in the base model.
    pub sketch: Option<Sketch>,
    /// Digest of the token ids used.
    pub batches_digest: String,
    /// Digest of the data sources that they were drawn from; empty when it is not told.
    pub sources_digest: String,
}

pub(super) fn on_finish(
    state: &mut State,
    id: String,
    fence: u64,
    result: Finished,
    policy: &Policy,
) -> Result<Reply, Rejection> {
    let (block, job) = leased(state, &id, fence)?;
    let kind = job.kind.clone();
    let bad = |why: String| Rejection::BadResult { job: id.clone(), why };
    match &result {
        Finished::Measured(measured) => check(&kind, measured, policy).map_err(bad)?,
        Finished::Invalid(_) if !matches!(kind, JobKind::Score(_)) => {
            return Err(bad("only a submission can be invalid".to_owned()));
        }
        Finished::Invalid(_) | Finished::Failed(_) => {}
    }
    let Some(round) = state.round.as_mut() else { return Ok(Reply::Ignored) };
    match (result, kind) {
        (Finished::Failed(cause), _) => {
            retry(round, &id, cause, block, policy);
            return Ok(Reply::Applied);
        }
        (Finished::Invalid(cause), JobKind::Score(hotkey)) => {
            round.judge(&hotkey, Verdict::Invalid(cause));
        }
        (Finished::Invalid(_), JobKind::Baseline | JobKind::HeldOut) => {}
        (Finished::Measured(measured), JobKind::HeldOut) => {
            round.held_out_after = mean(&measured.held_out);
        }
        (Finished::Measured(measured), JobKind::Baseline) => {
            let held_out =
                mean(&measured.held_out).ok_or_else(|| bad("no held-out losses".to_owned()))?;
            if let Err(why) = round.same_batches(&measured) {
                round.differs(&id, why, block, policy);
                return Ok(Reply::Applied);
            }
            round.keep_batches(&measured);
            let held_out_batches = u32::try_from(measured.held_out.len()).unwrap_or(u32::MAX);
            let losses = measured.baseline;
            round.baseline = Some(Baseline { losses, held_out, held_out_batches });
        }
        (Finished::Measured(measured), JobKind::Score(hotkey)) => {
            let seed = round.frozen.as_ref().and_then(|frozen| frozen.seed);
            let seed = seed.ok_or_else(|| Rejection::LeaseLost { job: id.clone() })?;
            if let Err(why) = round.same_batches(&measured) {
                round.differs(&id, why, block, policy);
                return Ok(Reply::Applied);
            }
            let verdict = match measured.out_of_reach {
                true => stopped(&measured, round, &seed, &hotkey, policy),
                false => Some(scored(&measured, &seed, &hotkey, policy).map_err(bad)?),
            };
            let Some(verdict) = verdict else {
                let detail = "stopped early, though nobody is known whom it does not reach";
                let reason = Reason::EvaluatorError.as_str().to_owned();
                let cause = Cause { reason, detail: detail.to_owned() };
                retry(round, &id, cause, block, policy);
                return Ok(Reply::Applied);
            };
            round.keep_batches(&measured);
            round.judge(&hotkey, verdict);
        }
    }
    if let Some(job) = round.jobs.get_mut(&id) {
        job.state = JobState::Done;
    }
    if round.stage == Stage::Evaluating {
        resume_stopped(round, block, policy);
    }
    Ok(Reply::Applied)
}

/// What a worker must have measured for a job of this kind.
fn check(kind: &JobKind, measured: &Measured, policy: &Policy) -> Result<(), String> {
    let Measured { baseline, losses, held_out, own_baseline, own_losses, .. } = measured;
    let finite = |values: &[f64]| values.iter().all(|value| value.is_finite() && *value >= 0.0);
    if ![baseline, losses, held_out, own_baseline, own_losses].into_iter().all(|v| finite(v)) {
        return Err("a loss is not a finite, non-negative number".to_owned());
    }
    let all = policy.terms.batches as usize;
    let whole = |what: &str, values: &[f64]| match values.len() == all {
        true => Ok(()),
        false => Err(format!("{} losses of {what} for {all} batches", values.len())),
    };
    match kind {
        JobKind::Score(_) if measured.out_of_reach => {
            if policy.early_stop.is_none() {
                return Err("stopped early, which policy does not allow".to_owned());
            }
            if losses.is_empty() || losses.len() >= all || baseline.len() < losses.len() {
                let (n, base) = (losses.len(), baseline.len());
                return Err(format!("stopped early with {n} and {base} losses of {all}"));
            }
        }
        JobKind::Score(_) => {
            whole("the base model", baseline)?;
            whole("the submission", losses)?;
        }
        JobKind::Baseline => whole("the base model", baseline)?,
        JobKind::HeldOut => {}
    }
    match kind {
        JobKind::Score(_) => {
            let wanted = policy.own_data.batches as usize;
            // One that was stopped early may have been stopped before its own data.
            let none = measured.out_of_reach && own_losses.is_empty() && own_baseline.is_empty();
            if !none && (own_baseline.len() != wanted || own_losses.len() != wanted) {
                let (n, base) = (own_losses.len(), own_baseline.len());
                return Err(format!("{n} and {base} losses of its own data for {wanted} batches"));
            }
        }
        JobKind::Baseline | JobKind::HeldOut => {
            if held_out.is_empty() {
                return Err("no held-out losses".to_owned());
            }
        }
    }
    let batches = matches!(kind, JobKind::Score(_) | JobKind::Baseline);
    if batches && measured.batches_digest.is_empty() {
        return Err("no digest of the batches".to_owned());
    }
    Ok(())
}

/// The verdict on a submission that was measured to its end.
fn scored(
    measured: &Measured,
    seed: &Seed,
    hotkey: &Hotkey,
    policy: &Policy,
) -> Result<Verdict, String> {
    let Measured { baseline, losses, own_baseline, own_losses, .. } = measured;
    let raw = compare(baseline, losses).map_err(|error| error.to_string())?.raw;
    let improvement = Improvement::of(baseline, losses, MeasuredOn::Round, seed, hotkey);
    let own = (!own_losses.is_empty()).then(|| {
        let own = Improvement::of(own_baseline, own_losses, MeasuredOn::Own, seed, hotkey);
        let says = improvement
            .zip(own)
            .and_then(|(random, own)| OwnData::of(&random, &own, policy.own_data.share));
        let (baseline, losses) = (own_baseline.clone(), own_losses.clone());
        OwnMeasured { baseline, losses, improvement: own, says }
    });
    Ok(Verdict::Measured {
        baseline: baseline.clone(),
        losses: losses.clone(),
        raw,
        batches_digest: measured.batches_digest.clone(),
        improvement,
        own,
        sketch: measured.sketch.clone(),
    })
}

/// The verdict on one that was stopped early; none when it was stopped without need.
fn stopped(
    measured: &Measured,
    round: &Round,
    seed: &Seed,
    hotkey: &Hotkey,
    policy: &Policy,
) -> Option<Verdict> {
    let Measured { baseline, losses, batches_digest, .. } = measured;
    let rival = ranking::beaten_by(losses, round, policy)?;
    Some(Verdict::OutOfReach {
        baseline: baseline.iter().take(losses.len()).copied().collect(),
        losses: losses.clone(),
        rival: mean(&rival.losses)?,
        batches_digest: batches_digest.clone(),
        improvement: Improvement::of(baseline, losses, MeasuredOn::Round, seed, hotkey),
    })
}

/// Measures those to their end whose rival is one no more.
fn resume_stopped(round: &mut Round, block: BlockNumber, policy: &Policy) {
    for hotkey in ranking::stopped_without_rival(round, policy) {
        let id = JobKind::Score(hotkey.clone()).id();
        let Some(job) = round.jobs.get_mut(&id) else { continue };
        job.state = JobState::Queued;
        job.attempts = job.attempts.saturating_sub(1);
        if let Some(miner) = round.miners.get_mut(&hotkey) {
            miner.verdict = None;
        }
        let detail = format!("{id}: whom it could not reach is somebody's duplicate");
        round.degrade(DegradationKind::JobRetried, detail, block);
    }
}

impl Round {
    fn judge(&mut self, hotkey: &Hotkey, verdict: Verdict) {
        if let Some(miner) = self.miners.get_mut(hotkey) {
            miner.verdict = Some(verdict);
        }
    }

    /// Whether these are the round's batches; the first ones are.
    fn same_batches(&self, measured: &Measured) -> Result<(), String> {
        let pairs = [
            ("batches", &measured.batches_digest, &self.batches_digest),
            ("sources", &measured.sources_digest, &self.sources_digest),
        ];
        for (what, told, known) in pairs {
            let differs = known.as_ref().filter(|known| !told.is_empty() && *known != told);
            if let Some(known) = differs {
                let told = bounded(told);
                return Err(format!("digest {told} of the {what} instead of the round's {known}"));
            }
        }
        Ok(())
    }

    /// Makes the first accepted result's batches the round's.
    fn keep_batches(&mut self, measured: &Measured) {
        let told = |digest: &String| (!digest.is_empty()).then(|| digest.clone());
        let first = |known: &mut Option<String>, digest| *known = known.take().or(told(digest));
        first(&mut self.batches_digest, &measured.batches_digest);
        first(&mut self.sources_digest, &measured.sources_digest);
    }

    /// Takes the job from a worker that measured it on other batches, and gives it to another one.
    fn differs(&mut self, id: &str, why: String, block: BlockNumber, policy: &Policy) {
        let job = self.jobs.get_mut(id);
        let worker = job.and_then(|job| match &job.state {
            JobState::Leased { worker, .. } => {
                let worker = worker.clone();
                job.not_for.insert(worker.clone());
                Some(worker)
            }
            JobState::Queued | JobState::Done | JobState::Failed(_) => None,
        });
        let detail = format!("{id} by {}: {why}", worker.unwrap_or_default());
        self.degrade(DegradationKind::BatchesDiffer, detail.clone(), block);
        let reason = Reason::EvaluatorError.as_str().to_owned();
        retry(self, id, Cause { reason, detail: why }, block, policy);
    }
}
