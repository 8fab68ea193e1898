//! The commitments as of the blocks that rounds are made of: taken when those blocks are fresh, and
//! kept, as most nodes forget a state after some 256 blocks.
//!
//! [`take`] takes them, [`stored`] keeps them, and [`Snapshots::commitments`] answers: from a
//! snapshot where there is one, else from a node, else, where no node holds the state any more,
//! from an archive node. The head is never read in place of a past block.

mod stored;
mod take;

use domain::{BlockNumber, CycleIndex, NetUid, Phase, Schedule};
use store::Store;

use self::stored::{Shelf, Snapshot};
use crate::{
    blocks::Blocks,
    chain::{Block, BlockId, Chain},
    degradations::{Degradation, Degradations, Kind},
    error::Error,
    metrics,
    quorum::{Agreed, Quorum},
    read::{self, Commitments},
};

/// The phases whose ends matter: a snapshot is as of the block after the last one of each.
const PHASES: [Phase; 4] =
    [Phase::MinerCommit1, Phase::MinerCommit2, Phase::ValidatorCommit1, Phase::ValidatorCommit2];

/// What quorum reads are named by.
const BLOCK: &str = "the block";
const COMMITMENTS: &str = "the commitments";

/// Where an answer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Node,
    Snapshot,
    Archive,
}

/// The commitments as of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) block: Block,
    pub(crate) source: Source,
    pub(crate) agreed: Agreed<Commitments>,
}

/// See the module. Clones are handles to the same snapshots.
#[derive(Debug, Clone)]
pub(crate) struct Snapshots {
    shelf: Shelf,
    schedule: Schedule,
    quorum: Quorum,
    blocks: Blocks,
    degradations: Degradations,
}

impl Snapshots {
    pub(crate) fn new(
        store: Store,
        netuid: NetUid,
        keep: usize,
        schedule: Schedule,
        quorum: Quorum,
        blocks: Blocks,
        degradations: Degradations,
    ) -> Self {
        Self { shelf: Shelf { store, netuid, keep }, schedule, quorum, blocks, degradations }
    }

    /// Heights of the snapshots that are kept, ascending.
    pub(crate) async fn list(&self) -> Result<Vec<BlockNumber>, Error> {
        Ok(self.shelf.all().await?.into_iter().map(|snapshot| snapshot.number).collect())
    }

    /// A block that as many endpoints agree on as the quorum asks for.
    pub(crate) async fn agreed_block(
        &self,
        chain: &Chain,
        number: BlockNumber,
    ) -> Result<Agreed<Block>, Error> {
        let read = |only: Chain| async move { only.block(number).await };
        self.quorum.ask(chain, BLOCK, number, |block| block.hash.0, read).await
    }

    /// The commitments as of a block. Where `agreed` is asked for, as many endpoints agree on them
    /// and on the block as the quorum asks for, now or when the snapshot was taken.
    pub(crate) async fn commitments(
        &self,
        chain: &Chain,
        id: BlockId,
        agreed: bool,
    ) -> Result<Answer, Error> {
        if let Some(snapshot) = self.kept(chain, id, agreed).await? {
            let block = snapshot.block();
            let by = snapshot.agreed_by;
            let agreed = Agreed { value: snapshot.commitments, by, degradations: Vec::new() };
            return Ok(Answer { block, source: Source::Snapshot, agreed });
        }
        let block = match (id, agreed) {
            (BlockId::Number(number), true) => self.agreed_block(chain, number).await?,
            (BlockId::Number(number), false) => Agreed::by_one(chain.block(number).await?),
            (BlockId::Hash(hash), _) => Agreed::by_one(chain.block_of(hash).await?),
        };
        let (read, source) = match self.read(chain, &block.value, agreed).await {
            Ok(read) => (read, Source::Node),
            Err(Error::StateDiscarded(what)) => match chain.archive().await? {
                Some(archive) => {
                    (self.recover(&archive, &block.value, agreed).await?, Source::Archive)
                }
                None => return Err(Error::StateDiscarded(what)),
            },
            Err(error) => return Err(error),
        };
        // Who named the block by its hash wanted no word on that.
        let by = match id {
            BlockId::Number(_) if agreed => read.by.min(block.by),
            BlockId::Number(_) | BlockId::Hash(_) => read.by,
        };
        let mut degradations = block.degradations;
        degradations.extend(read.degradations);
        let agreed = Agreed { value: read.value, by, degradations };
        Ok(Answer { block: block.value, source, agreed })
    }

    /// The snapshot of a block, where one is kept and says enough.
    async fn kept(
        &self,
        chain: &Chain,
        id: BlockId,
        agreed: bool,
    ) -> Result<Option<Snapshot>, Error> {
        let snapshot = match id {
            BlockId::Number(number) => self.shelf.get(number).await?,
            BlockId::Hash(hash) => match self.blocks.find(hash) {
                Some(block) => self.shelf.get(block.number).await?,
                None => self.shelf.all().await?.into_iter().find(|kept| kept.hash == hash),
            },
        };
        let Some(snapshot) = snapshot else { return Ok(None) };
        if agreed && (snapshot.agreed_by as usize) < self.quorum.wanted() {
            return Ok(None);
        }
        let canonical = match id {
            BlockId::Hash(hash) => hash,
            BlockId::Number(_) if snapshot.settled => snapshot.hash,
            BlockId::Number(number) => match self.blocks.at(number) {
                Some(block) => block.hash,
                None => chain.block(number).await?.hash,
            },
        };
        Ok((snapshot.hash == canonical).then_some(snapshot))
    }

    async fn read(
        &self,
        chain: &Chain,
        block: &Block,
        agreed: bool,
    ) -> Result<Agreed<Commitments>, Error> {
        let id = BlockId::Hash(block.hash);
        if !agreed {
            return read::commitments(chain, id).await.map(Agreed::by_one);
        }
        let read = |only: Chain| async move { read::commitments(&only, id).await };
        self.quorum.ask(chain, COMMITMENTS, block.number, Commitments::digest, read).await
    }

    /// Asks archive nodes for what was missed, and keeps it if it is one of those to keep.
    async fn recover(
        &self,
        archive: &Chain,
        block: &Block,
        agreed: bool,
    ) -> Result<Agreed<Commitments>, Error> {
        archive.nodes().reach().await.map_err(|error| Error::Unreachable(error.to_string()))?;
        let mut read = self.read(archive, block, agreed).await?;
        let detail = format!(
            "the commitments as of block {} were missed, and an archive node has them",
            block.number
        );
        self.degradations.note(Kind::ArchiveUsed, detail.clone(), block.number);
        read.degradations.push(Degradation::new(Kind::ArchiveUsed, detail, block.number));
        metrics::snapshot("archive");
        if self.is_due(block.number) {
            let settled = self.is_final(block.number);
            let snapshot = Snapshot {
                number: block.number,
                hash: block.hash,
                parent: block.parent,
                agreed_by: read.by,
                settled,
                commitments: read.value.clone(),
            };
            self.shelf.put(&snapshot).await?;
        }
        Ok(read)
    }

    fn is_final(&self, number: BlockNumber) -> bool {
        let tip = self.blocks.tip(crate::config::Follow::Finalized);
        tip.is_some_and(|tip| tip.number >= number)
    }

    fn is_due(&self, number: BlockNumber) -> bool {
        due(&self.schedule, number).any(|due| due == number)
    }
}

/// Blocks of the cycle of `newest` and of the one before it that snapshots are taken of, up to
/// `newest`.
fn due(schedule: &Schedule, newest: BlockNumber) -> impl Iterator<Item = BlockNumber> + '_ {
    let cycle = schedule.cycle_of(newest);
    let first = cycle.0.saturating_sub(1);
    let cycles = (first..=cycle.0).map(CycleIndex);
    cycles
        .flat_map(move |cycle| {
            let after = move |phase| BlockNumber(schedule.phase_range(cycle, phase).1.0 + 1);
            PHASES.map(after)
        })
        .filter(move |block| *block <= newest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_are_due_right_after_the_commit_phases() {
        let schedule = Schedule::new([20, 300, 8, 8, 20, 50, 50, 8, 8]).unwrap();
        let of = |newest| due(&schedule, BlockNumber(newest)).map(|b| b.0).collect::<Vec<_>>();
        assert_eq!(of(327), Vec::<u64>::new());
        assert_eq!(of(328), [328]);
        assert_eq!(of(471), [328, 336, 464]);
        assert_eq!(of(472), [328, 336, 464, 472]);
        assert_eq!(of(943), [328, 336, 464, 472, 800, 808, 936]);
        assert_eq!(of(944), [800, 808, 936, 944], "a new cycle begins");
        assert_eq!(of(2 * 472 + 328), [800, 808, 936, 944, 1272]);
    }
}
