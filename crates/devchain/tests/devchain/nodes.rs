//! Several nodes of one chain, and each one's own way to be wrong.

use std::time::Duration;

use devchain::{DevChain, DevNode, Genesis, Lie};
use serde_json::json;
use subxt::{
    dynamic::{self, Value},
    utils::H256,
};

use crate::client::*;

/// A chain of two nodes, with a client of each.
async fn two(genesis: Genesis) -> (DevChain, Client, DevNode, Client) {
    let (chain, one) = start(genesis).await;
    let node = chain.add_node(anywhere()).await.unwrap();
    let two = Client::connect(&node.url()).await;
    (chain, one, node, two)
}

async fn silent<T>(future: impl Future<Output = T>) -> bool {
    tokio::time::timeout(Duration::from_millis(300), future).await.is_err()
}

#[tokio::test]
async fn what_one_node_takes_every_node_shows() {
    let (chain, one, node, two) = two(genesis()).await;
    assert_ne!(chain.url(), node.url());
    assert_eq!(chain.node().url(), chain.url());
    assert_eq!(chain.nodes().len(), 2);
    two.follow("Carol", &set_commitment(&[b"by the second"])).await.unwrap();
    assert_eq!(one.block_hash(1).await, two.block_hash(1).await);
    assert_eq!(one.number(None).await, 1);
    assert_eq!(chain.extrinsics().await.unwrap().len(), 1);
}

#[tokio::test]
async fn one_node_fails_and_the_others_do_not() {
    let (chain, one, node, two) = two(genesis()).await;
    node.set_offline(true);
    assert!(two.ask("chain_getHeader", &[]).await.is_err());
    assert!(subxt::rpcs::RpcClient::from_insecure_url(node.url()).await.is_err());
    one.ask("chain_getHeader", &[]).await.unwrap();
    chain.drop_connections();
    node.set_offline(false);
    let two = Client::connect(&node.url()).await;
    assert!(one.ask("chain_getHeader", &[]).await.is_err());
    node.refuse_submits(1);
    let call = set_commitment(&[b"data"]);
    assert_eq!(two.send("Carol", &call).await.unwrap_err().0, 1016);
    Client::connect(&chain.url()).await.send("Carol", &call).await.unwrap();
}

#[tokio::test]
async fn a_node_that_is_behind_knows_nothing_of_later_blocks() {
    let (chain, one, node, two) = two(manual(1)).await;
    chain.produce_blocks(10).await.unwrap();
    node.set_lag(3);
    assert_eq!((one.number(None).await, two.number(None).await), (10, 7));
    assert_eq!((one.finalized().await, two.finalized().await), (9, 6));
    assert_eq!(two.block_hash(7).await, one.block_hash(7).await);
    assert_eq!(two.block_hash(8).await, json!(null));
    let later = one.block_hash(8).await;
    assert_eq!(
        two.ask("chain_getHeader", std::slice::from_ref(&later)).await.unwrap(),
        json!(null)
    );
    assert!(two.ask("state_getStorage", &[json!("0x00"), later]).await.is_err());

    let mut heads = two.heads("NewHeads").await;
    assert_eq!(heads.next().await.number, 7);
    chain.produce_block().await.unwrap();
    assert_eq!(heads.next().await.number, 8);
    // Further behind, it has nothing new to say until it is past what it has said.
    node.set_lag(5);
    chain.produce_block().await.unwrap();
    assert_eq!(two.number(None).await, 7);
    node.set_lag(0);
    for expected in 9..=12 {
        assert_eq!(heads.next().await.number, expected);
    }
}

#[tokio::test]
async fn a_lag_longer_than_the_chain_is_block_0() {
    let (chain, _one, node, two) = two(manual(0)).await;
    chain.produce_blocks(3).await.unwrap();
    node.set_lag(u32::MAX);
    assert_eq!((two.number(None).await, two.finalized().await), (0, 0));
}

#[tokio::test]
async fn a_stuck_node_stays_where_it_is_with_open_and_silent_streams() {
    let (chain, _one, node, two) = two(manual(0)).await;
    chain.produce_blocks(2).await.unwrap();
    let mut heads = two.heads("FinalizedHeads").await;
    assert_eq!(heads.next().await.number, 2);
    node.set_stuck(true);
    chain.produce_blocks(3).await.unwrap();
    // Stuck again is stuck still.
    node.set_stuck(true);
    assert!(silent(heads.next()).await);
    assert_eq!((two.number(None).await, two.finalized().await), (2, 2));
    node.set_stuck(false);
    for expected in 3..=5 {
        assert_eq!(heads.next().await.number, expected);
    }
}

#[tokio::test]
async fn a_stuck_node_still_takes_extrinsics_and_does_not_see_them_included() {
    let (chain, _one, node, two) = two(manual(0)).await;
    let bytes = two.signed("Carol", &set_commitment(&[b"data"]), immortal(0)).await;
    node.set_stuck(true);
    let mut statuses = two.watch(&bytes).await;
    assert_eq!(statuses.next().await.0, "ready");
    chain.produce_block().await.unwrap();
    assert!(silent(statuses.next()).await);
    assert_eq!(chain.extrinsics().await.unwrap().len(), 1);
    node.set_stuck(false);
    assert_eq!(statuses.names(2).await, ["inBlock", "finalized"]);
}

#[tokio::test]
async fn a_stuck_node_keeps_to_its_branch_after_a_reorganisation() {
    let (chain, one, node, two) = two(manual(5)).await;
    chain.produce_blocks(4).await.unwrap();
    node.set_stuck(true);
    let before = [two.block_hash(3).await, two.block_hash(4).await];
    chain.reorganise(2, devchain::Taken::Back).await.unwrap();
    assert_eq!([two.block_hash(3).await, two.block_hash(4).await], before);
    assert_eq!(two.block_hash(5).await, json!(null));
    let new = one.block_hash(4).await;
    assert_ne!(new, before[1]);
    assert_eq!(two.ask("chain_getHeader", std::slice::from_ref(&new)).await.unwrap(), json!(null));
    assert_eq!(one.number(Some(&before[1])).await, 4, "the others know both");
    node.set_stuck(false);
    assert_eq!(two.block_hash(4).await, new);
}

#[tokio::test]
async fn a_mute_node_carries_calls_out_and_says_nothing() {
    let (chain, _one, node, two) = two(genesis()).await;
    let bytes = two.signed("Carol", &set_commitment(&[b"data"]), immortal(0)).await;
    let mut heads = two.heads("NewHeads").await;
    assert_eq!(heads.next().await.number, 0);
    node.set_mute(true);
    let mut answer = tokio::spawn(async move { two.submit(&bytes).await });
    within(chain.wait_for_block(1)).await.unwrap();
    assert_eq!(chain.extrinsics().await.unwrap().len(), 1);
    assert!(silent(heads.next()).await && silent(&mut answer).await);
    node.set_mute(false);
    within(answer).await.unwrap().unwrap();
    assert_eq!(heads.next().await.number, 1);
}

#[tokio::test]
async fn a_chain_with_a_mute_node_can_be_stopped() {
    let (chain, _one, node, two) = two(genesis()).await;
    node.set_mute(true);
    let call = tokio::spawn(async move { two.ask("chain_getHeader", &[]).await });
    while !node.calls().contains_key("chain_getHeader") {
        tokio::task::yield_now().await;
    }
    within(chain.stop()).await;
    assert!(within(call).await.unwrap().is_err());
}

#[tokio::test]
async fn a_pruned_node_sends_askers_to_the_archive() {
    let (chain, one, node, two) = two(manual(0)).await;
    node.set_keep_states(Some(2));
    chain.produce_blocks(5).await.unwrap();
    let old = one.block_hash(2).await;
    let ask = [json!("0x00"), old];
    one.ask("state_getStorage", &ask).await.unwrap();
    let error = two.ask("state_getStorage", &ask).await.unwrap_err();
    assert!(format!("{error:?}").contains("State already discarded"), "{error:?}");
    node.set_keep_states(None);
    two.ask("state_getStorage", &ask).await.unwrap();
}

#[tokio::test]
async fn forged_hashes_are_consistent_with_their_headers_and_with_no_other_node() {
    let (chain, one, node, two) = two(manual(1)).await;
    chain.produce_blocks(20).await.unwrap();
    node.set_lie(Some(Lie::BlockHash));
    let mut heads = two.heads("NewHeads").await;
    let mut last = heads.next().await;
    for n in 0..3 {
        chain.produce_block().await.unwrap();
        let head = heads.next().await;
        assert_eq!((head.number, &head.parent), (21 + n, &last.hash), "a chain of its own");
        last = head;
    }
    for number in [5, 12, 20, 23] {
        let (honest, forged) = (one.block_hash(number).await, two.block_hash(number).await);
        let header = two.ask("chain_getHeader", std::slice::from_ref(&forged)).await.unwrap();
        let header = Header::of(&header);
        assert_eq!((header.number, json!(header.hash)), (number, forged.clone()));
        // Sixteen blocks before the lie began, it had said the truth already.
        assert_eq!(honest == forged, number < 5, "{number}");
        // Its state can be read by the hash that it gave, here and nowhere else.
        two.ask("state_getStorage", &[json!("0x00"), forged.clone()]).await.unwrap();
        if honest != forged {
            one.ask("state_getStorage", &[json!("0x00"), forged]).await.unwrap_err();
        }
    }
    assert_eq!(two.finalized().await, 22);
    // An ordinary client follows it without noticing.
    let events = two.signed("Carol", &set_commitment(&[b"data"]), immortal(0)).await;
    let mut statuses = two.watch(&events).await;
    chain.produce_blocks(2).await.unwrap();
    assert_eq!(statuses.next().await.0, "ready");
    assert_eq!(
        statuses.next().await,
        ("inBlock".into(), Some(two.block_hash(24).await.as_str().unwrap().into()))
    );
    node.set_lie(None);
    assert_eq!(one.block_hash(20).await, two.block_hash(20).await);
}

#[tokio::test]
async fn altered_commitments_still_decode() {
    let (chain, one, node, two) = two(genesis()).await;
    one.follow("Carol", &set_commitment(&[b"honest words"])).await.unwrap();
    one.follow("Dave", &set_commitment(&[b""])).await.unwrap();
    node.set_lie(Some(Lie::Commitments));
    let hash = H256(chain.head().await.unwrap().hash);
    for who in ["Carol", "Dave"] {
        let mut read = Vec::new();
        for client in [&one, &two] {
            let entry = dynamic::storage::<Vec<Value>, Value>("Commitments", "CommitmentOf");
            let keys = vec![Value::u128(NETUID.into()), Value::from_bytes(public(who))];
            let at = client.api.at_block(hash).await.unwrap();
            let value = at.storage().fetch(entry, keys).await.unwrap();
            read.push(value.decode().unwrap().to_string());
        }
        assert_ne!(read[0], read[1], "{who}");
    }
    // Iterated, they are altered as well, and nothing else is.
    let tempo = dynamic::storage::<Vec<Value>, u16>("SubtensorModule", "Tempo");
    let at = two.at().await;
    let tempo = at.storage().fetch(tempo, vec![Value::u128(NETUID.into())]).await.unwrap();
    assert_eq!(tempo.decode().unwrap(), 360);
    let known = chain.commitment(public("Carol"), None).await.unwrap().unwrap();
    assert_eq!(known.data, b"honest words", "the chain itself is honest");
}

#[tokio::test]
async fn a_node_can_call_every_block_final() {
    let (chain, one, node, two) = two(manual(4)).await;
    chain.produce_blocks(6).await.unwrap();
    node.set_lie(Some(Lie::Finality));
    assert_eq!((one.finalized().await, two.finalized().await), (2, 6));
    let mut heads = two.heads("FinalizedHeads").await;
    let taken_back = heads.next().await;
    chain.reorganise(1, devchain::Taken::Back).await.unwrap();
    let next = heads.next().await;
    assert_eq!(next.number, taken_back.number);
    assert_ne!(next.hash, taken_back.hash, "what it called final is not");
}

#[tokio::test]
async fn a_node_of_another_genesis_says_so() {
    let (chain, _one, node, two) = two(genesis()).await;
    node.set_lie(Some(Lie::Genesis));
    let hash = two.block_hash(0).await;
    assert_ne!(hash, json!(hex(chain.genesis_hash())));
    let header = two.ask("chain_getHeader", std::slice::from_ref(&hash)).await.unwrap();
    assert_eq!(json!(Header::of(&header).hash), hash);
    let other = Client::connect(&node.url()).await;
    assert_ne!(other.api.genesis_hash().0, chain.genesis_hash());
}

#[tokio::test]
async fn an_extrinsic_can_vanish_between_a_node_and_the_pool() {
    let (chain, one, node, two) = two(genesis()).await;
    let bytes = two.signed("Carol", &set_commitment(&[b"data"]), immortal(0)).await;
    node.drop_next_submits(2);
    two.submit(&bytes).await.unwrap();
    let mut statuses = two.watch(&bytes).await;
    assert_eq!(statuses.next().await.0, "ready");
    assert!(silent(statuses.next()).await);
    assert_eq!(chain.extrinsics().await.unwrap(), []);
    one.submit(&bytes).await.unwrap();
    assert_eq!(chain.extrinsics().await.unwrap().len(), 1);
    // What is not valid is refused as ever.
    node.drop_next_submits(1);
    assert_eq!(two.submit(&[4, 0]).await.unwrap_err().0, 1001);
}

#[tokio::test]
async fn calls_are_counted_by_node_and_method() {
    let (_chain, one, node, two) = two(genesis()).await;
    let before = node.calls();
    for _ in 0..3 {
        two.ask("system_chain", &[]).await.unwrap();
    }
    one.ask("system_chain", &[]).await.unwrap();
    let _heads = two.heads("NewHeads").await;
    let calls = node.calls();
    assert_eq!(calls["system_chain"], 3);
    assert_eq!(calls["chain_subscribeNewHeads"], 1);
    assert!(before.contains_key("chain_getBlockHash"), "the client connected");
}

#[tokio::test]
async fn an_address_that_is_taken_is_an_error_with_the_address() {
    let (chain, _client) = start(genesis()).await;
    let taken = chain.url().trim_start_matches("ws://").parse().unwrap();
    let error = chain.add_node(taken).await.unwrap_err();
    assert!(matches!(error, devchain::StartError::Listen { address, .. } if address == taken));
}

#[tokio::test]
async fn the_largest_numbers_break_nothing() {
    let (chain, one, node, two) = two(manual(3)).await;
    chain.produce_blocks(4).await.unwrap();
    let bytes = one.signed("Carol", &set_commitment(&[b"data"]), immortal(0)).await;
    one.submit(&bytes).await.unwrap();
    chain.produce_block().await.unwrap();
    node.set_keep_states(Some(u32::MAX));
    node.set_lag(u32::MAX);
    node.set_lie(Some(Lie::BlockHash));
    node.set_stuck(true);
    assert_eq!(two.number(None).await, 0);
    chain.set_finality_lag(u32::MAX).await.unwrap();
    chain.set_ban(u32::MAX).await.unwrap();
    chain.set_pool_limit(usize::MAX).await.unwrap();
    chain.reorganise(3, devchain::Taken::Later(u32::MAX)).await.unwrap();
    chain.produce_blocks(3).await.unwrap();
    assert_eq!(chain.extrinsics().await.unwrap(), [], "it has not come back yet");
    chain.set_pool_limit(0).await.unwrap();
    assert_eq!(one.submit(&bytes).await.unwrap_err().0, 1016);
    one.ask("chain_getBlockHash", &[json!(vec![u64::MAX; 2000])]).await.unwrap();
    node.set_latency(Duration::MAX);
    assert!(silent(two.ask("chain_getHeader", &[])).await);
    within(chain.stop()).await;
}
