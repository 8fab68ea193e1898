//! What is known of a subnet and its neurons, by the names of the chain's storage.

use scale_decode::DecodeAsType;
use scale_value::Value;

use crate::{
    runtime::MetadataError,
    state::{Account, State, account, number},
};

/// The pallet that holds subnets.
pub(crate) const SUBTENSOR: &str = "SubtensorModule";

/// The chain's limit on subnets, by which a mechanism's storage index is made.
const MAX_SUBNETS: u16 = 4096;

/// Under which number a mechanism of a subnet keeps its weights and updates.
pub(crate) fn index(netuid: u16, mecid: u8) -> u16 {
    u16::from(mecid).wrapping_mul(MAX_SUBNETS).wrapping_add(netuid)
}

/// One item of a subnet, or its default.
pub(crate) fn item<T: DecodeAsType>(
    state: &State<'_>,
    entry: &str,
    netuid: u16,
) -> Result<Option<T>, MetadataError> {
    state.get(SUBTENSOR, entry, &[number(netuid)])
}

/// The subnet exists and has this mechanism.
pub(crate) fn has_mechanism(
    state: &State<'_>,
    netuid: u16,
    mecid: u8,
) -> Result<bool, MetadataError> {
    let exists = item(state, "NetworksAdded", netuid)?.unwrap_or(false);
    Ok(exists && mecid < mechanisms(state, netuid)?)
}

/// The number of mechanisms; 1 where the runtime knows none.
pub(crate) fn mechanisms(state: &State<'_>, netuid: u16) -> Result<u8, MetadataError> {
    Ok(item(state, "MechanismCountCurrent", netuid)?.unwrap_or(1))
}

/// The number of neurons.
pub(crate) fn size(state: &State<'_>, netuid: u16) -> Result<u16, MetadataError> {
    Ok(item(state, "SubnetworkN", netuid)?.unwrap_or(0))
}

/// The slot of a hotkey.
pub(crate) fn uid(
    state: &State<'_>,
    netuid: u16,
    hotkey: &Account,
) -> Result<Option<u16>, MetadataError> {
    state.get(SUBTENSOR, "Uids", &[number(netuid), account(hotkey)])
}

/// The hotkey of a slot.
pub(crate) fn hotkey(
    state: &State<'_>,
    netuid: u16,
    uid: u16,
) -> Result<Option<Account>, MetadataError> {
    state.get(SUBTENSOR, "Keys", &[number(netuid), number(uid)])
}

/// The total stake of a hotkey in rao. This chain has no root stake: all of it is alpha.
pub(crate) fn stake(
    state: &State<'_>,
    netuid: u16,
    hotkey: &Account,
) -> Result<u64, MetadataError> {
    let keys = [account(hotkey), number(netuid)];
    Ok(state.get(SUBTENSOR, "TotalHotkeyAlpha", &keys)?.unwrap_or(0))
}

/// Sets the total stake of a hotkey.
pub(crate) fn set_stake(
    state: &mut State<'_>,
    netuid: u16,
    hotkey: &Account,
    rao: u64,
) -> Result<(), MetadataError> {
    state.put(SUBTENSOR, "TotalHotkeyAlpha", &[account(hotkey), number(netuid)], &rao)
}

/// The coldkey of a hotkey, if it has one.
pub(crate) fn owner(state: &State<'_>, hotkey: &Account) -> Result<Option<Account>, MetadataError> {
    let owner: Option<Account> = state.get(SUBTENSOR, "Owner", &[account(hotkey)])?;
    Ok(owner.filter(|owner| *owner != [0; 32]))
}

/// One number of every neuron, in order of UIDs, as many as there are neurons.
pub(crate) fn row<T: DecodeAsType + Default + Clone>(
    state: &State<'_>,
    entry: &str,
    index: u16,
    size: u16,
) -> Result<Vec<T>, MetadataError> {
    let mut row: Vec<T> = item(state, entry, index)?.unwrap_or_default();
    row.resize(size.into(), T::default());
    Ok(row)
}

/// The non-zero weights that a neuron has set, as (UID, weight) pairs.
pub(crate) fn weights(
    state: &State<'_>,
    index: u16,
    uid: u16,
) -> Result<Vec<(u16, u16)>, MetadataError> {
    Ok(state.get(SUBTENSOR, "Weights", &[number(index), number(uid)])?.unwrap_or_default())
}

/// An axon as the chain keeps it.
#[derive(Debug, Clone, Default, PartialEq, Eq, DecodeAsType)]
pub(crate) struct AxonInfo {
    pub(crate) block: u64,
    pub(crate) version: u32,
    pub(crate) ip: u128,
    pub(crate) port: u16,
    pub(crate) ip_type: u8,
    pub(crate) protocol: u8,
    pub(crate) placeholder1: u8,
    pub(crate) placeholder2: u8,
}

impl AxonInfo {
    pub(crate) fn value(&self) -> Value {
        Value::named_composite([
            ("block", number(self.block)),
            ("version", number(self.version)),
            ("ip", number(self.ip)),
            ("port", number(self.port)),
            ("ip_type", number(self.ip_type)),
            ("protocol", number(self.protocol)),
            ("placeholder1", number(self.placeholder1)),
            ("placeholder2", number(self.placeholder2)),
        ])
    }
}

/// Where a hotkey says that it is served.
pub(crate) fn axon(
    state: &State<'_>,
    netuid: u16,
    hotkey: &Account,
) -> Result<Option<AxonInfo>, MetadataError> {
    state.get(SUBTENSOR, "Axons", &[number(netuid), account(hotkey)])
}
