//! What hotkeys have committed: raw bytes by strangers.

use std::collections::BTreeMap;

use domain::{BlockNumber, CommitmentKind, Hotkey};
use scale_decode::DecodeAsType;
use scale_value::{Composite, Value, ValueDef};
use serde::{Deserialize, Serialize};
use subxt::config::{Hasher as _, substrate::BlakeTwo256};

use super::{entry, fetch};
use crate::{
    chain::{AtBlock, BlockId, Chain},
    error::Error,
    metrics,
};

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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Commitment {
    pub(crate) hotkey: Hotkey,
    /// Block at which it was stored.
    pub(crate) block: BlockNumber,
    /// The bytes of its first field.
    #[serde(with = "hex")]
    pub(crate) data: Vec<u8>,
}

impl Commitment {
    /// What the protocol reads in it, or why it reads nothing.
    pub(crate) fn kind(&self) -> &'static str {
        match CommitmentKind::of(&self.data) {
            Ok(kind) => kind.as_str(),
            Err(error) => error.kind(),
        }
    }
}

/// What a subnet's hotkeys have committed, ascending by hotkey.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Commitments {
    pub(crate) list: Vec<Commitment>,
    /// Left out: those without raw bytes in their first field.
    pub(crate) not_raw: u32,
    /// Left out: those that cannot be decoded.
    pub(crate) unreadable: u32,
}

impl Commitments {
    /// How many there are of each kind, with those that were left out.
    pub(crate) fn kinds(&self) -> BTreeMap<&'static str, u32> {
        let mut kinds = BTreeMap::new();
        for commitment in &self.list {
            *kinds.entry(commitment.kind()).or_insert(0) += 1;
        }
        for (kind, count) in [("not_raw", self.not_raw), ("unreadable", self.unreadable)] {
            if count > 0 {
                kinds.insert(kind, count);
            }
        }
        kinds
    }

    /// BLAKE2b-256 over all of it: equal for equal content.
    pub(crate) fn digest(&self) -> [u8; 32] {
        use codec::Encode as _;
        let rows = self.list.iter().map(|row| (row.hotkey.public_key(), row.block.0, &row.data));
        let rows: Vec<_> = rows.collect();
        BlakeTwo256.hash(&(rows, self.not_raw, self.unreadable).encode()).0
    }
}

/// Every commitment of the subnet.
pub(crate) async fn commitments(chain: &Chain, id: BlockId) -> Result<Commitments, Error> {
    const WHAT: &str = "the commitments";
    let at = chain.at(id).await?;
    let read = |error: subxt::error::StorageError| Error::reading(WHAT, id, error);
    let map =
        at.storage().entry(entry::<Registration>("Commitments", "CommitmentOf")).map_err(read)?;
    let mut pairs = map.iter(vec![Value::u128(chain.netuid.0.into())]).await.map_err(read)?;
    let mut commitments = Commitments::default();
    while let Some(pair) = pairs.next().await {
        let pair = pair.map_err(read)?;
        let hotkey: Option<[u8; 32]> = pair
            .key()
            .ok()
            .and_then(|key| key.part(1))
            .and_then(|part| part.decode_as().ok().flatten());
        let (Some(hotkey), Ok(registration)) = (hotkey, pair.value().decode()) else {
            metrics::commitment_skipped("unreadable");
            commitments.unreadable += 1;
            continue;
        };
        match registration.info.fields.first().and_then(raw_bytes) {
            Some(data) => commitments.list.push(Commitment {
                hotkey: Hotkey::from_public_key(hotkey),
                block: BlockNumber(registration.block),
                data,
            }),
            None => {
                metrics::commitment_skipped("not_raw");
                commitments.not_raw += 1;
            }
        }
    }
    commitments.list.sort_by(|a, b| a.hotkey.cmp(&b.hotkey));
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
    fn kinds_are_counted_and_garbage_is_a_kind() {
        let commitment = |data: &[u8]| Commitment {
            hotkey: Hotkey::from_public_key([1; 32]),
            block: BlockNumber(7),
            data: data.to_vec(),
        };
        let all = Commitments {
            list: [
                &br#"{"m":"x"}"#[..],
                br#"{"m":"y"}"#,
                br#"{"b":1}"#,
                br#"{"s":1}"#,
                b"\xff",
                b"[]",
            ]
            .map(commitment)
            .to_vec(),
            not_raw: 2,
            unreadable: 0,
        };
        let kinds = all.kinds();
        let kinds: Vec<_> = kinds.into_iter().collect();
        let expected = [
            ("miner", 1),
            ("not_an_object", 1),
            ("not_raw", 2),
            ("not_utf8", 1),
            ("signed_hash", 2),
            ("validator", 1),
        ];
        assert_eq!(kinds, expected);
    }

    #[test]
    fn every_part_of_the_content_is_in_the_digest() {
        let row = Commitment {
            hotkey: Hotkey::from_public_key([1; 32]),
            block: BlockNumber(7),
            data: vec![1],
        };
        let of = |change: fn(&mut Commitments)| {
            let mut all = Commitments { list: vec![row.clone()], ..Commitments::default() };
            change(&mut all);
            all.digest()
        };
        let same = of(|_| {});
        assert_eq!(of(|_| {}), same);
        for change in [
            (|all: &mut Commitments| all.list[0].data.push(0)) as fn(&mut Commitments),
            |all| all.list[0].block.0 += 1,
            |all| all.list[0].hotkey = Hotkey::from_public_key([2; 32]),
            |all| all.not_raw += 1,
            |all| all.list.clear(),
        ] {
            assert_ne!(of(change), same);
        }
    }
}
