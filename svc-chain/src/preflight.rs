//! What the chain holds already, and what it would refuse: asked before sending, and after.

use domain::{BlockHash, BlockNumber, Hotkey};

use crate::{
    call::ip_bits,
    chain::{AtBlock, Block, BlockId, Chain, Tips},
    error::Error,
    failure::Failure,
    outbox::{Intent, Payload},
    read,
};

/// Whether to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Send,
    /// The value is there, from before the intent, and writing it again would change nothing.
    Unchanged {
        block: u64,
    },
    /// The value came there after the intent was recorded.
    AlreadyThere {
        block: Block,
    },
    /// The rate limit allows it at this block.
    Wait {
        until: u64,
    },
    /// The chain would refuse it for good.
    Refuse(Failure),
}

/// Asks the chain, as of its best block, whether an intent should be sent.
pub(crate) async fn check(
    chain: &Chain,
    hotkey: &Hotkey,
    intent: &Intent,
    best: &Block,
) -> Result<Verdict, Error> {
    let at = chain.at(BlockId::Hash(best.hash)).await?;
    let there = |block| async move {
        Ok(Verdict::AlreadyThere { block: chain.block(BlockNumber(block)).await? })
    };
    match &intent.payload {
        Payload::Commitment { data } => match read::commitment_of(chain, &at, hotkey).await? {
            Some(slot) if slot.data == *data && slot.block.0 > intent.recorded_at => {
                there(slot.block.0).await
            }
            _ => Ok(Verdict::Send),
        },
        Payload::Weights { weights } => {
            let Some(uid) = read::uid_of(chain, &at, hotkey).await? else {
                return Ok(Verdict::Refuse(Failure::NotRegistered));
            };
            let updated = read::last_update(chain, &at, uid).await?;
            if updated > intent.recorded_at && read::weights_of(chain, &at, uid).await? == *weights
            {
                return there(updated).await;
            }
            if read::of_subnet(chain, &at, "CommitRevealWeightsEnabled").await? {
                return Ok(Verdict::Refuse(Failure::CommitRevealEnabled));
            }
            let limit: u64 = read::of_subnet(chain, &at, "WeightsSetRateLimit").await?;
            Ok(wait(updated, limit, best))
        }
        Payload::Axon { ip, port } => {
            let Some(axon) = read::axon_of(chain, &at, hotkey).await? else {
                return Ok(Verdict::Send);
            };
            if (axon.ip, axon.ip_type, axon.port) == (ip_bits(*ip).0, ip_bits(*ip).1, *port) {
                return Ok(Verdict::Unchanged { block: axon.block });
            }
            let limit: u64 = read::of_subnet(chain, &at, "ServingRateLimit").await?;
            Ok(wait(axon.block, limit, best))
        }
    }
}

/// The chain's rule: `limit` blocks since the last one, where there was one.
fn wait(last: u64, limit: u64, best: &Block) -> Verdict {
    let until = last + limit;
    if last == 0 || best.number.0 >= until { Verdict::Send } else { Verdict::Wait { until } }
}

/// The block where the chain's rate limit allows the next one, as of the best block.
pub(crate) async fn allowed_at(
    chain: &Chain,
    hotkey: &Hotkey,
    payload: &Payload,
    best: &Block,
) -> Result<Option<u64>, Error> {
    let at = chain.at(BlockId::Hash(best.hash)).await?;
    Ok(match payload {
        Payload::Weights { .. } => match read::uid_of(chain, &at, hotkey).await? {
            Some(uid) => {
                let limit: u64 = read::of_subnet(chain, &at, "WeightsSetRateLimit").await?;
                Some(read::last_update(chain, &at, uid).await? + limit)
            }
            None => None,
        },
        Payload::Axon { .. } => match read::axon_of(chain, &at, hotkey).await? {
            Some(axon) => {
                let limit: u64 = read::of_subnet(chain, &at, "ServingRateLimit").await?;
                Some(axon.block + limit)
            }
            None => None,
        },
        // A tempo from now, another epoch has begun for sure.
        Payload::Commitment { .. } => {
            let tempo: u16 = read::of_subnet(chain, &at, "Tempo").await?;
            Some(best.number.0 + u64::from(tempo))
        }
    })
}

/// Reads the value back as of the final block that holds the extrinsic.
///
/// `Ok(Ok(note))` when it is the intended one, `Ok(Err(what was found))` when not. Where the node
/// no longer holds that block's state, the newest final block is read instead, and the note says
/// so.
pub(crate) async fn read_back(
    chain: &Chain,
    hotkey: &Hotkey,
    payload: &Payload,
    block: &Block,
    tips: Tips,
) -> Result<Result<String, String>, Error> {
    let (height, hash) = (block.number, block.hash);
    match stored(chain, hotkey, payload, hash).await {
        Ok(found) => Ok(found.map(|()| format!("read back as of block {height}"))),
        Err(Error::StateDiscarded(_)) => {
            let now = tips.finalized;
            let found = stored(chain, hotkey, payload, now.hash).await?;
            Ok(found.map(|()| {
                format!("read back as of block {}: the state of block {height} is gone", now.number)
            }))
        }
        Err(error) => Err(error),
    }
}

async fn stored(
    chain: &Chain,
    hotkey: &Hotkey,
    payload: &Payload,
    block: BlockHash,
) -> Result<Result<(), String>, Error> {
    let at = chain.at(BlockId::Hash(block)).await?;
    match payload {
        Payload::Commitment { data } => {
            let slot = read::commitment_of(chain, &at, hotkey).await?;
            Ok(match slot {
                Some(slot) if slot.data == *data => Ok(()),
                Some(slot) => Err(format!("the slot holds {}", hex::encode(slot.data))),
                None => Err("the slot is empty".to_owned()),
            })
        }
        Payload::Weights { weights } => stored_weights(chain, &at, hotkey, weights).await,
        Payload::Axon { ip, port } => {
            let found = read::axon_of(chain, &at, hotkey).await?;
            let found = found.and_then(|axon| axon.address()).map(|a| (a.ip(), a.port()));
            Ok(if found == Some((*ip, *port)) {
                Ok(())
            } else {
                Err(format!("the chain announces {found:?}"))
            })
        }
    }
}

async fn stored_weights(
    chain: &Chain,
    at: &AtBlock,
    hotkey: &Hotkey,
    weights: &[(u16, u16)],
) -> Result<Result<(), String>, Error> {
    let Some(uid) = read::uid_of(chain, at, hotkey).await? else {
        return Ok(Err("the hotkey is no longer registered".to_owned()));
    };
    let mut found = read::weights_of(chain, at, uid).await?;
    found.sort_unstable();
    Ok(if found == weights { Ok(()) } else { Err(format!("the row holds {found:?}")) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn best(number: u64) -> Block {
        Block { number: BlockNumber(number), hash: BlockHash([0; 32]), parent: BlockHash([0; 32]) }
    }

    #[test]
    fn a_rate_limit_counts_from_the_last_one_and_the_first_one_is_free() {
        assert_eq!(wait(100, 50, &best(149)), Verdict::Wait { until: 150 });
        assert_eq!(wait(100, 50, &best(150)), Verdict::Send);
        assert_eq!(wait(0, 50, &best(1)), Verdict::Send);
    }
}
