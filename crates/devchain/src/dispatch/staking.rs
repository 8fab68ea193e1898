//! `add_stake`: balance becomes alpha, one for one. The live chain has a price and a fee.

use scale_decode::DecodeAsType;

use super::Rules;
use crate::{
    balance,
    encode::Failure,
    state::{Account, State, account, number},
    subnet::{self, SUBTENSOR},
};

/// The least that can be staked, in rao (`InitialMinStake`).
const MIN_STAKE: u64 = 2_000_000;

#[derive(Debug, Clone, PartialEq, DecodeAsType)]
pub(crate) struct AddStake {
    hotkey: Account,
    netuid: u16,
    amount_staked: u64,
}

impl AddStake {
    pub(super) fn dispatch(
        &self,
        signer: &Account,
        state: &mut State<'_>,
        rules: Rules,
    ) -> Result<(), Failure> {
        let fail = |error| Err(Failure::subtensor(error));
        let (netuid, amount) = (self.netuid, self.amount_staked);
        if netuid != rules.netuid || !subnet::has_mechanism(state, netuid, 0)? {
            return fail("SubnetNotExists");
        }
        if amount < MIN_STAKE {
            return fail("AmountTooLow");
        }
        let Some(rest) = balance::free(state, signer)?.checked_sub(amount) else {
            return fail("NotEnoughBalanceToStake");
        };
        let registered = subnet::uid(state, netuid, &self.hotkey)?.is_some();
        if !registered && subnet::owner(state, &self.hotkey)?.is_none() {
            return fail("HotKeyAccountNotExists");
        }
        balance::set(state, signer, rest)?;
        let stake = subnet::stake(state, netuid, &self.hotkey)?.saturating_add(amount);
        subnet::set_stake(state, netuid, &self.hotkey, stake)?;
        // Older runtimes do not tell the fee.
        let fields = [
            account(signer),
            account(&self.hotkey),
            number(amount),
            number(amount),
            number(netuid),
            number(0u8),
        ];
        let known = state.runtime().event_fields(SUBTENSOR, "StakeAdded").unwrap_or(0);
        state.emit(SUBTENSOR, "StakeAdded", &fields[..known.min(fields.len())])?;
        Ok(())
    }
}
