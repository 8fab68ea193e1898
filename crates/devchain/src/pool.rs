//! Extrinsics that wait for a block, in order of arrival, and those that are not wanted again.

use std::collections::{HashSet, VecDeque};

use tokio::sync::watch;

use crate::{extrinsic::Extrinsic, refusal::Refusal, state::Account};

/// As many extrinsics wait at once.
const MAX_READY: usize = 4096;
/// As many are remembered as unwanted; the oldest are forgotten, and refused by their nonce.
const MAX_BANNED: usize = 16_384;

/// How far an extrinsic got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Ready,
    InBlock { number: u32, hash: [u8; 32] },
    Invalid,
}

/// An extrinsic that waits, and who is told what becomes of it.
pub(crate) struct Waiting {
    pub(crate) extrinsic: Extrinsic,
    pub(crate) status: watch::Sender<Status>,
}

#[derive(Default)]
pub(crate) struct Pool {
    ready: Vec<Waiting>,
    banned: HashSet<[u8; 32]>,
    banned_order: VecDeque<[u8; 32]>,
}

impl Pool {
    /// Refuses what is here already, or was, before any costlier check.
    pub(crate) fn check_known(&self, hash: &[u8; 32]) -> Result<(), Refusal> {
        if self.ready.iter().any(|w| w.extrinsic.hash == *hash) {
            return Err(Refusal::AlreadyImported);
        }
        if self.banned.contains(hash) {
            return Err(Refusal::Banned);
        }
        if self.ready.len() >= MAX_READY { Err(Refusal::Dropped) } else { Ok(()) }
    }

    /// Checks the nonce of a newcomer, where `next` is the one that the state expects.
    pub(crate) fn check_nonce(
        &self,
        signer: &Account,
        nonce: u32,
        next: u32,
    ) -> Result<(), Refusal> {
        if nonce < next {
            return Err(Refusal::Stale);
        }
        if self.of(signer).any(|w| w.extrinsic.nonce == nonce) {
            return Err(Refusal::TooLowPriority);
        }
        if nonce > next + self.waiting(signer) { Err(Refusal::Future) } else { Ok(()) }
    }

    /// As many extrinsics of this signer wait.
    pub(crate) fn waiting(&self, signer: &Account) -> u32 {
        u32::try_from(self.of(signer).count()).unwrap_or(u32::MAX)
    }

    fn of(&self, signer: &Account) -> impl Iterator<Item = &Waiting> {
        self.ready.iter().filter(move |w| w.extrinsic.signer == *signer)
    }

    /// Takes an extrinsic that passed all checks.
    pub(crate) fn insert(&mut self, extrinsic: Extrinsic) -> watch::Receiver<Status> {
        let (status, told) = watch::channel(Status::Ready);
        self.ready.push(Waiting { extrinsic, status });
        told
    }

    /// All that waits, for the next block. Each is banned from coming back.
    pub(crate) fn drain(&mut self) -> Vec<Waiting> {
        let drained = std::mem::take(&mut self.ready);
        for waiting in &drained {
            if self.banned.insert(waiting.extrinsic.hash) {
                self.banned_order.push_back(waiting.extrinsic.hash);
            }
        }
        while self.banned_order.len() > MAX_BANNED {
            if let Some(hash) = self.banned_order.pop_front() {
                self.banned.remove(&hash);
            }
        }
        drained
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ready.is_empty()
    }

    /// What waits, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Extrinsic> {
        self.ready.iter().map(|w| &w.extrinsic)
    }
}
