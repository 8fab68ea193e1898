//! What is read from the chain, each at one named block (chain, section 2).
//!
//! Values are decoded into small structs that name only the fields in use; [`crate::selfcheck`]
//! lists the same names.

mod columns;
pub(crate) mod commitments;
mod metagraph;
mod weights;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use domain::{Hotkey, Uid};
use scale_decode::DecodeAsType;
use scale_value::Value;
use subxt::dynamic;

pub(crate) use self::{
    commitments::{Commitments, commitment_of, commitments},
    metagraph::metagraph,
    weights::{weights, weights_of},
};
use crate::{
    chain::{AtBlock, Chain},
    error::Error,
};

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

type Map<V> = subxt::storage::DynamicAddress<Vec<Value>, V>;

fn entry<V: DecodeAsType>(pallet: &str, name: &str) -> Map<V> {
    dynamic::storage::<Vec<Value>, V>(pallet, name)
}

fn unreadable(what: &'static str, why: impl ToString) -> Error {
    Error::Unreadable { what, why: why.to_string() }
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
    fn an_axon_has_an_address_only_where_one_was_announced() {
        let axon = |ip, port, ip_type| Axon { block: 1, ip, port, ip_type }.address();
        assert_eq!(axon(0x0808_0808, 8091, 4), Some("8.8.8.8:8091".parse().unwrap()));
        assert_eq!(axon(1, 8091, 6), Some("[::1]:8091".parse().unwrap()));
        assert_eq!(axon(0, 0, 0), None);
        assert_eq!(axon(u128::MAX, 80, 4), None);
        assert_eq!(axon(0x0808_0808, 0, 4), None);
    }
}
