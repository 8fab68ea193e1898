//! Killed at any point and started again: the same bits, or the same answer.

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use proto::peer::v1::GetMergeRequest;
use svc_peer::{Conduct, Honest};
use testkit::RedisServer;
use tokio::sync::Notify;

use crate::network::{
    GOOD, Member, NEW_VERSION, ROUND, assert_same_model, hotkeys, members, miner, model_files,
    outcome,
};

/// Tells when it should reduce, and does not.
#[derive(Debug, Default)]
struct Stuck(Notify);

impl Conduct for Stuck {
    fn reduce(&self, _: u32, _: Vec<u8>) -> Option<Vec<u8>> {
        self.0.notify_one();
        None
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_killed_in_the_middle_finishes_after_its_restart_with_the_same_bits() {
    let mut all = members(&[1, 2]).await;
    let validators = hotkeys(&all);
    for member in &mut all {
        member.start().await;
    }
    let request = |member: &Member| {
        let mut request = member.request(&validators, &[miner(11, GOOD.0, 1.0)]);
        request.deadline_ms = 120_000;
        request
    };
    let stuck = Arc::new(Stuck::default());
    all[1].kill().await;
    all[1].conduct = Arc::clone(&stuck) as Arc<dyn Conduct>;
    all[1].start().await;
    all[0].begin(request(&all[0])).await;
    all[1].begin(request(&all[1])).await;
    tokio::time::timeout(Duration::from_secs(60), stuck.0.notified()).await.expect("it reduces");
    all[1].kill().await;
    let over =
        all.iter().any(|m| m.artifacts().join(format!("rounds/{ROUND}/merge.json")).exists());
    assert!(!over);

    all[1].conduct = Arc::new(Honest);
    all[1].start().await;
    all[1].begin(request(&all[1])).await;
    let ended = join_all(all.iter().map(|member| member.end(ROUND))).await;
    for status in &ended {
        assert_eq!(outcome(status), "merged", "{}", status.detail);
    }
    assert_eq!(ended[0].digest, ended[1].digest);
    assert_same_model(&all[0], &all[1], NEW_VERSION);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_loses_its_lease_in_the_middle_leaves_the_merge_and_goes_on_when_it_is_asked_again() {
    let redis = RedisServer::start().await.unwrap();
    let mut all = members(&[1, 2]).await;
    let validators = hotkeys(&all);
    let stuck = Arc::new(Stuck::default());
    all[1].store_url = Some(redis.url());
    all[1].conduct = Arc::clone(&stuck) as Arc<dyn Conduct>;
    for member in &mut all {
        member.start().await;
    }
    let request = |member: &Member| {
        let mut request = member.request(&validators, &[miner(11, GOOD.0, 1.0)]);
        request.deadline_ms = 60_000;
        request
    };
    all[0].begin(request(&all[0])).await;
    all[1].begin(request(&all[1])).await;
    tokio::time::timeout(Duration::from_secs(60), stuck.0.notified()).await.expect("it reduces");
    // The lease is for a twentieth of the deadline.
    redis.freeze().unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    redis.thaw().unwrap();

    let round_id = ROUND;
    let left = async {
        while all[1].merges().get_merge(GetMergeRequest { round_id }).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), left).await.expect("it leaves the merge");
    all[1].begin(request(&all[1])).await;
    let ended = join_all(all.iter().map(|member| member.end(ROUND))).await;
    for status in &ended {
        assert_eq!(outcome(status), "merged", "{} {}", status.reason, status.detail);
        assert!(status.blamed.is_empty(), "{:?}", status.blamed);
    }
    assert_same_model(&all[0], &all[1], NEW_VERSION);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ended_merge_is_answered_the_same_after_a_restart_and_never_done_again() {
    let mut me = Member::new(1, 0.0).await;
    me.start().await;
    let request = me.request(&[], &[miner(11, GOOD.0, 1.0)]);
    let status = me.merge(request.clone()).await;
    assert_eq!(me.begin(request.clone()).await, status);

    me.kill().await;
    std::fs::remove_dir_all(me.artifacts().join("submissions")).unwrap();
    me.start().await;
    assert_eq!(me.end(ROUND).await, status);
    assert_eq!(me.begin(request).await, status);
    assert_eq!(me.json(&format!("rounds/{ROUND}/merge.json"))["outcome"], "solo");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_was_written_before_the_kill_is_not_made_again() {
    let mut me = Member::new(1, 0.0).await;
    me.start().await;
    let request = me.request(&[], &[miner(11, GOOD.0, 1.0)]);
    let status = me.merge(request.clone()).await;
    me.kill().await;
    // As if it had been killed right before it said how the round ended.
    std::fs::remove_file(me.artifacts().join(format!("rounds/{ROUND}/merge.json"))).unwrap();
    std::fs::remove_dir_all(me.artifacts().join("submissions")).unwrap();
    me.start().await;
    assert_eq!(me.merge(request).await, status);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_written_model_is_completed_with_the_same_bits() {
    let mut me = Member::new(1, 0.0).await;
    me.start().await;
    let request = me.request(&[], &[miner(11, GOOD.0, 1.0)]);
    let status = me.merge(request.clone()).await;
    me.kill().await;
    let before: Vec<_> = model_files(&me, NEW_VERSION);
    for file in
        [format!("rounds/{ROUND}/merge.json"), format!("models/{NEW_VERSION}/manifest.json")]
    {
        std::fs::remove_file(me.artifacts().join(file)).unwrap();
    }
    me.start().await;
    assert_eq!(me.merge(request).await, status);
    assert_eq!(model_files(&me, NEW_VERSION), before);
}
