//! Reorganisations, as they are told to those who watch.

use devchain::{Genesis, Lie, Taken};
use proto::chain::v1::Finality;
use store::Store;

use crate::{
    net::{self, Watched},
    rig::{self, Running},
};

fn genesis() -> Genesis {
    Genesis { finality_lag: 20, ..rig::genesis() }
}

#[tokio::test]
async fn a_watcher_holds_a_linked_chain_through_reorganisations_of_every_depth() {
    let (chain, nodes) = net::chain(1, genesis()).await;
    let mut service = Running::start(net::config(&nodes), &Store::in_memory()).await;
    let mut watched = Watched::start(&mut service, Finality::Best).await;
    let mut watched_final = Watched::start(&mut service, Finality::Finalized).await;
    let first = chain.wait_for_block(12).await.unwrap().number;
    watched.reaches(first.into()).await;
    for depth in [1, 3, 10] {
        let head = chain.head().await.unwrap().number;
        watched.reaches(head.into()).await;
        let head = chain.reorganise(depth, Taken::Back).await.unwrap().number;
        watched.reaches(u64::from(head) + 1).await;
        assert!(watched.depths.last() >= Some(&u64::from(depth)), "{:?}", watched.depths);
    }
    assert_eq!(watched.depths.len(), 3);
    let head = chain.head().await.unwrap().number;
    watched.reaches(head.into()).await;
    watched.is_of(&chain).await;
    watched_final.reaches(10).await;
    assert_eq!(watched_final.depths, Vec::<u64>::new(), "what is final is never taken back");
    watched_final.is_of(&chain).await;
    service.stop().await;
}

#[tokio::test]
async fn a_reorganisation_while_the_connection_is_away_is_told_as_well() {
    let (chain, nodes) = net::chain(1, genesis()).await;
    let mut service = Running::start(net::config(&nodes), &Store::in_memory()).await;
    let mut watched = Watched::start(&mut service, Finality::Best).await;
    let head = chain.wait_for_block(8).await.unwrap().number;
    watched.reaches(head.into()).await;
    nodes[0].set_offline(true);
    chain.reorganise(4, Taken::Lost).await.unwrap();
    let head = chain.wait_for_block(head + 6).await.unwrap().number;
    nodes[0].set_offline(false);
    watched.reaches(u64::from(head) + 1).await;
    assert_eq!(watched.depths.len(), 1);
    watched.is_of(&chain).await;
    service.stop().await;
}

#[tokio::test]
async fn an_endpoint_on_a_fork_that_takes_over_is_followed_by_a_reorganisation() {
    let (chain, nodes) = net::chain(2, genesis()).await;
    let config = svc_chain::Config { max_lag: 20, ..net::config(&nodes) };
    let mut service = Running::start(config, &Store::in_memory()).await;
    let mut watched = Watched::start(&mut service, Finality::Best).await;
    let head = chain.wait_for_block(10).await.unwrap().number;
    watched.reaches(head.into()).await;
    nodes[1].set_lie(Some(Lie::BlockHash));
    let head = chain.wait_for_block(head + 3).await.unwrap().number;
    watched.reaches(head.into()).await;
    nodes[0].set_offline(true);
    let head = chain.wait_for_block(head + 15).await.unwrap().number;
    watched.reaches(head.into()).await;
    assert_eq!(watched.depths.len(), 1, "{:?}", watched.depths);
    service.stop().await;
}

#[tokio::test]
async fn a_final_block_that_is_taken_back_is_a_grave_degradation() {
    let (chain, nodes) = net::chain(1, genesis()).await;
    nodes[0].set_lie(Some(Lie::Finality));
    let mut service = Running::start(net::config(&nodes), &Store::in_memory()).await;
    let mut watched = Watched::start(&mut service, Finality::Finalized).await;
    let head = chain.wait_for_block(10).await.unwrap().number;
    watched.reaches(head.into()).await;
    let head = chain.reorganise(5, Taken::Lost).await.unwrap().number;
    watched.reaches(u64::from(head) + 1).await;
    assert_eq!(watched.depths.len(), 1);
    let status = net::status(&mut service.client).await;
    assert!(!net::degradations(&status, "finality_broken").is_empty(), "{status:?}");
    service.stop().await;
}
