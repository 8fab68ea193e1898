//! The scheduler as a process of its own: started, told to stop, killed.

use std::{net::SocketAddr, path::Path, time::Duration};

use proto::scheduler::v1::{GetRoundRequest, RoundStage};
use testkit::{Process, RedisServer, Running, unused_addr};
use tonic::Code;

use crate::{
    record::verified,
    world::{LONG, ROUND, World, client, degraded, round, until, written},
};

/// Starts the binary with this world's settings.
async fn start(world: &World, store: &str, file: &Path) -> (Running, SocketAddr) {
    let addr = unused_addr().unwrap();
    let config = format!(
        "[common]\nphases = [4, 4, 4, 4, 4, 4, 4, 4, 4]\n\
         [scheduler]\nblock_time = \"40ms\"\nleader_ttl = \"2s\"\ninitial_version = {}\n\
         [scheduler.policy]\nweights = \"top_k\"\n",
        world.config.initial_version
    );
    std::fs::write(file, config).unwrap();
    let mut running = Process::new(env!("CARGO_BIN_EXE_svc-scheduler"))
        .arg("--config")
        .arg(file)
        .env("CONNITO_STORE_URL", store)
        .env("CONNITO_ARTIFACTS_URL", &world.common.artifacts_url)
        .env("CONNITO_DATA_DIR", world.disk.path().join("data"))
        .env("CONNITO_CHAIN_URL", &world.common.chain_url)
        .env("CONNITO_PEER_URL", &world.common.peer_url)
        .env("CONNITO_SCHEDULER_GRPC_ADDR", addr.to_string())
        .spawn()
        .unwrap();
    running.listens(addr, LONG).await.unwrap();
    (running, addr)
}

#[tokio::test]
async fn without_a_chain_it_stays_up_stands_by_and_stops_when_told() {
    let mut world = World::new().await;
    world.common.chain_url = format!("http://{}", unused_addr().unwrap());
    let file = world.disk.path().join("connito.toml");
    let (mut process, addr) = start(&world, "memory://", &file).await;
    process.says("ask the chain service who this validator is", LONG).await.unwrap();
    let status = client(addr).get_round(GetRoundRequest {}).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("chain service"), "{}", status.message());
    process.stops_cleanly(LONG).await.unwrap();
}

#[tokio::test]
async fn a_chain_service_that_never_answers_does_not_keep_it_from_stopping() {
    let mut world = World::new().await;
    // The host takes connections to it, and nobody ever reads from them.
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    world.common.chain_url = format!("http://{}", mute.local_addr().unwrap());
    let file = world.disk.path().join("connito.toml");
    let (process, addr) = start(&world, "memory://", &file).await;
    let status = client(addr).get_round(GetRoundRequest {}).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    process.stops_cleanly(LONG).await.unwrap();
}

#[tokio::test]
async fn a_store_that_hangs_does_not_keep_a_leader_from_stopping() {
    let redis = RedisServer::start().await.unwrap();
    let world = World::new().await;
    let file = world.disk.path().join("connito.toml");
    let (process, addr) = start(&world, &redis.url(), &file).await;
    until(&client(addr), "it leads", |view| view.block == 5).await;
    redis.freeze().unwrap();
    process.stops_cleanly(LONG).await.unwrap();
    redis.thaw().unwrap();
}

#[tokio::test]
async fn a_leader_in_mid_round_stops_cleanly_when_told() {
    let world = World::new().await;
    let file = world.disk.path().join("connito.toml");
    let (process, addr) = start(&world, "memory://", &file).await;
    let client = client(addr);
    until(&client, "it leads", |view| view.block == 5).await;
    world.chain.advance(ROUND);
    until(&client, "the freeze", |view| {
        view.round.as_ref().is_some_and(|r| r.stage() == RoundStage::Evaluating)
    })
    .await;
    process.stops_cleanly(LONG).await.unwrap();
}

#[tokio::test]
async fn the_round_of_a_killed_process_is_finished_by_another_one_over_redis() {
    let redis = RedisServer::start().await.unwrap();
    let world = World::new().await;
    let file = world.disk.path().join("connito.toml");
    let (mut first, addr) = start(&world, &redis.url(), &file).await;
    let mut leading = client(addr);
    until(&leading, "it leads", |view| view.block == 5).await;
    let (second, standby) = start(&world, &redis.url(), &file).await;
    let mut next = client(standby);
    assert_eq!(next.get_round(GetRoundRequest {}).await.unwrap_err().code(), Code::Unavailable);
    world.chain.advance(8);
    let opened = until(&leading, "the seed", |v| v.round.is_some() && written(v, "seed")).await;
    world.chain.advance(ROUND);
    until(&leading, "the freeze", |v| round(v).stage() == RoundStage::Evaluating).await;
    first.kill().unwrap();
    first.ends(LONG).await.unwrap();
    leading.get_round(GetRoundRequest {}).await.unwrap_err();

    let resumed = until(&next, "it leads", |view| view.block == ROUND).await;
    assert_eq!(round(&resumed).traceparent, round(&opened).traceparent);
    assert_eq!(round(&resumed).stage(), RoundStage::Evaluating);
    // Nobody works: the round stays open until the next one begins.
    world.chain.advance(28);
    until(&next, "the signed hash", |view| written(view, "signed_hash")).await;
    world.chain.advance(32);
    until(&next, "the model's hash", |view| written(view, "model_hash")).await;
    world.chain.advance(36 + 8);
    let view = until(&next, "the next round", |view| round(view).cycle == 1).await;
    assert_ne!(round(&view).traceparent, round(&opened).traceparent);
    let path = world.path("rounds/16/record.json");
    let end = tokio::time::Instant::now() + LONG;
    while !path.exists() {
        assert!(tokio::time::Instant::now() < end, "no record");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (_, record) = verified(&std::fs::read_to_string(path).unwrap());
    assert_eq!(record.traceparent, round(&opened).traceparent);
    for kind in ["signed_hash", "model_hash"] {
        world.chain.payload(kind);
    }
    assert!(degraded(&resumed).is_empty());
    second.stops_cleanly(LONG).await.unwrap();
}
