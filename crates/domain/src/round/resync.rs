//! Whether this validator has the model that the stake majority has, and how it comes to it where it
//! has not: between the end of a cycle and MinerCommit1 of the next one, when no round is decided.

use serde::{Deserialize, Serialize};

use super::{
    Cause, Degradation, DegradationKind, Effect, LeftOut, MergeOutcome, ModelRef, Policy, Reply,
    Reveals, Stage, State, chain::MAX_PER_KIND, degradation::bounded,
};
use crate::{Backed, BlockNumber, CycleIndex, Holder, Phase, RoundId};

/// What the peer service needs to know to fetch a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResyncPlan {
    /// Cycle in which it was revealed.
    pub cycle: CycleIndex,
    /// Its round.
    pub round: RoundId,
    /// The model, and where it goes to.
    pub model: ModelRef,
    /// The others who have revealed it, ascending by hotkey.
    pub holders: Vec<Holder>,
    /// First block at which it is too late.
    pub until: BlockNumber,
    /// Trace context.
    pub traceparent: String,
}

/// How far it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResyncStage {
    /// What validators have revealed is being read.
    Reading,
    /// The block as of which it was read is not on the chain any more: it is read anew.
    TakenBack,
    /// Nobody has revealed anything.
    Nobody,
    /// No model has more than half of the stake behind it: this validator keeps its own.
    Split,
    /// This validator has the majority's model.
    Same,
    /// The majority's model is being fetched.
    Fetching(ResyncPlan),
    /// This validator has it now.
    Done(ModelRef),
    /// It did not work out before MinerCommit1.
    Late,
}

impl ResyncStage {
    /// The stable, snake_case name.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Reading => "reading",
            Self::TakenBack => "taken_back",
            Self::Nobody => "nobody",
            Self::Split => "split",
            Self::Same => "same",
            Self::Fetching(_) => "fetching",
            Self::Done(_) => "done",
            Self::Late => "late",
        }
    }
}

/// The look at what the validators of a cycle have revealed, and what follows from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resync {
    /// The cycle.
    pub cycle: CycleIndex,
    /// Names this look: what an earlier one has read does not count any more.
    pub asked: u64,
    /// How far it is.
    pub stage: ResyncStage,
    /// The model with the most stake behind it, once that is known.
    pub most: Option<Backed>,
    /// What came of the last try that failed.
    pub cause: Option<Cause>,
    /// What did not go the normal way: it goes into the next round.
    pub degradations: Vec<Degradation>,
}

impl Resync {
    fn degrade(&mut self, kind: DegradationKind, detail: String, block: BlockNumber) {
        let degradation = Degradation { kind, detail, block };
        let of_kind = self.degradations.iter().filter(|known| known.kind == kind);
        if of_kind.count() < MAX_PER_KIND && !self.degradations.contains(&degradation) {
            self.degradations.push(degradation);
        }
    }

    fn blame(&mut self, blamed: &[LeftOut], block: BlockNumber) {
        for one in blamed {
            let detail = bounded(&one.told());
            let kind = DegradationKind::PeerBlamed;
            let known = |d: &Degradation| d.kind == kind && d.detail == detail;
            if !self.degradations.iter().any(known) {
                self.degrade(kind, detail, block);
            }
        }
    }

    /// Names of the effects that carry it out.
    fn effects(&self) -> [String; 2] {
        [reveals_id(self.cycle), resync_id(self.cycle)]
    }
}

/// Name of the effect that reads what was revealed.
pub(super) fn reveals_id(cycle: CycleIndex) -> String {
    format!("reveals/{cycle}")
}

/// Name of the effect that fetches a model.
pub(super) fn resync_id(cycle: CycleIndex) -> String {
    format!("resync/{cycle}")
}

/// Asks for what the last cycle's validators have revealed, once, in Distribute or Train.
pub(super) fn ask(state: &mut State, traceparent: String, policy: &Policy) {
    let at = policy.schedule.phase_at(state.block);
    let Some(last) = at.cycle_index.0.checked_sub(1).map(CycleIndex) else { return };
    let known = |r: &Resync| r.cycle >= last && r.stage != ResyncStage::TakenBack;
    let running = |stage| !matches!(stage, Stage::Committing | Stage::Closed);
    if at.phase_name >= Phase::MinerCommit1
        || state.resync.as_ref().is_some_and(known)
        || state.round.as_ref().is_some_and(|round| running(round.stage))
    {
        return;
    }
    match state.resync.as_ref().is_some_and(|resync| resync.cycle == last) {
        true => give_up(state),
        false => end(state),
    }
    if state.round.as_ref().is_some_and(|round| round.cycle < last) {
        state.take_over();
    }
    let of_round = state.round.as_ref().filter(|round| round.cycle == last);
    let traceparent = of_round.map_or(traceparent, |round| round.traceparent.clone());
    let asked = state.revision;
    let degradations = state.resync.take().map(|r| r.degradations).unwrap_or_default();
    state.resync = Some(Resync {
        cycle: last,
        asked,
        stage: ResyncStage::Reading,
        most: None,
        cause: None,
        degradations,
    });
    let effect = Effect::Reveals { cycle: last, asked, traceparent };
    state.effects.insert(effect.id(), effect);
}

/// Takes in what was read, and decides.
pub(super) fn on_revealed(
    state: &mut State,
    (cycle, asked): (CycleIndex, u64),
    reveals: &Reveals,
    policy: &Policy,
) -> Reply {
    let (block, group) = (state.block, state.expert_group);
    let awaited =
        |r: &&mut Resync| (r.cycle, r.asked) == (cycle, asked) && r.stage == ResyncStage::Reading;
    let Some(resync) = state.resync.as_mut().filter(awaited) else { return Reply::Ignored };
    let effect = state.effects.remove(&reveals_id(cycle));
    let Some(Effect::Reveals { traceparent, .. }) = effect else { return Reply::Ignored };
    for told in reveals.degradations.iter().filter(|told| told.kind.is_chains()) {
        resync.degrade(told.kind, bounded(&told.detail), told.block);
    }
    resync.cause = None;
    resync.most = reveals.most_backed(cycle, group, policy);
    let Some(most) = &resync.most else {
        resync.stage = ResyncStage::Nobody;
        return Reply::Applied;
    };
    if !most.is_majority() {
        let detail = format!(
            "of the stake behind the reveals of cycle {cycle}, {} of {} are for model {}: no majority",
            most.stake, most.revealed, most.model_hash
        );
        resync.stage = ResyncStage::Split;
        resync.degrade(DegradationKind::MajorityUnknown, detail, block);
        return Reply::Applied;
    }
    let most = most.clone();
    follow(state, cycle, &most, traceparent, policy);
    Reply::Applied
}

/// Comes to the majority's model: it is here, or it is fetched.
fn follow(
    state: &mut State,
    cycle: CycleIndex,
    most: &Backed,
    traceparent: String,
    policy: &Policy,
) {
    let wanted = |model: &&ModelRef| model.model_hash == most.model_hash;
    if state.base.as_ref().is_some_and(|base| wanted(&base)) {
        return set_stage(state, ResyncStage::Same);
    }
    let round = state.round.as_ref();
    let merged = round.and_then(|round| round.merge.as_ref()).and_then(MergeOutcome::model);
    let known = merged.into_iter().chain(round.map(|round| &round.base)).find(wanted).cloned();
    if let Some(model) = known {
        return arrive(state, model, "which was here");
    }
    let version = most.version;
    let plan = ResyncPlan {
        cycle,
        round: policy.schedule.round_id(cycle),
        model: ModelRef {
            global_version: version,
            model_hash: most.model_hash,
            // What lies under the version alone may be another one: this validator's own.
            prefix: format!("models/{version}-{}", &most.model_hash.to_hex()[..16]),
        },
        holders: most.holders.iter().filter(|one| one.hotkey != state.hotkey).cloned().collect(),
        until: policy.schedule.phase_range(CycleIndex(cycle.0 + 1), Phase::MinerCommit1).0,
        traceparent,
    };
    let effect = Effect::Resync(plan.clone());
    state.effects.insert(effect.id(), effect);
    set_stage(state, ResyncStage::Fetching(plan));
}

fn set_stage(state: &mut State, stage: ResyncStage) {
    if let Some(resync) = &mut state.resync {
        resync.stage = stage;
    }
}

/// The next round stands on `model`.
fn arrive(state: &mut State, model: ModelRef, how: &str) {
    let block = state.block;
    let before = state.base.replace(model.clone());
    let Some(resync) = &mut state.resync else { return };
    let before = before.map_or("none".to_owned(), |before| before.model_hash.to_hex());
    let (hash, version) = (model.model_hash, model.global_version);
    let detail = format!(
        "the stake majority of cycle {} has model {hash} of version {version}, {how}; this \
         validator had {before}",
        resync.cycle
    );
    resync.degrade(DegradationKind::Resynced, detail, block);
    resync.stage = ResyncStage::Done(model);
}

/// The model is here.
pub(super) fn on_resynced(
    state: &mut State,
    cycle: CycleIndex,
    model: ModelRef,
    blamed: &[LeftOut],
) -> Reply {
    let block = state.block;
    let awaited = |r: &&mut Resync| {
        let ResyncStage::Fetching(plan) = &r.stage else { return false };
        r.cycle == cycle && plan.model.model_hash == model.model_hash
    };
    let Some(resync) = state.resync.as_mut().filter(awaited) else { return Reply::Ignored };
    resync.blame(blamed, block);
    resync.cause = None;
    state.effects.remove(&resync_id(cycle));
    arrive(state, model, "which was fetched");
    Reply::Applied
}

/// A try failed; it is made again until MinerCommit1.
pub(super) fn on_failed(
    state: &mut State,
    cycle: CycleIndex,
    cause: Cause,
    blamed: &[LeftOut],
) -> Reply {
    let block = state.block;
    let tries = |r: &&mut Resync| {
        let trying = matches!(r.stage, ResyncStage::Reading | ResyncStage::Fetching(_));
        r.cycle == cycle && trying
    };
    let Some(resync) = state.resync.as_mut().filter(tries) else { return Reply::Ignored };
    let before = resync.clone();
    resync.blame(blamed, block);
    resync.cause = Some(Cause { detail: bounded(&cause.detail), ..cause });
    match *resync == before {
        true => Reply::Ignored,
        false => Reply::Applied,
    }
}

/// MinerCommit1 has come: whatever is not here now is too late.
pub(super) fn end(state: &mut State) {
    let block = state.block;
    give_up(state);
    let Some(resync) = &mut state.resync else { return };
    let cause = resync.cause.as_ref();
    let cause = cause.map_or("no answer".to_owned(), |c| format!("{}: {}", c.reason, c.detail));
    let cycle = resync.cycle;
    let (kind, detail) = match &resync.stage {
        ResyncStage::Reading | ResyncStage::TakenBack => {
            let what = "what validators have revealed in cycle";
            let detail = format!("{what} {cycle} could not be read before MinerCommit1: {cause}");
            (DegradationKind::MajorityUnknown, detail)
        }
        ResyncStage::Fetching(plan) => {
            let ModelRef { model_hash, global_version, .. } = &plan.model;
            let detail = format!(
                "the stake majority of cycle {cycle} has model {model_hash} of version \
                 {global_version}, which was not here before MinerCommit1: {cause}"
            );
            (DegradationKind::BehindMajority, detail)
        }
        ResyncStage::Nobody
        | ResyncStage::Split
        | ResyncStage::Same
        | ResyncStage::Done(_)
        | ResyncStage::Late => return,
    };
    resync.degrade(kind, detail, block);
    resync.stage = ResyncStage::Late;
}

/// What did not go the normal way before a round goes into it. One that was missed stands on nothing.
pub(super) fn hand_over(
    state: &mut State,
    (cycle, missed): (CycleIndex, bool),
) -> Vec<Degradation> {
    let last = cycle.0.checked_sub(1).map(CycleIndex);
    let looked = state.resync.as_ref().is_some_and(|resync| Some(resync.cycle) >= last);
    let kept = state.resync.as_mut().map(|resync| std::mem::take(&mut resync.degradations));
    let mut degradations = kept.unwrap_or_default();
    if !looked && !missed && last.is_some() {
        let detail = "nobody looked at what validators had revealed before the round".to_owned();
        let (kind, block) = (DegradationKind::MajorityUnknown, state.block);
        degradations.push(Degradation { kind, detail, block });
    }
    degradations
}

/// Blocks were taken back: what was read as of one of them is read anew. A model that is here stays.
pub(super) fn on_reorganised(state: &mut State, ancestor: BlockNumber, policy: &Policy) {
    let Some(resync) = &mut state.resync else { return };
    let read_at = policy.schedule.cycle_start(CycleIndex(resync.cycle.0 + 1));
    let settled = matches!(resync.stage, ResyncStage::Done(_) | ResyncStage::Late);
    if ancestor < read_at && !settled {
        resync.stage = ResyncStage::TakenBack;
        give_up(state);
    }
}

/// The first model of a validator that had none.
pub(super) fn on_found(state: &mut State, model: ModelRef) -> Reply {
    match state.base {
        Some(_) => Reply::Ignored,
        None => {
            state.base = Some(model);
            Reply::Applied
        }
    }
}

/// Ends what is done outside.
fn give_up(state: &mut State) {
    for effect in state.resync.iter().flat_map(Resync::effects) {
        state.effects.remove(&effect);
    }
}

impl State {
    /// Moves on to the model that the round has made, unless that was replaced since.
    pub(super) fn take_over(&mut self) {
        let Some(round) = &self.round else { return };
        let Some(model) = round.merge.as_ref().and_then(MergeOutcome::model) else { return };
        let replaced = self.resync.as_ref().is_some_and(|resync| {
            let done = matches!(resync.stage, ResyncStage::Done(_));
            resync.cycle > round.cycle || (resync.cycle == round.cycle && done)
        });
        if !replaced {
            self.base = Some(model.clone());
        }
    }
}
