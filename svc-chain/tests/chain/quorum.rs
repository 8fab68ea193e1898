//! Reads that decide money, where endpoints do not say the same.

use devchain::{DevNode, Lie};
use jsonrpsee::{RpcModule, server::Server, types::ErrorObjectOwned};
use proto::chain::v1;
use serde_json::{Value, json};
use store::Store;
use subxt::rpcs::{RpcClient, client::RpcParams};
use svc_chain::{Config, OnDisagreement};
use tonic::{Code, Status};

use crate::{
    net,
    rig::{self, Running},
};

/// A service on nodes of a chain that has one commitment, and the block right after it.
async fn with_a_commitment(
    count: usize,
    config: impl Fn(&[DevNode]) -> Config,
) -> (devchain::DevChain, Vec<DevNode>, Running, u64) {
    let (chain, nodes) = net::chain(count, rig::genesis()).await;
    let mut service = Running::start(config(&nodes), &Store::in_memory()).await;
    let commitment = rig::commitment(1, "seed", r#"{"h":null,"s":1}"#);
    let intent = rig::carried_out(&mut service.client, commitment).await;
    assert_eq!(intent.state(), v1::IntentState::Done, "{intent:?}");
    net::until_status(&mut service, "all are well", |status| {
        status.endpoints.iter().all(|endpoint| endpoint.state == "ok")
    })
    .await;
    (chain, nodes, service, intent.block)
}

/// As fast a chain needs more patience with who is behind.
fn config(nodes: &[DevNode]) -> Config {
    Config { max_lag: 20, ..net::config(nodes) }
}

async fn commitments(
    service: &mut Running,
    number: u64,
    agreed: bool,
) -> Result<v1::GetCommitmentsResponse, Status> {
    let request = v1::GetCommitmentsRequest { at: rig::at_number(number), agreed };
    service.client.get_commitments(request).await.map(tonic::Response::into_inner)
}

async fn block(
    service: &mut Running,
    number: u64,
    agreed: bool,
) -> Result<v1::GetBlockResponse, Status> {
    let request = v1::GetBlockRequest { number: Some(number), agreed };
    service.client.get_block(request).await.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn two_honest_endpoints_agree_and_say_so() {
    let (_chain, _nodes, mut service, number) = with_a_commitment(2, config).await;
    let answer = commitments(&mut service, number, true).await.unwrap();
    assert_eq!((answer.agreed_by, answer.commitments.len()), (2, 1));
    assert_eq!(answer.source(), v1::Source::Node);
    assert_eq!(answer.commitments[0].kind, "validator");
    assert_eq!(answer.kinds.get("validator"), Some(&1));
    assert_eq!(answer.degradations, []);
    assert_eq!(block(&mut service, number, true).await.unwrap().agreed_by, 2);
    assert_eq!(block(&mut service, number, false).await.unwrap().agreed_by, 1);
    service.stop().await;
}

#[tokio::test]
async fn commitments_that_two_endpoints_tell_otherwise_are_held() {
    let (_chain, nodes, mut service, number) = with_a_commitment(2, config).await;
    nodes[1].set_lie(Some(Lie::Commitments));
    let held = commitments(&mut service, number, true).await.unwrap_err();
    assert_eq!(held.code(), Code::FailedPrecondition, "{held:?}");
    assert!(held.message().starts_with("disagreement"), "{held:?}");
    assert!(held.message().contains(&nodes[1].url()), "{held:?}");
    let status = net::status(&mut service.client).await;
    assert_eq!(net::degradations(&status, "endpoint_disagrees").len(), 1, "{status:?}");
    let plain = commitments(&mut service, number, false).await.unwrap();
    assert_eq!(plain.agreed_by, 1);
    nodes[1].set_lie(None);
    assert_eq!(commitments(&mut service, number, true).await.unwrap().agreed_by, 2);
    service.stop().await;
}

#[tokio::test]
async fn under_the_policy_best_the_first_ones_word_is_taken_and_that_is_said() {
    let best =
        |nodes: &[DevNode]| Config { on_disagreement: OnDisagreement::Best, ..config(nodes) };
    let (_chain, nodes, mut service, number) = with_a_commitment(2, best).await;
    nodes[1].set_lie(Some(Lie::Commitments));
    let answer = commitments(&mut service, number, true).await.unwrap();
    assert_eq!(answer.agreed_by, 1);
    assert_eq!(answer.commitments[0].data, &br#"{"h":null,"s":1}"#[..]);
    assert_eq!(answer.degradations.len(), 1);
    assert_eq!(answer.degradations[0].kind, "no_quorum");
    service.stop().await;
}

#[tokio::test]
async fn a_block_that_two_endpoints_tell_otherwise_is_held() {
    let (chain, nodes, mut service, _) = with_a_commitment(2, config).await;
    nodes[1].set_lie(Some(Lie::BlockHash));
    let number = u64::from(chain.head().await.unwrap().number);
    chain.wait_for_block(u32::try_from(number).unwrap() + 2).await.unwrap();
    let held = block(&mut service, number, true).await.unwrap_err();
    assert!(held.message().starts_with("disagreement"), "{held:?}");
    service.stop().await;
}

#[tokio::test]
async fn of_three_the_one_that_lies_is_overruled_and_named() {
    for lie in [Lie::Commitments, Lie::BlockHash] {
        let (chain, nodes, mut service, number) = with_a_commitment(3, config).await;
        // The first one is asked first, and is not believed for that.
        nodes[0].set_lie(Some(lie));
        let truth = chain.block_hash(u32::try_from(number).unwrap()).await.unwrap().unwrap();
        let answer = commitments(&mut service, number, true).await.unwrap();
        assert_eq!(answer.agreed_by, 2, "{lie:?}");
        assert_eq!(answer.block.unwrap().hash, truth.to_vec(), "{lie:?}");
        assert_eq!(answer.commitments[0].data, &br#"{"h":null,"s":1}"#[..], "{lie:?}");
        let named = answer
            .degradations
            .iter()
            .any(|told| told.kind == "endpoint_disagrees" && told.detail.contains(&nodes[0].url()));
        assert!(named, "{lie:?}: {:?}", answer.degradations);
        service.stop().await;
    }
}

#[tokio::test]
async fn one_endpoint_alone_is_no_quorum_of_two() {
    let (_chain, nodes, mut service, number) = with_a_commitment(2, config).await;
    nodes[1].set_offline(true);
    let held = commitments(&mut service, number, true).await.unwrap_err();
    assert_eq!(held.code(), Code::Unavailable, "{held:?}");
    assert!(held.message().starts_with("no_quorum"), "{held:?}");
    assert_eq!(commitments(&mut service, number, false).await.unwrap().agreed_by, 1);
    nodes[1].set_offline(false);
    net::until("both agree again", || {
        let mut client = service.client.clone();
        async move {
            let request = v1::GetBlockRequest { number: Some(number), agreed: true };
            client.get_block(request).await.ok().filter(|block| block.get_ref().agreed_by == 2)
        }
    })
    .await;
    service.stop().await;
}

/// A node that forwards what it is asked to another one, and answers with the header of another
/// block when it is asked for one by its hash.
async fn forger(of: &DevNode) -> (String, jsonrpsee::server::ServerHandle) {
    let upstream = RpcClient::from_insecure_url(of.url()).await.unwrap();
    let mut module = RpcModule::new(upstream);
    for method in [
        "chain_getBlockHash",
        "chain_getHeader",
        "chain_getFinalizedHead",
        "state_getRuntimeVersion",
        "state_call",
        "state_getKeysPaged",
        "state_queryStorageAt",
    ] {
        let answer = move |params: jsonrpsee::types::Params<'static>,
                           upstream: std::sync::Arc<RpcClient>,
                           _| async move {
            let asked: Vec<Value> = params.parse().unwrap_or_default();
            let mut params = RpcParams::new();
            for value in &asked {
                params.push(value).unwrap();
            }
            let told: Result<Value, _> = upstream.request(method, params).await;
            let mut told =
                told.map_err(|error| ErrorObjectOwned::owned(1, error.to_string(), None::<()>))?;
            if method == "chain_getHeader" && asked.iter().any(Value::is_string) {
                told["stateRoot"] = json!(format!("0x{}", "66".repeat(32)));
            }
            Ok::<_, ErrorObjectOwned>(told)
        };
        module.register_async_method(method, answer).unwrap();
    }
    let server = Server::builder().build("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", server.local_addr().unwrap());
    (url, server.start(module))
}

#[tokio::test]
async fn a_header_that_does_not_have_the_hash_it_is_asked_by_is_a_lie_and_counts_for_nothing() {
    let (chain, nodes) = net::chain(2, rig::genesis()).await;
    let (forger, _running) = forger(&nodes[0]).await;
    let endpoints = vec![nodes[0].url(), forger.clone(), nodes[1].url()];
    let config = Config { endpoints, ..config(&nodes) };
    let mut service = Running::start(config, &Store::in_memory()).await;
    let number = u64::from(chain.wait_for_block(5).await.unwrap().number);
    let answer = block(&mut service, number, true).await.unwrap();
    let truth = chain.block_hash(u32::try_from(number).unwrap()).await.unwrap().unwrap();
    assert_eq!(answer.block.unwrap().hash, truth.to_vec());
    assert_eq!(answer.agreed_by, 2);
    let status = net::status(&mut service.client).await;
    let lies = net::degradations(&status, "endpoint_lies");
    assert!(!lies.is_empty() && lies.iter().all(|lie| lie.contains(&forger)), "{lies:?}");
    assert_eq!(status.endpoints[1].state, "resting");
    service.stop().await;
}
