//! What is read from the chain, each at one named block (chain, section 2).
//!
//! Values are decoded into small structs that name only the fields in use; [`crate::selfcheck`]
//! lists the same names.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use domain::{BlockHash, BlockNumber, Hotkey, Metagraph, Neuron, Uid, WeightRow};
use scale_decode::DecodeAsType;
use scale_value::{Composite, Value, ValueDef};
use subxt::dynamic;

use crate::{
    chain::{AtBlock, BlockId, Chain},
    error::Error,
    metrics,
};

/// Fields asked of `get_selective_metagraph`, by their numbers.
const METAGRAPH_FIELDS: [u16; 12] = [24, 26, 27, 46, 52, 53, 55, 57, 59, 62, 66, 69];

#[derive(DecodeAsType)]
struct Selective {
    min_allowed_weights: Option<u16>,
    weights_version: Option<u64>,
    weights_rate_limit: Option<u64>,
    commit_reveal_weights_enabled: Option<bool>,
    hotkeys: Option<Vec<[u8; 32]>>,
    coldkeys: Option<Vec<[u8; 32]>>,
    axons: Option<Vec<Axon>>,
    validator_permit: Option<Vec<bool>>,
    last_update: Option<Vec<u64>>,
    incentives: Option<Vec<u16>>,
    block_at_registration: Option<Vec<u64>>,
    total_stake: Option<Vec<u64>>,
}

/// An announced address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, DecodeAsType)]
pub(crate) struct Axon {
    /// Block of the announcement; 0 when there was none.
    pub(crate) block: u64,
    pub(crate) ip: u128,
    pub(crate) port: u16,
    /// 4 or 6.
    pub(crate) ip_type: u8,
}

impl Axon {
    /// The address, where one was announced.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        let ip = match self.ip_type {
            6 => IpAddr::V6(Ipv6Addr::from_bits(self.ip)),
            _ => IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(self.ip).ok()?)),
        };
        (!ip.is_unspecified() && self.port != 0).then_some(SocketAddr::new(ip, self.port))
    }
}

#[derive(DecodeAsType)]
struct Registration {
    block: u64,
    info: CommitmentInfo,
}

#[derive(DecodeAsType)]
struct CommitmentInfo {
    fields: Vec<Value>,
}

/// A commitment as it lies in its slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Commitment {
    pub(crate) hotkey: Hotkey,
    /// Block at which it was stored.
    pub(crate) block: BlockNumber,
    /// The bytes of its first field.
    pub(crate) data: Vec<u8>,
}

type Map<V> = subxt::storage::DynamicAddress<Vec<Value>, V>;

fn entry<V: DecodeAsType>(pallet: &str, name: &str) -> Map<V> {
    dynamic::storage::<Vec<Value>, V>(pallet, name)
}

fn unreadable(what: &'static str, why: impl ToString) -> Error {
    Error::Unreadable { what, why: why.to_string() }
}

/// The subnet at one block, in one call of the runtime.
pub(crate) async fn metagraph(chain: &Chain, id: BlockId) -> Result<Metagraph, Error> {
    const WHAT: &str = "the metagraph";
    let at = chain.at(id).await?;
    let call = dynamic::runtime_api_call::<_, Option<Selective>>(
        "SubnetInfoRuntimeApi",
        "get_selective_metagraph",
        (chain.netuid.0, METAGRAPH_FIELDS.to_vec()),
    );
    let answer = at.runtime_apis().call(call).await;
    let subnet = answer
        .map_err(|error| Error::reading(WHAT, id, error))?
        .ok_or(Error::NoSuchSubnet(chain.netuid.0))?;
    subnet
        .into_metagraph(&at)
        .ok_or_else(|| unreadable(WHAT, "a field that was asked for is absent"))
}

impl Selective {
    /// `None` when a field is absent, or a column is shorter than the others.
    fn into_metagraph(self, at: &AtBlock) -> Option<Metagraph> {
        let (hotkeys, coldkeys, axons) = (self.hotkeys?, self.coldkeys?, self.axons?);
        let (permits, updates) = (self.validator_permit?, self.last_update?);
        let (incentives, stakes) = (self.incentives?, self.total_stake?);
        let registered = self.block_at_registration?;
        let neuron = |uid: usize, hotkey: [u8; 32]| {
            Some(Neuron {
                uid: Uid(u16::try_from(uid).ok()?),
                hotkey: Hotkey::from_public_key(hotkey),
                coldkey: Some(Hotkey::from_public_key(*coldkeys.get(uid)?)),
                axon: axons.get(uid)?.address().map(|a| a.to_string()).unwrap_or_default(),
                stake: *stakes.get(uid)?,
                incentive: *incentives.get(uid)?,
                validator_permit: *permits.get(uid)?,
                last_update: BlockNumber(*updates.get(uid)?),
                registered_at: BlockNumber(*registered.get(uid)?),
            })
        };
        let neurons = hotkeys.iter().enumerate().map(|(uid, hotkey)| neuron(uid, *hotkey));
        Some(Metagraph {
            block: BlockNumber(at.block_number()),
            block_hash: BlockHash(at.block_hash().0),
            neurons: neurons.collect::<Option<_>>()?,
            weights_rate_limit: self.weights_rate_limit?,
            min_allowed_weights: u32::from(self.min_allowed_weights?),
            weights_version: self.weights_version?,
            commit_reveal: self.commit_reveal_weights_enabled?,
        })
    }
}

/// The weights of every validator that has set any, ascending by UID.
pub(crate) async fn weights(chain: &Chain, id: BlockId) -> Result<Vec<WeightRow>, Error> {
    const WHAT: &str = "the weights";
    let at = chain.at(id).await?;
    let read = |error: subxt::error::StorageError| Error::reading(WHAT, id, error);
    let map =
        at.storage().entry(entry::<Vec<(u16, u16)>>("SubtensorModule", "Weights")).map_err(read)?;
    let index = Value::u128(chain.weights_index.into());
    let mut pairs = map.iter(vec![index]).await.map_err(read)?;
    let mut rows = Vec::new();
    while let Some(pair) = pairs.next().await {
        let pair = pair.map_err(read)?;
        let key = pair.key().map_err(|error| unreadable(WHAT, error))?;
        let uid: u16 = key
            .part(1)
            .and_then(|part| part.decode_as().ok().flatten())
            .ok_or_else(|| unreadable(WHAT, "a key without a UID"))?;
        let row = pair.value().decode().map_err(|error| unreadable(WHAT, error))?;
        let weights = row.into_iter().map(|(uid, value)| (Uid(uid), value)).collect();
        rows.push(WeightRow { uid: Uid(uid), weights });
    }
    rows.sort_by_key(|row| row.uid);
    Ok(rows)
}

/// The weights that one validator has set; empty when it has set none.
pub(crate) async fn weights_of(
    chain: &Chain,
    at: &AtBlock,
    uid: Uid,
) -> Result<Vec<(u16, u16)>, Error> {
    let keys = vec![Value::u128(chain.weights_index.into()), Value::u128(uid.0.into())];
    let row =
        fetch::<Vec<(u16, u16)>>(at, "SubtensorModule", "Weights", keys, "the weights").await?;
    Ok(row.unwrap_or_default())
}

/// Every commitment of the subnet. Those without raw bytes in their first field, or that cannot be
/// decoded, are left out and counted.
pub(crate) async fn commitments(chain: &Chain, id: BlockId) -> Result<Vec<Commitment>, Error> {
    const WHAT: &str = "the commitments";
    let at = chain.at(id).await?;
    let read = |error: subxt::error::StorageError| Error::reading(WHAT, id, error);
    let map =
        at.storage().entry(entry::<Registration>("Commitments", "CommitmentOf")).map_err(read)?;
    let mut pairs = map.iter(vec![Value::u128(chain.netuid.0.into())]).await.map_err(read)?;
    let mut commitments = Vec::new();
    while let Some(pair) = pairs.next().await {
        let pair = pair.map_err(read)?;
        let hotkey: Option<[u8; 32]> = pair
            .key()
            .ok()
            .and_then(|key| key.part(1))
            .and_then(|part| part.decode_as().ok().flatten());
        let (Some(hotkey), Ok(registration)) = (hotkey, pair.value().decode()) else {
            metrics::commitment_skipped("unreadable");
            continue;
        };
        match registration.info.fields.first().and_then(raw_bytes) {
            Some(data) => commitments.push(Commitment {
                hotkey: Hotkey::from_public_key(hotkey),
                block: BlockNumber(registration.block),
                data,
            }),
            None => metrics::commitment_skipped("not_raw"),
        }
    }
    commitments.sort_by(|a, b| a.hotkey.cmp(&b.hotkey));
    Ok(commitments)
}

/// The commitment of one hotkey.
pub(crate) async fn commitment_of(
    chain: &Chain,
    at: &AtBlock,
    hotkey: &Hotkey,
) -> Result<Option<Commitment>, Error> {
    let keys = vec![Value::u128(chain.netuid.0.into()), Value::from_bytes(hotkey.public_key())];
    let registration: Option<Registration> =
        fetch(at, "Commitments", "CommitmentOf", keys, "the commitment").await?;
    Ok(registration.and_then(|registration| {
        Some(Commitment {
            hotkey: hotkey.clone(),
            block: BlockNumber(registration.block),
            data: registration.info.fields.first().and_then(raw_bytes)?,
        })
    }))
}

/// The bytes of a commitment's field, when it is a raw one: `Raw0` to `Raw128`, or `BigRaw`.
fn raw_bytes(field: &Value) -> Option<Vec<u8>> {
    let ValueDef::Variant(variant) = &field.value else { return None };
    let length = variant.name.strip_prefix("Raw").and_then(|digits| digits.parse::<usize>().ok());
    if length.is_none() && variant.name != "BigRaw" {
        return None;
    }
    let mut bytes = Vec::with_capacity(length.unwrap_or_default());
    flatten(&variant.values, &mut bytes)?;
    (length.is_none_or(|length| length == bytes.len())).then_some(bytes)
}

fn flatten(values: &Composite<()>, bytes: &mut Vec<u8>) -> Option<()> {
    for value in values.values() {
        match &value.value {
            ValueDef::Composite(inner) => flatten(inner, bytes)?,
            ValueDef::Variant(_) | ValueDef::BitSequence(_) | ValueDef::Primitive(_) => {
                bytes.push(u8::try_from(value.as_u128()?).ok()?)
            }
        }
    }
    Some(())
}

/// UID of a hotkey; `None` when it is not registered in the subnet.
pub(crate) async fn uid_of(
    chain: &Chain,
    at: &AtBlock,
    hotkey: &Hotkey,
) -> Result<Option<Uid>, Error> {
    let keys = vec![Value::u128(chain.netuid.0.into()), Value::from_bytes(hotkey.public_key())];
    Ok(fetch::<u16>(at, "SubtensorModule", "Uids", keys, "the UID").await?.map(Uid))
}

/// Block of a neuron's last weight setting; 0 when there was none.
pub(crate) async fn last_update(chain: &Chain, at: &AtBlock, uid: Uid) -> Result<u64, Error> {
    let keys = vec![Value::u128(chain.weights_index.into())];
    let updates: Option<Vec<u64>> =
        fetch(at, "SubtensorModule", "LastUpdate", keys, "the last updates").await?;
    Ok(updates.and_then(|updates| updates.get(usize::from(uid.0)).copied()).unwrap_or_default())
}

/// The nonce of a hotkey's next extrinsic, as of a block: those in the pool are not counted.
pub(crate) async fn nonce(at: &AtBlock, hotkey: &Hotkey) -> Result<u64, Error> {
    let call = dynamic::runtime_api_call::<_, u32>(
        "AccountNonceApi",
        "account_nonce",
        (Value::from_bytes(hotkey.public_key()),),
    );
    let nonce = at.runtime_apis().call(call).await;
    nonce.map(u64::from).map_err(|error| Error::reading("the nonce", at.block_number(), error))
}

/// The announced address of a hotkey.
pub(crate) async fn axon_of(
    chain: &Chain,
    at: &AtBlock,
    hotkey: &Hotkey,
) -> Result<Option<Axon>, Error> {
    let keys = vec![Value::u128(chain.netuid.0.into()), Value::from_bytes(hotkey.public_key())];
    fetch(at, "SubtensorModule", "Axons", keys, "the axon").await
}

/// A number or a switch of the subnet: the value of a map from subnet to it, or its default.
pub(crate) async fn of_subnet<V: DecodeAsType>(
    chain: &Chain,
    at: &AtBlock,
    name: &'static str,
) -> Result<V, Error> {
    let keys = vec![Value::u128(chain.netuid.0.into())];
    fetch(at, "SubtensorModule", name, keys, name)
        .await?
        .ok_or_else(|| unreadable(name, "it has neither a value nor a default"))
}

/// A value, or its default; `None` where there is neither.
pub(crate) async fn fetch<V: DecodeAsType>(
    at: &AtBlock,
    pallet: &'static str,
    name: &'static str,
    keys: Vec<Value>,
    what: &'static str,
) -> Result<Option<V>, Error> {
    let block = at.block_number();
    let map = at
        .storage()
        .entry(entry::<V>(pallet, name))
        .map_err(|error| Error::reading(what, block, error))?;
    let value = map.try_fetch(keys).await.map_err(|error| Error::reading(what, block, error))?;
    value.map(|value| value.decode().map_err(|error| unreadable(what, error))).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_fields_give_their_bytes_and_others_nothing() {
        let raw = Value::unnamed_variant("Raw3", [Value::from_bytes([1u8, 2, 255])]);
        assert_eq!(raw_bytes(&raw), Some(vec![1, 2, 255]));
        let empty = Value::unnamed_variant("Raw0", [Value::from_bytes([0u8; 0])]);
        assert_eq!(raw_bytes(&empty), Some(vec![]));
        let short = Value::unnamed_variant("Raw4", [Value::from_bytes([1u8])]);
        assert_eq!(raw_bytes(&short), None);
        let hash = Value::unnamed_variant("BlakeTwo256", [Value::from_bytes([7u8; 32])]);
        assert_eq!(raw_bytes(&hash), None);
        assert_eq!(raw_bytes(&Value::unnamed_variant("None", [])), None);
        assert_eq!(raw_bytes(&Value::u128(3)), None);
    }

    #[test]
    fn an_axon_has_an_address_only_where_one_was_announced() {
        let axon = |ip, port, ip_type| Axon { block: 1, ip, port, ip_type }.address();
        assert_eq!(axon(0x0808_0808, 8091, 4), Some("8.8.8.8:8091".parse().unwrap()));
        assert_eq!(axon(1, 8091, 6), Some("[::1]:8091".parse().unwrap()));
        assert_eq!(axon(0, 0, 0), None);
        assert_eq!(axon(u128::MAX, 80, 4), None);
        assert_eq!(axon(0x0808_0808, 0, 4), None);
    }
}
