//! When a subnet's epochs end, and what happens then: weights become incentives.
//!
//! Runtimes have one of two rules, told apart by whether they keep `SubnetEpochIndex`:
//!
//! - **stateful** (spec 424): an epoch ends `Tempo` blocks after `LastEpochBlock`, or at
//!   `PendingEpochAt` where someone asked for one; `SubnetEpochIndex` counts them, and
//!   `get_next_epoch_start_block` tells the next.
//! - **modulo** (before): with a period of `Tempo` + 1, a block's epoch index is
//!   (block + netuid + 1) / period, and the epoch is computed in the last block of every index.
//!
//! Not Yuma consensus: a miner's incentive is its stake-weighted share of the weights of the
//! active validators.

use crate::{
    dispatch::Rules,
    runtime::MetadataError,
    state::{State, number},
    subnet::{self, SUBTENSOR},
};

/// Alpha that a subnet emits per block to miners, and as much again to validators, in rao.
const EMISSION_PER_BLOCK: u64 = 410_000_000;

/// How a runtime tells epochs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    Stateful,
    Modulo,
}

/// The rule of the state's runtime.
pub(crate) fn rule(state: &State<'_>) -> Rule {
    match state.runtime().entry(SUBTENSOR, "SubnetEpochIndex") {
        Some(_) => Rule::Stateful,
        None => Rule::Modulo,
    }
}

fn tempo(state: &State<'_>, netuid: u16) -> Result<u64, MetadataError> {
    let tempo: u16 = subnet::item(state, "Tempo", netuid)?.unwrap_or(0);
    Ok(tempo.into())
}

fn counter(state: &State<'_>, entry: &str, netuid: u16) -> Result<u64, MetadataError> {
    Ok(subnet::item(state, entry, netuid)?.unwrap_or(0))
}

/// The epoch in which a commit or a reveal of the state's block falls. In the block that ends an
/// epoch it is the next one already, before the epoch is computed as after.
pub(crate) fn index(state: &State<'_>, netuid: u16) -> Result<u64, MetadataError> {
    match rule(state) {
        Rule::Stateful => {
            let ended = u64::from(is_due(state, netuid)?);
            Ok(counter(state, "SubnetEpochIndex", netuid)?.saturating_add(ended))
        }
        Rule::Modulo => index_of(state, netuid, state.block().into()),
    }
}

/// The epoch of a block by the modulo rule.
pub(crate) fn index_of(state: &State<'_>, netuid: u16, block: u64) -> Result<u64, MetadataError> {
    Ok(shifted(netuid, block) / (tempo(state, netuid)? + 1))
}

/// The blocks of an epoch by the modulo rule: the first and the last.
pub(crate) fn blocks_of(
    state: &State<'_>,
    netuid: u16,
    epoch: u64,
) -> Result<(u64, u64), MetadataError> {
    let tempo = tempo(state, netuid)?;
    let first = epoch.saturating_mul(tempo + 1).saturating_sub(shifted(netuid, 0));
    Ok((first, first.saturating_add(tempo)))
}

fn shifted(netuid: u16, block: u64) -> u64 {
    block.saturating_add(u64::from(netuid) + 1)
}

/// Whether the epoch is computed in the state's block. A tempo of 0 is a subnet without epochs.
fn is_due(state: &State<'_>, netuid: u16) -> Result<bool, MetadataError> {
    let block = u64::from(state.block());
    let tempo = tempo(state, netuid)?;
    if tempo == 0 {
        return Ok(false);
    }
    match rule(state) {
        Rule::Stateful => {
            let pending = counter(state, "PendingEpochAt", netuid)?;
            let last = counter(state, "LastEpochBlock", netuid)?;
            let asked_for = pending > 0 && block >= pending;
            Ok(asked_for || block.saturating_sub(last) >= tempo)
        }
        Rule::Modulo => Ok(shifted(netuid, block) % (tempo + 1) == tempo),
    }
}

/// The block of the next epoch after this block; `None` for a subnet without epochs.
pub(crate) fn next(state: &State<'_>, netuid: u16) -> Result<Option<u64>, MetadataError> {
    let tempo = tempo(state, netuid)?;
    if tempo == 0 {
        return Ok(None);
    }
    Ok(Some(match rule(state) {
        Rule::Stateful => {
            let scheduled = counter(state, "LastEpochBlock", netuid)?.saturating_add(tempo);
            match counter(state, "PendingEpochAt", netuid)? {
                0 => scheduled,
                pending => scheduled.min(pending),
            }
        }
        Rule::Modulo => {
            let block = u64::from(state.block()) + 1;
            block + (tempo - shifted(netuid, block) % (tempo + 1))
        }
    }))
}

/// Another tempo. By the stateful rule the running epoch begins again.
pub(crate) fn set_tempo(
    state: &mut State<'_>,
    netuid: u16,
    tempo: u16,
) -> Result<(), MetadataError> {
    let block = u64::from(state.block());
    state.put(SUBTENSOR, "Tempo", &[number(netuid)], &tempo)?;
    state.put(SUBTENSOR, "LastEpochBlock", &[number(netuid)], &block)
}

/// Ends the epoch in the state's block. By the modulo rule it is computed, and the index stays.
pub(crate) fn trigger(state: &mut State<'_>, rules: Rules) -> Result<(), MetadataError> {
    match rule(state) {
        Rule::Stateful => {
            let block = u64::from(state.block());
            state.put(SUBTENSOR, "PendingEpochAt", &[number(rules.netuid)], &block)
        }
        Rule::Modulo => step(state, rules),
    }
}

/// Counts this block, and computes the epoch when its time has come.
pub(crate) fn on_block(state: &mut State<'_>, rules: Rules) -> Result<(), MetadataError> {
    let key = [number(rules.netuid)];
    let since = counter(state, "BlocksSinceLastStep", rules.netuid)?.saturating_add(1);
    if !is_due(state, rules.netuid)? {
        return state.put(SUBTENSOR, "BlocksSinceLastStep", &key, &since);
    }
    let block = u64::from(state.block());
    let ended = counter(state, "SubnetEpochIndex", rules.netuid)?.saturating_add(1);
    state.put(SUBTENSOR, "LastEpochBlock", &key, &block)?;
    state.put(SUBTENSOR, "PendingEpochAt", &key, &0u64)?;
    state.put(SUBTENSOR, "SubnetEpochIndex", &key, &ended)?;
    step(state, rules)
}

fn step(state: &mut State<'_>, rules: Rules) -> Result<(), MetadataError> {
    let key = [number(rules.netuid)];
    state.put(SUBTENSOR, "BlocksSinceLastStep", &key, &0u64)?;
    state.put(SUBTENSOR, "LastMechansimStepBlock", &key, &u64::from(state.block()))?;
    emit(state, rules.netuid)?;
    if rules.permits_by_stake { permit(state, rules.netuid) } else { Ok(()) }
}

fn emit(state: &mut State<'_>, netuid: u16) -> Result<(), MetadataError> {
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
    let emitted = EMISSION_PER_BLOCK.saturating_mul(tempo(state, netuid)?.max(1));
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

/// Permits go to the `MaxAllowedValidators` with the most stake among those above the threshold;
/// of equals to the lower UID.
fn permit(state: &mut State<'_>, netuid: u16) -> Result<(), MetadataError> {
    let size = subnet::size(state, netuid)?;
    let most: u16 = subnet::item(state, "MaxAllowedValidators", netuid)?.unwrap_or(u16::MAX);
    let threshold: u64 = state.get(SUBTENSOR, "StakeThreshold", &[])?.unwrap_or(0);
    let mut ranked = Vec::with_capacity(size.into());
    for uid in 0..size {
        let Some(hotkey) = subnet::hotkey(state, netuid, uid)? else { continue };
        let stake = subnet::stake(state, netuid, &hotkey)?;
        if stake > 0 && stake >= threshold {
            ranked.push((stake, uid));
        }
    }
    ranked.sort_by_key(|(stake, uid)| (std::cmp::Reverse(*stake), *uid));
    let mut permits = vec![false; size.into()];
    for (_, uid) in ranked.into_iter().take(most.into()) {
        permits[usize::from(uid)] = true;
    }
    state.put(SUBTENSOR, "ValidatorPermit", &[number(netuid)], &permits)
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
