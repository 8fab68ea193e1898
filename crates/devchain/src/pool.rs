//! Extrinsics that wait for a block, and those that are not wanted again for a while.
//!
//! An extrinsic is ready when its nonce is the next of its signer, counting those that are ready
//! before it; otherwise it waits for the nonces before its own. The pool knows nonces and tips.
//! It does not know what is valid: the chain tells it.

use std::collections::{BTreeMap, HashMap, VecDeque};

use tokio::sync::watch;

use crate::{extrinsic::Extrinsic, refusal::Refusal, state::Account};

/// As many extrinsics wait at once, where nobody says otherwise.
const DEFAULT_LIMIT: usize = 4096;
/// For as many blocks an extrinsic is banned, where nobody says otherwise: half an hour of blocks.
const DEFAULT_BAN: u32 = 150;
/// As many are remembered as unwanted; the oldest are forgotten, and refused by their nonce.
const MAX_BANNED: usize = 16_384;

/// How far an extrinsic got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Future,
    Ready,
    InBlock { number: u32, hash: [u8; 32] },
    Retracted { hash: [u8; 32] },
    Finalized { number: u32, hash: [u8; 32] },
    Usurped { by: [u8; 32] },
    Invalid,
    Dropped,
}

impl Status {
    /// Nothing more comes after it.
    pub(crate) fn is_last(self) -> bool {
        match self {
            Self::Future | Self::Ready | Self::InBlock { .. } | Self::Retracted { .. } => false,
            Self::Finalized { .. } | Self::Usurped { .. } | Self::Invalid | Self::Dropped => true,
        }
    }
}

/// All that an extrinsic ever was, oldest first: whoever listens leaves out nothing.
pub(crate) type Statuses = Vec<Status>;

/// An extrinsic that waits or that a block includes, and who is told what becomes of it.
pub(crate) struct Waiting {
    pub(crate) extrinsic: Extrinsic,
    status: watch::Sender<Statuses>,
    ready: bool,
}

impl Waiting {
    pub(crate) fn new(extrinsic: Extrinsic) -> Self {
        Self { extrinsic, status: watch::Sender::default(), ready: false }
    }

    pub(crate) fn tell(&self, status: Status) {
        self.status.send_modify(|statuses| statuses.push(status));
    }

    /// The block that includes it, if the last word of it is that one does.
    pub(crate) fn in_block(&self) -> Option<[u8; 32]> {
        match self.status.borrow().last() {
            Some(Status::InBlock { hash, .. }) => Some(*hash),
            Some(
                Status::Future
                | Status::Ready
                | Status::Retracted { .. }
                | Status::Finalized { .. }
                | Status::Usurped { .. }
                | Status::Invalid
                | Status::Dropped,
            )
            | None => None,
        }
    }

    fn set_ready(&mut self, ready: bool) {
        let status = if ready { Status::Ready } else { Status::Future };
        self.ready = ready;
        if self.status.borrow().last() != Some(&status) {
            self.tell(status);
        }
    }
}

pub(crate) struct Pool {
    /// In order of arrival.
    waiting: Vec<Waiting>,
    /// By hash, the block until which an extrinsic is not wanted.
    banned: HashMap<[u8; 32], u32>,
    banned_order: VecDeque<[u8; 32]>,
    limit: usize,
    ban: u32,
    held: bool,
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            waiting: Vec::new(),
            banned: HashMap::new(),
            banned_order: VecDeque::new(),
            limit: DEFAULT_LIMIT,
            ban: DEFAULT_BAN,
            held: false,
        }
    }
}

impl Pool {
    pub(crate) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// For how many blocks an extrinsic that was included, or was found invalid, is refused.
    pub(crate) fn set_ban(&mut self, blocks: u32) {
        self.ban = blocks;
    }

    /// While the pool is held, blocks take nothing from it.
    pub(crate) fn hold(&mut self, held: bool) {
        self.held = held;
    }

    /// Refuses what is here already, or was, before any costlier check. `block` is the newest.
    pub(crate) fn check_known(&self, hash: &[u8; 32], block: u32) -> Result<(), Refusal> {
        if self.waiting.iter().any(|w| w.extrinsic.hash == *hash) {
            return Err(Refusal::AlreadyImported);
        }
        if self.banned.get(hash).is_some_and(|until| block < *until) {
            return Err(Refusal::Banned);
        }
        Ok(())
    }

    /// Takes an extrinsic that passed all other checks, where `next` is the nonce that the state
    /// expects of its signer.
    pub(crate) fn insert(
        &mut self,
        extrinsic: Extrinsic,
        next: u32,
    ) -> Result<watch::Receiver<Statuses>, Refusal> {
        if extrinsic.nonce < next {
            return Err(Refusal::Stale);
        }
        let signer = extrinsic.signer;
        match self.rival(&extrinsic) {
            Some(rival) if extrinsic.tip <= self.waiting[rival].extrinsic.tip => {
                return Err(Refusal::TooLowPriority);
            }
            Some(rival) => {
                self.waiting[rival].tell(Status::Usurped { by: extrinsic.hash });
                self.waiting.remove(rival);
            }
            None if self.waiting.len() >= self.limit => return Err(Refusal::Dropped),
            None => {}
        }
        let waiting = Waiting::new(extrinsic);
        let told = waiting.status.subscribe();
        self.waiting.push(waiting);
        self.settle(&signer, next);
        Ok(told)
    }

    /// What waits with the same signer and nonce.
    fn rival(&self, extrinsic: &Extrinsic) -> Option<usize> {
        let same = |w: &Waiting| {
            w.extrinsic.signer == extrinsic.signer && w.extrinsic.nonce == extrinsic.nonce
        };
        self.waiting.iter().position(same)
    }

    /// Puts back what an abandoned block had included, before all that waits, and lifts its ban.
    /// What has been sent in its place since stays, unless its tip is lower.
    pub(crate) fn restore(&mut self, back: Vec<Waiting>) {
        let mut front = Vec::new();
        for waiting in back {
            self.banned.remove(&waiting.extrinsic.hash);
            match self.rival(&waiting.extrinsic) {
                Some(rival) if self.waiting[rival].extrinsic.tip >= waiting.extrinsic.tip => {
                    let by = self.waiting[rival].extrinsic.hash;
                    waiting.tell(Status::Usurped { by });
                }
                Some(rival) => {
                    self.waiting[rival].tell(Status::Usurped { by: waiting.extrinsic.hash });
                    self.waiting.remove(rival);
                    front.push(waiting);
                }
                None => front.push(waiting),
            }
        }
        front.append(&mut self.waiting);
        self.waiting = front;
    }

    /// Lets an extrinsic be sent again.
    pub(crate) fn forgive(&mut self, hash: &[u8; 32]) {
        self.banned.remove(hash);
    }

    /// Refuses an extrinsic for as long as bans last.
    pub(crate) fn ban(&mut self, hash: [u8; 32], block: u32) {
        if self.banned.insert(hash, block.saturating_add(self.ban)).is_none() {
            self.banned_order.push_back(hash);
        }
        while self.banned_order.len() > MAX_BANNED {
            if let Some(hash) = self.banned_order.pop_front() {
                self.banned.remove(&hash);
            }
        }
    }

    /// Decides again which extrinsics of a signer are ready.
    pub(crate) fn settle(&mut self, signer: &Account, next: u32) {
        let mut of_signer: Vec<&mut Waiting> =
            self.waiting.iter_mut().filter(|w| w.extrinsic.signer == *signer).collect();
        of_signer.sort_by_key(|w| w.extrinsic.nonce);
        let mut next = Some(next);
        for waiting in of_signer {
            let ready = next == Some(waiting.extrinsic.nonce);
            waiting.set_ready(ready);
            next = if ready { waiting.extrinsic.nonce.checked_add(1) } else { next };
        }
    }

    /// Everyone who has something waiting, once.
    pub(crate) fn signers(&self) -> Vec<Account> {
        let mut signers: Vec<Account> = self.waiting.iter().map(|w| w.extrinsic.signer).collect();
        signers.sort_unstable();
        signers.dedup();
        signers
    }

    /// Throws out what is not `valid` any more, and bans it.
    pub(crate) fn retain(&mut self, block: u32, mut valid: impl FnMut(&mut Extrinsic) -> bool) {
        let mut gone = Vec::new();
        self.waiting.retain_mut(|waiting| {
            let stays = valid(&mut waiting.extrinsic);
            if !stays {
                waiting.tell(Status::Invalid);
                gone.push(waiting.extrinsic.hash);
            }
            stays
        });
        for hash in gone {
            self.ban(hash, block);
        }
    }

    /// As many extrinsics of this signer are ready.
    pub(crate) fn ready_of(&self, signer: &Account) -> u32 {
        let of_signer = self.iter().filter(|extrinsic| extrinsic.signer == *signer);
        u32::try_from(of_signer.count()).unwrap_or(u32::MAX)
    }

    /// All that is ready, for the next block: in order of arrival, and each signer's own in order
    /// of nonces.
    pub(crate) fn take(&mut self) -> Vec<Waiting> {
        if self.held {
            return Vec::new();
        }
        let (ready, future): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.waiting).into_iter().partition(|w| w.ready);
        self.waiting = future;
        let order: Vec<Account> = ready.iter().map(|w| w.extrinsic.signer).collect();
        let mut by_signer: HashMap<Account, BTreeMap<u32, Waiting>> = HashMap::new();
        for waiting in ready {
            let of_signer = by_signer.entry(waiting.extrinsic.signer).or_default();
            of_signer.insert(waiting.extrinsic.nonce, waiting);
        }
        order
            .iter()
            .filter_map(|signer| by_signer.get_mut(signer)?.pop_first())
            .map(|(_, waiting)| waiting)
            .collect()
    }

    /// Whether a block made now would take something.
    pub(crate) fn has_work(&self) -> bool {
        !self.held && self.iter().next().is_some()
    }

    /// What is ready, in order of arrival.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Extrinsic> {
        self.waiting.iter().filter(|w| w.ready).map(|w| &w.extrinsic)
    }
}

#[cfg(test)]
mod tests {
    use codec::{Compact, Encode as _};
    use proptest::prelude::*;

    use super::*;

    /// An extrinsic that nobody signed: the pool does not look.
    fn extrinsic(signer: u8, nonce: u32, tip: u128) -> Extrinsic {
        let runtime = crate::testing::runtime();
        let system = runtime.metadata().pallet_by_name("System").unwrap();
        let call = [system.call_index(), system.call_variant_by_name("remark").unwrap().index, 0];
        let mut inner = vec![0x84, 0];
        inner.extend([signer; 32]);
        inner.push(1);
        inner.extend([7; 64]);
        inner.push(0);
        Compact(nonce).encode_to(&mut inner);
        Compact(tip).encode_to(&mut inner);
        inner.push(0);
        inner.extend(call);
        Extrinsic::open(inner.encode().into(), runtime).unwrap()
    }

    #[derive(Debug, Clone)]
    enum Step {
        Insert {
            signer: u8,
            nonce: u32,
            tip: u128,
        },
        /// A block of all that is ready; it may be taken back at once.
        Block {
            taken_back: bool,
        },
        Invalidate {
            signer: u8,
        },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0u8..3, 0u32..5, 0u128..3)
                .prop_map(|(signer, nonce, tip)| Step::Insert { signer, nonce, tip }),
            2 => any::<bool>().prop_map(|taken_back| Step::Block { taken_back }),
            1 => (0u8..3).prop_map(|signer| Step::Invalidate { signer }),
        ]
    }

    /// The last word of an extrinsic, and whether the pool still has it, agree.
    fn check(pool: &Pool, told: &[watch::Receiver<Statuses>]) {
        let alive = |r: &&watch::Receiver<Statuses>| {
            r.borrow().last().is_some_and(|s| matches!(s, Status::Ready | Status::Future))
        };
        assert_eq!(told.iter().filter(alive).count(), pool.waiting.len());
        for receiver in told {
            let statuses = receiver.borrow();
            let ends = statuses.iter().filter(|status| status.is_last()).count();
            assert!(ends == 0 || (ends == 1 && statuses.last().unwrap().is_last()), "{statuses:?}");
            assert!(statuses.windows(2).all(|pair| pair[0] != pair[1]), "{statuses:?}");
        }
    }

    proptest! {
        #[test]
        fn nonces_are_taken_in_order_and_every_extrinsic_hears_its_end_once(
            steps in prop::collection::vec(step(), 1..60),
        ) {
            let mut pool = Pool::default();
            pool.set_limit(8);
            let mut next = [0u32; 3];
            let mut told = Vec::new();
            for (block, step) in (0..).zip(steps) {
                match step {
                    Step::Insert { signer, nonce, tip } => {
                        let new = extrinsic(signer, nonce, tip);
                        if pool.check_known(&new.hash, block).is_ok()
                            && let Ok(receiver) = pool.insert(new, next[usize::from(signer)])
                        {
                            told.push(receiver);
                        }
                    }
                    Step::Block { taken_back } => {
                        let taken = pool.take();
                        let mut after = next;
                        for waiting in &taken {
                            let next = &mut after[usize::from(waiting.extrinsic.signer[0])];
                            prop_assert_eq!(waiting.extrinsic.nonce, *next);
                            *next += 1;
                            waiting.tell(Status::InBlock { number: block, hash: [1; 32] });
                            pool.ban(waiting.extrinsic.hash, block);
                        }
                        if taken_back {
                            taken.iter().for_each(|w| w.tell(Status::Retracted { hash: [1; 32] }));
                            pool.restore(taken);
                        } else {
                            next = after;
                            for waiting in taken {
                                waiting.tell(Status::Finalized { number: block, hash: [1; 32] });
                            }
                        }
                    }
                    Step::Invalidate { signer } => {
                        pool.retain(block, |extrinsic| extrinsic.signer[0] != signer);
                    }
                }
                pool.retain(block, |x| x.nonce >= next[usize::from(x.signer[0])]);
                for signer in pool.signers() {
                    pool.settle(&signer, next[usize::from(signer[0])]);
                }
                prop_assert!(pool.waiting.len() <= 8);
                check(&pool, &told);
            }
        }
    }
}
