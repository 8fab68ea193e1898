//! The binary.

use std::time::Duration;

use proto::chain::v1::IntentState;
use testkit::{Process, RedisServer};

use crate::rig;

const WITHIN: Duration = Duration::from_secs(30);

#[tokio::test]
async fn the_binary_serves_and_ends_on_sigterm() {
    let chain = rig::start(rig::genesis()).await;
    let addr = testkit::unused_addr().unwrap();
    let mut running = Process::new(env!("CARGO_BIN_EXE_svc-chain"))
        .env("CONNITO_TOKEN", rig::TOKEN)
        .env("CONNITO_CHAIN_GRPC_ADDR", addr.to_string())
        .env("CONNITO_CHAIN_ENDPOINTS", format!("[\"{}\"]", chain.url()))
        .env("CONNITO_CHAIN_WALLET_PATH", rig::wallets())
        .env("CONNITO_CHAIN_COLDKEY", "validator")
        .spawn()
        .unwrap();
    running.listens(addr, WITHIN).await.unwrap();
    running.says("owns the nonce", WITHIN).await.unwrap();
    running.stops_cleanly(WITHIN).await.unwrap();
}

#[tokio::test]
async fn the_binary_names_a_wallet_that_is_not_there() {
    let folder = testkit::tempdir().unwrap();
    let mut running = Process::new(env!("CARGO_BIN_EXE_svc-chain"))
        .env("CONNITO_CHAIN_GRPC_ADDR", "127.0.0.1:0")
        .env("CONNITO_CHAIN_WALLET_PATH", folder.path())
        .spawn()
        .unwrap();
    let status = running.ends(WITHIN).await.unwrap();
    assert!(!status.success());
    let output = running.output();
    assert!(output.contains("wallet_path") && output.contains("hotkeys/default"), "{output}");
}

#[tokio::test]
async fn a_process_that_is_killed_and_started_again_on_redis_sends_once() {
    let chain = rig::start(rig::genesis()).await;
    let redis = RedisServer::start().await.unwrap();
    let addr = testkit::unused_addr().unwrap();
    let spawn = || {
        Process::new(env!("CARGO_BIN_EXE_svc-chain"))
            .env("CONNITO_TOKEN", rig::TOKEN)
            .env("CONNITO_STORE_URL", redis.url())
            .env("CONNITO_CHAIN_GRPC_ADDR", addr.to_string())
            .env("CONNITO_CHAIN_ENDPOINTS", format!("[\"{}\"]", chain.url()))
            .env("CONNITO_CHAIN_WALLET_PATH", rig::wallets())
            .env("CONNITO_CHAIN_COLDKEY", "validator")
            .env("CONNITO_CHAIN_LEASE_TTL", "1s")
            .spawn()
            .unwrap()
    };
    let mut running = spawn();
    running.says("owns the nonce", WITHIN).await.unwrap();
    let mut client = rig::client(addr);
    let request = rig::weights(7, &[(2, 1.0)]);
    client.submit_intent(request.clone()).await.unwrap();
    running.kill().unwrap();
    running.ends(WITHIN).await.unwrap();

    let mut running = spawn();
    running.says("owns the nonce", WITHIN).await.unwrap();
    let intent = rig::carried_out(&mut rig::client(addr), request).await;
    assert_eq!(intent.state(), IntentState::Done, "{intent:?}");
    assert_eq!(chain.extrinsics().await.unwrap().len(), 1);
    running.stops_cleanly(WITHIN).await.unwrap();
}

/// Runs a program on a terminal of its own, and types the password when it is asked for one.
const TYPIST: &str = r#"
import os, pty, sys
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.argv[1], sys.argv[1:])
said, typed = b"", False
while True:
    try:
        said_now = os.read(terminal, 4096)
    except OSError:
        break
    said += said_now
    os.write(1, said_now)
    if not typed and b"Password of the wallet" in said:
        os.write(terminal, b"correct horse battery staple\n")
        typed = True
"#;

#[tokio::test]
async fn a_person_at_a_terminal_is_asked_for_the_password_and_it_is_not_shown() {
    let chain = rig::start(rig::genesis()).await;
    let mut running = Process::new("python3")
        .args(["-c", TYPIST, env!("CARGO_BIN_EXE_svc-chain")])
        .env("CONNITO_TOKEN", rig::TOKEN)
        .env("CONNITO_CHAIN_GRPC_ADDR", "127.0.0.1:0")
        .env("CONNITO_CHAIN_ENDPOINTS", format!("[\"{}\"]", chain.url()))
        .env("CONNITO_CHAIN_WALLET_PATH", rig::wallets())
        .env("CONNITO_CHAIN_COLDKEY", "encrypted")
        .spawn()
        .unwrap();
    running.says("holds the hotkey", WITHIN).await.unwrap();
    let output = running.output();
    assert!(output.contains("Password of the wallet"), "{output}");
    assert!(!output.contains("battery"), "{output}");
}
