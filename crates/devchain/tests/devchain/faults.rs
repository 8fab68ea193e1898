//! The knobs: what a test can make the chain do to its clients.

use std::time::Duration;

use devchain::{Genesis, Production};
use subxt::{
    dynamic::{self, Value},
    rpcs::rpc_params,
    utils::H256,
};

use crate::client::*;

async fn header(client: &Client) -> Result<serde_json::Value, subxt::rpcs::Error> {
    within(client.rpc.request("chain_getHeader", rpc_params![])).await
}

#[tokio::test]
async fn dropped_connections_are_gone_and_new_ones_are_welcome() {
    let (chain, client) = start(genesis()).await;
    chain.drop_connections();
    assert!(header(&client).await.is_err());
    header(&Client::connect(&chain.url()).await).await.unwrap();
}

#[tokio::test]
async fn an_offline_chain_takes_no_connections_and_goes_on_when_it_is_back() {
    let mut genesis = genesis();
    genesis.production = Production::Interval(Duration::from_millis(50));
    let (chain, client) = start(genesis).await;
    chain.set_offline(true);
    assert!(header(&client).await.is_err());
    let refused = subxt::rpcs::RpcClient::from_insecure_url(chain.url()).await;
    assert!(refused.is_err());
    let head = chain.head().await.unwrap();
    within(chain.wait_for_block(head.number + 2)).await.unwrap();
    chain.set_offline(false);
    header(&Client::connect(&chain.url()).await).await.unwrap();
}

#[tokio::test]
async fn a_subscriber_hears_the_end_of_a_cut_stream() {
    let (chain, client) = start(genesis()).await;
    let mut blocks = client.api.stream_blocks().await.unwrap();
    within(blocks.next()).await.unwrap().unwrap();
    chain.drop_connections();
    let next = within(blocks.next()).await;
    assert!(next.is_none_or(|block| block.is_err()));
}

#[tokio::test]
async fn the_next_submissions_can_be_refused() {
    let (chain, client) = start(genesis()).await;
    chain.refuse_submits(1);
    let call = set_commitment(&[b"data"]);
    assert_eq!(client.send("Carol", &call).await.unwrap_err().0, 1016);
    client.send("Carol", &call).await.unwrap();
}

#[tokio::test]
async fn an_answer_can_be_lost_although_the_extrinsic_was_taken() {
    let (chain, client) = start(genesis()).await;
    let bytes = client.signed("Carol", &set_commitment(&[b"data"]), immortal(0)).await;
    chain.lose_answers(1);
    let hex = format!("0x{}", hex::encode(&bytes));
    let lost: Result<String, _> =
        within(client.rpc.request("author_submitExtrinsic", rpc_params![hex])).await;
    assert!(lost.is_err());
    within(chain.wait_for_block(1)).await.unwrap();
    assert_eq!(chain.extrinsics().await.unwrap().len(), 1);
    let again = Client::connect(&chain.url()).await;
    assert_eq!(again.submit(&bytes).await.unwrap_err().0, 1012, "it is there already");
}

#[tokio::test]
async fn a_pruned_chain_says_that_a_state_is_discarded() {
    let (chain, client) = start(Genesis { keep_states: Some(2), ..genesis() }).await;
    chain.produce_blocks(5).await.unwrap();
    let tempo = async |block: u32| {
        let hash = H256(chain.block_hash(block).await.unwrap().unwrap());
        let at = client.api.at_block_hash_and_number(hash, block.into()).await;
        let at = at.map_err(|e| format!("{e:?}"))?;
        let entry = dynamic::storage::<Vec<Value>, u16>("SubtensorModule", "Tempo");
        let value = at.storage().fetch(entry, vec![Value::u128(NETUID.into())]).await;
        value.map(|v| v.decode().unwrap()).map_err(|e| format!("{e:?}"))
    };
    assert_eq!(tempo(3).await, Ok(360));
    let error = tempo(2).await.unwrap_err();
    assert!(error.contains("State already discarded"), "{error}");
}

#[tokio::test]
async fn a_paused_chain_makes_no_blocks_by_itself() {
    let mut genesis = genesis();
    genesis.production = Production::Interval(Duration::from_millis(50));
    let (chain, _client) = start(genesis).await;
    within(chain.wait_for_block(1)).await.unwrap();
    chain.set_paused(true);
    let head = chain.head().await.unwrap();
    let more = chain.wait_for_block(head.number + 2);
    assert!(tokio::time::timeout(Duration::from_millis(400), more).await.is_err());
    assert_eq!(chain.produce_block().await.unwrap().number, chain.head().await.unwrap().number);
    chain.set_paused(false);
    within(chain.wait_for_block(head.number + 3)).await.unwrap();
}

#[tokio::test]
async fn latency_holds_up_every_call_for_as_long_as_it_is_set() {
    let (chain, client) = start(genesis()).await;
    chain.set_latency(Duration::from_secs(3600));
    let slow = tokio::time::timeout(Duration::from_millis(300), header(&client)).await;
    assert!(slow.is_err(), "it answered");
    chain.set_latency(Duration::ZERO);
    header(&client).await.unwrap();
}

#[tokio::test]
async fn a_stopped_chain_says_so_and_frees_its_port() {
    let (chain, client) = start(genesis()).await;
    let address = chain.url().trim_start_matches("ws://").parse().unwrap();
    within(chain.stop()).await;
    assert!(chain.head().await.is_err());
    assert!(header(&client).await.is_err());
    let again = devchain::DevChain::start(genesis(), address).await.unwrap();
    header(&Client::connect(&again.url()).await).await.unwrap();
}

#[tokio::test]
async fn dropping_the_last_handle_ends_the_chain() {
    let (chain, client) = start(genesis()).await;
    let clone = chain.clone();
    drop(chain);
    clone.head().await.unwrap();
    drop(clone);
    let gone = within(async {
        while header(&client).await.is_ok() {
            tokio::task::yield_now().await;
        }
    });
    gone.await;
}
