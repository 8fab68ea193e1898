//! The life of a process, seen from outside.
//!
//! The tests start this test program again, with an environment that makes one of its tests be
//! the service.

use std::{env, net::SocketAddr, time::Duration};

use kit::{Common, GrpcServer, Shutdown, Tls};
use testkit::{OtlpReceiver, Process, Running, unused_addr};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::Status;
use tracing::info;

use crate::fake::{Fake, Handler, call};

const SOON: Duration = Duration::from_secs(30);

#[derive(Debug, Clone)]
struct Logs;

#[tonic::async_trait]
impl Handler for Logs {
    async fn say(&self, word: String) -> Result<String, Status> {
        info!(%word, "heard");
        Ok(word)
    }
}

/// Is no test by itself: the service of the others.
#[test]
fn the_service() {
    let Ok(mode) = env::var("KIT_TEST_SERVICE") else { return };
    let common: Common = kit::config::load(None, "common").unwrap();
    let (grpc, admin) = (addr("KIT_TEST_GRPC"), addr("KIT_TEST_ADMIN"));
    let result = kit::run("svc-test", &common, Some(admin), async move |shutdown: Shutdown| {
        let server = GrpcServer::bind(grpc, &Tls::default()).await?.add(Fake(Logs));
        match mode.as_str() {
            "obedient" => kit::serve(server, shutdown).await,
            "stubborn" => kit::serve(server, Shutdown::default()).await,
            _ => anyhow::bail!("the service fails by itself"),
        }
    });
    if let Err(error) = result {
        panic!("{error:#}");
    }
}

fn addr(variable: &str) -> SocketAddr {
    env::var(variable).unwrap().parse().unwrap()
}

struct Service {
    process: Running,
    grpc: SocketAddr,
    admin: SocketAddr,
}

fn start(mode: &str, settings: &[(&str, &str)]) -> Service {
    let (grpc, admin) = (unused_addr().unwrap(), unused_addr().unwrap());
    let mut process = Process::new(env::current_exe().unwrap())
        .args(["--exact", "run::the_service", "--nocapture"])
        .env("KIT_TEST_SERVICE", mode)
        .env("KIT_TEST_GRPC", grpc.to_string())
        .env("KIT_TEST_ADMIN", admin.to_string());
    for (name, value) in settings {
        process = process.env(name, value);
    }
    Service { process: process.spawn().unwrap(), grpc, admin }
}

async fn get(addr: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn a_service_answers_is_watched_and_stops_on_sigterm_with_everything_sent() {
    let collector = OtlpReceiver::start().await.unwrap();
    let endpoint = collector.endpoint();
    let mut service =
        start("obedient", &[("CONNITO_OTLP_ENDPOINT", &endpoint), ("CONNITO_INSTANCE", "a")]);
    service.process.listens(service.grpc, SOON).await.unwrap();
    let url = format!("http://{}", service.grpc);
    let channel = kit::channel(&url, &Tls::default()).unwrap();
    assert_eq!(call(channel.clone(), "/test.Fake/Say", "hello").await.unwrap(), "hello");

    assert!(get(service.admin, "/healthz").await.starts_with("HTTP/1.1 200"));
    assert!(get(service.admin, "/readyz").await.starts_with("HTTP/1.1 200"));
    assert!(get(service.admin, "/nothing").await.starts_with("HTTP/1.1 404"));
    let metrics = get(service.admin, "/metrics").await;
    assert!(metrics.contains("rpc_requests_total{"), "{metrics}");

    // Not a terminal, so it is JSON; and a line within a call has the trace of the call.
    let line = service.process.says("heard", SOON).await.unwrap();
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&line["word"], &line["level"]), (&"hello".into(), &"INFO".into()), "{line}");
    let id = line["trace_id"].as_str().unwrap().to_owned();

    // A batch is sent every five seconds by itself; a stop sends what there is.
    service.process.stops_cleanly(SOON).await.unwrap();
    let spans = collector.trace(&id);
    assert_eq!(spans.len(), 1, "{spans:#?}");
    assert_eq!((spans[0].service_name.as_str(), spans[0].instance_id.as_str()), ("svc-test", "a"));
}

#[tokio::test]
async fn ctrl_c_stops_it_too() {
    let mut service = start("obedient", &[]);
    service.process.listens(service.grpc, SOON).await.unwrap();
    service.process.interrupt().unwrap();
    assert!(service.process.ends(SOON).await.unwrap().success(), "{}", service.process.output());
}

#[tokio::test]
async fn an_unreachable_collector_harms_neither_calls_nor_the_stop() {
    let nobody = format!("http://{}", unused_addr().unwrap());
    let mut service = start("obedient", &[("CONNITO_OTLP_ENDPOINT", &nobody)]);
    service.process.listens(service.grpc, SOON).await.unwrap();
    let channel = kit::channel(&format!("http://{}", service.grpc), &Tls::default()).unwrap();
    assert_eq!(call(channel, "/test.Fake/Say", "hello").await.unwrap(), "hello");
    service.process.stops_cleanly(SOON).await.unwrap();
}

#[tokio::test]
async fn a_service_that_ignores_the_stop_is_left_behind_and_said_to_have_failed() {
    let mut service = start("stubborn", &[("CONNITO_SHUTDOWN_GRACE", "500ms")]);
    service.process.listens(service.grpc, SOON).await.unwrap();
    service.process.terminate().unwrap();
    assert!(!service.process.ends(SOON).await.unwrap().success());
    let output = service.process.output();
    assert!(output.contains("did not stop within 500ms"), "{output}");
}

#[tokio::test]
async fn a_service_that_fails_ends_the_process_with_its_reason() {
    let mut service = start("failing", &[]);
    assert!(!service.process.ends(SOON).await.unwrap().success());
    service.process.says("the service fails by itself", SOON).await.unwrap();
}

#[tokio::test]
async fn a_log_filter_that_is_none_is_named() {
    let mut service = start("obedient", &[("CONNITO_LOG_FILTER", "=/=")]);
    assert!(!service.process.ends(SOON).await.unwrap().success());
    service.process.says("log_filter", SOON).await.unwrap();
}

#[tokio::test]
async fn log_lines_go_to_the_file_that_is_named_instead() {
    let folder = testkit::tempdir().unwrap();
    let path = folder.path().join("service.log");
    std::fs::write(&path, "what was there\n").unwrap();
    let mut service = start("obedient", &[("CONNITO_LOG_FILE", path.to_str().unwrap())]);
    service.process.listens(service.grpc, SOON).await.unwrap();
    service.process.terminate().unwrap();
    assert!(service.process.ends(SOON).await.unwrap().success());
    let log = std::fs::read_to_string(&path).unwrap();
    let (first, lines) = log.split_once('\n').unwrap();
    assert_eq!(first, "what was there");
    assert!(lines.contains("stopped"), "{log}");
    for line in lines.lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap();
    }
    assert!(!service.process.output().contains("gRPC server listens"));
}
