//! `connito chain …` as an operator calls it: the program, its options, and a service on the wire.
#![cfg(test)]

use std::time::Duration;

use kit::{GrpcServer, Shutdown, Tls};
use proto::chain::v1::{
    self as chain, IntentKey, IntentState,
    chain_service_server::{ChainService, ChainServiceServer},
};
use testkit::Process;
use tonic::{Request, Response, Status, codegen::tokio_stream};

const LONG: Duration = Duration::from_secs(60);

type Answer<T> = Result<Response<T>, Status>;

fn unused<T>() -> Answer<T> {
    Err(Status::unimplemented("no operator asks"))
}

/// A chain service that is asked by operators only.
struct Told;

#[tonic::async_trait]
impl ChainService for Told {
    type WatchBlocksStream = tokio_stream::Empty<Result<chain::ChainEvent, Status>>;

    async fn get_status(
        &self,
        _: Request<chain::GetStatusRequest>,
    ) -> Answer<chain::GetStatusResponse> {
        let best = chain::Block { number: 77, hash: vec![1; 32].into(), ..Default::default() };
        let url = "ws://127.0.0.1:9944".to_owned();
        let endpoint = chain::Endpoint { url, in_use: true, best: 77, ..Default::default() };
        Ok(Response::new(chain::GetStatusResponse {
            best: Some(best),
            endpoints: vec![endpoint],
            quorum: 1,
            ..Default::default()
        }))
    }

    async fn list_intents(
        &self,
        request: Request<chain::ListIntentsRequest>,
    ) -> Answer<chain::ListIntentsResponse> {
        let chain::ListIntentsRequest { open, limit } = request.into_inner();
        let intent = |kind: &str, state: IntentState| chain::Intent {
            key: Some(IntentKey { round: 808, kind: kind.to_owned() }),
            state: state.into(),
            detail: format!("open {open}, limit {limit}"),
            ..Default::default()
        };
        let mut intents = vec![intent("weights", IntentState::Submitted)];
        if !open {
            intents.push(intent("seed", IntentState::Done));
        }
        Ok(Response::new(chain::ListIntentsResponse { intents }))
    }

    async fn get_identity(
        &self,
        _: Request<chain::GetIdentityRequest>,
    ) -> Answer<chain::GetIdentityResponse> {
        unused()
    }

    async fn watch_blocks(
        &self,
        _: Request<chain::WatchBlocksRequest>,
    ) -> Answer<Self::WatchBlocksStream> {
        unused()
    }

    async fn get_block(
        &self,
        _: Request<chain::GetBlockRequest>,
    ) -> Answer<chain::GetBlockResponse> {
        unused()
    }

    async fn get_metagraph(
        &self,
        _: Request<chain::GetMetagraphRequest>,
    ) -> Answer<chain::Metagraph> {
        unused()
    }

    async fn get_weights(
        &self,
        _: Request<chain::GetWeightsRequest>,
    ) -> Answer<chain::GetWeightsResponse> {
        unused()
    }

    async fn get_commitments(
        &self,
        _: Request<chain::GetCommitmentsRequest>,
    ) -> Answer<chain::GetCommitmentsResponse> {
        unused()
    }

    async fn submit_intent(&self, _: Request<chain::SubmitIntentRequest>) -> Answer<chain::Intent> {
        unused()
    }

    async fn get_intent(&self, _: Request<chain::GetIntentRequest>) -> Answer<chain::Intent> {
        unused()
    }

    async fn sign(&self, _: Request<chain::SignRequest>) -> Answer<chain::SignResponse> {
        unused()
    }
}

/// Runs `connito` with these arguments; returns whether it succeeded and what it wrote.
async fn connito(arguments: &[&str], url: Option<&str>) -> (bool, String) {
    let mut process = Process::new(env!("CARGO_BIN_EXE_connito")).args(arguments);
    if let Some(url) = url {
        process = process.env("CONNITO_CHAIN_URL", url);
    }
    let mut running = process.spawn().unwrap();
    let status = running.ends(LONG).await.unwrap();
    (status.success(), running.output())
}

#[tokio::test]
async fn an_operator_sees_endpoints_and_intents_of_the_service_that_was_named() {
    let addr = "127.0.0.1:0".parse().unwrap();
    let server = GrpcServer::bind(addr, &Tls::default()).await.unwrap();
    let url = format!("http://{}", server.local_addr());
    let server = server.add(ChainServiceServer::new(Told));
    let shutdown = Shutdown::default();
    let stop = shutdown.clone();
    shutdown.spawn(async move { kit::serve(server, stop).await.unwrap() });

    let (ok, text) = connito(&["chain", "status", "--chain", &url], None).await;
    assert!(ok && text.contains("block 77 (0x01010101)"), "{text}");
    assert!(text.contains("│ ● ┆ ws://127.0.0.1:9944"), "{text}");
    let (ok, text) = connito(&["chain", "intents"], Some(&url)).await;
    assert!(ok && text.contains("weights") && text.contains("seed"), "{text}");
    assert!(text.contains("open false, limit 20"), "{text}");
    let asked = ["chain", "intents", "--open", "--limit", "3"];
    let (ok, text) = connito(&asked, Some(&url)).await;
    assert!(ok && text.contains("open true, limit 3") && !text.contains("seed"), "{text}");
    assert!(shutdown.drain(LONG).await);
}

#[tokio::test]
async fn a_chain_service_that_is_not_there_is_an_error_in_one_line() {
    let url = format!("http://{}", testkit::unused_addr().unwrap());
    let (ok, text) = connito(&["chain", "status"], Some(&url)).await;
    assert!(!ok && text.starts_with("connito: ask the chain service: "), "{text}");
    assert_eq!(text.trim_end().lines().count(), 1, "{text}");
    let (ok, text) = connito(&["chain", "status"], Some("https://127.0.0.1:1")).await;
    assert!(!ok && text.contains("no TLS is configured"), "{text}");
}
