//! Events in, state and effects out.

use super::{
    Degradation, DegradationKind, Effect, Event, FreezeInputs, JobKind, Policy, Record, Rejection,
    Reply, Round, Stage, State, WeightsOrigin, Write, WriteKind, chain, finalise, freeze, jobs,
    merge, results, resync, writes,
};
use crate::{BlockHash, BlockNumber, CycleIndex, Phase, RoundId};

/// Takes `event` in.
///
/// On a [`Rejection`] the state is as it was. The driver saves the state before it runs any effect
/// and before it answers whoever sent the event.
pub fn apply(state: &mut State, event: Event, policy: &Policy) -> Result<Reply, Rejection> {
    let reply = match event {
        Event::Block { number, hash, entropy, traceparent } => {
            on_block(state, (number, hash), entropy, traceparent, policy)
        }
        Event::Reorganised { ancestor, ancestor_hash, abandoned } => {
            Ok(chain::on_reorganised(state, ancestor, ancestor_hash, abandoned, policy))
        }
        Event::Degraded { kind, detail, block } => {
            Ok(chain::on_degraded(state, Degradation { kind, detail, block }))
        }
        Event::Held { round, why } => chain::on_held(state, round, &why),
        Event::Frozen { round, branch, inputs } => on_frozen(state, round, branch, *inputs, policy),
        Event::Stored { round, submission } => jobs::on_stored(state, round, submission, policy),
        Event::Refused { round, hotkey, cause } => jobs::on_refused(state, round, hotkey, cause),
        Event::Lease { worker } => Ok(jobs::on_lease(state, worker, policy)),
        Event::Renew { job, fence } => jobs::on_renew(state, &job, fence, policy),
        Event::Finish { job, fence, result } => {
            results::on_finish(state, job, fence, result, policy)
        }
        Event::Merged { round, outcome } => merge::on_merged(state, round, outcome),
        Event::HashSigned { round, signature } => writes::on_signed(state, round, &signature),
        Event::Written { round, kind, status } => writes::on_written(state, round, kind, status),
        Event::Revealed { cycle, asked, reveals } => {
            Ok(resync::on_revealed(state, (cycle, asked), &reveals, policy))
        }
        Event::Resynced { cycle, model, blamed } => {
            Ok(resync::on_resynced(state, cycle, model, &blamed))
        }
        Event::ResyncFailed { cycle, cause, blamed } => {
            Ok(resync::on_failed(state, cycle, cause, &blamed))
        }
        Event::ModelFound { model } => Ok(resync::on_found(state, model)),
        Event::EffectDone { effect } => Ok(match state.effects.remove(&effect) {
            Some(_) => Reply::Applied,
            None => Reply::Ignored,
        }),
    }?;
    if reply != Reply::Ignored && reply != Reply::Granted(None) {
        progress(state, policy);
        state.revision += 1;
    }
    Ok(reply)
}

fn on_block(
    state: &mut State,
    (number, hash): (BlockNumber, BlockHash),
    entropy: u64,
    traceparent: String,
    policy: &Policy,
) -> Result<Reply, Rejection> {
    let first = state.revision == 0;
    if number <= state.block && !first {
        return Ok(Reply::Ignored);
    }
    state.block = number;
    state.block_hash = Some(hash);
    let at = policy.schedule.phase_at(number);
    let (phase, cycle) = (at.phase_name, at.cycle_index);
    let newest = state.round.as_ref().map(|round| round.id);
    if phase < Phase::MinerCommit1 {
        resync::ask(state, traceparent, policy);
    } else {
        resync::end(state);
        if newest.is_none_or(|newest| newest < policy.schedule.round_id(cycle)) {
            close(state, policy);
            open(state, (cycle, phase), entropy, traceparent, policy);
        }
    }
    if let Some(round) = &mut state.round {
        jobs::expire(round, number, policy);
    }
    Ok(Reply::Applied)
}

/// Opens the round of a cycle. Without a model there is none: nobody could be compared with it.
fn open(
    state: &mut State,
    (cycle, phase): (CycleIndex, Phase),
    own_seed: u64,
    traceparent: String,
    policy: &Policy,
) {
    let Some(base) = state.base.clone() else { return };
    let opened_at = state.block;
    let missed = phase > Phase::Submission;
    let late = phase > Phase::MinerCommit1;
    let mut round = Round {
        id: policy.schedule.round_id(cycle),
        cycle,
        stage: if missed { Stage::Committing } else { Stage::Open },
        opened_at,
        branch: 0,
        held: None,
        traceparent,
        own_seed,
        base,
        history_before: state.history.clone(),
        frozen: None,
        miners: Default::default(),
        jobs: Default::default(),
        batches_digest: None,
        sources_digest: None,
        baseline: None,
        held_out_after: None,
        merge: None,
        weights: Vec::new(),
        weights_origin: WeightsOrigin::None,
        writes: Default::default(),
        degradations: resync::hand_over(state, (cycle, missed)),
    };
    if missed {
        let detail = format!("came in {phase} of cycle {cycle}: nothing to do in it");
        round.degrade(DegradationKind::RoundMissed, detail, opened_at);
    } else if late {
        let detail = format!("came in {phase}: no seed published");
        round.degrade(DegradationKind::LateStart, detail, opened_at);
    }
    state.round = Some(round);
}

fn on_frozen(
    state: &mut State,
    id: RoundId,
    branch: u64,
    inputs: FreezeInputs,
    policy: &Policy,
) -> Result<Reply, Rejection> {
    let (me, group) = (state.hotkey.clone(), state.expert_group);
    let (history, previous) = (state.history.clone(), state.last_weights.clone());
    let block = state.block;
    let round = state.open_round(id)?;
    if round.stage != Stage::Open {
        return Ok(Reply::Ignored);
    }
    if round.branch != branch {
        return Err(Rejection::OtherBranch { round: id });
    }
    round.held = None;
    freeze::freeze(round, &me, group, &history, &previous, inputs, policy);
    if round.frozen.as_ref().is_some_and(|frozen| frozen.seed.is_some()) {
        round.stage = Stage::Evaluating;
        round.add_job(JobKind::Baseline);
    } else {
        // As after a freeze that failed: the model stays, and nobody is judged.
        finalise::without_evaluation(round, block, policy);
        round.stage = Stage::Committing;
    }
    let frozen = round.frozen.as_ref();
    state.validators =
        frozen.map(|f| f.validators.iter().map(|v| v.hotkey.clone()).collect()).unwrap_or_default();
    state.effects.remove(&format!("{id}/freeze"));
    Ok(Reply::Applied)
}

/// Does whatever has become due: called after every change.
fn progress(state: &mut State, policy: &Policy) {
    let block = state.block;
    let Some(round) = &mut state.round else { return };
    jobs::give_up_without_data(round);
    let cycle = round.cycle;
    let phases = |phase| policy.schedule.phase_range(cycle, phase);
    let started = |phase| block >= phases(phase).0;
    let mut effects = Vec::new();

    if round.stage == Stage::Open && started(Phase::Submission) {
        let (id, branch) = (round.id, round.branch);
        effects.push(Effect::Freeze { round: id, block: BlockNumber(id.0), branch });
    }
    if round.stage == Stage::Open && started(Phase::Merge) {
        let mut detail = "the inputs of the round could not be read before Merge".to_owned();
        if let Some(why) = &round.held {
            detail = format!("{detail}: {why}");
        }
        round.degrade(DegradationKind::FreezeFailed, detail, block);
        round.stage = Stage::Committing;
        state.effects.remove(&format!("{}/freeze", round.id));
        effects.clear();
    }
    if round.stage == Stage::Evaluating && started(Phase::Merge) {
        finalise::finalise(round, &mut state.history, &mut state.last_weights, block, policy);
        effects.push(Effect::Merge(merge::plan(round, &state.hotkey, policy)));
        round.stage = Stage::Merging;
    }
    if round.stage == Stage::Merging && started(Phase::ValidatorCommit2) {
        merge::give_up(round, block);
        state.effects.remove(&format!("{}/merge", round.id));
    }
    writes::due(round, state.expert_group, block, policy, &mut effects);
    for effect in effects {
        state.effects.entry(effect.id()).or_insert(effect);
    }
    let over =
        round.stage == Stage::Committing && started(Phase::ValidatorCommit2) && is_finished(round);
    if writes::revealed(round) {
        state.take_over();
    }
    if over {
        close(state, policy);
    }
}

fn is_finished(round: &Round) -> bool {
    let missed = round.degradations.iter().any(|d| d.kind == DegradationKind::RoundMissed);
    let written = |kind| {
        round.writes.get(&kind).is_some_and(|write: &Write| write.status.state.is_terminal())
    };
    let weights = round.weights.is_empty() || written(WriteKind::Weights);
    missed || (written(WriteKind::ModelHash) && weights && round.jobs_are_over())
}

/// Ends the round, finished or not, and has its record written.
fn close(state: &mut State, policy: &Policy) {
    let block = state.block;
    let Some(round) = &mut state.round else { return };
    if round.stage == Stage::Closed {
        return;
    }
    let mut left = Vec::new();
    state.effects.retain(|id, effect| {
        let of_round = !matches!(effect, Effect::Reveals { .. } | Effect::Resync(_));
        let keep = !of_round || matches!(effect, Effect::Record(_));
        if !keep {
            left.push(id.clone());
        }
        keep
    });
    if !left.is_empty() {
        round.degrade(
            DegradationKind::Unfinished,
            format!("left undone: {}", left.join(", ")),
            block,
        );
    }
    round.stage = Stage::Closed;
    let record =
        Effect::Record(Box::new(Record::of(round, &state.hotkey, &state.history, policy, block)));
    state.effects.insert(record.id(), record);
    state.take_over();
}
