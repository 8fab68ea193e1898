//! The chain as the rest of the service sees it: blocks by number and hash, and a view of the
//! state at exactly one of them.
//!
//! Nothing is ever read "now": a caller names the block, or asks for the best or the final one
//! and keeps its hash.

use std::{fmt, sync::Arc};

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

use crate::{
    config::Config,
    error::Error,
    nodes::{Nodes, Unfit},
    runtime::Runtime,
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

/// A chain that was reached, and the subnet on it. Clones share the connections.
#[derive(Clone)]
pub(crate) struct Chain {
    api: OnlineClient<SubstrateConfig>,
    methods: Methods,
    /// Whom it asks, where that is one endpoint and no other.
    only: Option<usize>,
    nodes: Nodes,
    archive: Option<Nodes>,
    /// Holds the metadata of every runtime that was read, for all endpoints.
    config: SubstrateConfig,
    runtime: Runtime,
    pub(crate) netuid: NetUid,
    /// Key of the mechanism's weights and updates in the chain's maps.
    pub(crate) weights_index: u16,
}

impl Chain {
    /// Reaches the chain and checks that its runtime has all that is used.
    pub(crate) async fn connect(
        config: &Config,
        nodes: Nodes,
        archive: Option<Nodes>,
        runtime: Runtime,
    ) -> Result<Self, Error> {
        nodes.reach().await.map_err(|error| match error {
            Unfit::Unreachable(why) => Error::Unreachable(why.to_string()),
            Unfit::Foreign(why) => Error::WrongChain(why.to_string()),
        })?;
        let genesis = nodes
            .genesis()
            .ok_or_else(|| Error::Unreachable("no endpoint told its genesis".to_owned()))?;
        let settings = SubstrateConfig::builder().set_genesis_hash(H256(genesis)).build();
        let (api, methods) = view(settings.clone(), nodes.client()).await?;
        let chain = Self {
            api,
            methods,
            only: None,
            nodes,
            archive,
            config: settings,
            runtime,
            netuid: NetUid(config.netuid),
            weights_index: u16::from(config.mechanism) * 4096 + config.netuid,
        };
        let best = chain.best().await?;
        let at = chain.at(BlockId::Hash(best.hash)).await?;
        chain.runtime.now(&at, best.number);
        chain.runtime_ok()?;
        Ok(chain)
    }

    /// The same chain as one endpoint tells it.
    pub(crate) async fn only(&self, rank: usize) -> Result<Self, Error> {
        let (api, methods) = view(self.config.clone(), self.nodes.only(rank)).await?;
        Ok(Self { api, methods, only: Some(rank), ..self.clone() })
    }

    /// The same chain as nodes tell it that keep every past state; `None` where none is known.
    pub(crate) async fn archive(&self) -> Result<Option<Self>, Error> {
        let Some(nodes) = self.archive.clone() else { return Ok(None) };
        let (api, methods) = view(self.config.clone(), nodes.client()).await?;
        Ok(Some(Self { api, methods, only: None, nodes, archive: None, ..self.clone() }))
    }

    /// Hash of the chain's first block.
    pub(crate) fn genesis(&self) -> BlockHash {
        BlockHash(self.api.genesis_hash().0)
    }

    /// The endpoints.
    pub(crate) fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    /// The calls of a node that `subxt` does not wrap.
    pub(crate) fn methods(&self) -> &Methods {
        &self.methods
    }

    /// Whether the newest runtime has all that this service uses. Nothing may be signed for one
    /// that has not.
    pub(crate) fn runtime_ok(&self) -> Result<(), Error> {
        self.runtime.ok()
    }

    /// The state at one block.
    pub(crate) async fn at(&self, id: BlockId) -> Result<AtBlock, Error> {
        let at = match id {
            BlockId::Number(number) => self.api.at_block(number.0).await,
            BlockId::Hash(hash) => self.api.at_block(H256(hash.0)).await,
        };
        let at = at.map_err(|error| Error::reading("the block", id, error))?;
        self.runtime.seen(&at);
        Ok(at)
    }

    /// The node's best block.
    pub(crate) async fn best(&self) -> Result<Block, Error> {
        let header = self.header(None, "best".to_owned()).await?;
        Ok(Block::of(&header))
    }

    /// The node's best and final blocks.
    pub(crate) async fn tips(&self) -> Result<Tips, Error> {
        let finalized = self
            .methods
            .chain_get_finalized_head()
            .await
            .map_err(|error| Error::reading("the final block", "final", error))?;
        let finalized = self.block_of(BlockHash(finalized.0)).await?;
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
        let block = self.block_of(BlockHash(hash.0)).await?;
        if block.number != number {
            let what = format!("block {number} is said to have the hash of block {}", block.number);
            return Err(self.lie(what));
        }
        Ok(block)
    }

    /// The block of a hash: its header is hashed here.
    pub(crate) async fn block_of(&self, hash: BlockHash) -> Result<Block, Error> {
        let header = self.header(Some(H256(hash.0)), hash.to_string()).await?;
        let block = Block::of(&header);
        if block.hash != hash {
            return Err(self.lie(format!("the header of {hash} has the hash {}", block.hash)));
        }
        Ok(block)
    }

    /// What cannot be true was said by the endpoint that is asked.
    fn lie(&self, what: String) -> Error {
        let teller = self.only.or_else(|| self.nodes.board().borrow().current());
        if let Some(rank) = teller {
            self.nodes.lied(rank, &what);
        }
        Error::Lie(what)
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

    async fn header(&self, hash: Option<H256>, name: String) -> Result<Header, Error> {
        self.methods
            .chain_get_header(hash)
            .await
            .map_err(|error| Error::reading("the block's header", &name, error))?
            .ok_or(Error::NoSuchBlock(name))
    }
}

async fn view(
    config: SubstrateConfig,
    client: RpcClient,
) -> Result<(OnlineClient<SubstrateConfig>, Methods), Error> {
    let backend = LegacyBackend::builder().storage_page_size(PAGE).build(client.clone());
    let api = OnlineClient::from_backend_with_config(config, Arc::new(backend))
        .await
        .map_err(|error| Error::reading("the genesis hash", 0, error))?;
    Ok((api, LegacyRpcMethods::new(client)))
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chain")
            .field("nodes", &self.nodes)
            .field("only", &self.only)
            .finish_non_exhaustive()
    }
}
