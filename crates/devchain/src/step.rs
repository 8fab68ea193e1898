//! What a block does for the subnet before its extrinsics, in the live chain's order.

use crate::{
    counted,
    dispatch::{self, Rules},
    epoch,
    pulses::Pulses,
    reveal,
    runtime::MetadataError,
    state::State,
};

/// Registrations are counted anew, pulses come in, commits that are due open, and the epoch ends
/// when its time has come.
pub(crate) fn on_block(
    state: &mut State<'_>,
    rules: Rules,
    pulses: &Pulses,
    now_ms: u64,
) -> Result<(), MetadataError> {
    counted::begin(state, rules.netuid)?;
    dispatch::reset_registrations(state, rules.netuid)?;
    pulses.on_block(state, rules.netuid, now_ms)?;
    reveal::on_block(state, rules.netuid)?;
    epoch::on_block(state, rules)?;
    state.keep_first();
    Ok(())
}
