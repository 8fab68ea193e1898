//! Reads everything that a round is decided from, once, as of fixed blocks. What decides money is
//! read as several endpoints of the chain agree on it: where they do not, there are no inputs.

use domain::{
    BlockHash, BlockNumber, Degradation, FreezeInputs, Hotkey, Phase, RawCommitment, RoundId,
};
use proto::{
    chain::v1::{
        At, Block, GetBlockRequest, GetCommitmentsRequest, GetMetagraphRequest, GetWeightsRequest,
        at,
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

    let mut reader = Reader::new(outside);
    let header = reader.header(block).await?;
    let block_hash = convert::block_hash("hash", &header.hash)?;
    let seed_block_hash = reader.header(last(Phase::MinerCommit2)).await?.hash;
    // Submission follows on MinerCommit2, so the one block is the other's parent.
    if seed_block_hash != header.parent_hash {
        return Err(moved(block));
    }
    let at = || Some(At { block: Some(at::Block::Hash(block_hash.0.to_vec().into())) });
    let mut chain = outside.chain();
    let metagraph = chain.get_metagraph(GetMetagraphRequest { at: at() }).await?.into_inner();
    let metagraph = convert::metagraph(metagraph)?;
    let rows = chain.get_weights(GetWeightsRequest { at: at() }).await?.into_inner();
    let (commit_1, _) = reader.commitments(after(Phase::MinerCommit1)).await?;
    let (commit_2, as_of) = reader.commitments(after(Phase::MinerCommit2)).await?;
    // They were read by height. Where the answer says which block that was, it is this one.
    if as_of.is_some_and(|as_of| as_of.number == block.0 && as_of.hash != header.hash) {
        return Err(moved(block));
    }
    Ok(FreezeInputs {
        block,
        block_hash,
        seed_block_hash: BlockHash(convert::bytes("hash", &seed_block_hash)?),
        metagraph,
        weights: convert::weight_rows(rows)?,
        commit_1,
        commit_2,
        degradations: reader.degradations,
    })
}

/// The inputs would be of two branches.
pub(crate) fn moved(block: BlockNumber) -> Failure {
    Failure::Other(format!("block {block} was taken back while the inputs were read"))
}

/// Reads what must be agreed on, and keeps what did not go the normal way meanwhile.
pub(crate) struct Reader<'a> {
    outside: &'a Outside,
    pub(crate) degradations: Vec<Degradation>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(outside: &'a Outside) -> Self {
        Self { outside, degradations: Vec::new() }
    }

    pub(crate) async fn header(&mut self, block: BlockNumber) -> Result<Block, Failure> {
        let request = GetBlockRequest { number: Some(block.0), agreed: true };
        let answer = self.outside.chain().get_block(request).await?.into_inner();
        self.degradations.extend(answer.degradations.into_iter().map(convert::degradation));
        Ok(convert::required("block", answer.block)?)
    }

    /// Commitments as of `block`, and which block that was. A hotkey that cannot be parsed is the
    /// chain's own garbage: skipped.
    pub(crate) async fn commitments(
        &mut self,
        block: BlockNumber,
    ) -> Result<(Vec<RawCommitment>, Option<Block>), Failure> {
        let at = Some(At { block: Some(at::Block::Number(block.0)) });
        let request = GetCommitmentsRequest { at, agreed: true };
        let answer = self.outside.chain().get_commitments(request).await?.into_inner();
        self.degradations.extend(answer.degradations.into_iter().map(convert::degradation));
        let read = answer.commitments.into_iter().filter_map(|commitment| {
            let hotkey: Hotkey = commitment.hotkey.parse().ok()?;
            let block = BlockNumber(commitment.block);
            Some(RawCommitment { hotkey, block, data: commitment.data.to_vec() })
        });
        Ok((read.collect(), answer.block))
    }
}
