//! Work for evaluators: leased by block, given out again when the lease runs out, given up after a
//! bounded number of attempts. What is given up is the validator's fault.

use serde::{Deserialize, Serialize};

use super::{
    Baseline, Cause, DegradationKind, Job, JobKind, JobState, MergeOutcome, ModelRef, Policy,
    Rejection, Reply, Round, Stage, State, Submission, Verdict,
};
use crate::{BlockNumber, ExpertGroup, Hotkey, Phase, Reason, RoundId, Seed, compare, mean};

/// A job as it is given to a worker.
#[derive(Debug, Clone, PartialEq)]
pub struct JobGrant {
    /// Name, unique within the round.
    pub id: String,
    /// Which round.
    pub round: RoundId,
    /// Token of the lease.
    pub fence: u64,
    /// How often it was given out, this time included.
    pub attempt: u32,
    /// What to do.
    pub kind: JobKind,
    /// The model to evaluate.
    pub model: ModelRef,
    /// Expert group.
    pub expert_group: ExpertGroup,
    /// The submission, for a score.
    pub submission: Option<Submission>,
    /// What the round's batches are drawn from.
    pub seed: Seed,
    /// Trace context of the round.
    pub traceparent: String,
}

/// What came out of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Finished {
    /// Losses per batch, in nats per token.
    Measured {
        /// Of the base model on the round's batches.
        baseline: Vec<f64>,
        /// Of the submission on the same.
        losses: Vec<f64>,
        /// Of the job's model on the held-out batches.
        held_out: Vec<f64>,
        /// Digest of the token ids used.
        batches_digest: String,
    },
    /// The submission is invalid: the miner's fault.
    Invalid(Cause),
    /// The worker could not do it.
    Failed(Cause),
}

impl JobKind {
    /// The job's name.
    pub fn id(&self) -> String {
        match self {
            Self::Baseline => "baseline".to_owned(),
            Self::Score(hotkey) => format!("score/{hotkey}"),
            Self::HeldOut => "held_out".to_owned(),
        }
    }
}

impl Round {
    pub(super) fn add_job(&mut self, kind: JobKind) {
        let job = Job { kind, state: JobState::Queued, attempts: 0 };
        self.jobs.entry(job.kind.id()).or_insert(job);
    }

    pub(super) fn jobs_are_over(&self) -> bool {
        self.jobs.values().all(|job| matches!(job.state, JobState::Done | JobState::Failed(_)))
    }

    /// Jobs in the order in which they are given out: the baseline, the roster, the held-out set.
    fn queue(&self) -> impl Iterator<Item = JobKind> {
        let roster = self.frozen.as_ref().map(|frozen| frozen.roster.clone()).unwrap_or_default();
        std::iter::once(JobKind::Baseline)
            .chain(std::iter::once(JobKind::HeldOut))
            .chain(roster.into_iter().map(JobKind::Score))
    }
}

pub(super) fn on_stored(
    state: &mut State,
    id: RoundId,
    submission: Submission,
    policy: &Policy,
) -> Result<Reply, Rejection> {
    let block = state.block;
    let round = state.open_round(id)?;
    let hotkey = submission.hotkey.clone();
    let not_on_roster = || Rejection::NotOnRoster { hotkey: hotkey.clone(), round: id };
    let last = policy.schedule.phase_range(round.cycle, Phase::Validate).1;
    let open = round.stage == Stage::Evaluating && block <= last;
    let miner = round.miners.get_mut(&hotkey).ok_or_else(not_on_roster)?;
    if let Some(known) = &miner.submission {
        return match known.key == submission.key && known.sha256 == submission.sha256 {
            true => Ok(Reply::Ignored),
            false => Err(Rejection::AlreadySubmitted { hotkey, round: id }),
        };
    }
    if miner.committed.is_none() {
        return Err(not_on_roster());
    }
    if !open {
        return Err(Rejection::UploadsClosed { round: id });
    }
    miner.submission = Some(submission);
    miner.refused = None;
    round.add_job(JobKind::Score(hotkey));
    Ok(Reply::Applied)
}

pub(super) fn on_refused(
    state: &mut State,
    id: RoundId,
    hotkey: Hotkey,
    cause: Cause,
) -> Result<Reply, Rejection> {
    let round = state.open_round(id)?;
    let Some(miner) = round.miners.get_mut(&hotkey) else {
        return Err(Rejection::NotOnRoster { hotkey, round: id });
    };
    if round.stage != Stage::Evaluating || miner.submission.is_some() {
        return Ok(Reply::Ignored);
    }
    miner.refused = Some(cause);
    Ok(Reply::Applied)
}

pub(super) fn on_lease(state: &mut State, worker: String, policy: &Policy) -> Reply {
    let (fence, block, group) = (state.next_fence, state.block, state.expert_group);
    let Some(round) = state.round.as_mut().filter(|round| round.stage != Stage::Closed) else {
        return Reply::Granted(None);
    };
    let Some(seed) = round.frozen.as_ref().map(|frozen| frozen.seed) else {
        return Reply::Granted(None);
    };
    let next = round
        .queue()
        .find(|kind| round.jobs.get(&kind.id()).is_some_and(|job| job.state == JobState::Queued));
    let Some(kind) = next else { return Reply::Granted(None) };
    let merged = round.merge.as_ref().and_then(MergeOutcome::model);
    let model = match &kind {
        JobKind::HeldOut => merged.unwrap_or(&round.base).clone(),
        JobKind::Baseline | JobKind::Score(_) => round.base.clone(),
    };
    let submission = match &kind {
        JobKind::Score(hotkey) => round.miners.get(hotkey).and_then(|m| m.submission.clone()),
        JobKind::Baseline | JobKind::HeldOut => None,
    };
    let id = kind.id();
    let Some(job) = round.jobs.get_mut(&id) else { return Reply::Granted(None) };
    job.attempts += 1;
    job.state =
        JobState::Leased { worker, fence, until: BlockNumber(block.0 + policy.lease_blocks) };
    let grant = JobGrant {
        id,
        round: round.id,
        fence,
        attempt: job.attempts,
        kind,
        model,
        expert_group: group,
        submission,
        seed,
        traceparent: round.traceparent.clone(),
    };
    state.next_fence += 1;
    Reply::Granted(Some(Box::new(grant)))
}

pub(super) fn on_renew(
    state: &mut State,
    id: &str,
    fence: u64,
    policy: &Policy,
) -> Result<Reply, Rejection> {
    let until = BlockNumber(state.block.0 + policy.lease_blocks);
    match leased(state, id, fence)?.1.state {
        JobState::Leased { until: ref mut old, .. } => *old = until,
        JobState::Queued | JobState::Done | JobState::Failed(_) => {}
    }
    Ok(Reply::Applied)
}

/// The job, if `fence` is the token of its present lease.
fn leased<'a>(
    state: &'a mut State,
    id: &str,
    fence: u64,
) -> Result<(BlockNumber, &'a mut Job), Rejection> {
    let lost = || Rejection::LeaseLost { job: id.to_owned() };
    let block = state.block;
    let round = state.round.as_mut().filter(|r| r.stage != Stage::Closed).ok_or_else(lost)?;
    let job = round.jobs.get_mut(id).ok_or_else(lost)?;
    match job.state {
        JobState::Leased { fence: held, .. } if held == fence => Ok((block, job)),
        JobState::Leased { .. } | JobState::Queued | JobState::Done | JobState::Failed(_) => {
            Err(lost())
        }
    }
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
    let bad = |why: &str| Rejection::BadResult { job: id.clone(), why: why.to_owned() };
    if let Finished::Measured { baseline, losses, held_out, .. } = &result {
        check(&kind, baseline, losses, held_out).map_err(bad)?;
    }
    if matches!(result, Finished::Invalid(_)) && !matches!(kind, JobKind::Score(_)) {
        return Err(bad("only a submission can be invalid"));
    }
    let Some(round) = state.round.as_mut() else { return Ok(Reply::Ignored) };
    let verdict = match result {
        Finished::Failed(cause) => {
            retry(round, &id, cause, block, policy);
            return Ok(Reply::Applied);
        }
        Finished::Invalid(cause) => Some(Verdict::Invalid(cause)),
        Finished::Measured { baseline, losses, held_out, batches_digest } => match kind {
            JobKind::Baseline => {
                let held_out = mean(&held_out).ok_or_else(|| bad("no held-out losses"))?;
                round.baseline = Some(Baseline { losses: baseline, held_out });
                None
            }
            JobKind::HeldOut => {
                round.held_out_after = mean(&held_out);
                None
            }
            JobKind::Score(_) => {
                let raw = compare(&baseline, &losses).map_err(|e| bad(&e.to_string()))?.raw;
                Some(Verdict::Measured { baseline, losses, raw, batches_digest })
            }
        },
    };
    if let (JobKind::Score(hotkey), Some(verdict)) = (&kind, verdict)
        && let Some(miner) = round.miners.get_mut(hotkey)
    {
        miner.verdict = Some(verdict);
    }
    if let Some(job) = round.jobs.get_mut(&id) {
        job.state = JobState::Done;
    }
    Ok(Reply::Applied)
}

/// What a worker must have measured for a job of this kind.
fn check(
    kind: &JobKind,
    baseline: &[f64],
    losses: &[f64],
    held_out: &[f64],
) -> Result<(), &'static str> {
    let finite = |values: &[f64]| values.iter().all(|value| value.is_finite() && *value >= 0.0);
    if !finite(baseline) || !finite(losses) || !finite(held_out) {
        return Err("a loss is not a finite, non-negative number");
    }
    let complete = match kind {
        JobKind::Baseline => !baseline.is_empty() && !held_out.is_empty(),
        JobKind::Score(_) => !losses.is_empty() && baseline.len() == losses.len(),
        JobKind::HeldOut => !held_out.is_empty(),
    };
    if complete { Ok(()) } else { Err("losses are missing") }
}

/// Gives back the jobs whose lease is over.
pub(super) fn expire(round: &mut Round, block: BlockNumber, policy: &Policy) {
    let over: Vec<(String, String)> = round
        .jobs
        .iter()
        .filter_map(|(id, job)| match &job.state {
            JobState::Leased { worker, until, .. } if *until <= block => {
                Some((id.clone(), worker.clone()))
            }
            JobState::Leased { .. } | JobState::Queued | JobState::Done | JobState::Failed(_) => {
                None
            }
        })
        .collect();
    for (id, worker) in over {
        let detail = format!("{worker} did not renew its lease");
        let cause = Cause { reason: Reason::WorkerLost.as_str().to_owned(), detail };
        retry(round, &id, cause, block, policy);
    }
}

/// Queues the job again, or gives it up.
fn retry(round: &mut Round, id: &str, cause: Cause, block: BlockNumber, policy: &Policy) {
    let Some(job) = round.jobs.get_mut(id) else { return };
    let story = format!("{id}, attempt {}: {} ({})", job.attempts, cause.detail, cause.reason);
    let kind = if job.attempts >= policy.max_attempts {
        job.state = JobState::Failed(cause);
        DegradationKind::JobFailed
    } else {
        job.state = JobState::Queued;
        DegradationKind::JobRetried
    };
    round.degrade(kind, story, block);
}
