//! What the chain holds already, and what it would refuse: asked before sending, and after.
//!
//! Nothing is sent that the chain's own rules refuse, that it holds already, or that it does not
//! take yet. [`weights`] has the part for weights, which can take three roads.

mod weights;

use domain::{BlockHash, BlockNumber, Hotkey};

use crate::{
    call::{Target, ip_bits},
    chain::{AtBlock, Block, BlockId, Chain, Tips},
    error::Error,
    failure::Failure,
    outbox::{Intent, Payload},
    read,
    weights::{Commit, Preference, Reveal},
};

/// Whether to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// `how` says which road weights take.
    Send { how: Option<Commit> },
    /// The value is there, from before the intent, and writing it again would change nothing.
    Unchanged { block: u64 },
    /// The value came there after the intent was recorded.
    AlreadyThere { block: Block },
    /// Not before this block; `why` where a rate limit says so.
    Wait { until: u64, why: Option<Failure> },
    /// The chain would refuse it for good.
    Refuse(Failure),
}

/// What was found when the value was read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// Where it was read, for a person.
    pub(crate) note: String,
    /// What has to become known of committed weights.
    pub(crate) reveal: Option<Reveal>,
}

/// Who writes, and where.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Preflight<'a> {
    pub(crate) chain: &'a Chain,
    pub(crate) hotkey: &'a Hotkey,
    pub(crate) target: Target,
    /// What the operator prefers where commit-reveal is on.
    pub(crate) preference: Preference,
    /// Whether the chain's beacon must be drand's quicknet.
    pub(crate) pinned_beacon: bool,
}

impl Preflight<'_> {
    /// Asks the chain, as of its best block, whether an intent should be sent.
    pub(crate) async fn check(&self, intent: &Intent, best: &Block) -> Result<Verdict, Error> {
        let at = self.chain.at(BlockId::Hash(best.hash)).await?;
        match &intent.payload {
            Payload::Commitment { data } => self.commitment(&at, intent, data).await,
            Payload::Weights { weights, .. } => self.weights(&at, intent, weights, best).await,
            Payload::Reveal(reveal) => self.reveal(&at, reveal, best).await,
            Payload::Axon { ip, port } => {
                let Some(axon) = read::axon_of(self.chain, &at, self.hotkey).await? else {
                    return Ok(Verdict::Send { how: None });
                };
                if (axon.ip, axon.ip_type, axon.port) == (ip_bits(*ip).0, ip_bits(*ip).1, *port) {
                    return Ok(Verdict::Unchanged { block: axon.block });
                }
                let limit: u64 = read::of_subnet(self.chain, &at, "ServingRateLimit").await?;
                Ok(wait(axon.block, limit, best))
            }
        }
    }

    async fn commitment(
        &self,
        at: &AtBlock,
        intent: &Intent,
        data: &[u8],
    ) -> Result<Verdict, Error> {
        match read::commitment_of(self.chain, at, self.hotkey).await? {
            Some(slot) if slot.data == data && slot.block.0 > intent.recorded_at => {
                self.there(slot.block.0).await
            }
            Some(_) | None => Ok(Verdict::Send { how: None }),
        }
    }

    async fn there(&self, block: u64) -> Result<Verdict, Error> {
        Ok(Verdict::AlreadyThere { block: self.chain.block(BlockNumber(block)).await? })
    }

    /// The block where the chain's rate limit allows the next one, as of the best block.
    pub(crate) async fn allowed_at(
        &self,
        payload: &Payload,
        best: &Block,
    ) -> Result<Option<u64>, Error> {
        let (chain, hotkey) = (self.chain, self.hotkey);
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
            // By then another epoch has begun, by either rule of epochs.
            Payload::Commitment { .. } => {
                let tempo: u16 = read::of_subnet(chain, &at, "Tempo").await?;
                Some(best.number.0 + u64::from(tempo) + 1)
            }
            Payload::Reveal(_) => None,
        })
    }

    /// Reads the value back as of the final block that holds the extrinsic.
    ///
    /// `Ok(Ok(found))` when it is the intended one, `Ok(Err(what was found))` when not. Where the
    /// node no longer holds that block's state, the newest final block is read instead, and the note
    /// says so.
    pub(crate) async fn read_back(
        &self,
        intent: &Intent,
        block: &Block,
        tips: Tips,
    ) -> Result<Result<Found, String>, Error> {
        let (height, now) = (block.number, tips.finalized);
        let (found, note) = match self.stored(intent, block.hash).await {
            Ok(found) => (found, format!("read back as of block {height}")),
            Err(Error::StateDiscarded(_)) => {
                let found = self.stored(intent, now.hash).await?;
                let note = format!(
                    "read back as of block {}: the state of block {height} is gone",
                    now.number
                );
                (found, note)
            }
            Err(error) => return Err(error),
        };
        Ok(found.map(|reveal| Found { note, reveal }))
    }

    /// Whether the intended value is stored at a block, and what is to be revealed of it.
    async fn stored(
        &self,
        intent: &Intent,
        block: BlockHash,
    ) -> Result<Result<Option<Reveal>, String>, Error> {
        let (chain, hotkey) = (self.chain, self.hotkey);
        let at = chain.at(BlockId::Hash(block)).await?;
        match &intent.payload {
            Payload::Commitment { data } => {
                let slot = read::commitment_of(chain, &at, hotkey).await?;
                Ok(match slot {
                    Some(slot) if slot.data == *data => Ok(None),
                    Some(slot) => Err(format!("the slot holds {}", hex::encode(slot.data))),
                    None => Err("the slot is empty".to_owned()),
                })
            }
            Payload::Weights { weights, stale_guard } => {
                let how = intent.how.as_ref();
                self.stored_weights(&at, weights, *stale_guard, how).await
            }
            Payload::Reveal(reveal) => {
                Ok(self.stored_row(&at, &reveal.weights).await?.map(|()| None))
            }
            Payload::Axon { ip, port } => {
                let found = read::axon_of(chain, &at, hotkey).await?;
                let found = found.and_then(|axon| axon.address()).map(|a| (a.ip(), a.port()));
                Ok(if found == Some((*ip, *port)) {
                    Ok(None)
                } else {
                    Err(format!("the chain announces {found:?}"))
                })
            }
        }
    }
}

/// The chain's rule: `limit` blocks since the last one, where there was one.
fn wait(last: u64, limit: u64, best: &Block) -> Verdict {
    let until = last + limit;
    if last == 0 || best.number.0 >= until {
        Verdict::Send { how: None }
    } else {
        Verdict::Wait { until, why: Some(Failure::RateLimited) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn best(number: u64) -> Block {
        Block { number: BlockNumber(number), hash: BlockHash([0; 32]), parent: BlockHash([0; 32]) }
    }

    #[test]
    fn a_rate_limit_counts_from_the_last_one_and_the_first_one_is_free() {
        let limited = Some(Failure::RateLimited);
        assert_eq!(wait(100, 50, &best(149)), Verdict::Wait { until: 150, why: limited });
        assert_eq!(wait(100, 50, &best(150)), Verdict::Send { how: None });
        assert_eq!(wait(0, 50, &best(1)), Verdict::Send { how: None });
    }
}
