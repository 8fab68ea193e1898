//! The chain as the rest of the service sees it: blocks by number and hash, and a view of the
//! state at exactly one of them.
//!
//! Nothing is ever read "now": a caller names the block, or asks for the best or the final one
//! and keeps its hash.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use domain::{BlockHash, BlockNumber, NetUid};
use subxt::{
    OnlineClient, OnlineClientAtBlock, SubstrateConfig,
    backend::LegacyBackend,
    config::{
        Hasher as _, Header as _, RpcConfigFor,
        substrate::{BlakeTwo256, SubstrateHeader},
    },
    rpcs::{RpcClient, methods::LegacyRpcMethods},
    utils::H256,
};
use tracing::{error, info};

use crate::{
    config::Config,
    error::Error,
    metrics,
    rpc::{Rpc, RpcError},
    selfcheck,
};

pub(crate) type Header = SubstrateHeader<H256>;
pub(crate) type AtBlock = OnlineClientAtBlock<SubstrateConfig>;
pub(crate) type Methods = LegacyRpcMethods<RpcConfigFor<SubstrateConfig>>;

/// Values of a storage map that are fetched in one call.
const PAGE: u32 = 512;

/// A block: who it is and what it stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) number: BlockNumber,
    pub(crate) hash: BlockHash,
    pub(crate) parent: BlockHash,
}

impl Block {
    /// From a header, whose hash is BLAKE2b-256 of its SCALE encoding.
    pub(crate) fn of(header: &Header) -> Self {
        use codec::Encode as _;
        Self {
            number: BlockNumber(header.number()),
            hash: BlockHash(BlakeTwo256.hash(&header.encode()).0),
            parent: BlockHash(header.parent_hash.0),
        }
    }
}

/// Names a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BlockId {
    Number(BlockNumber),
    Hash(BlockHash),
}

impl fmt::Display for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Hash(hash) => hash.fmt(f),
        }
    }
}

/// The best and the final block of a node at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tips {
    pub(crate) best: Block,
    pub(crate) finalized: Block,
}

/// A chain that was reached, and the subnet on it. Clones share the connection.
#[derive(Clone)]
pub(crate) struct Chain {
    api: OnlineClient<SubstrateConfig>,
    methods: Methods,
    rpc: Rpc,
    pub(crate) netuid: NetUid,
    /// Key of the mechanism's weights and updates in the chain's maps.
    pub(crate) weights_index: u16,
    /// Spec version that the self-check was last made for.
    checked: Arc<AtomicU32>,
}

impl Chain {
    /// Reaches the chain and checks that its runtime has all that is used.
    pub(crate) async fn connect(config: &Config, rpc: Rpc) -> Result<Self, Error> {
        rpc.connect().await.map_err(|error| match error {
            RpcError::Unreachable(_) => Error::Unreachable(error.to_string()),
            RpcError::WrongGenesis { .. } => Error::WrongChain(error.to_string()),
        })?;
        let client = RpcClient::new(rpc.clone());
        let backend = LegacyBackend::builder().storage_page_size(PAGE).build(client.clone());
        let api = OnlineClient::from_backend_with_config(SubstrateConfig::new(), Arc::new(backend))
            .await
            .map_err(|error| Error::reading("the genesis hash", 0, error))?;
        let chain = Self {
            api,
            methods: LegacyRpcMethods::new(client),
            rpc,
            netuid: NetUid(config.netuid),
            weights_index: u16::from(config.mechanism) * 4096 + config.netuid,
            checked: Arc::default(),
        };
        let best = chain.best().await?;
        let at = chain.at(BlockId::Hash(best.hash)).await?;
        let missing = selfcheck::missing(at.metadata_ref());
        if missing.is_empty() {
            Ok(chain)
        } else {
            Err(Error::Runtime { spec: at.spec_version(), missing })
        }
    }

    /// Hash of the chain's first block.
    pub(crate) fn genesis(&self) -> BlockHash {
        BlockHash(self.api.genesis_hash().0)
    }

    /// The calls of a node that `subxt` does not wrap.
    pub(crate) fn methods(&self) -> &Methods {
        &self.methods
    }

    /// Gives up the connection: the next call makes another one.
    pub(crate) async fn reconnect(&self) {
        self.rpc.disconnect().await;
    }

    /// The state at one block.
    pub(crate) async fn at(&self, id: BlockId) -> Result<AtBlock, Error> {
        let at = match id {
            BlockId::Number(number) => self.api.at_block(number.0).await,
            BlockId::Hash(hash) => self.api.at_block(H256(hash.0)).await,
        };
        let at = at.map_err(|error| Error::reading("the block", id, error))?;
        self.check(&at);
        Ok(at)
    }

    /// Makes the self-check once per runtime, so that an upgrade that matters is seen.
    fn check(&self, at: &AtBlock) {
        let spec = at.spec_version();
        if self.checked.swap(spec, Ordering::Relaxed) == spec {
            return;
        }
        metrics::spec_version(spec);
        let missing = selfcheck::missing(at.metadata_ref());
        if missing.is_empty() {
            info!(spec, "the runtime has all that is used");
        } else {
            error!(spec, missing = missing.join("; "), "the runtime lacks what is used");
        }
    }

    /// The node's best block.
    pub(crate) async fn best(&self) -> Result<Block, Error> {
        self.header(None).await
    }

    /// The node's best and final blocks.
    pub(crate) async fn tips(&self) -> Result<Tips, Error> {
        let finalized = self
            .methods
            .chain_get_finalized_head()
            .await
            .map_err(|error| Error::reading("the final block", "final", error))?;
        let finalized = self.header(Some(finalized)).await?;
        let best = self.best().await?;
        Ok(Tips { best, finalized })
    }

    /// The block of a height on the node's best chain.
    pub(crate) async fn block(&self, number: BlockNumber) -> Result<Block, Error> {
        let hash = self
            .methods
            .chain_get_block_hash(Some(number.0.into()))
            .await
            .map_err(|error| Error::reading("the block's hash", number, error))?
            .ok_or_else(|| Error::NoSuchBlock(number.to_string()))?;
        self.header(Some(hash)).await
    }

    /// Encoded extrinsics of a block, in order.
    pub(crate) async fn body(&self, block: &Block) -> Result<Vec<Vec<u8>>, Error> {
        self.methods
            .chain_get_block(Some(H256(block.hash.0)))
            .await
            .map_err(|error| Error::reading("the block's body", block.number, error))?
            .map(|details| details.block.extrinsics.into_iter().map(|bytes| bytes.0).collect())
            .ok_or_else(|| Error::NoSuchBlock(block.hash.to_string()))
    }

    async fn header(&self, hash: Option<H256>) -> Result<Block, Error> {
        let name = hash.map_or_else(|| "best".to_owned(), |hash| format!("{hash:?}"));
        let header = self
            .methods
            .chain_get_header(hash)
            .await
            .map_err(|error| Error::reading("the block's header", &name, error))?
            .ok_or(Error::NoSuchBlock(name))?;
        Ok(Block::of(&header))
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chain").field("rpc", &self.rpc).finish_non_exhaustive()
    }
}
