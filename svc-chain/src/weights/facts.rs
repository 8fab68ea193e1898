//! What is read of the chain before weights are sent, all of it as of one block.

use domain::{BlockNumber, Hotkey};
use drand::Beacon;
use futures::try_join;
use scale_decode::DecodeAsType;
use scale_value::Value;

use super::{Offer, commit::When, epoch::Epochs, rules::Rules};
use crate::{
    chain::{AtBlock, Block, BlockId, Chain},
    error::Error,
    failure::Failure,
    read, selfcheck,
};

const PALLET: &str = "SubtensorModule";
/// Blocks over which the time between two blocks is measured.
const MEASURED: u64 = 16;
/// Time between two blocks on the live chain, for a chain that is too young to be measured.
const NOMINAL_BLOCK_MS: u64 = 12_000;
/// Bounds of a measured block time: a node's clock is not trusted beyond them.
const BLOCK_MS: std::ops::RangeInclusive<u64> = 50..=120_000;

/// What the chain's checks of this validator's weights look at.
pub(crate) async fn rules(
    chain: &Chain,
    at: &AtBlock,
    hotkey: &Hotkey,
    best: &Block,
    mechanism: u8,
) -> Result<Rules, Error> {
    let metagraph = read::metagraph(chain, BlockId::Hash(best.hash)).await?;
    let me = metagraph.by_hotkey(hotkey);
    let last_update = async {
        match me {
            Some(me) => read::last_update(chain, at, me.uid).await,
            None => Ok(0),
        }
    };
    let (stake_threshold, max_weight, count, last_update) = try_join!(
        stake_threshold(at),
        read::of_subnet::<u16>(chain, at, "MaxWeightsLimit"),
        mechanisms(chain, at),
        last_update,
    )?;
    Ok(Rules {
        neurons: u16::try_from(metagraph.neurons.len()).unwrap_or(u16::MAX),
        mechanism: mechanism < count,
        uid: me.map(|me| me.uid.0),
        stake: me.map_or(0, |me| me.stake),
        stake_threshold: stake_threshold.unwrap_or(0),
        version: metagraph.weights_version,
        last_update,
        rate_limit: metagraph.weights_rate_limit,
        permit: me.is_some_and(|me| me.validator_permit),
        least: u16::try_from(metagraph.min_allowed_weights).unwrap_or(u16::MAX),
        max_weight,
    })
}

/// What the chain offers for weights of the subnet.
pub(crate) async fn offer(chain: &Chain, at: &AtBlock) -> Result<Offer, Error> {
    let metadata = at.metadata_ref();
    let (enabled, version) = try_join!(
        read::of_subnet::<bool>(chain, at, "CommitRevealWeightsEnabled"),
        item::<u16>(at, "CommitRevealWeightsVersion", vec![]),
    )?;
    Ok(Offer {
        enabled,
        version,
        timelock: selfcheck::timelock_call(metadata).is_some(),
        hash: selfcheck::hash_calls(metadata).is_some(),
    })
}

/// When a timelocked commit that lands in the next block can be opened.
pub(crate) async fn when(chain: &Chain, at: &AtBlock, best: &Block) -> Result<When, Error> {
    let (epochs, period, now, then) = try_join!(
        epochs(chain, at),
        read::of_subnet::<u64>(chain, at, "RevealPeriodEpochs"),
        now(at),
        earlier(chain, best),
    )?;
    let opens = epochs.first_reveal(best.number.0, period).ok_or_else(|| Error::Unreadable {
        what: "the subnet's epochs",
        why: format!("nothing can be revealed by {epochs:?} and a period of {period}"),
    })?;
    let block_time_ms = match then {
        Some((blocks, then)) if blocks > 0 => {
            (now.saturating_sub(then) / blocks).clamp(*BLOCK_MS.start(), *BLOCK_MS.end())
        }
        Some(_) | None => NOMINAL_BLOCK_MS,
    };
    let closes = opens.saturating_add(epochs.length() - 1);
    Ok(When { block: best.number.0, now_ms: now, block_time_ms, opens, closes })
}

/// The beacon whose rounds this chain stores. `pinned`: it must be drand's quicknet.
pub(crate) async fn beacon(at: &AtBlock, pinned: bool) -> Result<Result<Beacon, Failure>, Error> {
    #[derive(DecodeAsType)]
    struct Stored {
        public_key: Vec<u8>,
        period: u32,
        genesis_time: u32,
    }
    const WHAT: &str = "the drand beacon";
    let stored: Option<Stored> = read::fetch(at, "Drand", "BeaconConfig", vec![], WHAT).await?;
    let refused = |detail: String| Ok(Err(Failure::NoCommitReveal { detail }));
    let Some(stored) = stored else {
        return refused("the chain names no drand beacon".to_owned());
    };
    let Ok(key) = stored.public_key.try_into() else {
        return refused("the key of the chain's drand beacon has another length".to_owned());
    };
    match Beacon::new(key, stored.genesis_time.into(), stored.period.into()) {
        Ok(beacon) if !pinned || beacon == Beacon::quicknet() => Ok(Ok(beacon)),
        Ok(_) => refused("the node names another beacon than drand's quicknet".to_owned()),
        Err(error) => refused(format!("the chain's drand beacon cannot be used: {error}")),
    }
}

/// A commit by hash as it lies on the chain: its hash, and the blocks that can reveal it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Committed {
    pub(crate) hash: [u8; 32],
    pub(crate) opens: u64,
    pub(crate) closes: u64,
}

/// The commits by hash of a hotkey that are not revealed yet.
pub(crate) async fn commits(
    chain: &Chain,
    at: &AtBlock,
    hotkey: &Hotkey,
) -> Result<Vec<Committed>, Error> {
    // Runtimes that count epochs keep (hash, epoch, block, 0) and others (hash, block, first, last).
    type Entry = ([u8; 32], u64, u64, u64);
    let keys =
        vec![Value::u128(chain.weights_index.into()), Value::from_bytes(hotkey.public_key())];
    let entries: Option<Vec<Entry>> = item(at, "WeightCommits", keys).await?;
    let entries = entries.unwrap_or_default();
    if entries.is_empty() {
        return Ok(Vec::new());
    }
    let (epochs, period) =
        try_join!(epochs(chain, at), read::of_subnet::<u64>(chain, at, "RevealPeriodEpochs"),)?;
    let window = |(hash, second, third, fourth): Entry| match epochs {
        Epochs::Modulo { .. } => Some(Committed { hash, opens: third, closes: fourth }),
        Epochs::Stateful { .. } => epochs
            .window(second, period, at.block_number())
            .map(|(opens, closes)| Committed { hash, opens, closes }),
    };
    Ok(entries.into_iter().filter_map(window).collect())
}

/// Whether a timelocked commit of a hotkey lies on the chain, not opened yet.
pub(crate) async fn is_sealed(
    chain: &Chain,
    at: &AtBlock,
    hotkey: &Hotkey,
    sealed: &[u8],
) -> Result<bool, Error> {
    const WHAT: &str = "the timelocked commits";
    type Entry = ([u8; 32], u64, Vec<u8>, u64);
    let block = at.block_number();
    let read = |error: subxt::error::StorageError| Error::reading(WHAT, block, error);
    let address =
        subxt::dynamic::storage::<Vec<Value>, Vec<Entry>>(PALLET, "TimelockedWeightCommits");
    let map = at.storage().entry(address).map_err(read)?;
    let mut epochs = map.iter(vec![Value::u128(chain.weights_index.into())]).await.map_err(read)?;
    while let Some(epoch) = epochs.next().await {
        let commits = epoch
            .map_err(read)?
            .value()
            .decode()
            .map_err(|error| Error::Unreadable { what: WHAT, why: error.to_string() })?;
        if commits.iter().any(|(who, _, bytes, _)| who == hotkey.public_key() && bytes == sealed) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The schedule of the subnet's epochs, by the rule of this runtime.
async fn epochs(chain: &Chain, at: &AtBlock) -> Result<Epochs, Error> {
    let tempo = u64::from(read::of_subnet::<u16>(chain, at, "Tempo").await?);
    if !selfcheck::has_stateful_epochs(at.metadata_ref()) {
        return Ok(Epochs::Modulo { tempo, netuid: chain.netuid.0 });
    }
    let (last, pending, index, since) = try_join!(
        read::of_subnet(chain, at, "LastEpochBlock"),
        read::of_subnet(chain, at, "PendingEpochAt"),
        read::of_subnet(chain, at, "SubnetEpochIndex"),
        read::of_subnet(chain, at, "BlocksSinceLastStep"),
    )?;
    Ok(Epochs::Stateful { tempo, last, pending, index, since })
}

/// The chain's time at a block, in Unix milliseconds.
async fn now(at: &AtBlock) -> Result<u64, Error> {
    const WHAT: &str = "the chain's time";
    let now = read::fetch(at, "Timestamp", "Now", vec![], WHAT).await?;
    now.ok_or(Error::Unreadable { what: WHAT, why: "it has none".to_owned() })
}

/// The time some blocks before `best`, and how many; `None` where there are none, or the node no
/// longer holds their state.
async fn earlier(chain: &Chain, best: &Block) -> Result<Option<(u64, u64)>, Error> {
    // The time is first set in block 1.
    let blocks = MEASURED.min(best.number.0.saturating_sub(1));
    if blocks == 0 {
        return Ok(None);
    }
    let at = chain.at(BlockId::Number(BlockNumber(best.number.0 - blocks))).await?;
    match now(&at).await {
        Ok(then) => Ok(Some((blocks, then))),
        Err(Error::StateDiscarded(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// How many mechanisms the subnet has; none where there is no subnet.
async fn mechanisms(chain: &Chain, at: &AtBlock) -> Result<u8, Error> {
    let key = || vec![Value::u128(chain.netuid.0.into())];
    let there: Option<bool> = item(at, "NetworksAdded", key()).await?;
    match there {
        Some(true) => Ok(item(at, "MechanismCountCurrent", key()).await?.unwrap_or(1)),
        Some(false) | None => Ok(0),
    }
}

/// The stake that setting weights takes, whatever the runtime calls it.
async fn stake_threshold(at: &AtBlock) -> Result<Option<u64>, Error> {
    match item(at, "StakeThreshold", vec![]).await? {
        None => item(at, "WeightsMinStake", vec![]).await,
        threshold => Ok(threshold),
    }
}

/// A value of the chain's main pallet; `None` where there is none, or this runtime has no such entry.
async fn item<V: DecodeAsType>(
    at: &AtBlock,
    entry: &'static str,
    keys: Vec<Value>,
) -> Result<Option<V>, Error> {
    if selfcheck::keys_of(at.metadata_ref(), PALLET, entry).is_none() {
        return Ok(None);
    }
    read::fetch(at, PALLET, entry, keys, entry).await
}
