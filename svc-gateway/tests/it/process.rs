//! The gateway as a process of its own: started, told to stop, killed.

use std::{net::SocketAddr, time::Duration};

use testkit::{OtlpReceiver, Process, Running, unused_addr};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::common::{Miner, World};

const LONG: Duration = Duration::from_secs(30);

/// The gateway's binary.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_svc-gateway");

/// Starts the binary in this world, on this address.
async fn start(world: &World, http: SocketAddr, otlp: Option<&OtlpReceiver>) -> Running {
    let mut process = Process::new(PROGRAM);
    if let Some(otlp) = otlp {
        process = process.env("CONNITO_OTLP_ENDPOINT", otlp.endpoint());
    }
    start_as(world, http, process).await
}

/// Starts what ends in the binary.
pub(crate) async fn start_as(world: &World, http: SocketAddr, process: Process) -> Running {
    let artifacts = format!("file:{}", world.disk.path().join("artifacts").display());
    let grpc = unused_addr().unwrap();
    let process = process
        .env("CONNITO_SCHEDULER_URL", &world.scheduler.url)
        .env("CONNITO_ARTIFACTS_URL", artifacts)
        .env("CONNITO_DATA_DIR", world.disk.path().join("data2"))
        .env("CONNITO_GATEWAY_HTTP_ADDR", http.to_string())
        .env("CONNITO_GATEWAY_GRPC_ADDR", grpc.to_string());
    let mut running = process.spawn().unwrap();
    running.listens(http, LONG).await.unwrap();
    world
        .until("the process is ready", || async {
            let status = reqwest::get(format!("http://{http}/status")).await;
            status.is_ok_and(|response| response.status() == 200)
        })
        .await;
    running
}

#[tokio::test]
async fn a_process_told_to_stop_ends_well_and_its_uploads_are_in_the_rounds_trace() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let world = World::new(&[&miner]).await;
    let otlp = OtlpReceiver::start().await.unwrap();
    let http = unused_addr().unwrap();
    let mut process = start(&world, http, Some(&otlp)).await;
    let content = std::fs::read(&miner.file).unwrap();
    let url = format!("http://{http}");
    let response = world.submit_to(&url, world.fields(&miner), content, "m.pt").await;
    assert_eq!(response.status(), 200);

    process.terminate().unwrap();
    let status = process.ends(LONG).await.unwrap();
    assert!(status.success(), "{status}: {}", process.output());

    let traceparent = world.scheduler.view().unwrap().round.unwrap().traceparent;
    let trace = kit::trace::trace_id(&traceparent).unwrap();
    let spans = otlp
        .wait_for(LONG, |spans| {
            spans.iter().any(|span| span.name == "upload" && span.trace_id == trace)
        })
        .await
        .unwrap();
    let upload = spans.iter().find(|span| span.name == "upload").unwrap();
    assert_eq!(upload.attribute("hotkey"), miner.hotkey.as_str());
    assert_eq!(upload.attribute("uid"), "1");
    assert_eq!(upload.attribute("round"), "336");
}

#[tokio::test]
async fn a_process_killed_in_mid_upload_has_left_nothing_after_its_restart() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let mut world = World::new(&[&miner]).await;
    let http = unused_addr().unwrap();
    let mut process = start(&world, http, None).await;
    world.url = format!("http://{http}");
    let content = std::fs::read(&miner.file).unwrap();
    let (body, boundary) = world.raw_form(&world.fields(&miner), &content);
    let mut stream = world.begin_raw(&boundary, body.len()).await;
    stream.write_all(&body[..body.len() / 2]).await.unwrap();
    world.until("the file is being spooled", || async { !world.traces().is_empty() }).await;
    process.kill().unwrap();
    process.ends(LONG).await.unwrap();
    assert!(!world.traces().is_empty());

    let _process = start(&world, http, None).await;
    assert!(world.traces().is_empty());
    assert_eq!(world.submit_honestly(&miner).await.status(), 200);
}

#[tokio::test]
async fn what_is_no_request_is_answered_by_a_status_and_counted_by_its_reason() {
    let world = World::new(&[]).await;
    let (http, admin) = (unused_addr().unwrap(), unused_addr().unwrap());
    let process = Process::new(PROGRAM).env("CONNITO_GATEWAY_ADMIN_ADDR", admin.to_string());
    let _process = start_as(&world, http, process).await;
    let long = format!("GET /ping HTTP/1.1\r\nX-Long: {}\r\n\r\n", "a".repeat(1 << 20));
    let cases = [("EHLO miner\r\n\r\n", "400", "not_http"), (&long, "431", "header_too_large")];
    for (sent, status, reason) in cases {
        let mut stream = TcpStream::connect(http).await.unwrap();
        // It may be answered before it is sent to its end.
        let _ = stream.write_all(sent.as_bytes()).await;
        let mut answer = vec![0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(String::from_utf8(answer).unwrap(), format!("HTTP/1.1 {status}"));
        let counted = format!(r#"gateway_connections_refused_total{{why="{reason}"}} 1"#);
        world
            .until("it is counted", || async {
                let metrics = reqwest::get(format!("http://{admin}/metrics")).await.unwrap();
                metrics.text().await.unwrap().lines().any(|line| line == counted)
            })
            .await;
    }
}
