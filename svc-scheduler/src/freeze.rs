//! Reads everything that a round is decided from, once, as of fixed blocks.

use domain::{BlockHash, BlockNumber, FreezeInputs, Hotkey, Phase, RawCommitment, RoundId};
use proto::{
    chain::v1::{
        At, GetBlockRequest, GetCommitmentsRequest, GetMetagraphRequest, GetWeightsRequest, at,
    },
    convert,
};

use crate::effects::{Failure, Outside};

/// Reads the inputs of `round`, frozen at `block`, its first block of Submission.
pub(crate) async fn read(
    outside: &Outside,
    round: RoundId,
    block: BlockNumber,
) -> Result<FreezeInputs, Failure> {
    let schedule = &outside.policy().schedule;
    let cycle = schedule.cycle_of_round(round);
    let last = |phase| schedule.phase_range(cycle, phase).1;
    let after = |phase| BlockNumber(last(phase).0 + 1);

    let block_hash = hash_of(outside, block).await?;
    let at = || Some(At { block: Some(at::Block::Hash(block_hash.0.to_vec().into())) });
    let mut chain = outside.chain();
    let metagraph = chain.get_metagraph(GetMetagraphRequest { at: at() }).await?.into_inner();
    let metagraph = convert::metagraph(metagraph)?;
    let rows = chain.get_weights(GetWeightsRequest { at: at() }).await?.into_inner();
    Ok(FreezeInputs {
        block,
        block_hash,
        seed_block_hash: hash_of(outside, last(Phase::MinerCommit2)).await?,
        metagraph,
        weights: convert::weight_rows(rows)?,
        commit_1: commitments(outside, after(Phase::MinerCommit1)).await?,
        commit_2: commitments(outside, after(Phase::MinerCommit2)).await?,
    })
}

async fn hash_of(outside: &Outside, block: BlockNumber) -> Result<BlockHash, Failure> {
    let request = GetBlockRequest { number: Some(block.0), agreed: false };
    let answer = outside.chain().get_block(request).await?.into_inner();
    let block = convert::required("block", answer.block)?;
    Ok(BlockHash(convert::bytes("hash", &block.hash)?))
}

/// Commitments as of `block`. A hotkey that cannot be parsed is the chain's own garbage: skipped.
async fn commitments(outside: &Outside, block: BlockNumber) -> Result<Vec<RawCommitment>, Failure> {
    let at = Some(At { block: Some(at::Block::Number(block.0)) });
    let request = GetCommitmentsRequest { at, agreed: false };
    let answer = outside.chain().get_commitments(request).await?.into_inner();
    Ok(answer
        .commitments
        .into_iter()
        .filter_map(|commitment| {
            let hotkey: Hotkey = commitment.hotkey.parse().ok()?;
            let block = BlockNumber(commitment.block);
            Some(RawCommitment { hotkey, block, data: commitment.data.to_vec() })
        })
        .collect())
}
