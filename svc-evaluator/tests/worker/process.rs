//! The binary: it finds libtorch without help, and stops when told.

use std::time::Duration;

use testkit::Process;

#[tokio::test]
async fn the_binary_starts_without_an_environment_and_stops_on_sigterm() {
    let dir = tempfile::tempdir().unwrap();
    let addr = testkit::unused_addr().unwrap();
    let mut running = Process::new(env!("CARGO_BIN_EXE_svc-evaluator"))
        .env("CONNITO_EVALUATOR_GRPC_ADDR", addr.to_string())
        .env("CONNITO_ARTIFACTS_URL", format!("file:{}", dir.path().display()))
        .env("CONNITO_DATA_DIR", dir.path())
        .env("CONNITO_SCHEDULER_URL", "http://127.0.0.1:1")
        .spawn()
        .unwrap();
    running.listens(addr, Duration::from_secs(20)).await.unwrap();
    running.stops_cleanly(Duration::from_secs(20)).await.unwrap();
}
