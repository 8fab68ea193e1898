//! Bytes from people who mean harm: every method answers, and the chain goes on.

use codec::{Compact, Encode as _};
use proptest::{prelude::*, strategy::ValueTree as _, test_runner::TestRunner};
use serde_json::{Value as Json, json};
use subxt::{
    OnlineClientAtBlock, SubstrateConfig,
    config::Hasher as _,
    rpcs::{self, RpcClient, client::RpcParams},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::client::*;

type At = OnlineClientAtBlock<SubstrateConfig>;

async fn call(rpc: &RpcClient, method: &str, params: &[Json]) -> Result<Json, rpcs::Error> {
    let mut list = RpcParams::new();
    for param in params {
        list.push(param).unwrap();
    }
    rpc.request(method, list).await
}

async fn methods(rpc: &RpcClient) -> Vec<String> {
    let answer = call(rpc, "rpc_methods", &[]).await.unwrap();
    serde_json::from_value(answer["methods"].clone()).unwrap()
}

fn garbage() -> impl Strategy<Value = Json> {
    let bytes = prop::collection::vec(any::<u8>(), 0..80);
    prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<u64>().prop_map(Json::from),
        any::<i64>().prop_map(Json::from),
        ".{0,40}".prop_map(Json::from),
        bytes.prop_map(|b| json!(format!("0x{}", hex::encode(b)))),
        Just(json!("0x")),
        Just(json!("0xf")),
        Just(json!(format!("0x{}", "00".repeat(32)))),
        Just(json!({ "an": ["object"] })),
        prop::collection::vec(any::<u32>().prop_map(Json::from), 0..5).prop_map(Json::from),
        Just(json!("Core_version")),
        Just(json!("Metadata_metadata_at_version")),
        Just(json!("AccountNonceApi_account_nonce")),
        Just(json!("SubnetInfoRuntimeApi_get_metagraph")),
        Just(json!("SubnetInfoRuntimeApi_get_selective_metagraph")),
    ]
}

#[tokio::test]
async fn garbage_to_every_method_is_answered_and_changes_nothing() {
    let (chain, client) = start(genesis()).await;
    let before = chain.head().await.unwrap();
    let mut runner = TestRunner::deterministic();
    for method in methods(&client.rpc).await {
        // A subscription that is taken has no answer that `request` could wait for.
        if method.contains("_subscribe") {
            continue;
        }
        for _ in 0..20 {
            let strategy = prop::collection::vec(garbage(), 0..5);
            let params = strategy.new_tree(&mut runner).unwrap().current();
            match within(call(&client.rpc, &method, &params)).await {
                Ok(_) | Err(rpcs::Error::User(_)) => {}
                Err(e) => panic!("{method} {params:?}: {e}"),
            }
        }
    }
    assert_eq!(chain.head().await.unwrap(), before);
    client.follow("Alice", &set_weights(&[2], &[1], 0)).await.unwrap();
}

#[tokio::test]
async fn garbage_that_is_signed_well_is_refused_or_included_and_never_fatal() {
    let (chain, client) = start(genesis()).await;
    let at = client.at().await;
    let tails = [vec![], vec![0xff; 64], vec![0; 64], vec![3; 300]];
    let mut bodies: Vec<Vec<u8>> = Vec::new();
    for pallet in at.metadata_ref().pallets() {
        let ours = ["SubtensorModule", "Commitments"].contains(&pallet.name());
        for variant in pallet.call_variants().unwrap_or_default() {
            for tail in &tails[..if ours { 4 } else { 1 }] {
                bodies.push([&[pallet.call_index(), variant.index][..], tail].concat());
            }
        }
    }
    // A batch of batches of batches, deeper than any stack.
    let utility = at.metadata_ref().pallet_by_name("Utility").unwrap();
    let batch = utility.call_variant_by_name("batch").unwrap().index;
    bodies.push([utility.call_index(), batch, 4].repeat(60_000));
    let mut taken = 0;
    for body in bodies {
        let bytes = sign_raw(&at, "Mallory", taken, &body);
        match client.submit(&bytes).await {
            Ok(_) => taken += 1,
            Err(Refused(code, reason)) => assert!((1001..=1010).contains(&code), "{reason}"),
        }
    }
    let journal = chain.extrinsics().await.unwrap();
    assert_eq!(journal.len(), taken as usize);
    assert!(journal.iter().all(|x| x.error.is_some()));
    client.follow("Alice", &set_weights(&[2], &[1], 0)).await.unwrap();
}

/// Signs call bytes that need not be a call, immortal, by hand.
fn sign_raw(at: &At, who: &str, nonce: u32, call: &[u8]) -> Vec<u8> {
    // Era, nonce, tip, no metadata hash.
    let extra = [&[0][..], &Compact(nonce).encode(), &[0, 0]].concat();
    let genesis = at.genesis_hash().unwrap().0;
    let implicit = (at.spec_version(), at.transaction_version(), genesis, genesis, 0u8).encode();
    let mut payload = [call, &extra, &implicit].concat();
    if payload.len() > 256 {
        payload = at.hasher().hash(&payload).0.to_vec();
    }
    let signature = key(who).sign(&payload).0;
    let inner = [&[0x84, 0][..], &public(who), &[1], &signature, &extra, call].concat();
    inner.encode()
}

#[tokio::test]
async fn a_message_that_is_too_large_costs_the_sender_and_no_one_else() {
    let (chain, client) = start(genesis()).await;
    let other = Client::connect(&chain.url()).await;
    let huge = json!("ff".repeat(3 << 20));
    let refused = within(call(&client.rpc, "author_submitExtrinsic", &[huge])).await;
    assert!(refused.is_err());
    let long = vec![0x84; 300 * 1024];
    assert_eq!(other.submit(&long).await.unwrap_err().0, 1010);
}

#[tokio::test]
async fn noise_on_the_socket_closes_that_socket_only() {
    let (chain, client) = start(genesis()).await;
    let address = chain.url().trim_start_matches("ws://").to_owned();
    let upgrade = "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    // A frame that says it has 2^63 bytes, a message that is no JSON, and plain noise.
    let frames: [&[u8]; 3] = [&[0x82, 0xff, 0x80], &[0x81, 0x84, 0, 0, 0, 0, 1, 2, 3, 4], &[7; 99]];
    for start in ["", upgrade] {
        for frame in frames {
            let mut socket = tokio::net::TcpStream::connect(&address).await.unwrap();
            socket.write_all(start.as_bytes()).await.unwrap();
            socket.write_all(&[frame, &[0; 64]].concat()).await.unwrap();
            socket.shutdown().await.unwrap();
            // Cut or answered, it ends.
            let _ = within(socket.read_to_end(&mut Vec::new())).await;
        }
    }
    assert_eq!(client.at().await.block_number(), 0);
}

#[tokio::test]
async fn a_page_of_keys_is_bounded() {
    let (_chain, client) = start(genesis()).await;
    let refused = call(&client.rpc, "state_getKeysPaged", &[json!("0x"), json!(1001)]).await;
    assert!(matches!(refused, Err(rpcs::Error::User(e)) if e.code == 4002));
    let page = call(&client.rpc, "state_getKeysPaged", &[json!("0x"), json!(10)]).await.unwrap();
    assert_eq!(page.as_array().unwrap().len(), 10);
}
