//! The metagraph of a runtime without a call for it: column by column from the storage of one block.
//!
//! Maps of the subnet are read by prefix, maps of hotkeys by many keys at once. A stake is the
//! hotkey's own, with the share of its stake in the root subnet that the chain counts; what child
//! and parent keys hand over to each other is not in it.

use std::collections::BTreeMap;

use codec::Decode;
use domain::{BlockHash, BlockNumber, Hotkey, Metagraph, Neuron, Uid};
use scale_decode::DecodeAsType;
use scale_value::Value;
use subxt::utils::H256;

use super::{Axon, entry, fetch, of_subnet, unreadable};
use crate::{
    chain::{AtBlock, Chain},
    error::Error,
    selfcheck,
};

const WHAT: &str = "the metagraph";
const PALLET: &str = "SubtensorModule";
/// Keys that are asked for in one call: below a node's limit.
const MAX_KEYS: usize = 512;

/// The subnet at one block.
pub(super) async fn metagraph(chain: &Chain, at: &AtBlock) -> Result<Metagraph, Error> {
    if !of_subnet::<bool>(chain, at, "NetworksAdded").await? {
        return Err(Error::NoSuchSubnet(chain.netuid.0));
    }
    let size: u16 = of_subnet(chain, at, "SubnetworkN").await?;
    let hotkeys = by_uid::<[u8; 32]>(chain, at, "Keys").await?;
    let registered = by_uid::<u64>(chain, at, "BlockAtRegistration").await?;
    let axons = axons(chain, at).await?;
    let permits: Vec<bool> = of_subnet(chain, at, "ValidatorPermit").await?;
    let incentives: Vec<u16> = row(chain, at, "Incentive").await?;
    let updates: Vec<u64> = row(chain, at, "LastUpdate").await?;
    let mut slots = Vec::with_capacity(size.into());
    for uid in 0..size {
        let hotkey = hotkeys.get(&uid);
        let hotkey = hotkey.ok_or_else(|| unreadable(WHAT, format!("UID {uid} has no hotkey")))?;
        slots.push(*hotkey);
    }
    let (owners, stakes) = (owners(chain, at, &slots).await?, stakes(chain, at, &slots).await?);
    let neuron = |(place, hotkey): (usize, &[u8; 32])| {
        let uid = u16::try_from(place).unwrap_or(u16::MAX);
        let axon = axons.get(hotkey).and_then(Axon::address);
        Neuron {
            uid: Uid(uid),
            hotkey: Hotkey::from_public_key(*hotkey),
            coldkey: owners.get(place).copied().flatten().map(Hotkey::from_public_key),
            axon: axon.map(|address| address.to_string()).unwrap_or_default(),
            stake: stakes.get(place).copied().unwrap_or_default(),
            incentive: incentives.get(place).copied().unwrap_or_default(),
            validator_permit: permits.get(place).copied().unwrap_or_default(),
            last_update: BlockNumber(updates.get(place).copied().unwrap_or_default()),
            registered_at: BlockNumber(registered.get(&uid).copied().unwrap_or_default()),
        }
    };
    let neurons = slots.iter().enumerate().map(neuron).collect();
    Ok(Metagraph {
        block: BlockNumber(at.block_number()),
        block_hash: BlockHash(at.block_hash().0),
        neurons,
        weights_rate_limit: of_subnet(chain, at, "WeightsSetRateLimit").await?,
        min_allowed_weights: u32::from(of_subnet::<u16>(chain, at, "MinAllowedWeights").await?),
        weights_version: of_subnet(chain, at, "WeightsVersionKey").await?,
        commit_reveal: of_subnet(chain, at, "CommitRevealWeightsEnabled").await?,
    })
}

/// A map of the subnet from UID to something.
async fn by_uid<V: DecodeAsType>(
    chain: &Chain,
    at: &AtBlock,
    name: &'static str,
) -> Result<BTreeMap<u16, V>, Error> {
    let read = |error: subxt::error::StorageError| Error::reading(WHAT, at.block_number(), error);
    let map = at.storage().entry(entry::<V>(PALLET, name)).map_err(read)?;
    let mut pairs = map.iter(vec![Value::u128(chain.netuid.0.into())]).await.map_err(read)?;
    let mut column = BTreeMap::new();
    while let Some(pair) = pairs.next().await {
        let pair = pair.map_err(read)?;
        let key = pair.key().map_err(|error| unreadable(WHAT, error))?;
        let uid: Option<u16> = key.part(1).and_then(|part| part.decode_as().ok().flatten());
        let uid = uid.ok_or_else(|| unreadable(WHAT, format!("{name} has a key without a UID")))?;
        column.insert(uid, pair.value().decode().map_err(|error| unreadable(WHAT, error))?);
    }
    Ok(column)
}

async fn axons(chain: &Chain, at: &AtBlock) -> Result<BTreeMap<[u8; 32], Axon>, Error> {
    let read = |error: subxt::error::StorageError| Error::reading(WHAT, at.block_number(), error);
    let map = at.storage().entry(entry::<Axon>(PALLET, "Axons")).map_err(read)?;
    let mut pairs = map.iter(vec![Value::u128(chain.netuid.0.into())]).await.map_err(read)?;
    let mut axons = BTreeMap::new();
    while let Some(pair) = pairs.next().await {
        let pair = pair.map_err(read)?;
        let key = pair.key().map_err(|error| unreadable(WHAT, error))?;
        let hotkey = key.part(1).and_then(|part| part.decode_as().ok().flatten());
        let hotkey: [u8; 32] =
            hotkey.ok_or_else(|| unreadable(WHAT, "an axon has a key without a hotkey"))?;
        axons.insert(hotkey, pair.value().decode().map_err(|error| unreadable(WHAT, error))?);
    }
    Ok(axons)
}

/// A row of the mechanism, one value per UID.
async fn row<V: DecodeAsType>(
    chain: &Chain,
    at: &AtBlock,
    name: &'static str,
) -> Result<Vec<V>, Error> {
    let keys = vec![Value::u128(chain.weights_index.into())];
    Ok(fetch::<Vec<V>>(at, PALLET, name, keys, WHAT).await?.unwrap_or_default())
}

async fn owners(
    chain: &Chain,
    at: &AtBlock,
    hotkeys: &[[u8; 32]],
) -> Result<Vec<Option<[u8; 32]>>, Error> {
    let keys = hotkeys.iter().map(|hotkey| vec![Value::from_bytes(hotkey)]);
    many(chain, at, "Owner", keys).await
}

/// The stake of each hotkey in the subnet, and what counts of that in the root subnet.
async fn stakes(chain: &Chain, at: &AtBlock, hotkeys: &[[u8; 32]]) -> Result<Vec<u64>, Error> {
    let keys = |netuid: u16| {
        hotkeys
            .iter()
            .map(move |hotkey| vec![Value::from_bytes(hotkey), Value::u128(netuid.into())])
    };
    let own = many::<u64>(chain, at, "TotalHotkeyAlpha", keys(chain.netuid.0)).await?;
    let root = many::<u64>(chain, at, "TotalHotkeyAlpha", keys(0)).await?;
    let weight = root_weight(chain, at).await?;
    let stakes = own.into_iter().zip(root).map(|(own, root)| {
        let counted = (u128::from(root.unwrap_or_default()) * u128::from(weight)) >> 64;
        own.unwrap_or_default().saturating_add(u64::try_from(counted).unwrap_or(u64::MAX))
    });
    Ok(stakes.collect())
}

/// What a stake in the root subnet counts, as a share of 2^64; 0 where the runtime has no such thing.
async fn root_weight(chain: &Chain, at: &AtBlock) -> Result<u64, Error> {
    const NAME: &str = "TaoWeight";
    let keys = match selfcheck::keys_of(at.metadata_ref(), PALLET, NAME) {
        Some(0) => Vec::new(),
        Some(1) => vec![Value::u128(chain.netuid.0.into())],
        Some(_) | None => return Ok(0),
    };
    Ok(fetch(at, PALLET, NAME, keys, WHAT).await?.unwrap_or_default())
}

/// Values of many keys of one map, in the order of the keys; `None` where there is none. They are
/// of a type that needs no metadata to be read.
async fn many<V: Decode>(
    chain: &Chain,
    at: &AtBlock,
    name: &'static str,
    keys: impl Iterator<Item = Vec<Value>>,
) -> Result<Vec<Option<V>>, Error> {
    let read = |error: subxt::error::StorageError| Error::reading(WHAT, at.block_number(), error);
    let map = at.storage().entry(entry::<Value>(PALLET, name)).map_err(read)?;
    let keys: Vec<Vec<u8>> =
        keys.map(|key| map.fetch_key(key)).collect::<Result<_, _>>().map_err(read)?;
    let mut values = Vec::with_capacity(keys.len());
    for page in keys.chunks(MAX_KEYS) {
        let asked = page.iter().map(Vec::as_slice);
        let hash = Some(H256(at.block_hash().0));
        let told = chain.methods().state_query_storage_at(asked, hash).await;
        let told = told.map_err(|error| Error::reading(WHAT, at.block_number(), error))?;
        let mut found: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        for (key, value) in told.into_iter().flat_map(|set| set.changes) {
            if let Some(value) = value {
                found.insert(key.0, value.0);
            }
        }
        for key in page {
            let value = found.get(key).map(|bytes| V::decode(&mut bytes.as_slice()));
            values.push(value.transpose().map_err(|error| unreadable(WHAT, error))?);
        }
    }
    Ok(values)
}
