//! `burned_register`: a slot in the subnet, for what it costs.
//!
//! The checks are those of spec 365, where registrations per block and per interval are limited.
//! The burn does not move with demand here. In a full subnet the neuron with the lowest emission
//! goes, of equals the one that came first; those in their immunity period go only where no other
//! is left, and the owner's never. The live chain also keeps a least number of neurons that are
//! not immune.

use scale_decode::DecodeAsType;

use super::Rules;
use crate::{
    balance,
    encode::Failure,
    genesis::GenesisNeuron,
    refusal::Custom,
    runtime::MetadataError,
    state::{Account, State, account, number},
    subnet::{self, SUBTENSOR},
};

/// The limit per interval is this many times `TargetRegistrationsPerInterval`.
const OVER_TARGET: u16 = 3;

#[derive(Debug, Clone, PartialEq, DecodeAsType)]
pub(crate) struct BurnedRegister {
    netuid: u16,
    hotkey: Account,
}

impl BurnedRegister {
    pub(super) fn check_early(
        &self,
        state: &State<'_>,
    ) -> Result<Result<(), Custom>, MetadataError> {
        Ok(match interval_is_full(state, self.netuid)? {
            true => Err(Custom::RateLimit),
            false => Ok(()),
        })
    }

    pub(super) fn dispatch(
        &self,
        signer: &Account,
        state: &mut State<'_>,
        rules: Rules,
    ) -> Result<(), Failure> {
        let fail = |error| Err(Failure::subtensor(error));
        let netuid = self.netuid;
        if netuid != rules.netuid || !subnet::has_mechanism(state, netuid, 0)? {
            return fail("SubnetNotExists");
        }
        if !subnet::item(state, "NetworkRegistrationAllowed", netuid)?.unwrap_or(true) {
            return fail("SubNetRegistrationDisabled");
        }
        let most: u16 = subnet::item(state, "MaxRegistrationsPerBlock", netuid)?.unwrap_or(1);
        if count(state, "RegistrationsThisBlock", netuid)? >= most {
            return fail("TooManyRegistrationsThisBlock");
        }
        if interval_is_full(state, netuid)? {
            return fail("TooManyRegistrationsThisInterval");
        }
        if subnet::uid(state, netuid, &self.hotkey)?.is_some() {
            return fail("HotKeyAlreadyRegisteredInSubNet");
        }
        let burn: u64 = subnet::item(state, "Burn", netuid)?.unwrap_or(0);
        let free = balance::free(state, signer)?;
        let Some(rest) = free.checked_sub(burn) else {
            return fail("NotEnoughBalanceToStake");
        };
        if subnet::owner(state, &self.hotkey)?.is_some_and(|owner| owner != *signer) {
            return fail("NonAssociatedColdKey");
        }
        let size = subnet::size(state, netuid)?;
        let room: u16 = subnet::item(state, "MaxAllowedUids", netuid)?.unwrap_or(u16::MAX);
        let uid = if size < room { Some(size) } else { least(state, netuid, size)? };
        let Some(uid) = uid else {
            return fail("NoNeuronIdAvailable");
        };

        balance::set(state, signer, rest)?;
        if uid == size {
            state.put(SUBTENSOR, "SubnetworkN", &[number(netuid)], &size.saturating_add(1))?;
        }
        let neuron = GenesisNeuron {
            coldkey: *signer,
            stake: subnet::stake(state, netuid, &self.hotkey)?,
            ..GenesisNeuron::miner(self.hotkey)
        };
        neuron.seat(state, netuid, uid, state.block())?;
        for entry in COUNTERS {
            let count = count(state, entry, netuid)?;
            state.put(SUBTENSOR, entry, &[number(netuid)], &count.saturating_add(1))?;
        }
        let fields = [number(netuid), number(uid), account(&self.hotkey)];
        state.emit(SUBTENSOR, "NeuronRegistered", &fields)?;
        Ok(())
    }
}

const COUNTERS: [&str; 3] =
    ["RegistrationsThisBlock", "RegistrationsThisInterval", "BurnRegistrationsThisInterval"];

fn count(state: &State<'_>, entry: &str, netuid: u16) -> Result<u16, MetadataError> {
    Ok(subnet::item(state, entry, netuid)?.unwrap_or(0))
}

fn interval_is_full(state: &State<'_>, netuid: u16) -> Result<bool, MetadataError> {
    let target = count(state, "TargetRegistrationsPerInterval", netuid)?;
    let most = target.saturating_mul(OVER_TARGET);
    Ok(count(state, "RegistrationsThisInterval", netuid)? >= most)
}

/// Counts registrations anew: those of the block, and at its end those of the interval.
pub(crate) fn reset(state: &mut State<'_>, netuid: u16) -> Result<(), MetadataError> {
    let block = u64::from(state.block());
    let began: u64 = subnet::item(state, "LastAdjustmentBlock", netuid)?.unwrap_or(0);
    let interval = count(state, "AdjustmentInterval", netuid)?;
    let ended = block.saturating_sub(began) >= interval.into();
    for entry in &COUNTERS[..if ended { COUNTERS.len() } else { 1 }] {
        if count(state, entry, netuid)? > 0 {
            state.put(SUBTENSOR, entry, &[number(netuid)], &0u16)?;
        }
    }
    if ended {
        state.put(SUBTENSOR, "LastAdjustmentBlock", &[number(netuid)], &block)?;
    }
    Ok(())
}

/// Whose slot a newcomer to a full subnet gets.
fn least(state: &State<'_>, netuid: u16, size: u16) -> Result<Option<u16>, MetadataError> {
    let owner: Option<Account> = subnet::item(state, "SubnetOwnerHotkey", netuid)?;
    let emission = subnet::row::<u64>(state, "Emission", netuid, size)?;
    let immunity = count(state, "ImmunityPeriod", netuid)?;
    let block = u64::from(state.block());
    let mut ranked = Vec::with_capacity(size.into());
    for (uid, emission) in (0..size).zip(emission) {
        if subnet::hotkey(state, netuid, uid)? == owner {
            continue;
        }
        let keys = [number(netuid), number(uid)];
        let since: u64 = state.get(SUBTENSOR, "BlockAtRegistration", &keys)?.unwrap_or(0);
        let immune = block.saturating_sub(since) < immunity.into();
        ranked.push((immune, emission, since, uid));
    }
    Ok(ranked.into_iter().min().map(|(.., uid)| uid))
}
