//! `set_weights` and `set_mechanism_weights`: the live chain's checks, in the live chain's order.

use std::collections::HashSet;

use scale_decode::DecodeAsType;

use super::waited;
use crate::{
    encode::Failure,
    refusal::Custom,
    runtime::MetadataError,
    state::{Account, State, number},
    subnet::{self, SUBTENSOR},
};

/// The arguments of both calls. `set_weights` is that of mechanism 0. Weights that were committed
/// become the same, when they are revealed.
#[derive(Debug, Clone, PartialEq, DecodeAsType)]
pub(crate) struct SetWeights {
    netuid: u16,
    dests: Vec<u16>,
    weights: Vec<u16>,
    version_key: u64,
    #[decode_as_type(skip)]
    pub(super) mecid: u8,
}

/// The argument that only `set_mechanism_weights` has.
#[derive(Debug, DecodeAsType)]
pub(super) struct Mechanism {
    pub(super) mecid: u8,
}

impl SetWeights {
    /// A row of weights, however it came.
    pub(crate) fn new(
        netuid: u16,
        mecid: u8,
        dests: Vec<u16>,
        weights: Vec<u16>,
        version_key: u64,
    ) -> Self {
        Self { netuid, dests, weights, version_key, mecid }
    }

    /// The checks that the live chain makes before it takes the extrinsic into its pool.
    pub(super) fn check_early(
        &self,
        signer: &Account,
        state: &State<'_>,
    ) -> Result<Result<(), Custom>, MetadataError> {
        if !has_stake(state, self.netuid, signer)? {
            return Ok(Err(Custom::StakeTooLow));
        }
        if let Some(uid) = subnet::uid(state, self.netuid, signer)?
            && !commit_reveal(state, self.netuid)?
            && !is_in_time(state, self.netuid, self.mecid, uid)?
        {
            return Ok(Err(Custom::RateLimit));
        }
        Ok(Ok(()))
    }

    pub(super) fn dispatch(&self, signer: &Account, state: &mut State<'_>) -> Result<(), Failure> {
        if commit_reveal(state, self.netuid)? {
            return Err(Failure::subtensor("CommitRevealEnabled"));
        }
        self.set(signer, state)
    }

    /// Sets the weights. With commit-reveal the commit was the update, and had its rate limit.
    pub(crate) fn set(&self, signer: &Account, state: &mut State<'_>) -> Result<(), Failure> {
        let fail = |error| Err(Failure::subtensor(error));
        let netuid = self.netuid;
        let committed = commit_reveal(state, netuid)?;
        if self.dests.len() != self.weights.len() {
            return fail("WeightVecNotEqualSize");
        }
        if !subnet::has_mechanism(state, netuid, self.mecid)? {
            return fail("MechanismDoesNotExist");
        }
        let size = subnet::size(state, netuid)?;
        if self.dests.len() > size.into() {
            return fail("UidsLengthExceedUidsInSubNet");
        }
        let Some(uid) = subnet::uid(state, netuid, signer)? else {
            return fail("HotKeyNotRegisteredInSubNet");
        };
        if !has_stake(state, netuid, signer)? {
            return fail("NotEnoughStakeToSetWeights");
        }
        let version: u64 = subnet::item(state, "WeightsVersionKey", netuid)?.unwrap_or(0);
        if version != 0 && self.version_key < version {
            return fail("IncorrectWeightVersionKey");
        }
        if !committed && !is_in_time(state, netuid, self.mecid, uid)? {
            return fail("SettingWeightsTooFast");
        }
        // A neuron may always give all its weight to itself.
        let to_itself = self.dests == [uid];
        let permits = subnet::row::<bool>(state, "ValidatorPermit", netuid, size)?;
        if !to_itself && !permits.get(usize::from(uid)).copied().unwrap_or(false) {
            return fail("NeuronNoValidatorPermit");
        }
        let distinct: HashSet<u16> = self.dests.iter().copied().collect();
        if distinct.len() < self.dests.len() {
            return fail("DuplicateUids");
        }
        if self.dests.iter().any(|dest| *dest >= size) {
            return fail("UidVecContainInvalidOne");
        }
        let least: u16 = subnet::item(state, "MinAllowedWeights", netuid)?.unwrap_or(0);
        if !to_itself && self.dests.len() < least.into() {
            return fail("WeightVecLengthIsLow");
        }
        let limit: u16 = subnet::item(state, "MaxWeightsLimit", netuid)?.unwrap_or(u16::MAX);
        if !to_itself && exceeds(&self.weights, limit) {
            return fail("MaxWeightExceeded");
        }

        let index = subnet::index(netuid, self.mecid);
        let row: Vec<(u16, u16)> =
            self.dests.iter().copied().zip(upscaled(&self.weights)).collect();
        state.put(SUBTENSOR, "Weights", &[number(index), number(uid)], &row)?;
        if !committed {
            touch(state, index, netuid, uid)?;
        }
        state.emit(SUBTENSOR, "WeightsSet", &[number(index), number(uid)])?;
        Ok(())
    }
}

/// Whether weights are taken by commit-reveal only.
pub(super) fn commit_reveal(state: &State<'_>, netuid: u16) -> Result<bool, MetadataError> {
    let on = subnet::item(state, "CommitRevealWeightsEnabled", netuid)?;
    Ok(on.unwrap_or(false) && subnet::has_mechanism(state, netuid, 0)?)
}

/// Whether a hotkey has the stake that setting weights takes.
pub(super) fn has_stake(
    state: &State<'_>,
    netuid: u16,
    signer: &Account,
) -> Result<bool, MetadataError> {
    let threshold: u64 = state.get(SUBTENSOR, "StakeThreshold", &[])?.unwrap_or(0);
    Ok(subnet::stake(state, netuid, signer)? >= threshold)
}

/// Whether the rate limit of a neuron has passed since its last update.
pub(super) fn is_in_time(
    state: &State<'_>,
    netuid: u16,
    mecid: u8,
    uid: u16,
) -> Result<bool, MetadataError> {
    let size = subnet::size(state, netuid)?;
    let updates = subnet::row::<u64>(state, "LastUpdate", subnet::index(netuid, mecid), size)?;
    let limit: u64 = subnet::item(state, "WeightsSetRateLimit", netuid)?.unwrap_or(0);
    let last = updates.get(usize::from(uid)).copied().unwrap_or(0);
    Ok(waited(last, state.block(), limit))
}

/// The state's block is the last update of a neuron.
pub(super) fn touch(
    state: &mut State<'_>,
    index: u16,
    netuid: u16,
    uid: u16,
) -> Result<(), MetadataError> {
    let size = subnet::size(state, netuid)?;
    let mut updates = subnet::row::<u64>(state, "LastUpdate", index, size)?;
    if let Some(update) = updates.get_mut(usize::from(uid)) {
        *update = state.block().into();
    }
    state.put(SUBTENSOR, "LastUpdate", &[number(index)], &updates)
}

/// Scales weights so that the largest is 65535, as the chain stores them.
fn upscaled(weights: &[u16]) -> Vec<u16> {
    let largest = u32::from(weights.iter().copied().max().unwrap_or(0));
    let scale = |weight: u16| match largest {
        0 => 0,
        _ => (u32::from(weight) * u32::from(u16::MAX) + largest / 2) / largest,
    };
    weights.iter().map(|w| u16::try_from(scale(*w)).unwrap_or(u16::MAX)).collect()
}

/// Whether a weight's share of the sum is more than `limit` of 65535.
fn exceeds(weights: &[u16], limit: u16) -> bool {
    let sum: u64 = weights.iter().map(|w| u64::from(*w)).sum();
    let largest = u64::from(weights.iter().copied().max().unwrap_or(0));
    limit < u16::MAX && largest * u64::from(u16::MAX) > u64::from(limit) * sum
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_share_over_the_limit_exceeds_it_and_a_share_at_the_limit_does_not() {
        assert!(exceeds(&[3, 1], 40_000));
        assert!(!exceeds(&[1, 1], 32_768));
        assert!(!exceeds(&[1], u16::MAX));
    }

    proptest! {
        #[test]
        fn scaled_weights_keep_their_order_and_the_largest_is_full(weights: Vec<u16>) {
            let scaled = upscaled(&weights);
            prop_assert_eq!(scaled.len(), weights.len());
            if weights.iter().any(|w| *w > 0) {
                prop_assert_eq!(scaled.iter().copied().max(), Some(u16::MAX));
            }
            for (a, x) in weights.iter().zip(&scaled) {
                for (b, y) in weights.iter().zip(&scaled) {
                    prop_assert!(a > b || x <= y);
                }
            }
        }
    }
}
