//! The chain itself: blocks, their states, the pool, and how one becomes the other. Synchronous
//! and alone: it knows no clock, no socket and no task.

mod fork;
mod lookup;
mod pooling;
mod save;
mod upgrade;

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use codec::{Decode, Encode};
use scale_decode::DecodeAsType;
use scale_value::Value;
use tokio::sync::watch;

pub(crate) use self::lookup::{NoState, Storage};
pub use self::{
    fork::{ReorganiseError, Taken},
    save::StateError,
};
use crate::{
    block::{Block, Head},
    dispatch::Rules,
    encode, epoch,
    extrinsic::Extrinsic,
    genesis::{Genesis, Production},
    history::{Changes, History},
    migrate,
    pool::{Pool, Status, Waiting},
    runtime::{MetadataError, Runtime, blake2_256},
    state::{Account, State, account, number},
};

/// How many block hashes the runtime remembers: no extrinsic may be older.
const BLOCK_HASH_COUNT: u32 = 2400;
/// The live chain's block time, where this one has none.
const NOMINAL_BLOCK_TIME: Duration = Duration::from_secs(12);

/// The two ends of the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tips {
    pub(crate) best: Head,
    pub(crate) finalized: u32,
    /// The newest block's place among all that were made.
    pub(crate) serial: u64,
}

/// A signed extrinsic that a block includes, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Included {
    /// The number of its block.
    pub block: u32,
    /// The hash of its block.
    pub block_hash: [u8; 32],
    /// BLAKE2b-256 of its bytes.
    pub hash: [u8; 32],
    /// The account that signed it.
    pub signer: [u8; 32],
    /// The signer's nonce.
    pub nonce: u32,
    /// The pallet of its call.
    pub pallet: String,
    /// Its call.
    pub call: String,
    /// Why it came to nothing, as `SubtensorModule::SettingWeightsTooFast`.
    pub error: Option<String>,
}

impl Included {
    /// The call with its pallet, as `SubtensorModule.set_weights`.
    pub fn name(&self) -> String {
        format!("{}.{}", self.pallet, self.call)
    }
}

pub(crate) struct Chain {
    /// The runtimes of all blocks; a block knows its own by position.
    runtimes: Vec<Runtime>,
    /// The runtime that the next block changes to.
    next_runtime: Option<usize>,
    pub(crate) rules: Rules,
    /// The best chain: the number is the position.
    blocks: Vec<Block>,
    by_hash: HashMap<[u8; 32], u32>,
    history: History,
    /// Blocks that a reorganisation took back, each with what it wrote.
    abandoned: HashMap<[u8; 32], (Block, Changes)>,
    /// Reorganisations so far.
    branches: u32,
    /// Blocks made so far, on all branches.
    serial: u64,
    pool: Pool,
    /// What blocks include that are not finalized yet, with the numbers of their blocks.
    in_blocks: Vec<(u32, Waiting)>,
    /// What comes back into the pool, with the number of the block after which it does.
    returning: Vec<(u32, Waiting)>,
    /// Written between blocks, by hand; part of the next block.
    staged: Changes,
    journal: Vec<Included>,
    /// What was ever in a block, on all branches.
    all_included: Vec<Included>,
    tips: watch::Sender<Tips>,
    finality_lag: u32,
    finality_paused: bool,
    block_time_ms: u64,
}

impl Chain {
    pub(crate) fn new(genesis: &Genesis) -> Result<Self, MetadataError> {
        let raw = genesis.metadata.clone().unwrap_or_else(|| crate::METADATA.to_vec());
        let runtime = Runtime::new(raw)?;
        let changes = genesis.changes(&runtime)?;
        let root = state_root(genesis.seed, 0, &changes);
        let first = Block::new(0, [0; 32], root, Vec::new(), false);
        let mut history = History::default();
        history.append(0, changes);
        Ok(Self::of(genesis, vec![runtime], vec![first], history))
    }

    /// A chain of these blocks and nothing else; there is at least one.
    fn of(genesis: &Genesis, runtimes: Vec<Runtime>, blocks: Vec<Block>, history: History) -> Self {
        let block_time = match genesis.production {
            Production::Interval(time) => time,
            Production::OnSubmit | Production::Manual => NOMINAL_BLOCK_TIME,
        };
        let best = blocks[blocks.len() - 1].head;
        Self {
            runtimes,
            next_runtime: None,
            rules: Rules {
                netuid: genesis.netuid,
                allow_loopback_axons: genesis.allow_loopback_axons,
                refuse_early: genesis.refuse_early,
            },
            by_hash: blocks.iter().map(|b| (b.head.hash, b.head.number)).collect(),
            blocks,
            history,
            abandoned: HashMap::new(),
            branches: 0,
            serial: 0,
            pool: Pool::default(),
            in_blocks: Vec::new(),
            returning: Vec::new(),
            staged: Changes::new(),
            journal: Vec::new(),
            all_included: Vec::new(),
            tips: watch::Sender::new(Tips { best, finalized: 0, serial: 0 }),
            finality_lag: genesis.finality_lag,
            finality_paused: false,
            block_time_ms: u64::try_from(block_time.as_millis()).unwrap_or(u64::MAX),
        }
    }

    pub(crate) fn tips(&self) -> watch::Receiver<Tips> {
        self.tips.subscribe()
    }

    /// The two ends as they are now.
    pub(crate) fn newest(&self) -> Tips {
        *self.tips.borrow()
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    pub(crate) fn pool_mut(&mut self) -> &mut Pool {
        &mut self.pool
    }

    /// What the best chain includes.
    pub(crate) fn journal(&self) -> &[Included] {
        &self.journal
    }

    /// What was ever included, on any branch.
    pub(crate) fn all_included(&self) -> &[Included] {
        &self.all_included
    }

    /// The newest block.
    pub(crate) fn head(&self) -> &Block {
        // There is always block 0.
        &self.blocks[self.blocks.len() - 1]
    }

    /// The hash of block 0.
    pub(crate) fn genesis_hash(&self) -> [u8; 32] {
        self.blocks[0].head.hash
    }

    /// Writes into the state of the next block, by hand.
    pub(crate) fn stage<R>(
        &mut self,
        write: impl FnOnce(&mut State<'_>, u16) -> Result<R, MetadataError>,
    ) -> Result<R, MetadataError> {
        let mut state = self.next();
        let result = write(&mut state, self.rules.netuid)?;
        self.staged = state.into_changes();
        Ok(result)
    }

    /// The state in which the next block begins, as far as it is known.
    fn next(&self) -> State<'_> {
        let head = self.head();
        let runtime = &self.runtimes[head.runtime];
        State::after(runtime, &self.history, head.head.number, self.staged.clone())
    }

    /// Makes the next block of all that is ready. The extrinsics of a block in which the runtime
    /// changes are still those of the runtime before; its state is that of the new one.
    pub(crate) fn produce(&mut self) -> Result<Head, MetadataError> {
        let (parent, old) = (self.head().head, self.head().runtime);
        let block = parent.number + 1;
        self.let_return(parent.number)?;
        let waiting = self.pool.take();
        let mut staged = std::mem::take(&mut self.staged);
        let current = self.next_runtime.take().unwrap_or(old);
        if current != old {
            let (from, to) = (&self.runtimes[old], &self.runtimes[current]);
            staged = migrate::changes(&self.history, parent.number, staged, from, to);
        }
        let runtime = &self.runtimes[current];
        let mut state = State::after(runtime, &self.history, parent.number, staged);

        let last: u64 = state.get("Timestamp", "Now", &[])?.unwrap_or(0);
        let now = last.saturating_add(self.block_time_ms);
        self.begin(&mut state, parent, now)?;
        let mut extrinsics = vec![Bytes::from(encode::timestamp(&self.runtimes[old], now)?)];
        state.emit("System", "ExtrinsicSuccess", &encode::success())?;
        state.keep(0);

        let (mut included, mut invalid) = (Vec::new(), Vec::new());
        for waiting in waiting {
            let extrinsic = &waiting.extrinsic;
            let hash_of = |n| self.hash_of(n, block);
            let valid = extrinsic.verify(&self.facts(block, &hash_of)).is_ok()
                && nonce(&state, &extrinsic.signer)? == extrinsic.nonce
                && extrinsic.call.check(&extrinsic.signer, &state, self.rules)?.is_ok();
            if !valid {
                invalid.push(waiting);
                continue;
            }
            let index = u32::try_from(extrinsics.len()).unwrap_or(u32::MAX);
            let error = apply(&mut state, extrinsic, self.rules, index)?;
            extrinsics.push(extrinsic.bytes.clone());
            included.push((waiting, error));
        }

        let changes = state.finish()?;
        let root = state_root(self.head().state_root, self.branches, &changes);
        let mut made = Block::new(block, parent.hash, root, extrinsics, current != old);
        self.serial += 1;
        (made.runtime, made.serial) = (current, self.serial);
        made.finalized = self.finalized_with(block);
        let (head, finalized) = (made.head, made.finalized);
        self.history.append(block, changes);
        self.by_hash.insert(head.hash, block);
        self.blocks.push(made);
        // First the block, then the word of it: whoever hears of a block can read it.
        self.tips.send_replace(Tips { best: head, finalized, serial: self.serial });
        for waiting in invalid {
            waiting.tell(Status::Invalid);
            self.pool.ban(waiting.extrinsic.hash, block);
        }
        for (waiting, error) in included {
            let entry = entry(&waiting.extrinsic, head, error);
            self.journal.push(entry.clone());
            self.all_included.push(entry);
            self.pool.ban(waiting.extrinsic.hash, block);
            waiting.tell(Status::InBlock { number: block, hash: head.hash });
            self.in_blocks.push((block, waiting));
        }
        self.tell_finalized(finalized);
        self.revalidate()?;
        Ok(head)
    }

    /// What a block does before its extrinsics.
    fn begin(&self, state: &mut State<'_>, parent: Head, now: u64) -> Result<(), MetadataError> {
        let block = state.block();
        state.put("System", "Number", &[], &block)?;
        state.put("System", "ParentHash", &[], &parent.hash)?;
        state.put("System", "BlockHash", &[number(parent.number)], &parent.hash)?;
        if let Some(old) = block.checked_sub(BLOCK_HASH_COUNT + 1).filter(|old| *old > 0) {
            state.remove("System", "BlockHash", &[number(old)])?;
        }
        state.put("Timestamp", "Now", &[], &now)?;
        epoch::on_block(state, self.rules.netuid)
    }
}

/// Carries out one valid extrinsic. Its nonce counts whether or not its call succeeds.
fn apply(
    state: &mut State<'_>,
    extrinsic: &Extrinsic,
    rules: Rules,
    index: u32,
) -> Result<Option<String>, MetadataError> {
    set_nonce(state, &extrinsic.signer, extrinsic.nonce + 1)?;
    state.keep(index);
    let outcome = extrinsic.call.dispatch(&extrinsic.signer, state, rules);
    let runtime = state.runtime();
    let error = match outcome {
        Ok(()) => {
            state.emit("System", "ExtrinsicSuccess", &encode::success())?;
            None
        }
        Err(failure) => {
            state.undo();
            state.emit("System", "ExtrinsicFailed", &encode::failed(runtime, &failure))?;
            Some(failure.to_string())
        }
    };
    state.keep(index);
    Ok(error)
}

fn entry(extrinsic: &Extrinsic, head: Head, error: Option<String>) -> Included {
    Included {
        block: head.number,
        block_hash: head.hash,
        hash: extrinsic.hash,
        signer: extrinsic.signer,
        nonce: extrinsic.nonce,
        pallet: extrinsic.pallet.clone(),
        call: extrinsic.name.clone(),
        error,
    }
}

/// The parts of an account that this chain keeps.
#[derive(DecodeAsType)]
struct AccountInfo {
    nonce: u32,
    consumers: u32,
    providers: u32,
    sufficients: u32,
    data: Value,
}

/// The nonce that an account's next extrinsic must have, by a state.
pub(crate) fn nonce(state: &State<'_>, who: &Account) -> Result<u32, MetadataError> {
    let info: Option<AccountInfo> = state.get("System", "Account", &[account(who)])?;
    Ok(info.map_or(0, |info| info.nonce))
}

fn set_nonce(state: &mut State<'_>, who: &Account, nonce: u32) -> Result<(), MetadataError> {
    let key = [account(who)];
    let Some(info) = state.get::<AccountInfo>("System", "Account", &key)? else { return Ok(()) };
    let info = Value::named_composite([
        ("nonce", number(nonce)),
        ("consumers", number(info.consumers)),
        ("providers", number(info.providers)),
        ("sufficients", number(info.sufficients)),
        ("data", info.data),
    ]);
    state.put("System", "Account", &key, &info)
}

/// A digest of the state: of the last one, of what changed, and of the branch, so that two
/// branches share no block even where both do the same.
fn state_root(last: [u8; 32], branch: u32, changes: &Changes) -> [u8; 32] {
    let plain: Vec<(&[u8], Option<&[u8]>)> =
        changes.iter().map(|(k, v)| (&k[..], v.as_deref())).collect();
    blake2_256(&(last, branch, plain).encode())
}
