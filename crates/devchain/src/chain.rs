//! The chain itself: blocks, their states, the pool, and how one becomes the other. Synchronous
//! and alone: it knows no clock, no socket and no task.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use codec::Encode as _;
use scale_decode::DecodeAsType;
use scale_value::Value;
use tokio::sync::watch;

use crate::{
    block::{Block, Head},
    dispatch::Rules,
    encode,
    extrinsic::{Extrinsic, Facts},
    genesis::{Genesis, Production},
    history::{Changes, History},
    pool::{Pool, Status},
    pulses::Pulses,
    refusal::Refusal,
    runtime::{MetadataError, Runtime, blake2_256},
    state::{Account, State, account, number},
    step,
};

/// How many block hashes the runtime remembers: no extrinsic may be older.
const BLOCK_HASH_COUNT: u32 = 2400;
/// The live chain's block time, where this one has none.
const NOMINAL_BLOCK_TIME: Duration = Duration::from_secs(12);

/// The two ends of the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tips {
    pub(crate) best: u32,
    pub(crate) finalized: u32,
}

/// A signed extrinsic that a block includes, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
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

/// The state of a block cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoState {
    #[error("UnknownBlock: Header was not found in the database")]
    Unknown,
    #[error("UnknownBlock: State already discarded for 0x{}", hex::encode(.0))]
    Discarded([u8; 32]),
}

pub(crate) struct Chain {
    runtime: Runtime,
    pub(crate) rules: Rules,
    pub(crate) pulses: Pulses,
    blocks: Vec<Block>,
    by_hash: HashMap<[u8; 32], u32>,
    history: History,
    pool: Pool,
    /// Written between blocks, by hand; part of the next block.
    staged: Changes,
    journal: Vec<Included>,
    tips: watch::Sender<Tips>,
    finality_lag: u32,
    keep_states: Option<u32>,
    genesis_time_ms: u64,
    block_time_ms: u64,
}

impl Chain {
    pub(crate) fn new(genesis: &Genesis) -> Result<Self, MetadataError> {
        let raw = genesis.metadata.clone().unwrap_or_else(|| crate::METADATA.to_vec());
        let runtime = Runtime::new(raw)?;
        let changes = genesis.changes(&runtime)?;
        let first = Block::new(0, [0; 32], state_root(genesis.seed, &changes), Vec::new());
        let mut history = History::default();
        history.append(0, changes);
        let block_time = match genesis.production {
            Production::Interval(time) => time,
            Production::OnSubmit | Production::Manual => NOMINAL_BLOCK_TIME,
        };
        Ok(Self {
            runtime,
            rules: Rules {
                netuid: genesis.netuid,
                allow_loopback_axons: genesis.allow_loopback_axons,
                refuse_early: genesis.refuse_early,
                permits_by_stake: genesis.permits_by_stake,
            },
            pulses: Pulses::new(genesis),
            by_hash: HashMap::from([(first.head.hash, 0)]),
            blocks: vec![first],
            history,
            pool: Pool::default(),
            staged: Changes::new(),
            journal: Vec::new(),
            tips: watch::Sender::new(Tips { best: 0, finalized: 0 }),
            finality_lag: genesis.finality_lag,
            keep_states: genesis.keep_states,
            genesis_time_ms: genesis.genesis_time_ms,
            block_time_ms: u64::try_from(block_time.as_millis()).unwrap_or(u64::MAX),
        })
    }

    pub(crate) fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    pub(crate) fn tips(&self) -> watch::Receiver<Tips> {
        self.tips.subscribe()
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    pub(crate) fn journal(&self) -> &[Included] {
        &self.journal
    }

    /// The newest block.
    pub(crate) fn head(&self) -> &Block {
        // There is always block 0.
        &self.blocks[self.blocks.len() - 1]
    }

    /// The newest block that cannot be undone.
    pub(crate) fn finalized(&self) -> &Block {
        &self.blocks[self.tips.borrow().finalized as usize]
    }

    pub(crate) fn block(&self, number: u64) -> Option<&Block> {
        self.blocks.get(usize::try_from(number).ok()?)
    }

    /// A block by its hash; the newest without one.
    pub(crate) fn find(&self, hash: Option<[u8; 32]>) -> Option<&Block> {
        match hash {
            None => Some(self.head()),
            Some(hash) => self.block((*self.by_hash.get(&hash)?).into()),
        }
    }

    /// The storage at a block, if it is still there.
    pub(crate) fn storage(&self, hash: Option<[u8; 32]>) -> Result<(&History, u32), NoState> {
        let head = self.find(hash).ok_or(NoState::Unknown)?.head;
        let age = self.head().head.number - head.number;
        if self.keep_states.is_some_and(|kept| age > kept) {
            return Err(NoState::Discarded(head.hash));
        }
        Ok((&self.history, head.number))
    }

    /// The state of a block, for reading. Blocks to come read as the newest.
    pub(crate) fn state(&self, block: u32) -> State<'_> {
        State::at(&self.runtime, &self.history, block.min(self.head().head.number))
    }

    /// The nonce that an account's next extrinsic must have, by the state of a block.
    pub(crate) fn nonce(&self, who: &Account, block: u32) -> Result<u32, MetadataError> {
        nonce(&self.state(block), who)
    }

    /// Writes into the state of the next block, by hand.
    pub(crate) fn stage<R>(
        &mut self,
        write: impl FnOnce(&mut State<'_>, u16) -> Result<R, MetadataError>,
    ) -> Result<R, MetadataError> {
        let (base, staged) = (self.head().head.number, self.staged.clone());
        let mut state = State::after(&self.runtime, &self.history, base, staged);
        let result = write(&mut state, self.rules.netuid)?;
        self.staged = state.into_changes();
        Ok(result)
    }

    /// Takes an extrinsic into the pool, or says why not.
    pub(crate) fn submit(
        &mut self,
        bytes: Bytes,
    ) -> Result<([u8; 32], watch::Receiver<Status>), Refusal> {
        let extrinsic = Extrinsic::open(bytes, &self.runtime)?;
        self.pool.check_known(&extrinsic.hash)?;
        let base = self.head().head.number;
        extrinsic.verify(&self.facts(base + 1, &|n| self.hash_of(n, base + 1)))?;
        let state = State::after(&self.runtime, &self.history, base, self.staged.clone());
        let next = nonce(&state, &extrinsic.signer).map_err(trap)?;
        self.pool.check_nonce(&extrinsic.signer, extrinsic.nonce, next)?;
        extrinsic
            .call
            .check(&extrinsic.signer, &state, self.rules)
            .map_err(trap)?
            .map_err(Refusal::Custom)?;
        Ok((extrinsic.hash, self.pool.insert(extrinsic)))
    }

    fn hash_of(&self, number: u64, block: u32) -> Option<[u8; 32]> {
        let age = u64::from(block).checked_sub(number)?;
        (number == 0 || age <= BLOCK_HASH_COUNT.into())
            .then(|| self.block(number))?
            .map(|b| b.head.hash)
    }

    fn facts<'a>(&'a self, block: u32, hash_of: &'a dyn Fn(u64) -> Option<[u8; 32]>) -> Facts<'a> {
        Facts { runtime: &self.runtime, genesis: self.blocks[0].head.hash, block, hash_of }
    }

    /// Makes the next block of all that waits.
    pub(crate) fn produce(&mut self) -> Result<Head, MetadataError> {
        let parent = self.head().head;
        let block = parent.number + 1;
        let waiting = self.pool.drain();
        let staged = std::mem::take(&mut self.staged);
        let mut state = State::after(&self.runtime, &self.history, parent.number, staged);

        let now = self.genesis_time_ms.saturating_add(self.block_time_ms * u64::from(block));
        self.begin(&mut state, parent, now)?;
        let mut extrinsics = vec![Bytes::from(encode::timestamp(&self.runtime, now)?)];
        state.emit("System", "ExtrinsicSuccess", &encode::success())?;
        state.keep(0);

        let mut included = Vec::new();
        for waiting in waiting {
            let extrinsic = &waiting.extrinsic;
            let hash_of = |n| self.hash_of(n, block);
            let valid = extrinsic.verify(&self.facts(block, &hash_of)).is_ok()
                && nonce(&state, &extrinsic.signer)? == extrinsic.nonce
                && extrinsic.call.check(&extrinsic.signer, &state, self.rules)?.is_ok();
            if !valid {
                waiting.status.send_replace(Status::Invalid);
                continue;
            }
            let index = u32::try_from(extrinsics.len()).unwrap_or(u32::MAX);
            let error = apply(&mut state, extrinsic, self.rules, index)?;
            extrinsics.push(extrinsic.bytes.clone());
            included.push((waiting, error));
        }

        let changes = state.finish()?;
        let root = state_root(self.head().state_root, &changes);
        let made = Block::new(block, parent.hash, root, extrinsics);
        let head = made.head;
        self.history.append(block, changes);
        self.by_hash.insert(head.hash, block);
        self.blocks.push(made);
        // First the block, then the word of it: whoever hears of a block can read it.
        self.tips
            .send_replace(Tips { best: block, finalized: block.saturating_sub(self.finality_lag) });
        for (waiting, error) in included {
            self.journal.push(entry(&waiting.extrinsic, head, error));
            waiting.status.send_replace(Status::InBlock { number: block, hash: head.hash });
        }
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
        step::on_block(state, self.rules, &self.pulses, now)
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

fn nonce(state: &State<'_>, who: &Account) -> Result<u32, MetadataError> {
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

/// The live runtime traps where this one cannot encode or decode.
fn trap(error: MetadataError) -> Refusal {
    Refusal::Call(error.to_string())
}

/// A digest of the state: of the last one and of what changed.
fn state_root(last: [u8; 32], changes: &Changes) -> [u8; 32] {
    let plain: Vec<(&[u8], Option<&[u8]>)> =
        changes.iter().map(|(k, v)| (&k[..], v.as_deref())).collect();
    blake2_256(&(last, plain).encode())
}
