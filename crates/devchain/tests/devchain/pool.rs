//! Extrinsics that wait, and those that wait in vain.

use crate::client::*;

fn data(text: &str) -> Call {
    set_commitment(&[text.as_bytes()])
}

#[tokio::test]
async fn only_a_higher_tip_takes_the_place_of_another() {
    let (chain, client) = start(manual(0)).await;
    let sign = async |text: &str, tip| client.signed("Carol", &data(text), tipped(0, tip)).await;
    let mut cheap = client.watch(&sign("cheap", 1).await).await;
    assert_eq!(cheap.next().await.0, "ready");
    for tip in [0, 1] {
        assert_eq!(client.submit(&sign("other", tip).await).await.unwrap_err().0, 1014);
    }
    let dear = client.submit(&sign("dear", 2).await).await.unwrap();
    assert_eq!(cheap.next().await, ("usurped".to_owned(), Some(dear)));
    chain.produce_block().await.unwrap();
    assert_eq!(chain.commitment(public("Carol"), None).await.unwrap().unwrap().data, b"dear");
    assert_eq!(chain.extrinsics().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_later_nonce_waits_for_those_before_it() {
    let (chain, client) = start(manual(0)).await;
    let sign = async |nonce| client.signed("Carol", &data("data"), immortal(nonce)).await;
    let mut third = client.watch(&sign(2).await).await;
    let mut second = client.watch(&sign(1).await).await;
    assert_eq!((third.next().await.0, second.next().await.0), ("future".into(), "future".into()));
    chain.produce_block().await.unwrap();
    assert_eq!(chain.extrinsics().await.unwrap(), []);
    let pending = client.ask("author_pendingExtrinsics", &[]).await.unwrap();
    assert_eq!(pending, serde_json::json!([]), "the future is not pending");

    client.submit(&sign(0).await).await.unwrap();
    assert_eq!((third.next().await.0, second.next().await.0), ("ready".into(), "ready".into()));
    chain.produce_block().await.unwrap();
    let journal = chain.extrinsics().await.unwrap();
    assert_eq!(journal.iter().map(|x| x.nonce).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(third.names(2).await, ["inBlock", "finalized"]);
}

#[tokio::test]
async fn the_next_index_counts_what_is_ready_and_not_what_is_in_the_future() {
    let (_chain, client) = start(manual(0)).await;
    let address = serde_json::json!(subxt::utils::AccountId32(public("Carol")).to_string());
    for (nonce, next) in [(0, 1), (3, 1), (1, 2)] {
        let bytes = client.signed("Carol", &data("data"), immortal(nonce)).await;
        client.submit(&bytes).await.unwrap();
        let index = client.ask("system_accountNextIndex", std::slice::from_ref(&address)).await;
        assert_eq!(index.unwrap(), next);
    }
}

#[tokio::test]
async fn an_era_that_ends_while_it_waits_is_the_end() {
    let (chain, client) = start(manual(0)).await;
    chain.hold_pool(true).await.unwrap();
    let bytes = client.signed("Carol", &data("data"), mortal(4, 0)).await;
    let mut statuses = client.watch(&bytes).await;
    // Born at block 0, it may be in block 3 and in none after it.
    chain.produce_blocks(2).await.unwrap();
    assert_eq!(statuses.next().await.0, "ready");
    let pending = client.ask("author_pendingExtrinsics", &[]).await.unwrap();
    assert_eq!(pending.as_array().unwrap().len(), 1);
    chain.produce_block().await.unwrap();
    assert_eq!(statuses.next().await.0, "invalid");
    assert_eq!(client.submit(&bytes).await.unwrap_err().0, 1012);
    chain.hold_pool(false).await.unwrap();
    chain.produce_block().await.unwrap();
    assert_eq!(chain.extrinsics().await.unwrap(), []);
}

#[tokio::test]
async fn blocks_can_pass_the_pool_by() {
    let (chain, client) = start(genesis()).await;
    chain.hold_pool(true).await.unwrap();
    let bytes = client.signed("Carol", &data("data"), immortal(0)).await;
    let mut statuses = client.watch(&bytes).await;
    chain.produce_blocks(3).await.unwrap();
    assert_eq!(chain.extrinsics().await.unwrap(), []);
    chain.hold_pool(false).await.unwrap();
    assert_eq!(statuses.names(3).await, ["ready", "inBlock", "finalized"]);
    assert_eq!(chain.extrinsics().await.unwrap()[0].block, 4);
}

#[tokio::test]
async fn a_ban_ends() {
    let (chain, client) = start(manual(0)).await;
    chain.set_ban(3).await.unwrap();
    let bytes = client.signed("Carol", &data("data"), immortal(0)).await;
    client.submit(&bytes).await.unwrap();
    chain.produce_blocks(3).await.unwrap();
    assert_eq!(client.submit(&bytes).await.unwrap_err().0, 1012);
    chain.produce_block().await.unwrap();
    let stale = Refused(1010, "Transaction is outdated".to_owned());
    assert_eq!(client.submit(&bytes).await.unwrap_err(), stale);
}

#[tokio::test]
async fn a_full_pool_drops_what_comes_and_lets_a_higher_tip_in() {
    let (chain, client) = start(manual(0)).await;
    chain.set_pool_limit(2).await.unwrap();
    for nonce in [0, 5] {
        let bytes = client.signed("Carol", &data("data"), immortal(nonce)).await;
        client.submit(&bytes).await.unwrap();
    }
    let other = client.signed("Dave", &data("data"), immortal(0)).await;
    assert_eq!(client.submit(&other).await.unwrap_err().0, 1016);
    // One that takes another's place needs no place of its own.
    let instead = client.signed("Carol", &data("instead"), tipped(0, 1)).await;
    client.submit(&instead).await.unwrap();
    chain.produce_block().await.unwrap();
    client.submit(&other).await.unwrap();
}

#[tokio::test]
async fn a_nonce_at_the_end_of_numbers_waits_and_breaks_nothing() {
    let (chain, client) = start(manual(0)).await;
    let bytes = client.signed("Carol", &data("data"), immortal(u32::MAX.into())).await;
    let mut statuses = client.watch(&bytes).await;
    assert_eq!(statuses.next().await.0, "future");
    let first = client.signed("Carol", &data("first"), immortal(0)).await;
    client.submit(&first).await.unwrap();
    chain.produce_block().await.unwrap();
    assert_eq!(chain.extrinsics().await.unwrap().len(), 1);
}
