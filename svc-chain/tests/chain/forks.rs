//! Reorganisations, as they are told to those who watch.

use devchain::{Genesis, Lie, Taken};
use proto::chain::v1::{self, Finality, chain_event::Event};
use store::Store;
use tonic::Code;

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

#[tokio::test]
async fn of_a_branch_of_which_only_the_tip_is_announced_every_block_is_told() {
    let (chain, nodes) = net::chain(1, genesis()).await;
    chain.set_announce_tip_only(true);
    let mut service = Running::start(net::config(&nodes), &Store::in_memory()).await;
    let mut watched = Watched::start(&mut service, Finality::Best).await;
    let first = chain.wait_for_block(12).await.unwrap().number;
    watched.reaches(first.into()).await;
    for depth in [1, 3, 10] {
        let head = chain.head().await.unwrap().number;
        watched.reaches(head.into()).await;
        let head = chain.reorganise(depth, Taken::Back).await.unwrap().number;
        watched.reaches(u64::from(head) + 1).await;
        assert!(watched.depths.last() >= Some(&u64::from(depth)), "{:?}", watched.depths);
        watched.is_of(&chain).await;
    }
    assert_eq!(watched.depths.len(), 3);
    service.stop().await;
}

#[tokio::test]
async fn a_reorganisation_below_the_block_at_which_the_service_began_names_the_true_ancestor() {
    for tip_only in [true, false] {
        let (chain, nodes) = net::chain(1, genesis()).await;
        chain.set_announce_tip_only(tip_only);
        chain.wait_for_block(12).await.unwrap();
        let mut service = Running::start(net::config(&nodes), &Store::in_memory()).await;
        let mut watched = Watched::start(&mut service, Finality::Best).await;
        let Event::Block(begun) = watched.next().await else { panic!("a block comes first") };
        let mut tip = begun;
        chain.set_paused(true);
        let head = chain.head().await.unwrap().number;
        while tip.number < head.into() {
            let Event::Block(block) = watched.next().await else { panic!("a block comes next") };
            tip = block;
        }
        chain.reorganise(10, Taken::Lost).await.unwrap();
        let Event::Reorganisation(told) = watched.next().await else { panic!("told first") };
        assert_eq!(told.abandoned, Some(tip));
        let ancestor = told.ancestor.unwrap();
        assert_eq!(ancestor.number, u64::from(head) - 10, "tip only: {tip_only}");
        let hash = chain.block_hash(head - 10).await.unwrap().unwrap();
        assert_eq!(ancestor.hash, hash.to_vec());
        let Event::Block(next) = watched.next().await else { panic!("a block comes next") };
        assert_eq!((next.number, next.parent_hash), (ancestor.number + 1, ancestor.hash));
        service.stop().await;
    }
}

#[tokio::test]
async fn a_reorganisation_while_the_service_was_away_is_told_to_whoever_says_what_it_holds() {
    let (chain, nodes) = net::chain(1, genesis()).await;
    let store = Store::in_memory();
    let mut service = Running::start(net::config(&nodes), &store).await;
    let mut watched = Watched::start(&mut service, Finality::Best).await;
    let head = chain.wait_for_block(14).await.unwrap().number;
    watched.reaches(head.into()).await;
    service.stop().await;
    // Nothing was taken back: the blocks in between come, and nothing else.
    let head = chain.wait_for_block(head + 3).await.unwrap().number;
    let mut service = Running::start(net::config(&nodes), &store).await;
    watched.resume(&mut service, Finality::Best).await;
    watched.reaches(head.into()).await;
    assert_eq!(watched.depths, Vec::<u64>::new());
    service.kill();
    // Twice, and with more blocks on top.
    let tip = watched.tip();
    chain.reorganise(6, Taken::Lost).await.unwrap();
    let after = chain.reorganise(9, Taken::Lost).await.unwrap().number;
    chain.wait_for_block(after + 2).await.unwrap();
    let mut service = Running::start(net::config(&nodes), &store).await;
    watched.resume(&mut service, Finality::Best).await;
    watched.reaches(tip + 3).await;
    assert_eq!(watched.depths.len(), 1, "{:?}", watched.depths);
    watched.is_of(&chain).await;
    service.stop().await;
}

/// The first event of a stream that goes on after a block.
async fn resumed(
    service: &mut Running,
    number: u64,
    hash: Vec<u8>,
) -> Result<(Event, tonic::Streaming<v1::ChainEvent>), tonic::Status> {
    let known = Some(v1::Block { number, hash: hash.into(), ..v1::Block::default() });
    let request = v1::WatchBlocksRequest { finality: Finality::Best.into(), known };
    let mut stream = service.client.watch_blocks(request).await?.into_inner();
    let event = tokio::time::timeout(rig::PATIENCE, stream.message()).await.expect("it goes on");
    Ok((event?.unwrap().event.unwrap(), stream))
}

#[tokio::test]
async fn a_block_that_nobody_knows_is_followed_from_the_newest_final_block_below_it() {
    let (chain, nodes) = net::chain(1, Genesis { finality_lag: 4, ..rig::genesis() }).await;
    chain.wait_for_block(12).await.unwrap();
    chain.set_paused(true);
    let (head, last_final) = (chain.head().await.unwrap(), chain.finalized().await.unwrap());
    let mut service = Running::start(net::config(&nodes), &Store::in_memory()).await;
    let number = u64::from(head.number);
    for (known, ancestor) in [(number, last_final.number), (5, 4), (1, 0), (0, 0)] {
        let (event, mut stream) = resumed(&mut service, known, vec![7; 32]).await.unwrap();
        let Event::Reorganisation(told) = event else { panic!("{event:?}") };
        let (at, abandoned) = (told.ancestor.unwrap(), told.abandoned.unwrap());
        assert_eq!((abandoned.number, abandoned.hash.to_vec()), (known, vec![7; 32]));
        let hash = chain.block_hash(ancestor).await.unwrap().unwrap();
        assert_eq!((at.number, at.hash.to_vec()), (ancestor.into(), hash.to_vec()));
        for number in u64::from(ancestor) + 1..=number {
            let event = stream.message().await.unwrap().unwrap().event;
            let Some(Event::Block(block)) = event else { panic!("{event:?}") };
            assert_eq!(block.number, number);
        }
    }
    service.stop().await;
}

#[tokio::test]
async fn what_cannot_be_a_block_that_a_caller_holds_is_refused() {
    let (chain, nodes) = net::chain(1, genesis()).await;
    let head = chain.wait_for_block(3).await.unwrap();
    let mut service = Running::start(net::config(&nodes), &Store::in_memory()).await;
    let hash = head.hash.to_vec();
    for (number, hash, part) in [
        (u64::MAX, hash.clone(), "known.number"),
        (100_000, vec![7; 32], "known.number"),
        (u64::from(head.number) + 1, hash.clone(), "known.hash"),
        (0, hash.clone(), "known.hash"),
        (u64::from(head.number), hash[1..].to_vec(), "known.hash"),
        (u64::from(head.number), Vec::new(), "known.hash"),
    ] {
        let status = resumed(&mut service, number, hash).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert!(status.message().contains(part), "{status:?}");
    }
    let known = v1::Block { number: 1, hash: hash.into(), parent_hash: vec![1].into() };
    let request = v1::WatchBlocksRequest { known: Some(known), ..Default::default() };
    let status = service.client.watch_blocks(request).await.unwrap_err();
    assert!(status.message().contains("known.parent_hash"), "{status:?}");
    service.stop().await;
}

#[tokio::test]
async fn an_endpoint_that_is_behind_what_a_caller_holds_is_waited_for() {
    let (chain, nodes) = net::chain(1, genesis()).await;
    chain.wait_for_block(8).await.unwrap();
    chain.set_paused(true);
    let head = chain.head().await.unwrap();
    nodes[0].set_lag(4);
    let mut service = Running::start(net::config(&nodes), &Store::in_memory()).await;
    let number = u64::from(head.number);
    let known = Some(v1::Block { number, hash: head.hash.to_vec().into(), ..v1::Block::default() });
    let request = v1::WatchBlocksRequest { finality: Finality::Best.into(), known };
    let mut stream = service.client.watch_blocks(request).await.unwrap().into_inner();
    nodes[0].set_lag(0);
    chain.set_paused(false);
    let event = tokio::time::timeout(rig::PATIENCE, stream.message()).await.unwrap();
    let Some(Event::Block(next)) = event.unwrap().unwrap().event else { panic!("a block") };
    assert_eq!((next.number, next.parent_hash.to_vec()), (number + 1, head.hash.to_vec()));
    service.stop().await;
}

#[tokio::test]
async fn too_many_blocks_to_catch_up_with_are_skipped_and_one_that_was_taken_back_is_still_told() {
    let manual = devchain::Production::Manual;
    let genesis = Genesis { production: manual, finality_lag: 5000, ..genesis() };
    let (chain, nodes) = net::chain(1, genesis).await;
    let abandoned = chain.produce_blocks(9).await.unwrap();
    chain.reorganise(3, Taken::Lost).await.unwrap();
    chain.produce_blocks(4_110).await.unwrap();
    let head = chain.head().await.unwrap();
    let mut service = Running::start(net::config(&nodes), &Store::in_memory()).await;
    let kept = chain.block_hash(9).await.unwrap().unwrap();
    for (hash, taken_back) in [(kept, false), (abandoned.hash, true)] {
        let (mut event, mut stream) = resumed(&mut service, 9, hash.to_vec()).await.unwrap();
        let mut next = async || stream.message().await.unwrap().unwrap().event.unwrap();
        if taken_back {
            let Event::Reorganisation(told) = event else { panic!("{event:?}") };
            assert_eq!((told.ancestor.unwrap().number, told.abandoned.unwrap().number), (6, 9));
            for number in 7..=9 {
                let Event::Block(block) = next().await else { panic!("a block") };
                assert_eq!(block.number, number);
            }
            event = next().await;
        }
        let Event::Degradation(skipped) = event else { panic!("{event:?}") };
        assert_eq!(skipped.kind, "blocks_skipped");
        let Event::Block(block) = next().await else { panic!("a block") };
        assert_eq!(block.hash, head.hash.to_vec());
    }
    let status = net::status(&mut service.client).await;
    assert!(status.degradations.is_empty(), "it is of nobody else: {status:?}");
    service.stop().await;
}
