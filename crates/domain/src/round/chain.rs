//! What is told of the chain beside its blocks: blocks taken back, what did not go the normal way,
//! and why a round is held.

use super::{
    Degradation, DegradationKind, Policy, Rejection, Reply, Round, Stage, State, degradation,
    resync,
};
use crate::{BlockHash, BlockNumber, RoundId};

/// Degradations of one kind that a round takes from the chain service: a flapping endpoint must not
/// make the state grow without bound. Which kinds there are is what decides.
pub(super) const MAX_PER_KIND: usize = 16;

/// The height goes back; the blocks that follow are taken in as any others. What a round has done
/// stays done, and nothing that has begun begins again: only inputs that are still being read are
/// read anew, when their block has come again.
pub(super) fn on_reorganised(
    state: &mut State,
    ancestor: BlockNumber,
    ancestor_hash: BlockHash,
    abandoned: BlockNumber,
    policy: &Policy,
) -> Reply {
    if ancestor >= state.block {
        // Nothing that was seen is taken back.
        return Reply::Ignored;
    }
    state.block = ancestor;
    state.block_hash = Some(ancestor_hash);
    resync::on_reorganised(state, ancestor, policy);
    let open = state.round.as_mut().filter(|round| round.stage != Stage::Closed);
    let Some(round) = open.filter(|round| ancestor.0 < round.id.0) else { return Reply::Applied };
    match &round.frozen {
        Some(frozen) => {
            let detail = format!(
                "frozen at block {} (0x{}), which was taken back: the chain goes on from \
                 block {ancestor} (0x{ancestor_hash})",
                frozen.inputs.block, frozen.inputs.block_hash
            );
            round.degrade(DegradationKind::Reorganised, detail, abandoned);
        }
        None => {
            round.branch += 1;
            state.effects.remove(&format!("{}/freeze", round.id));
        }
    }
    Reply::Applied
}

/// Goes into the open round, once. What is older than the round is none of its business.
pub(super) fn on_degraded(state: &mut State, told: Degradation) -> Reply {
    let open = state.round.as_mut().filter(|round| round.stage != Stage::Closed);
    let concerned = open.filter(|round| told.block >= round.opened_at);
    match concerned.is_some_and(|round| round.tell(told)) {
        true => Reply::Applied,
        false => Reply::Ignored,
    }
}

/// Keeps why the inputs could not be read yet.
pub(super) fn on_held(state: &mut State, id: RoundId, why: &str) -> Result<Reply, Rejection> {
    let round = state.open_round(id)?;
    let why = degradation::bounded(why);
    if round.stage != Stage::Open || round.held.as_ref() == Some(&why) {
        return Ok(Reply::Ignored);
    }
    round.held = Some(why);
    Ok(Reply::Applied)
}

impl Round {
    /// Takes in what the chain service told; returns whether it is news. What is not its to tell
    /// has no effect: some kinds decide what a round does.
    pub(super) fn tell(&mut self, told: Degradation) -> bool {
        let (before, kind) = (self.degradations.len(), told.kind);
        let of_kind = self.degradations.iter().filter(|known| known.kind == kind).count();
        if kind.is_chains() && of_kind < MAX_PER_KIND {
            self.degrade(kind, degradation::bounded(&told.detail), told.block);
        }
        self.degradations.len() > before
    }
}
