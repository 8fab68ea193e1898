//! The neurons and the rules of the subnet, in one answer of the runtime.

use domain::{BlockHash, BlockNumber, Hotkey, Metagraph, Neuron, Uid};
use scale_decode::DecodeAsType;
use subxt::dynamic;

use super::{Axon, unreadable};
use crate::{
    chain::{AtBlock, BlockId, Chain},
    error::Error,
    selfcheck,
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

const WHAT: &str = "the metagraph";

/// The subnet at one block: in one call of the runtime or, where that has no such call, from its
/// storage.
pub(crate) async fn metagraph(chain: &Chain, id: BlockId) -> Result<Metagraph, Error> {
    let at = chain.at(id).await?;
    if !selfcheck::has_selective_metagraph(at.metadata_ref()) {
        return super::columns::metagraph(chain, &at).await;
    }
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
