//! Work for evaluators: leased by block, given out again when the lease runs out, given up after a
//! bounded number of attempts. What is given up is the validator's fault.

use super::{
    Cause, DegradationKind, Job, JobKind, JobState, MergeOutcome, ModelRef, Policy, Rejection,
    Reply, Round, Stage, State, Submission, ranking,
};
use crate::{BlockNumber, ExpertGroup, Hotkey, Phase, Reason, Rival, RoundId, Seed};

/// Jobs that one worker may hold: one that runs, and the next one that it fetches and verifies
/// meanwhile. More would keep them from others, and go down with it.
pub(super) const MAX_LEASES: usize = 2;

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
    /// Batches of data that the miner could know, for a score; 0 for none.
    pub own_batches: u32,
    /// What the submission must beat to be paid, where policy lets it be stopped early.
    pub rival: Option<Rival>,
    /// Blocks until nobody waits for the result any more, at least 1.
    pub blocks_left: u64,
    /// Trace context of the round.
    pub traceparent: String,
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
        let job = Job {
            kind,
            state: JobState::Queued,
            attempts: 0,
            not_before: BlockNumber(0),
            not_for: Default::default(),
        };
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
    // A reason of the domain says what became of a file, or that the validator is to blame: one that only says
    // how a later try came to nothing does not undo it.
    let known = |cause: &Cause| cause.reason.parse::<Reason>().is_ok();
    if !known(&cause) && miner.refused.as_ref().is_some_and(known) {
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
    let Some(seed) = round.frozen.as_ref().and_then(|frozen| frozen.seed) else {
        return Reply::Granted(None);
    };
    let holds = |job: &&Job| match &job.state {
        JobState::Leased { worker: holder, .. } => *holder == worker,
        JobState::Queued | JobState::Done | JobState::Failed(_) => false,
    };
    if round.jobs.values().filter(holds).count() >= MAX_LEASES {
        return Reply::Granted(None);
    }
    let waits = |job: &Job| {
        let may = block >= job.not_before && !job.not_for.contains(&worker);
        job.state == JobState::Queued && may
    };
    let next = round.queue().find(|kind| round.jobs.get(&kind.id()).is_some_and(waits));
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
    let (own_batches, rival) = match &kind {
        JobKind::Score(_) => (policy.own_data.batches, ranking::rival(round, policy)),
        JobKind::Baseline | JobKind::HeldOut => (0, None),
    };
    let blocks_left = blocks_left(round, &kind, block, policy);
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
        own_batches,
        rival,
        blocks_left,
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
    let job = leased(state, id, fence)?.1;
    match job.state {
        JobState::Leased { until: ref mut old, .. } => *old = until,
        JobState::Queued | JobState::Done | JobState::Failed(_) => {}
    }
    let scores = matches!(job.kind, JobKind::Score(_));
    let rival = state.round.as_ref().filter(|_| scores).and_then(|r| ranking::rival(r, policy));
    Ok(Reply::Renewed(rival.map(Box::new)))
}

/// Blocks until a result of this kind comes too late: scores are final when Merge begins, and the
/// record is made of what there is at the cycle's end. At least 1.
fn blocks_left(round: &Round, kind: &JobKind, block: BlockNumber, policy: &Policy) -> u64 {
    let of = |phase| policy.schedule.phase_range(round.cycle, phase);
    let (merge, end) = (of(Phase::Merge).0, of(Phase::ValidatorCommit2).1.0 + 1);
    let until = match kind {
        JobKind::Score(_) => merge.0,
        JobKind::Baseline if block < merge => merge.0,
        // What comes after Merge still tells what the merge has changed.
        JobKind::Baseline | JobKind::HeldOut => end,
    };
    until.saturating_sub(block.0).max(1)
}

/// The job, if `fence` is the token of its present lease.
pub(super) fn leased<'a>(
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

/// Why the round has no data, if its baseline was given up for that.
pub(super) fn without_data(round: &Round) -> Option<&Cause> {
    match &round.jobs.get(&JobKind::Baseline.id())?.state {
        JobState::Failed(cause) if cause.reason == Reason::DataUnavailable.as_str() => Some(cause),
        JobState::Failed(_) | JobState::Queued | JobState::Leased { .. } | JobState::Done => None,
    }
}

/// Without data for the baseline there is none for anybody: what was not measured is not tried any
/// more.
pub(super) fn give_up_without_data(round: &mut Round) {
    let Some(cause) = without_data(round).cloned() else { return };
    for job in round.jobs.values_mut() {
        let waiting = matches!(job.state, JobState::Queued | JobState::Leased { .. });
        if waiting && matches!(job.kind, JobKind::Score(_)) {
            job.state = JobState::Failed(cause.clone());
        }
    }
}

/// Queues the job again, or gives it up. Data that could not be had is not asked for again at once:
/// what is unreachable now may come back in a block or two.
pub(super) fn retry(
    round: &mut Round,
    id: &str,
    cause: Cause,
    block: BlockNumber,
    policy: &Policy,
) {
    let Some(job) = round.jobs.get_mut(id) else { return };
    let story = format!("{id}, attempt {}: {} ({})", job.attempts, cause.detail, cause.reason);
    let kind = if job.attempts >= policy.max_attempts {
        job.state = JobState::Failed(cause);
        DegradationKind::JobFailed
    } else {
        if cause.reason == Reason::DataUnavailable.as_str() {
            job.not_before = BlockNumber(block.0 + u64::from(job.attempts));
        }
        job.state = JobState::Queued;
        DegradationKind::JobRetried
    };
    round.degrade(kind, story, block);
}
