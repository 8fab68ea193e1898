//! The knobs of the chain as a whole, which all its nodes follow.

use super::{DevChain, ended};
use crate::{
    block::Head,
    chain::{Included, ReorganiseError, Taken},
    node::Stopped,
    runtime::MetadataError,
};

/// A runtime that the chain cannot change to.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

impl DevChain {
    /// Takes back the newest `depth` blocks and makes one more than that in their place, with
    /// other hashes. What was written into the abandoned blocks by hand (registrations, stake,
    /// permits), and an upgrade in them, is undone. Finalized blocks cannot be taken back.
    pub async fn reorganise(&self, depth: u32, extrinsics: Taken) -> Result<Head, ReorganiseError> {
        let job = self.node.with(move |chain| chain.reorganise(depth, extrinsics));
        Ok(job.await??.map_err(ended)?)
    }

    /// Every signed extrinsic that was ever in a block, abandoned ones included, in the order of
    /// inclusion. One that was included twice is here twice.
    pub async fn all_included(&self) -> Result<Vec<Included>, Stopped> {
        self.node.with(|chain| chain.all_included().to_vec()).await
    }

    /// Sets how many blocks finality is behind. What is finalized stays so.
    pub async fn set_finality_lag(&self, blocks: u32) -> Result<(), Stopped> {
        self.node.with(move |chain| chain.set_finality_lag(blocks)).await
    }

    /// `true` stalls finality while blocks go on; `false` lets it catch up.
    pub async fn set_finality_paused(&self, paused: bool) -> Result<(), Stopped> {
        self.node.with(move |chain| chain.set_finality_paused(paused)).await
    }

    /// Changes the runtime to one of this SCALE metadata, in the next block. The extrinsics of
    /// that block are still those of the old runtime; its state, and all that is signed for later
    /// blocks, is of the new one.
    pub async fn upgrade(&self, metadata: Vec<u8>) -> Result<(), UpgradeError> {
        Ok(self.node.with(move |chain| chain.upgrade(metadata)).await??)
    }

    /// The SCALE metadata of the newest block's runtime.
    pub async fn metadata(&self) -> Result<Vec<u8>, Stopped> {
        self.node.with(|chain| chain.runtime_of(chain.head()).raw().to_vec()).await
    }

    /// `true` makes blocks without taking anything from the pool.
    pub async fn hold_pool(&self, hold: bool) -> Result<(), Stopped> {
        self.node.with(move |chain| chain.pool_mut().hold(hold)).await
    }

    /// As many extrinsics wait at once; more are refused with 1016, "Immediately Dropped".
    pub async fn set_pool_limit(&self, extrinsics: usize) -> Result<(), Stopped> {
        self.node.with(move |chain| chain.pool_mut().set_limit(extrinsics)).await
    }

    /// For how many blocks an extrinsic that was included, or was found invalid, is refused with
    /// 1012 from now on.
    pub async fn set_ban(&self, blocks: u32) -> Result<(), Stopped> {
        self.node.with(move |chain| chain.pool_mut().set_ban(blocks)).await
    }
}
