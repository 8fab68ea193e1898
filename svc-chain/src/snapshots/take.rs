//! Takes snapshots when their blocks are fresh, and takes them again where another block turns out
//! to be the one of that height.

use std::collections::BTreeMap;

use domain::{BlockHash, BlockNumber};
use kit::Shutdown;
use tracing::{debug, info, warn};

use super::{Snapshots, due, stored::Snapshot};
use crate::{
    chain::{Block, Chain},
    error::Error,
    metrics,
    quorum::Agreed,
    read::Commitments,
};

/// Blocks after which nobody is asked any more for a snapshot that was missed: more than most nodes
/// keep states for.
const GIVE_UP: u64 = 512;

/// What is known of the snapshot of a height.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known {
    hash: BlockHash,
    agreed_by: u32,
    settled: bool,
}

/// What is remembered between two looks, and may be forgotten.
#[derive(Debug, Default)]
struct Memory {
    known: BTreeMap<BlockNumber, Known>,
    /// No node has this state any more.
    missed: BTreeMap<BlockNumber, BlockHash>,
}

impl Snapshots {
    /// Takes snapshots until `shutdown`.
    pub(crate) async fn run(self, chain: Chain, shutdown: Shutdown) {
        let mut best = self.blocks.best();
        let mut memory = Memory::default();
        match self.shelf.all().await {
            Ok(all) => memory.known.extend(all.iter().map(|kept| (kept.number, known(kept)))),
            Err(error) => warn!(%error, "snapshots of earlier processes cannot be read"),
        }
        loop {
            let newest = best.borrow_and_update().tip();
            if let Some(newest) = newest {
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = self.reconcile(&chain, newest.number, &mut memory) => {}
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = best.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Takes every snapshot that is due, and is not there as it should be.
    async fn reconcile(&self, chain: &Chain, newest: BlockNumber, memory: &mut Memory) {
        let oldest = BlockNumber(newest.0.saturating_sub(GIVE_UP));
        memory.known.retain(|number, _| *number >= oldest);
        memory.missed.retain(|number, _| *number >= oldest);
        let due: Vec<_> = due(&self.schedule, newest).filter(|number| *number >= oldest).collect();
        for number in due {
            if let Err(error) = self.look_at(chain, number, memory).await {
                warn!(%error, reason = error.reason(), block = %number, "snapshot is not taken yet");
            }
        }
    }

    async fn look_at(
        &self,
        chain: &Chain,
        number: BlockNumber,
        memory: &mut Memory,
    ) -> Result<(), Error> {
        let block = match self.blocks.at(number) {
            Some(block) => block,
            None if memory.known.contains_key(&number) => return Ok(()),
            None => chain.block(number).await?,
        };
        if memory.missed.get(&number) == Some(&block.hash) {
            return Ok(());
        }
        let settled = self.is_final(number);
        let enough = u32::try_from(self.quorum.wanted()).unwrap_or(u32::MAX);
        let before = memory.known.get(&number).copied();
        let same = before.filter(|before| before.hash == block.hash);
        if same.is_some_and(|same| same.agreed_by >= enough) {
            if settled && same.is_some_and(|same| !same.settled) {
                self.settle(number, memory).await?;
            }
            return Ok(());
        }
        let taken = match self.agree(chain, block).await {
            Err(Error::NoQuorum { .. } | Error::Disagreement { .. }) if same.is_some() => {
                return Ok(());
            }
            // What one says is better than nothing: who wants more asks again.
            Err(error @ (Error::NoQuorum { .. } | Error::Disagreement { .. })) => {
                debug!(%error, block = %number, "the snapshot is one endpoint's word for now");
                self.read(chain, &block, false).await.map(|read| (block, read))
            }
            taken => taken,
        };
        let (block, read) = match taken {
            Err(Error::StateDiscarded(_)) => {
                metrics::snapshot("missed");
                info!(block = %number, "no node has the state of this block any more");
                memory.missed.insert(number, block.hash);
                return Ok(());
            }
            taken => taken?,
        };
        let snapshot = Snapshot {
            number,
            hash: block.hash,
            parent: block.parent,
            agreed_by: read.by,
            settled: settled && self.blocks.at(number).is_some_and(|kept| kept.hash == block.hash),
            commitments: read.value,
        };
        self.shelf.put(&snapshot).await?;
        let retaken = before.is_some_and(|before| before.hash != block.hash);
        metrics::snapshot(if retaken { "retaken" } else { "taken" });
        for (kind, count) in snapshot.commitments.kinds() {
            metrics::commitments(kind, count);
        }
        info!(
            block = %number, hash = %block.hash, agreed_by = snapshot.agreed_by,
            commitments = snapshot.commitments.list.len(), retaken, "snapshot of the commitments"
        );
        memory.known.insert(number, known(&snapshot));
        Ok(())
    }

    /// The block of a height and its commitments, as enough endpoints tell them.
    async fn agree(
        &self,
        chain: &Chain,
        block: Block,
    ) -> Result<(Block, Agreed<Commitments>), Error> {
        let agreed = self.agreed_block(chain, block.number).await?;
        let mut read = self.read(chain, &agreed.value, true).await?;
        read.by = read.by.min(agreed.by);
        Ok((agreed.value, read))
    }

    /// The block of a snapshot is final.
    async fn settle(&self, number: BlockNumber, memory: &mut Memory) -> Result<(), Error> {
        let Some(kept) = self.shelf.get(number).await? else {
            memory.known.remove(&number);
            return Ok(());
        };
        let settled = Snapshot { settled: true, ..kept };
        self.shelf.put(&settled).await?;
        memory.known.insert(number, known(&settled));
        Ok(())
    }
}

fn known(snapshot: &Snapshot) -> Known {
    Known { hash: snapshot.hash, agreed_by: snapshot.agreed_by, settled: snapshot.settled }
}
