//! Reads what the validators have revealed at the end of a cycle, as of fixed blocks and as several
//! endpoints of the chain agree on it: it decides which model the next round stands on.

use domain::{CycleIndex, Phase, Reveals};
use proto::{
    chain::v1::{At, GetMetagraphRequest, at},
    convert,
};

use crate::{
    effects::{Failure, Outside},
    freeze::{Reader, moved},
};

/// Reads the end of `cycle`.
pub(crate) async fn read(outside: &Outside, cycle: CycleIndex) -> Result<Reveals, Failure> {
    let schedule = &outside.policy().schedule;
    let signed = schedule.phase_range(cycle, Phase::ValidatorCommit2).0;
    let block = schedule.cycle_start(CycleIndex(cycle.0 + 1));

    let mut reader = Reader::new(outside);
    let header = reader.header(block).await?;
    let at = Some(At { block: Some(at::Block::Hash(header.hash.clone())) });
    let metagraph = outside.chain().get_metagraph(GetMetagraphRequest { at }).await?.into_inner();
    let metagraph = convert::metagraph(metagraph)?;
    // ValidatorCommit2 follows on ValidatorCommit1, and the next cycle on it.
    let (commit_1, _) = reader.commitments(signed).await?;
    let (commit_2, as_of) = reader.commitments(block).await?;
    if as_of.is_some_and(|as_of| as_of.number == block.0 && as_of.hash != header.hash) {
        return Err(moved(block));
    }
    Ok(Reveals { metagraph, commit_1, commit_2, degradations: reader.degradations })
}
