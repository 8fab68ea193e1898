//! Several endpoints: what becomes of the service when one of them fails, in each way.

use std::time::Duration;

use devchain::{DevNode, Lie};
use proto::chain::v1::{self, Finality};
use store::Store;
use svc_chain::Config;
use tokio::time::sleep;
use tonic::Code;

use crate::{
    net::{self, Watched},
    rig::{self, Running},
};

/// Breaks the first of two nodes, and follows the stream over it.
async fn goes_on_without_the_first(how: &str, break_it: impl Fn(&DevNode)) {
    let (chain, nodes) = net::chain(2, net::genesis()).await;
    let mut service = Running::start(net::config(&nodes), &Store::in_memory()).await;
    let mut watched = Watched::start(&mut service, Finality::Best).await;
    watched.reaches(3).await;
    net::until_status(&mut service, "both are well", |status| {
        status.endpoints.iter().all(|endpoint| endpoint.state == "ok") && status.endpoints[0].in_use
    })
    .await;

    let broken_at = chain.head().await.unwrap().number;
    break_it(&nodes[0]);
    let second = nodes[1].url();
    let status = net::until_status(&mut service, how, |status| {
        net::in_use(status).is_some_and(|endpoint| endpoint.url == second)
    })
    .await;
    // The first block that is missed is the next one: two more, and it would be too late.
    let left_at = chain.head().await.unwrap().number;
    assert!(left_at <= broken_at + 3, "{how}: broken at {broken_at}, left at {left_at}");
    assert_ne!(status.endpoints[0].state, "ok", "{how}");
    let told = net::degradations(&status, "endpoint_switched");
    assert!(
        told.iter().any(|detail| detail.contains(&nodes[0].url()) && detail.contains(&second)),
        "{how}: {told:?}"
    );

    watched.reaches(u64::from(left_at) + 4).await;
    watched.is_of(&chain).await;
    assert_eq!(watched.depths, Vec::<u64>::new(), "{how}");
    assert!(watched.degradations.iter().any(|kind| kind == "endpoint_switched"), "{how}");
    let at = rig::at_number(u64::from(left_at));
    service.client.get_metagraph(v1::GetMetagraphRequest { at }).await.unwrap();
    service.stop().await;
}

#[tokio::test]
async fn an_endpoint_that_dies_is_left_before_the_second_block_is_missed() {
    goes_on_without_the_first("dead", |node| node.set_offline(true)).await;
}

#[tokio::test]
async fn an_endpoint_that_says_nothing_is_left_before_the_second_block_is_missed() {
    goes_on_without_the_first("mute", |node| node.set_mute(true)).await;
}

#[tokio::test]
async fn an_endpoint_that_is_stuck_is_left_before_the_second_block_is_missed() {
    goes_on_without_the_first("stuck", |node| node.set_stuck(true)).await;
}

#[tokio::test]
async fn an_endpoint_that_lags_is_left_before_the_second_block_is_missed() {
    goes_on_without_the_first("lagging", |node| node.set_lag(3)).await;
}

#[tokio::test]
async fn an_endpoint_that_comes_and_goes_is_not_followed_and_is_taken_again_once_it_stays() {
    let (_chain, nodes) = net::chain(2, net::genesis()).await;
    let mut service = Running::start(net::config(&nodes), &Store::in_memory()).await;
    for _ in 0..10 {
        nodes[0].set_offline(true);
        sleep(Duration::from_millis(150)).await;
        nodes[0].set_offline(false);
        sleep(Duration::from_millis(250)).await;
    }
    let status = net::status(&mut service.client).await;
    let switches = net::degradations(&status, "endpoint_switched");
    assert!(!switches.is_empty() && switches.len() <= 3, "{switches:?}");
    net::until_status(&mut service, "it is taken again", |status| status.endpoints[0].in_use).await;
    service.stop().await;
}

#[tokio::test]
async fn an_endpoint_of_another_chain_is_named_and_never_used() {
    let (chain, nodes) = net::chain(2, net::genesis()).await;
    nodes[0].set_lie(Some(Lie::Genesis));
    let genesis_hash = Some(hex::encode(chain.genesis_hash()));
    let config = Config { genesis_hash, ..net::config(&nodes) };
    let mut service = Running::start(config, &Store::in_memory()).await;
    let status = net::until_status(&mut service, "named", |status| {
        status.endpoints[0].state == "wrong_genesis" && status.endpoints[1].in_use
    })
    .await;
    assert!(status.endpoints[0].last_error.contains("genesis"), "{status:?}");
    let calls = nodes[0].calls();
    assert!(!calls.contains_key("state_call"), "{calls:?}");
    service.stop().await;
}

#[tokio::test]
async fn when_all_are_gone_callers_are_told_to_come_again_and_it_goes_on_when_one_is_back() {
    let (chain, nodes) = net::chain(2, net::genesis()).await;
    let mut service = Running::start(net::config(&nodes), &Store::in_memory()).await;
    let mut watched = Watched::start(&mut service, Finality::Best).await;
    watched.reaches(3).await;
    for node in &nodes {
        node.set_offline(true);
    }
    let request = v1::GetBlockRequest { number: Some(1), agreed: false };
    let gone = service.client.get_block(request).await.unwrap_err();
    assert_eq!(gone.code(), Code::Unavailable, "{gone:?}");
    let gone = service
        .client
        .get_block(v1::GetBlockRequest { number: Some(1), agreed: true })
        .await
        .unwrap_err();
    assert!(gone.message().starts_with("no_quorum"), "{gone:?}");
    let head = chain.wait_for_block(8).await.unwrap().number;
    nodes[1].set_offline(false);
    watched.reaches(u64::from(head) + 2).await;
    watched.is_of(&chain).await;
    service.stop().await;
}

#[tokio::test]
async fn an_extrinsic_whose_answer_is_lost_is_not_handed_to_another_node_by_the_connection() {
    let (chain, nodes) = net::chain(2, net::genesis()).await;
    let mut service = Running::start(net::config(&nodes), &Store::in_memory()).await;
    nodes[0].lose_answers(1);
    let intent =
        rig::carried_out(&mut service.client, rig::commitment(1, "seed", "{\"s\":1}")).await;
    assert_eq!(intent.state(), v1::IntentState::Done, "{intent:?}");
    assert_eq!(intent.attempts, 1);
    assert_eq!(chain.extrinsics().await.unwrap().len(), 1);
    service.stop().await;
}

#[tokio::test]
async fn what_did_not_go_the_normal_way_is_shown_after_a_restart_and_to_new_watchers() {
    let (_chain, nodes) = net::chain(2, net::genesis()).await;
    let store = Store::in_memory();
    let mut service = Running::start(net::config(&nodes), &store).await;
    nodes[0].set_offline(true);
    net::until_status(&mut service, "a switch", |status| {
        !net::degradations(status, "endpoint_switched").is_empty()
    })
    .await;
    net::until("it is kept", || async {
        let kept = store.get("degradations").await.unwrap()?;
        String::from_utf8_lossy(&kept).contains("endpoint_switched").then_some(())
    })
    .await;
    service.kill();

    let mut service = Running::start(net::config(&nodes), &store).await;
    net::until_status(&mut service, "it is shown", |status| {
        !net::degradations(status, "endpoint_switched").is_empty()
    })
    .await;
    let mut watched = Watched::start(&mut service, Finality::Best).await;
    watched.reaches(watched.tip() + 1).await;
    let next = watched.tip() + 1;
    watched.reaches(next).await;
    assert!(watched.degradations.iter().any(|kind| kind == "endpoint_switched"));
    service.stop().await;
}
