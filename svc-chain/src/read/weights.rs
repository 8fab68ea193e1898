//! The weights that validators have set.

use domain::{Uid, WeightRow};
use scale_value::Value;

use super::{entry, fetch, unreadable};
use crate::{
    chain::{AtBlock, BlockId, Chain},
    error::Error,
};

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
