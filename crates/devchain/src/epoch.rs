//! What happens once per tempo: weights become incentives.
//!
//! Not Yuma consensus: a miner's incentive is its stake-weighted share of the weights of the
//! active validators. Epochs are at the multiples of the tempo; the live chain's are at other
//! blocks, and clients ask it for the next one.

use crate::{
    runtime::MetadataError,
    state::{State, number},
    subnet::{self, SUBTENSOR},
};

/// Alpha that a subnet emits per block to miners, and as much again to validators, in rao.
const EMISSION_PER_BLOCK: u64 = 410_000_000;

fn tempo(state: &State<'_>, netuid: u16) -> Result<u64, MetadataError> {
    let tempo: u16 = subnet::item(state, "Tempo", netuid)?.unwrap_or(0);
    Ok(tempo.max(1).into())
}

/// The number of epochs that ended before this block.
pub(crate) fn index(state: &State<'_>, netuid: u16) -> Result<u64, MetadataError> {
    Ok(u64::from(state.block()) / tempo(state, netuid)?)
}

/// The block of the next epoch after this block.
pub(crate) fn next(state: &State<'_>, netuid: u16) -> Result<u64, MetadataError> {
    Ok((index(state, netuid)? + 1) * tempo(state, netuid)?)
}

/// Counts this block, and runs the epoch when its time has come.
pub(crate) fn on_block(state: &mut State<'_>, netuid: u16) -> Result<(), MetadataError> {
    let block = u64::from(state.block());
    let tempo = tempo(state, netuid)?;
    let key = [number(netuid)];
    state.put(SUBTENSOR, "BlocksSinceLastStep", &key, &(block % tempo))?;
    if block % tempo != 0 {
        return Ok(());
    }
    state.put(SUBTENSOR, "LastMechansimStepBlock", &key, &block)?;
    state.put(SUBTENSOR, "LastEpochBlock", &key, &block)?;
    state.put(SUBTENSOR, "SubnetEpochIndex", &key, &(block / tempo))?;
    run(state, netuid, tempo)
}

fn run(state: &mut State<'_>, netuid: u16, tempo: u64) -> Result<(), MetadataError> {
    let size = subnet::size(state, netuid)?;
    let index = subnet::index(netuid, 0);
    let updates = subnet::row::<u64>(state, "LastUpdate", index, size)?;
    let permits = subnet::row::<bool>(state, "ValidatorPermit", netuid, size)?;
    let cutoff: u64 = subnet::item(state, "ActivityCutoff", netuid)?.unwrap_or(u64::MAX);
    let block = u64::from(state.block());
    let active: Vec<bool> = updates.iter().map(|u| u.saturating_add(cutoff) >= block).collect();

    let mut votes = vec![0u128; size.into()];
    let mut stakes = vec![0u128; size.into()];
    for uid in 0..size {
        let at = usize::from(uid);
        if !(permits[at] && active[at]) {
            continue;
        }
        let row = subnet::weights(state, index, uid)?;
        let sum: u128 = row.iter().map(|(_, weight)| u128::from(*weight)).sum();
        let Some(hotkey) = subnet::hotkey(state, netuid, uid)? else { continue };
        let stake = u128::from(subnet::stake(state, netuid, &hotkey)?);
        if sum == 0 || stake == 0 {
            continue;
        }
        stakes[at] = stake;
        for (dest, weight) in row {
            if let Some(vote) = votes.get_mut(usize::from(dest)) {
                *vote += stake * u128::from(weight) / sum;
            }
        }
    }
    let incentive = shares(&votes);
    let dividends = shares(&stakes);
    let emitted = EMISSION_PER_BLOCK.saturating_mul(tempo);
    let emission: Vec<u64> = incentive
        .iter()
        .zip(&dividends)
        .map(|(i, d)| emitted / u64::from(u16::MAX) * (u64::from(*i) + u64::from(*d)))
        .collect();
    let key = [number(index)];
    state.put(SUBTENSOR, "Incentive", &key, &incentive)?;
    state.put(SUBTENSOR, "Consensus", &[number(netuid)], &incentive)?;
    state.put(SUBTENSOR, "Dividends", &[number(netuid)], &dividends)?;
    state.put(SUBTENSOR, "Emission", &[number(netuid)], &emission)?;
    state.put(SUBTENSOR, "Active", &[number(netuid)], &active)
}

/// Every number's share of the sum, in parts of 65535; all zero where the sum is zero.
fn shares(numbers: &[u128]) -> Vec<u16> {
    let sum: u128 = numbers.iter().sum();
    let share = |n: &u128| (n * u128::from(u16::MAX)).checked_div(sum).unwrap_or(0);
    numbers.iter().map(|n| u16::try_from(share(n)).unwrap_or(u16::MAX)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_parts_of_65535_and_nothing_shares_nothing() {
        assert_eq!(shares(&[1, 3, 0]), [16383, 49151, 0]);
        assert_eq!(shares(&[0, 0]), [0, 0]);
        assert_eq!(shares(&[u128::from(u64::MAX) * 3]), [65535]);
    }
}
