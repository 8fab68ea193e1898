//! The service as a process of its own.

use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);

#[tokio::test]
async fn the_process_serves_and_stops_cleanly_on_sigterm() {
    let dir = testkit::tempdir().unwrap();
    let addr = testkit::unused_addr().unwrap();
    let mut process = testkit::Process::new(env!("CARGO_BIN_EXE_svc-peer"))
        .env("CONNITO_PEER_GRPC_ADDR", addr.to_string())
        .env("CONNITO_DATA_DIR", dir.path())
        .env("CONNITO_ARTIFACTS_URL", format!("file:{}", dir.path().join("artifacts").display()))
        .spawn()
        .unwrap();
    process.listens(addr, SOON).await.unwrap();
    process.stops_cleanly(SOON).await.unwrap();
}

#[tokio::test]
async fn the_process_names_a_key_that_it_does_not_know() {
    let dir = testkit::tempdir().unwrap();
    let file = dir.path().join("connito.toml");
    std::fs::write(&file, "[peer]\nchunk_byte = 4096\n").unwrap();
    let mut process = testkit::Process::new(env!("CARGO_BIN_EXE_svc-peer"))
        .arg("--config")
        .arg(&file)
        .spawn()
        .unwrap();
    assert!(!process.ends(SOON).await.unwrap().success());
    assert!(process.output().contains("peer.chunk_byte"), "{}", process.output());
}
