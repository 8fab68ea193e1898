//! Members far from each other: late, slow and broken connections, a network that falls apart in
//! the middle of a merge, members that nobody can call, and TLS.

use std::{
    sync::{Arc, Once},
    time::Duration,
};

use bytes::Bytes;
use domain::Hotkey;
use futures::future::join_all;
use merge::{Data, Exchange, Statement, Verified};
use proto::peer::v1::MergeStatus;
use svc_peer::Conduct;

use crate::{
    network::{
        GOOD, Member, NEW_VERSION, ROUND, assert_same_model, hotkeys, members, miner, outcome,
    },
    proxy::{BadNetwork, Line, Quality},
};

/// Long enough for the slowest machine to keep every step of it.
const DEADLINE: u64 = 40_000;

/// Starts everybody, has all begin the merge of the round, and waits until it has ended for all.
async fn merge_all(all: &mut [Member]) -> Vec<MergeStatus> {
    begin_all(all).await;
    join_all(all.iter().map(|member| member.end(ROUND))).await
}

async fn begin_all(all: &mut [Member]) {
    let validators = hotkeys(all);
    for member in all.iter_mut() {
        member.start().await;
    }
    for member in all.iter() {
        let file = if member.seed.is_multiple_of(2) { GOOD.0 } else { GOOD.1 };
        let mut request = member.request(&validators, &[miner(11, file, 1.0)]);
        request.deadline_ms = DEADLINE;
        member.begin(request).await;
    }
}

/// These have merged, and have the same bits.
fn assert_merged(all: &[Member], ended: &[MergeStatus]) {
    for (member, status) in all.iter().zip(ended) {
        assert_eq!(outcome(status), "merged", "{}: {}", member.seed, status.detail);
        assert_eq!(status.digest, ended[0].digest, "{}: {}", member.seed, status.detail);
        assert_eq!(status.members, ended[0].members, "{}", member.seed);
        assert_same_model(&all[0], member, NEW_VERSION);
        assert!(status.blamed.is_empty(), "{}: {}", member.seed, status.detail);
    }
}

/// It has failed, says why, and keeps its model.
fn assert_named_failure(member: &Member, status: &MergeStatus) {
    assert_eq!(outcome(status), "failed", "{}", status.detail);
    assert!(!status.reason.is_empty(), "a failure without a reason: {}", status.detail);
    assert_eq!(status.model.as_ref(), Some(&member.base), "the model stays");
    assert!(!member.artifacts().join(format!("models/{NEW_VERSION}")).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn far_members_with_connections_that_break_end_with_the_same_bits() {
    let mut all = members(&[1, 2, 3, 4]).await;
    let network = BadNetwork::between(&mut all, &Quality::lossy(), 102).await;
    let ended = merge_all(&mut all).await;
    assert_merged(&all, &ended);
    assert!(network.broken() > 0 && network.carried() > 0, "{network:?}");
}

/// When a member is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    /// As somebody comes for a piece of its gradient.
    Gives,
    /// As it reduces its slice, which nobody gets from it.
    Reduces,
    /// As somebody comes for its reduced slice.
    GivesReduced,
    /// As it has the result, and would tell so.
    Ends,
}

/// A member that is cut off at a moment, once, and others with it.
#[derive(Debug)]
struct CutOff {
    at: Moment,
    me: Hotkey,
    lines: Vec<Arc<Line>>,
    once: Once,
}

impl CutOff {
    fn now(&self, moment: Moment) {
        if moment == self.at {
            self.once.call_once(|| self.lines.iter().for_each(|line| line.cut()));
        }
    }
}

#[tonic::async_trait]
impl Conduct for CutOff {
    async fn tell(&self, _: &Hotkey, exchange: Exchange<Verified>) -> Option<Exchange<Verified>> {
        let mut said = exchange.statements.iter().map(Verified::said);
        if said.any(|said| said.author == self.me && matches!(said.what, Statement::Final(_))) {
            self.now(Moment::Ends);
        }
        Some(exchange)
    }

    async fn give(&self, _: &Hotkey, data: &Data, _: u32, bytes: Bytes) -> Option<Bytes> {
        self.now(match data {
            Data::Piece { .. } => Moment::Gives,
            Data::Reduced(_) => Moment::GivesReduced,
        });
        Some(bytes)
    }

    fn reduce(&self, _: u32, bytes: Vec<u8>) -> Option<Vec<u8>> {
        self.now(Moment::Reduces);
        Some(bytes)
    }
}

/// A merge of four members, far from each other, of which the last is cut off in the middle, and others
/// with it, for as long as this; and how it ended for everybody.
async fn cut_off(
    at: Moment,
    which: &[usize],
    heals: Option<Duration>,
) -> (Vec<Member>, Vec<MergeStatus>) {
    let mut all = members(&[1, 2, 3, 4]).await;
    let network = BadNetwork::between(&mut all, &Quality::far(), 103).await;
    let lines: Vec<_> = which.iter().map(|of| network.line(*of)).collect();
    let me = all[3].hotkey.clone();
    all[3].conduct = Arc::new(CutOff { at, me, lines: lines.clone(), once: Once::new() });
    begin_all(&mut all).await;
    let cut = join_all(lines.iter().map(|line| line.is(true)));
    tokio::time::timeout(Duration::from_secs(120), cut).await.expect("it comes so far");
    if let Some(after) = heals {
        tokio::time::sleep(after).await;
        lines.iter().for_each(|line| line.heal());
    }
    let ended = join_all(all.iter().map(|member| member.end(ROUND))).await;
    (all, ended)
}

/// Three of four have merged, with their gradients in the result.
fn assert_three_merged(all: &[Member], ended: &[MergeStatus]) {
    assert_merged(&all[..3], &ended[..3]);
    for member in &all[..3] {
        assert!(ended[0].members.contains(&member.hotkey.to_string()), "{}", ended[0].detail);
    }
}

/// Three of four have merged; the last has the same bits, or says why not.
fn assert_same_or_named(all: &[Member], ended: &[MergeStatus]) {
    assert_three_merged(all, ended);
    match outcome(&ended[3]) {
        "merged" => assert_merged(all, ended),
        _ => assert_named_failure(&all[3], &ended[3]),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_cut_off_in_the_middle_costs_the_others_nothing_and_makes_no_other_model() {
    let (all, ended) = cut_off(Moment::Reduces, &[3], None).await;
    assert_three_merged(&all, &ended);
    assert_named_failure(&all[3], &ended[3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_cut_off_at_the_end_makes_the_same_model_or_none() {
    let (all, ended) = cut_off(Moment::Ends, &[3], None).await;
    assert_same_or_named(&all, &ended);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_half_of_the_members_cut_off_nobody_makes_a_model() {
    let (all, ended) = cut_off(Moment::Reduces, &[2, 3], None).await;
    for (member, status) in all.iter().zip(&ended) {
        assert_named_failure(member, status);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_cut_off_for_a_while_ends_with_the_same_bits_or_says_why_not() {
    // A part of what a slice's next owner waits for.
    let heals = Some(Duration::from_millis(DEADLINE / 20));
    for at in [Moment::Gives, Moment::Reduces, Moment::GivesReduced, Moment::Ends] {
        let (all, ended) = cut_off(at, &[3], heals).await;
        assert_same_or_named(&all, &ended);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_can_only_dial_out_gives_its_gradient_and_gets_the_result() {
    for others in [2, 3] {
        let seeds: Vec<u8> = (1..=others + 1).collect();
        let mut all = members(&seeds).await;
        let hidden = all[usize::from(others)].hotkey.clone();
        for member in &mut all {
            match member.hotkey == hidden {
                true => member.config.callable = false,
                false => drop(member.config.peer_urls.remove(&hidden)),
            }
        }
        let ended = merge_all(&mut all).await;
        assert_merged(&all, &ended);
        let named: Vec<String> = all.iter().map(|member| member.hotkey.to_string()).collect();
        assert!(named.iter().all(|one| ended[0].members.contains(one)), "{}", ended[0].detail);
        let report = all[0].json(&format!("rounds/{ROUND}/merge.json"));
        let parts = report["parts"].as_array().unwrap();
        assert_eq!(parts.len(), usize::from(others), "one slice for each that can be called");
        assert!(parts.iter().all(|part| part["owner"] != hidden.to_string()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn members_merge_over_tls_with_certificates_that_only_their_hotkeys_vouch_for() {
    let mut all = members(&[1, 2, 3]).await;
    for member in &mut all {
        member.config.peer_addr = Some(testkit::unused_addr().unwrap());
    }
    let network = BadNetwork::between(&mut all, &Quality::far(), 105).await;
    assert!(all[0].config.peer_urls.values().all(|url| url.starts_with("https://")));
    let ended = merge_all(&mut all).await;
    assert_merged(&all, &ended);
    assert_eq!(ended[0].members.len(), all.len(), "{}", ended[0].detail);
    assert!(network.carried() > 0);
}
