//! What leads from the blocks that somebody holds to those that hold now.
//!
//! Both ends grow downwards, the higher one first, until they meet: a branch of which no more than
//! the tip was told is found by its parents, and so is what somebody holds of an abandoned one.

use domain::BlockNumber;

use super::branch::{Branch, DEPTH};
use crate::{
    chain::{Block, Chain},
    error::Error,
};

/// Most blocks that are filled in at once: two weeks of them.
const MAX_PATH: usize = 100_000;

/// Most blocks that are looked at below where the parents of what was told are lost.
const MAX_DOWN: usize = 4096;

/// Whom to ask.
#[derive(Clone, Copy)]
pub(super) struct Sources<'a> {
    /// Who told of the blocks that hold now.
    pub(super) now: &'a Chain,
    /// Who may know of abandoned ones.
    pub(super) abandoned: &'a Chain,
}

/// The blocks to put on `told`, ascending, to be where `line` is; `told` becomes as deep as it takes
/// to know which of its blocks stay. Empty where the tip of `line` is one of them.
///
/// Where that cannot be found, as nobody knows the parents of what was told any more or there are
/// too many, the first of the blocks is the one after the newest final block below the last parent
/// that is known: what stays is never said to be more than it may be.
pub(super) async fn lead(
    from: Sources<'_>,
    told: &mut Branch,
    line: &Branch,
) -> Result<Vec<Block>, Error> {
    let Some(mut first) = line.oldest() else { return Ok(Vec::new()) };
    let Some(mut oldest) = told.oldest() else { return Ok(line.tip().into_iter().collect()) };
    if let Some(common) = told.common(line) {
        return Ok(line.above(common.number).collect());
    }
    let mut line = line.clone();
    while !told.takes(&first) {
        if first.number > oldest.number {
            first = step(from.now, &mut line, first).await?;
            continue;
        }
        let Some(parent) = parent(from.abandoned, told, oldest, &line).await? else {
            let fork = last_resort(from.now, oldest, &mut line, first).await?;
            return Ok(line.above(fork).collect());
        };
        told.deepen(parent);
        oldest = parent;
        if line.holds(oldest.number, oldest.hash) {
            return Ok(line.above(oldest.number).collect());
        }
    }
    Ok(line.all().collect())
}

/// Puts its parent under the first block of the line.
async fn step(chain: &Chain, line: &mut Branch, first: Block) -> Result<Block, Error> {
    if line.len() > MAX_PATH {
        let what = format!("block {} is too far from what was seen to be filled in", first.number);
        return Err(Error::Lie(what));
    }
    let parent = chain.block_of(first.parent).await?;
    if !line.deepen(parent) {
        let what = format!("the parent of block {} has another height", first.number);
        return Err(Error::Lie(what));
    }
    Ok(parent)
}

/// The parent of the oldest block that was told, where it is known and there is room for it.
async fn parent(
    chain: &Chain,
    told: &Branch,
    oldest: Block,
    line: &Branch,
) -> Result<Option<Block>, Error> {
    let Some(number) = oldest.number.0.checked_sub(1) else { return Ok(None) };
    if told.len() >= DEPTH {
        return Ok(None);
    }
    let number = BlockNumber(number);
    if let Some(parent) = line.at(number).filter(|block| block.hash == oldest.parent) {
        return Ok(Some(parent));
    }
    match chain.block_of(oldest.parent).await {
        // Whoever holds a block may have made its height up.
        Ok(parent) => Ok(Some(parent).filter(|parent| parent.number == number)),
        Err(Error::NoSuchBlock(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Height of the newest block that may be common to the line and to a branch whose blocks below
/// `oldest` nobody knows.
async fn last_resort(
    chain: &Chain,
    oldest: Block,
    line: &mut Branch,
    mut first: Block,
) -> Result<BlockNumber, Error> {
    let last_final = chain.tips().await?.finalized.number;
    let fork = last_final.min(BlockNumber(oldest.number.0.saturating_sub(1)));
    for _ in 0..MAX_DOWN {
        if first.number.0 <= fork.0.saturating_add(1) {
            break;
        }
        first = step(chain, line, first).await?;
    }
    Ok(fork)
}
