//! Blocks that are taken back, and finality that is slow.

use devchain::{DevChain, Lie, ReorganiseError, Taken};
use proptest::{prelude::*, strategy::ValueTree as _, test_runner::TestRunner};
use serde_json::json;
use subxt::{
    dynamic::{self, Value},
    utils::H256,
};

use crate::client::*;

/// What Carol has committed as of a block, as a client reads it.
async fn commitment(client: &Client, hash: &str) -> Option<String> {
    let hash = H256::from_slice(&hex::decode(&hash[2..]).unwrap());
    let entry = dynamic::storage::<Vec<Value>, Value>("Commitments", "CommitmentOf");
    let keys = vec![Value::u128(NETUID.into()), Value::from_bytes(public("Carol"))];
    let at = client.api.at_block(hash).await.unwrap();
    let value = at.storage().try_fetch(entry, keys).await.unwrap();
    value.map(|v| v.decode().unwrap().to_string())
}

/// Carol commits something in block 2 of 4, none of them final.
async fn committed() -> (DevChain, Client, Statuses, Vec<u8>) {
    let (chain, client) = start(manual(10)).await;
    chain.produce_block().await.unwrap();
    let bytes = client.signed("Carol", &set_commitment(&[b"data"]), immortal(0)).await;
    let statuses = client.watch(&bytes).await;
    chain.produce_blocks(3).await.unwrap();
    (chain, client, statuses, bytes)
}

#[tokio::test]
async fn abandoned_blocks_stay_known_by_hash_with_header_body_and_state() {
    let (chain, client, _statuses, _) = committed().await;
    let old: Vec<String> = {
        let mut old = Vec::new();
        for number in 0..=4 {
            old.push(client.block_hash(number).await.as_str().unwrap().to_owned());
        }
        old
    };
    let body = client.ask("chain_getBlock", &[json!(old[2])]).await.unwrap();
    let head = chain.reorganise(3, Taken::Lost).await.unwrap();
    assert_eq!(head.number, 5);
    for number in 0..=4u32 {
        let new = client.block_hash(number).await;
        assert_eq!(new == json!(old[number as usize]), number < 2, "{number}");
    }
    assert_eq!(client.ask("chain_getBlock", &[json!(old[2])]).await.unwrap(), body);
    assert_eq!(client.number(Some(&json!(old[4]))).await, 4);
    for (number, there) in [(1, false), (2, true), (3, true), (4, true)] {
        assert_eq!(commitment(&client, &old[number]).await.is_some(), there, "{number}");
    }
    for number in 2..=5 {
        let new = client.block_hash(number).await;
        assert_eq!(commitment(&client, new.as_str().unwrap()).await, None, "{number}");
    }
    // The metagraph and the keys of an abandoned block are those of its own branch.
    for (hash, expected) in [(old[4].clone(), 1), (hex(head.hash), 0)] {
        let hash = H256::from_slice(&hex::decode(&hash[2..]).unwrap());
        let at = client.api.at_block(hash).await.unwrap();
        let entry = dynamic::storage::<Vec<Value>, Value>("Commitments", "CommitmentOf");
        let storage = at.storage();
        let mut entries = storage.iter(entry, vec![]).await.unwrap();
        let mut count = 0;
        while let Some(entry) = entries.next().await {
            entry.unwrap();
            count += 1;
        }
        assert_eq!(count, expected);
    }
}

#[tokio::test]
async fn extrinsics_go_back_into_the_new_blocks_and_their_senders_hear_of_it() {
    let (chain, client, mut statuses, _) = committed().await;
    assert_eq!(statuses.next().await.0, "ready");
    let (name, old) = statuses.next().await;
    assert_eq!(name, "inBlock");
    chain.reorganise(3, Taken::Back).await.unwrap();
    assert_eq!(statuses.next().await, ("retracted".to_owned(), old.clone()));
    assert_eq!(statuses.next().await.0, "ready");
    let (name, new) = statuses.next().await;
    assert_eq!(name, "inBlock");
    assert_ne!(new, old);
    assert_eq!(new.as_deref(), client.block_hash(2).await.as_str());
    chain.set_finality_lag(0).await.unwrap();
    assert_eq!(statuses.next().await, ("finalized".to_owned(), new));

    let journal = chain.extrinsics().await.unwrap();
    assert_eq!(journal.len(), 1);
    let ever = chain.all_included().await.unwrap();
    let hashes: Vec<_> = ever.iter().map(|x| Some(hex(x.block_hash))).collect();
    assert_eq!(hashes[0], old);
    assert_eq!((ever.len(), &ever[1]), (2, &journal[0]));
}

#[tokio::test]
async fn lost_extrinsics_are_gone_and_may_be_sent_again() {
    let (chain, client, mut statuses, bytes) = committed().await;
    chain.reorganise(3, Taken::Lost).await.unwrap();
    assert_eq!(statuses.names(4).await, ["ready", "inBlock", "retracted", "dropped"]);
    chain.produce_blocks(5).await.unwrap();
    assert_eq!(chain.extrinsics().await.unwrap(), []);
    assert_eq!(chain.commitment(public("Carol"), None).await.unwrap(), None);
    client.submit(&bytes).await.unwrap();
    chain.produce_block().await.unwrap();
    assert_eq!(chain.extrinsics().await.unwrap().len(), 1);
}

#[tokio::test]
async fn extrinsics_can_come_back_some_blocks_later() {
    let (chain, _client, mut statuses, _) = committed().await;
    let head = chain.reorganise(3, Taken::Later(2)).await.unwrap();
    assert_eq!(statuses.names(3).await, ["ready", "inBlock", "retracted"]);
    chain.produce_blocks(2).await.unwrap();
    assert_eq!(chain.extrinsics().await.unwrap(), []);
    chain.produce_block().await.unwrap();
    assert_eq!(statuses.names(2).await, ["ready", "inBlock"]);
    assert_eq!(chain.extrinsics().await.unwrap()[0].block, head.number + 3);
}

#[tokio::test]
async fn one_that_comes_back_too_late_is_invalid() {
    let (chain, client, mut statuses, _) = committed().await;
    chain.reorganise(3, Taken::Later(2)).await.unwrap();
    let other = client.signed("Carol", &set_commitment(&[b"other"]), immortal(0)).await;
    client.submit(&other).await.unwrap();
    chain.produce_blocks(3).await.unwrap();
    assert_eq!(statuses.names(4).await, ["ready", "inBlock", "retracted", "invalid"]);
    assert_eq!(chain.extrinsics().await.unwrap().len(), 1);
}

#[tokio::test]
async fn an_extrinsic_born_in_an_abandoned_block_dies_with_it() {
    let (chain, _client) = start(manual(10)).await;
    chain.produce_blocks(3).await.unwrap();
    // A client signs for the block that it believes to be final: the newest, at this node.
    let node = chain.add_node(anywhere()).await.unwrap();
    node.set_lie(Some(Lie::Finality));
    let client = Client::connect(&node.url()).await;
    for (depth, last) in [(1, "ready"), (2, "invalid")] {
        let born = client.signed("Carol", &set_commitment(&[b"data"]), mortal(64, 0)).await;
        let mut statuses = client.watch(&born).await;
        chain.produce_block().await.unwrap();
        chain.reorganise(depth, Taken::Back).await.unwrap();
        let expected = ["ready", "inBlock", "retracted", last];
        assert_eq!(statuses.names(4).await, expected, "{depth}");
        chain.reorganise(2, Taken::Lost).await.unwrap();
    }
}

#[tokio::test]
async fn streams_go_on_with_the_new_branch() {
    let (chain, client) = start(manual(3)).await;
    chain.produce_blocks(5).await.unwrap();
    let (mut new, mut all) = (client.heads("NewHeads").await, client.heads("AllHeads").await);
    let mut finalized = client.heads("FinalizedHeads").await;
    let old = new.next().await;
    assert_eq!((old.number, all.next().await.number), (5, 5));
    let mut last_final = finalized.next().await;
    assert_eq!(last_final.number, 2);
    let fork = client.block_hash(3).await;
    chain.reorganise(2, Taken::Back).await.unwrap();
    for stream in [&mut new, &mut all] {
        let mut parent = fork.as_str().unwrap().to_owned();
        for number in 4..=6 {
            let head = stream.next().await;
            assert_eq!((head.number, &head.parent), (number, &parent));
            assert_ne!(head.hash, old.hash);
            parent = head.hash;
        }
    }
    chain.produce_blocks(3).await.unwrap();
    for number in 3..=6 {
        let head = finalized.next().await;
        assert_eq!((head.number, &head.parent), (number, &last_final.hash));
        last_final = head;
    }
}

#[tokio::test]
async fn finalized_blocks_are_never_taken_back() {
    let (chain, _client) = start(manual(2)).await;
    chain.produce_blocks(6).await.unwrap();
    for depth in [3, 7, u32::MAX] {
        let error = chain.reorganise(depth, Taken::Back).await.unwrap_err();
        assert_eq!(error, ReorganiseError::Finalized { depth, reversible: 2 });
    }
    assert_eq!(chain.head().await.unwrap().number, 6);
    assert_eq!(chain.reorganise(2, Taken::Back).await.unwrap().number, 7);
    // Depth 0 takes nothing back: it is one more block.
    assert_eq!(chain.reorganise(0, Taken::Back).await.unwrap().number, 8);
}

#[tokio::test]
async fn finality_can_stall_and_catch_up() {
    let (chain, client) = start(manual(1)).await;
    chain.produce_blocks(3).await.unwrap();
    let mut finalized = client.heads("FinalizedHeads").await;
    assert_eq!(finalized.next().await.number, 2);
    chain.set_finality_paused(true).await.unwrap();
    chain.produce_blocks(20).await.unwrap();
    assert_eq!(client.finalized().await, 2);
    assert_eq!(chain.reorganise(21, Taken::Back).await.unwrap().number, 24);
    chain.set_finality_paused(false).await.unwrap();
    for number in 3..=23 {
        assert_eq!(finalized.next().await.number, number);
    }
    chain.set_finality_lag(0).await.unwrap();
    assert_eq!(finalized.next().await.number, 24);
    chain.set_finality_lag(100).await.unwrap();
    assert_eq!(client.finalized().await, 24, "what is final stays so");
}

#[tokio::test]
async fn of_another_branch_only_the_tip_is_announced_where_that_is_asked_for() {
    let (chain, client) = start(manual(10)).await;
    chain.produce_blocks(4).await.unwrap();
    let mut heads = client.heads("NewHeads").await;
    assert_eq!(heads.next().await.number, 4);
    chain.reorganise(2, Taken::Lost).await.unwrap();
    for number in [3, 4, 5] {
        assert_eq!(heads.next().await.number, number);
    }
    chain.set_announce_tip_only(true);
    chain.reorganise(3, Taken::Lost).await.unwrap();
    assert_eq!(heads.next().await.number, 6);
    // Blocks that stand on what was announced are announced one by one.
    chain.produce_blocks(2).await.unwrap();
    assert_eq!([heads.next().await.number, heads.next().await.number], [7, 8]);
}

#[tokio::test]
async fn what_was_done_by_hand_in_abandoned_blocks_is_undone() {
    let (chain, client) = start(manual(10)).await;
    chain.set_stake(2, 7 * TAO).await.unwrap();
    chain.produce_block().await.unwrap();
    let entry = || dynamic::storage::<Vec<Value>, u64>("SubtensorModule", "TotalHotkeyAlpha");
    let stake = async |hash: [u8; 32]| {
        let keys = vec![Value::from_bytes(public("Carol")), Value::u128(NETUID.into())];
        let at = client.api.at_block(H256(hash)).await.unwrap();
        at.storage().fetch(entry(), keys).await.unwrap().decode().unwrap()
    };
    let old = chain.head().await.unwrap().hash;
    let new = chain.reorganise(1, Taken::Back).await.unwrap().hash;
    assert_eq!((stake(old).await, stake(new).await), (7 * TAO, 0));
}

/// Blocks, forks and forks of forks, against a list of what every block should have said.
#[tokio::test]
async fn every_block_of_every_branch_keeps_its_state_forever() {
    let (chain, client) = start(manual(1000)).await;
    let mut runner = TestRunner::deterministic();
    let steps = prop::collection::vec((any::<bool>(), 1u32..4), 12)
        .new_tree(&mut runner)
        .unwrap()
        .current();
    let (mut best, mut all) = (Vec::new(), Vec::new());
    let mut nonce = 0;
    for (n, (fork, depth)) in steps.into_iter().enumerate() {
        let depth = depth.min(u32::try_from(best.len()).unwrap());
        if fork && depth > 0 {
            let head = chain.reorganise(depth, Taken::Lost).await.unwrap();
            best.truncate(best.len() - depth as usize);
            for number in head.number - depth..=head.number {
                let hash = chain.block_hash(number).await.unwrap().unwrap();
                let inherited: Option<usize> = best.last().and_then(|(_, data)| *data);
                best.push((hash, inherited));
                all.push((hash, inherited));
            }
            let journal = chain.extrinsics().await.unwrap();
            nonce = journal.last().map_or(0, |last| u64::from(last.nonce) + 1);
        } else {
            let call = set_commitment(&[format!("number {n}").as_bytes()]);
            client.submit(&client.signed("Carol", &call, immortal(nonce)).await).await.unwrap();
            nonce += 1;
            let head = chain.produce_block().await.unwrap();
            best.push((head.hash, Some(n)));
            all.push((head.hash, Some(n)));
        }
    }
    assert!(all.len() > best.len(), "there were forks");
    for (hash, data) in all {
        let read = commitment(&client, &hex(hash)).await;
        let expected = data.map(|n| {
            let bytes: Vec<String> = format!("number {n}").bytes().map(|b| b.to_string()).collect();
            bytes.join(", ")
        });
        match (read, expected) {
            (None, None) => {}
            (Some(read), Some(expected)) => assert!(read.contains(&expected), "{read} {expected}"),
            (read, expected) => panic!("{read:?} {expected:?}"),
        }
    }
}
