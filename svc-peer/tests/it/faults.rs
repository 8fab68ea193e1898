//! Members that break down or lie, with two to eight members: the survivors end with the same bits, or
//! with a failure that is named, and whoever broke the rules is proven to.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use domain::Hotkey;
use futures::future::join_all;
use merge::{Data, Exchange, Said, Signature, Signed, Statement, Verified};
use proto::peer::v1::MergeStatus;
use svc_peer::{Conduct, message};

use crate::network::{
    GOOD, Member, NEW_VERSION, ROUND, assert_same_model, hotkeys, members, miner, outcome, sign,
};

/// What goes wrong with one member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// It never speaks.
    FailsBefore,
    /// Its transfers break off after the first chunk.
    FailsWhileSending,
    /// Each of its chunks comes late.
    SendsSlowly,
    /// It cannot reduce.
    FailsReducing,
    /// It reduces later than anybody waits.
    ReducesSlowly,
    /// Its service is stopped once it has said something.
    Cancels,
    /// Its chunks are not what it has committed to.
    SendsGarbage,
    /// It tells everything again and again.
    Replays,
    /// It tells different members different things about its slice.
    Equivocates,
    /// It reduces wrongly, and signs for it.
    ReducesWrongly,
}

/// A member with a fault.
#[derive(Debug)]
struct Faulty {
    fault: Fault,
    seed: u8,
    /// The members, to tell different ones different things.
    others: Vec<Hotkey>,
    spoke: AtomicBool,
    slept: AtomicBool,
    chunks: AtomicU32,
    said: Mutex<Vec<Verified>>,
}

impl Faulty {
    fn new(fault: Fault, seed: u8, others: Vec<Hotkey>) -> Self {
        Self {
            fault,
            seed,
            others,
            spoke: AtomicBool::new(false),
            slept: AtomicBool::new(false),
            chunks: AtomicU32::new(0),
            said: Mutex::default(),
        }
    }

    fn signed(&self, said: Said) -> Verified {
        let signature = Signature(sign(self.seed, &said.digest().0));
        Verified::new(Signed { said, signature }, &message::Keys).unwrap()
    }

    /// Its own statements about slices, bent.
    fn bent(&self, one: Verified) -> Verified {
        let mut said = one.said().clone();
        if let Statement::Slice(slice) = &mut said.what
            && said.author == self.me()
        {
            slice.chunks = merge::Digest::of(b"another slice");
            return self.signed(said);
        }
        one
    }

    fn me(&self) -> Hotkey {
        crate::network::hotkey(self.seed)
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "a fault is in one place, honest elsewhere")]
#[tonic::async_trait]
impl Conduct for Faulty {
    async fn tell(
        &self,
        to: &Hotkey,
        mut exchange: Exchange<Verified>,
    ) -> Option<Exchange<Verified>> {
        self.spoke.store(true, Ordering::SeqCst);
        match self.fault {
            Fault::FailsBefore => return None,
            Fault::Equivocates => {
                let half = self.others.iter().position(|other| other == to).unwrap_or(0);
                if half % 2 == 1 {
                    let told = std::mem::take(&mut exchange.statements);
                    exchange.statements = told.into_iter().map(|one| self.bent(one)).collect();
                }
            }
            Fault::Replays => {
                let mut said = self.said.lock().unwrap();
                said.extend(exchange.statements.iter().cloned());
                exchange.statements = said.iter().take(merge::MAX_STATEMENTS).cloned().collect();
            }
            _ => {}
        }
        Some(exchange)
    }

    async fn give(&self, _: &Hotkey, _: &Data, _: u32, bytes: Bytes) -> Option<Bytes> {
        let before = self.chunks.fetch_add(1, Ordering::SeqCst);
        match self.fault {
            Fault::FailsWhileSending if before > 0 => None,
            Fault::SendsGarbage => Some(vec![0x5A; bytes.len()].into()),
            Fault::SendsSlowly => {
                tokio::time::sleep(Duration::from_millis(100)).await;
                Some(bytes)
            }
            _ => Some(bytes),
        }
    }

    #[expect(clippy::disallowed_methods, reason = "what is slow here blocks a thread")]
    fn reduce(&self, _: u32, mut bytes: Vec<u8>) -> Option<Vec<u8>> {
        match self.fault {
            Fault::FailsReducing => None,
            // Once: a thread that sleeps cannot be stopped, and is waited for at the end.
            Fault::ReducesSlowly if !self.slept.swap(true, Ordering::SeqCst) => {
                std::thread::sleep(Duration::from_secs(25));
                Some(bytes)
            }
            Fault::ReducesWrongly => {
                bytes[1] ^= 1;
                Some(bytes)
            }
            _ => Some(bytes),
        }
    }
}

/// Long enough for the slowest machine to keep every step of it.
const DEADLINE: u64 = 40_000;

/// A merge of `size` members of which the last one has a fault: the members, and how each ended.
async fn merge_with(fault: Fault, size: u8) -> (Vec<Member>, Vec<MergeStatus>) {
    let seeds: Vec<u8> = (1..=size).collect();
    let mut all = members(&seeds).await;
    let validators = hotkeys(&all);
    for member in &mut all {
        // Of small slices everything is looked at.
        (member.config.audits, member.config.max_faults) = (64, 1);
    }
    let faulty = Arc::new(Faulty::new(fault, size, validators.clone()));
    if let Some(last) = all.last_mut() {
        last.conduct = Arc::clone(&faulty) as Arc<dyn Conduct>;
    }
    for member in &mut all {
        member.start().await;
    }
    for member in &all {
        let file = if member.seed.is_multiple_of(2) { GOOD.0 } else { GOOD.1 };
        let mut request = member.request(&validators, &[miner(11, file, 1.0)]);
        request.deadline_ms = DEADLINE;
        member.begin(request).await;
    }
    let honest = all.len() - 1;
    if fault == Fault::Cancels {
        while !faulty.spoke.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        all[honest].kill().await;
    }
    let ended = join_all(all[..honest].iter().map(|member| member.end(ROUND))).await;
    (all, ended)
}

/// All honest members have the same bits; returns how they ended.
fn assert_agreed<'a>(fault: Fault, all: &[Member], ended: &'a [MergeStatus]) -> &'a MergeStatus {
    let first = &ended[0];
    for (status, member) in ended.iter().zip(all) {
        assert_eq!(outcome(status), outcome(first), "{fault:?}: {}", status.detail);
        assert_eq!(status.digest, first.digest, "{fault:?}: {}", status.detail);
        assert_eq!(status.model, first.model, "{fault:?}");
        if outcome(first) == "merged" {
            assert_same_model(&all[0], member, NEW_VERSION);
        } else {
            assert!(!status.reason.is_empty(), "{fault:?}: a failure without a reason");
            assert_eq!(status.model.as_ref(), Some(&member.base), "the model stays");
        }
    }
    first
}

fn blamed(status: &MergeStatus) -> Vec<(&str, &str)> {
    status.blamed.iter().map(|one| (one.hotkey.as_str(), one.reason.as_str())).collect()
}

/// With more than two members a single fault never keeps the others from merging.
async fn survive(fault: Fault, sizes: [u8; 2]) -> Vec<(Vec<Member>, Vec<MergeStatus>)> {
    let mut all = Vec::new();
    for size in sizes {
        let (members, ended) = merge_with(fault, size).await;
        let status = assert_agreed(fault, &members, &ended);
        if size > 2 {
            assert_eq!(outcome(status), "merged", "{fault:?} of {size}: {}", status.detail);
        }
        all.push((members, ended));
    }
    all
}

fn assert_dropped(members: &[Member], ended: &[MergeStatus], reason: &str) {
    let last = members.last().unwrap().hotkey.to_string();
    for status in ended {
        let dropped = status.dropped.iter().find(|one| one.hotkey == last);
        let why = dropped.map(|one| one.reason.as_str());
        assert_eq!(why, Some(reason), "{}", status.detail);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_never_heard_of_is_left_out() {
    for (members, ended) in survive(Fault::FailsBefore, [2, 5]).await {
        if outcome(&ended[0]) == "merged" {
            assert_dropped(&members, &ended, "not_reached");
            assert!(ended.iter().all(|status| status.blamed.is_empty()));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_breaks_off_while_sending_costs_its_own_contribution_at_most() {
    survive(Fault::FailsWhileSending, [2, 4]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_slowly_is_waited_for() {
    for (members, ended) in survive(Fault::SendsSlowly, [2, 3]).await {
        assert_eq!(outcome(&ended[0]), "merged");
        assert_eq!(ended[0].members.len(), members.len(), "{}", ended[0].detail);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_slice_of_who_cannot_reduce_is_taken_over() {
    for (members, ended) in survive(Fault::FailsReducing, [2, 6]).await {
        assert_eq!(outcome(&ended[0]), "merged", "{}", ended[0].detail);
        // Its gradient is in the result all the same.
        assert_eq!(ended[0].members.len(), members.len(), "{}", ended[0].detail);
        assert!(ended[0].blamed.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_slice_of_who_reduces_too_slowly_is_taken_over() {
    survive(Fault::ReducesSlowly, [2, 3]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_stopped_in_the_middle_costs_no_more_than_itself() {
    survive(Fault::Cancels, [2, 7]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_costs_its_senders_contribution() {
    for (members, ended) in survive(Fault::SendsGarbage, [3, 4]).await {
        assert_eq!(outcome(&ended[0]), "merged");
        let last = members.last().unwrap().hotkey.to_string();
        assert!(!ended[0].members.contains(&last), "{}", ended[0].detail);
        assert_dropped(&members, &ended, "gradient_not_had");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_told_again_and_again_changes_nothing() {
    for (members, ended) in survive(Fault::Replays, [2, 8]).await {
        assert_eq!(outcome(&ended[0]), "merged");
        assert_eq!(ended[0].members.len(), members.len(), "{}", ended[0].detail);
        assert!(ended[0].blamed.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_says_two_things_is_proven_to() {
    for (members, ended) in survive(Fault::Equivocates, [4, 5]).await {
        let last = members.last().unwrap().hotkey.to_string();
        for status in &ended {
            assert_eq!(blamed(status), [(last.as_str(), "two_slices")], "{}", status.detail);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reduces_wrongly_is_proven_to_and_another_reduces_its_slice() {
    for (members, ended) in survive(Fault::ReducesWrongly, [3, 4]).await {
        let last = members.last().unwrap().hotkey.to_string();
        for status in &ended {
            assert_eq!(blamed(status), [(last.as_str(), "wrong_reduction")], "{}", status.detail);
        }
    }
}

/// One trial for each fault: with two to eight members.
macro_rules! any_number_of_members {
    ($($name:ident: $fault:expr;)+) => {
        mod any_number_of_members {
            use super::*;

            $(
                #[tokio::test(flavor = "multi_thread")]
                #[ignore = "takes minutes: the other trials look at two sizes each"]
                async fn $name() {
                    for sizes in [[2, 3], [4, 5], [6, 7], [8, 8]] {
                        survive($fault, sizes).await;
                    }
                }
            )+
        }
    };
}

any_number_of_members! {
    fails_before: Fault::FailsBefore;
    fails_while_sending: Fault::FailsWhileSending;
    sends_slowly: Fault::SendsSlowly;
    fails_reducing: Fault::FailsReducing;
    reduces_slowly: Fault::ReducesSlowly;
    is_stopped: Fault::Cancels;
    sends_garbage: Fault::SendsGarbage;
    replays: Fault::Replays;
    equivocates: Fault::Equivocates;
    reduces_wrongly: Fault::ReducesWrongly;
}
