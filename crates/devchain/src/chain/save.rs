//! The best chain as bytes, and back.
//!
//! The bytes begin with a name and a version and end with a digest. What is read back is checked
//! before a chain is made of it: a block that does not follow the one before it, or a state from
//! the future, is refused.

use std::collections::BTreeMap;

use bytes::Bytes;
use codec::{Decode, DecodeAll as _, Encode};
use tokio::sync::watch;

use super::{Chain, Included, Tips};
use crate::{
    block::Block,
    extrinsic::Extrinsic,
    genesis::Genesis,
    history::{Changes, History},
    pool::{Status, Waiting},
    runtime::{Runtime, blake2_256},
};

const NAME: &[u8; 8] = b"devchain";
const VERSION: u32 = 1;
const DIGEST: usize = 32;

/// Bytes that are not a chain that was saved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    #[error("this is not the state of a development chain")]
    Foreign,
    #[error("the state is of version {0}, and this program reads version {VERSION}")]
    Version(u32),
    #[error("the state is damaged: its digest is not that of its bytes")]
    Damaged,
    #[error("the state is of subnet {saved}, not of {asked}")]
    Subnet { saved: u16, asked: u16 },
    #[error("the state makes no sense: {0}")]
    Broken(String),
}

fn broken(why: impl ToString) -> StateError {
    StateError::Broken(why.to_string())
}

type Plain = Option<Vec<u8>>;
/// A key with the blocks that wrote it.
type SavedKey = (Vec<u8>, Vec<(u32, Plain)>);

#[derive(Encode, Decode)]
struct Saved {
    netuid: u16,
    /// The metadata of all runtimes.
    runtimes: Vec<Vec<u8>>,
    next_runtime: Option<u32>,
    blocks: Vec<SavedBlock>,
    keys: Vec<SavedKey>,
    staged: BTreeMap<Vec<u8>, Plain>,
    journal: Vec<Included>,
    all_included: Vec<Included>,
    finalized: u32,
    branches: u32,
}

#[derive(Encode, Decode)]
struct SavedBlock {
    parent: [u8; 32],
    state_root: [u8; 32],
    extrinsics: Vec<Vec<u8>>,
    upgraded: bool,
    runtime: u32,
    finalized: u32,
}

fn plain(value: &Option<Bytes>) -> Plain {
    value.as_ref().map(|bytes| bytes.to_vec())
}

fn index(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

impl Chain {
    /// The best chain as bytes.
    pub(crate) fn save(&self) -> Vec<u8> {
        let block = |block: &Block| SavedBlock {
            parent: block.parent,
            state_root: block.state_root,
            extrinsics: block.extrinsics.iter().map(|bytes| bytes.to_vec()).collect(),
            upgraded: block.upgraded,
            runtime: index(block.runtime),
            finalized: block.finalized,
        };
        let saved = Saved {
            netuid: self.rules.netuid,
            runtimes: self.runtimes.iter().map(|runtime| runtime.raw().to_vec()).collect(),
            next_runtime: self.next_runtime.map(index),
            blocks: self.blocks.iter().map(block).collect(),
            keys: self
                .history
                .iter()
                .map(|(key, versions)| {
                    let versions = versions.iter().map(|(block, value)| (*block, plain(value)));
                    (key.clone(), versions.collect())
                })
                .collect(),
            staged: self.staged.iter().map(|(key, value)| (key.clone(), plain(value))).collect(),
            journal: self.journal.clone(),
            all_included: self.all_included.clone(),
            finalized: self.newest().finalized,
            branches: self.branches,
        };
        let mut bytes = NAME.to_vec();
        VERSION.encode_to(&mut bytes);
        saved.encode_to(&mut bytes);
        bytes.extend(blake2_256(&bytes));
        bytes
    }

    /// The chain that these bytes are.
    pub(crate) fn load(bytes: &[u8], genesis: &Genesis) -> Result<Self, StateError> {
        let rest = bytes.strip_prefix(NAME).ok_or(StateError::Foreign)?;
        let (version, rest) = rest.split_first_chunk::<4>().ok_or(StateError::Damaged)?;
        let version = u32::from_le_bytes(*version);
        if version != VERSION {
            return Err(StateError::Version(version));
        }
        let (saved, digest) = rest.split_last_chunk::<DIGEST>().ok_or(StateError::Damaged)?;
        if blake2_256(&bytes[..bytes.len() - DIGEST]) != *digest {
            return Err(StateError::Damaged);
        }
        Saved::decode_all(&mut &saved[..]).map_err(broken)?.chain(genesis)
    }
}

impl Saved {
    fn chain(self, genesis: &Genesis) -> Result<Chain, StateError> {
        if self.netuid != genesis.netuid {
            return Err(StateError::Subnet { saved: self.netuid, asked: genesis.netuid });
        }
        let runtimes: Result<Vec<Runtime>, _> =
            self.runtimes.into_iter().map(Runtime::new).collect();
        let runtimes = runtimes.map_err(broken)?;
        let runtime = |index: u32| {
            let index = usize::try_from(index).ok().filter(|index| *index < runtimes.len());
            index.ok_or_else(|| broken("a block of no known runtime"))
        };
        let next_runtime = self.next_runtime.map(runtime).transpose()?;
        let mut blocks: Vec<Block> = Vec::with_capacity(self.blocks.len());
        for saved in self.blocks {
            let number = index(blocks.len());
            if blocks.last().map_or([0; 32], |last| last.head.hash) != saved.parent {
                return Err(broken(format!("block {number} does not follow the one before it")));
            }
            let extrinsics = saved.extrinsics.into_iter().map(Bytes::from).collect();
            let mut block =
                Block::new(number, saved.parent, saved.state_root, extrinsics, saved.upgraded);
            block.runtime = runtime(saved.runtime)?;
            block.serial = number.into();
            block.finalized = saved.finalized.min(number);
            blocks.push(block);
        }
        let head = index(blocks.len()).checked_sub(1).ok_or_else(|| broken("no blocks"))?;
        if self.finalized > head {
            return Err(broken("a finalized block that is not there"));
        }
        let bytes = |value: Plain| value.map(Bytes::from);
        let keys = self.keys.into_iter().map(|(key, versions)| {
            (key, versions.into_iter().map(|(block, value)| (block, bytes(value))).collect())
        });
        let history =
            History::restore(keys, head).ok_or_else(|| broken("a state from the future"))?;
        let staged: Changes =
            self.staged.into_iter().map(|(key, value)| (key, bytes(value))).collect();

        let mut chain = Chain::of(genesis, runtimes, blocks, history);
        let best = chain.head().head;
        chain.next_runtime = next_runtime;
        chain.staged = staged;
        chain.journal = self.journal;
        chain.all_included = self.all_included;
        chain.branches = self.branches;
        chain.serial = head.into();
        let tips = Tips { best, finalized: self.finalized, serial: head.into() };
        chain.tips = watch::Sender::new(tips);
        chain.in_blocks = chain.not_final(self.finalized)?;
        Ok(chain)
    }
}

impl Chain {
    /// The signed extrinsics of the blocks after `finalized`, which may still be taken back.
    fn not_final(&self, finalized: u32) -> Result<Vec<(u32, Waiting)>, StateError> {
        let mut included = Vec::new();
        for pair in self.blocks.windows(2) {
            let [parent, block] = pair else { continue };
            let head = block.head;
            if head.number <= finalized {
                continue;
            }
            // The first has no signature: it sets the time.
            for bytes in block.extrinsics.iter().skip(1) {
                let extrinsic = Extrinsic::open(bytes.clone(), &self.runtimes[parent.runtime]);
                let waiting = Waiting::new(extrinsic.map_err(broken)?);
                waiting.tell(Status::InBlock { number: head.number, hash: head.hash });
                included.push((head.number, waiting));
            }
        }
        Ok(included)
    }
}
