//! What the chain service reads: metagraphs, weights, block hashes; and what it tells.

use domain::{BlockHash, BlockNumber, Degradation, Metagraph, Neuron, Uid, WeightRow};

use super::{InvalidField, bytes, parse};
use crate::{chain::v1 as wire, common::v1 as common};

/// The hash of a block: 32 bytes.
pub fn block_hash(field: &'static str, hash: &[u8]) -> Result<BlockHash, InvalidField> {
    bytes(field, hash).map(BlockHash)
}

/// What the chain service tells of something that did not go the normal way. A kind that is
/// unknown, or not the chain's to tell, is one of its own and not an error.
pub fn degradation(wire: common::Degradation) -> Degradation {
    Degradation::from_chain(&wire.kind, &wire.detail, BlockNumber(wire.block))
}

/// A metagraph, with its neurons in ascending order of UID.
pub fn metagraph(wire: wire::Metagraph) -> Result<Metagraph, InvalidField> {
    wire.try_into()
}

/// All weights on chain, ascending by UID of the validator.
pub fn weight_rows(wire: wire::GetWeightsResponse) -> Result<Vec<WeightRow>, InvalidField> {
    let mut rows = wire.rows.into_iter().map(WeightRow::try_from).collect::<Result<Vec<_>, _>>()?;
    rows.sort_by_key(|row| row.uid);
    match rows.windows(2).find(|pair| pair[0].uid == pair[1].uid) {
        Some(pair) => Err(InvalidField::new("rows", format!("two rows of UID {}", pair[0].uid))),
        None => Ok(rows),
    }
}

fn uid(value: u32) -> Result<Uid, InvalidField> {
    small("uid", value).map(Uid)
}

/// A 16-bit value that protobuf carries in 32 bits.
fn small(field: &'static str, value: u32) -> Result<u16, InvalidField> {
    u16::try_from(value).map_err(|_| InvalidField::new(field, format!("{value} is above 65535")))
}

impl TryFrom<wire::Metagraph> for Metagraph {
    type Error = InvalidField;

    fn try_from(wire: wire::Metagraph) -> Result<Self, InvalidField> {
        let mut neurons =
            wire.neurons.into_iter().map(Neuron::try_from).collect::<Result<Vec<_>, _>>()?;
        neurons.sort_by_key(|neuron| neuron.uid);
        if let Some(pair) = neurons.windows(2).find(|pair| pair[0].uid == pair[1].uid) {
            let reason = format!("two neurons of UID {}", pair[0].uid);
            return Err(InvalidField::new("neurons", reason));
        }
        Ok(Self {
            block: BlockNumber(wire.block),
            block_hash: block_hash("block_hash", &wire.block_hash)?,
            neurons,
            weights_rate_limit: wire.weights_rate_limit,
            min_allowed_weights: wire.min_allowed_weights,
            weights_version: wire.weights_version,
            commit_reveal: wire.commit_reveal,
        })
    }
}

impl From<Metagraph> for wire::Metagraph {
    fn from(metagraph: Metagraph) -> Self {
        Self {
            block: metagraph.block.0,
            block_hash: metagraph.block_hash.0.to_vec().into(),
            neurons: metagraph.neurons.into_iter().map(Into::into).collect(),
            weights_rate_limit: metagraph.weights_rate_limit,
            min_allowed_weights: metagraph.min_allowed_weights,
            weights_version: metagraph.weights_version,
            commit_reveal: metagraph.commit_reveal,
        }
    }
}

impl TryFrom<wire::Neuron> for Neuron {
    type Error = InvalidField;

    fn try_from(wire: wire::Neuron) -> Result<Self, InvalidField> {
        let coldkey = match wire.coldkey.as_str() {
            "" => None,
            address => Some(parse("coldkey", address)?),
        };
        Ok(Self {
            uid: uid(wire.uid)?,
            hotkey: parse("hotkey", &wire.hotkey)?,
            coldkey,
            axon: wire.axon,
            stake: wire.stake,
            incentive: small("incentive", wire.incentive)?,
            validator_permit: wire.validator_permit,
            last_update: BlockNumber(wire.last_update),
            registered_at: BlockNumber(wire.registered_at),
        })
    }
}

impl From<Neuron> for wire::Neuron {
    fn from(neuron: Neuron) -> Self {
        Self {
            uid: neuron.uid.0.into(),
            hotkey: neuron.hotkey.to_string(),
            coldkey: neuron.coldkey.map(|coldkey| coldkey.to_string()).unwrap_or_default(),
            axon: neuron.axon,
            stake: neuron.stake,
            incentive: neuron.incentive.into(),
            validator_permit: neuron.validator_permit,
            last_update: neuron.last_update.0,
            registered_at: neuron.registered_at.0,
        }
    }
}

impl TryFrom<wire::WeightRow> for WeightRow {
    type Error = InvalidField;

    fn try_from(wire: wire::WeightRow) -> Result<Self, InvalidField> {
        let weights = wire
            .weights
            .into_iter()
            .map(|weight| Ok((uid(weight.uid)?, small("value", weight.value)?)))
            .collect::<Result<_, _>>()?;
        Ok(Self { uid: uid(wire.uid)?, weights })
    }
}

impl From<WeightRow> for wire::WeightRow {
    fn from(row: WeightRow) -> Self {
        let weights = row
            .weights
            .into_iter()
            .map(|(uid, value)| wire::Weight { uid: uid.0.into(), value: value.into() })
            .collect();
        Self { uid: row.uid.0.into(), weights }
    }
}

#[cfg(test)]
mod tests {
    use domain::Hotkey;
    use proptest::prelude::*;

    use super::*;

    fn neurons() -> impl Strategy<Value = Neuron> {
        (
            any::<[u8; 32]>(),
            prop::option::of(any::<[u8; 32]>()),
            "([0-9]{1,3}\\.){3}[0-9]{1,3}:[0-9]{4}|",
            any::<(u64, u16, bool, u32, u32)>(),
        )
            .prop_map(
                |(hotkey, coldkey, axon, (stake, incentive, permit, update, since))| Neuron {
                    uid: Uid(0),
                    hotkey: Hotkey::from_public_key(hotkey),
                    coldkey: coldkey.map(Hotkey::from_public_key),
                    axon,
                    stake,
                    incentive,
                    validator_permit: permit,
                    last_update: BlockNumber(update.into()),
                    registered_at: BlockNumber(since.into()),
                },
            )
    }

    fn metagraphs() -> impl Strategy<Value = Metagraph> {
        (prop::collection::vec(neurons(), 0..6), any::<([u8; 32], u32, u64, u32, u64, bool)>())
            .prop_map(|(mut neurons, (hash, block, rate, least, version, reveal))| {
                for (uid, neuron) in (0..).zip(&mut neurons) {
                    neuron.uid = Uid(uid);
                }
                Metagraph {
                    block: BlockNumber(block.into()),
                    block_hash: BlockHash(hash),
                    neurons,
                    weights_rate_limit: rate,
                    min_allowed_weights: least,
                    weights_version: version,
                    commit_reveal: reveal,
                }
            })
    }

    fn sample() -> wire::Neuron {
        wire::Neuron {
            uid: 3,
            hotkey: Hotkey::from_public_key([1; 32]).to_string(),
            ..wire::Neuron::default()
        }
    }

    #[test]
    fn a_wrong_field_is_named() {
        let broken = |change: fn(&mut wire::Neuron)| {
            let mut neuron = sample();
            change(&mut neuron);
            Neuron::try_from(neuron).unwrap_err().field
        };
        assert_eq!(broken(|neuron| neuron.uid = 65_536), "uid");
        assert_eq!(broken(|neuron| neuron.hotkey.clear()), "hotkey");
        assert_eq!(broken(|neuron| neuron.coldkey = "x".to_owned()), "coldkey");
        assert_eq!(broken(|neuron| neuron.incentive = 65_536), "incentive");
        assert_eq!(metagraph(wire::Metagraph::default()).unwrap_err().field, "block_hash");
    }

    #[test]
    fn neurons_come_out_ascending_and_a_uid_twice_is_refused() {
        let graph = |uids: [u32; 2]| wire::Metagraph {
            block_hash: vec![0; 32].into(),
            neurons: uids.map(|uid| wire::Neuron { uid, ..sample() }).to_vec(),
            ..wire::Metagraph::default()
        };
        let sorted = metagraph(graph([7, 3])).unwrap();
        assert_eq!(sorted.neurons.iter().map(|neuron| neuron.uid.0).collect::<Vec<_>>(), [3, 7]);
        let error = metagraph(graph([3, 3])).unwrap_err();
        assert_eq!(error.to_string(), "invalid field `neurons`: two neurons of UID 3");
    }

    #[test]
    fn rows_come_out_ascending_and_a_row_twice_is_refused() {
        let rows = |uids: [u32; 2]| wire::GetWeightsResponse {
            rows: uids.map(|uid| wire::WeightRow { uid, weights: Vec::new() }).to_vec(),
        };
        assert_eq!(weight_rows(rows([2, 1])).unwrap()[0].uid, Uid(1));
        let error = weight_rows(rows([2, 2])).unwrap_err();
        assert_eq!(error.to_string(), "invalid field `rows`: two rows of UID 2");
    }

    proptest! {
        #[test]
        fn every_metagraph_crosses_the_wire(graph in metagraphs()) {
            prop_assert_eq!(metagraph(graph.clone().into()), Ok(graph));
        }

        #[test]
        fn every_row_of_weights_crosses_the_wire(
            validator: u16,
            weights in prop::collection::vec(any::<(u16, u16)>(), 0..8),
        ) {
            let weights = weights.into_iter().map(|(uid, value)| (Uid(uid), value)).collect();
            let row = WeightRow { uid: Uid(validator), weights };
            prop_assert_eq!(WeightRow::try_from(wire::WeightRow::from(row.clone())), Ok(row));
        }
    }
}
