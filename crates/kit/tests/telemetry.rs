//! Traces and metrics of calls, through a real collector.
//!
//! One test, because telemetry is installed once per process.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "it/fake.rs"]
mod fake;

use std::time::Duration;

use fake::{Fake, Handler, Words, call, listen};
use kit::{Channel, Common, GrpcServer, Shutdown, Tls, trace};
use testkit::{OtlpReceiver, Span};
use tonic::{Code, Status};
use tracing::{Instrument as _, info_span};

#[derive(Debug, Clone)]
struct Near {
    far: Channel,
}

#[tonic::async_trait]
impl Handler for Near {
    async fn say(&self, word: String) -> Result<String, Status> {
        let work = info_span!("work", hotkey = "5F");
        call(self.far.clone(), "/test.Fake/Say", &word).instrument(work).await
    }
}

#[derive(Debug, Clone)]
struct Far;

#[tonic::async_trait]
impl Handler for Far {
    async fn say(&self, word: String) -> Result<String, Status> {
        match word.as_str() {
            "fail" => Err(Status::not_found("no such word")),
            _ => Ok(trace::current().unwrap_or_default()),
        }
    }

    async fn tell(&self, word: String) -> Result<Words, Status> {
        Ok(Box::pin(futures::stream::repeat_with(move || Ok(word.clone()))))
    }
}

async fn serve(name: &'static str, server: impl FnOnce(GrpcServer) -> GrpcServer) -> Channel {
    let addr = "127.0.0.1:0".parse().unwrap();
    let bound = GrpcServer::bind(addr, &Tls::default()).await.unwrap().named(name);
    let server = server(bound);
    let url = format!("http://{}", server.local_addr());
    tokio::spawn(kit::serve(server, Shutdown::default()));
    kit::channel(&url, &Tls::default()).unwrap()
}

fn find<'a>(spans: &'a [Span], name: &str, service: &str) -> &'a Span {
    spans
        .iter()
        .find(|span| span.name == name && span.attribute("connito.service") == service)
        .unwrap_or_else(|| panic!("no {name} of {service:?} in {spans:#?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_goes_through_every_server_and_every_call_is_counted_once() {
    let collector = OtlpReceiver::start().await.unwrap();
    let common = Common {
        otlp_endpoint: Some(collector.endpoint()),
        instance: "one".to_owned(),
        ..Common::default()
    };
    let telemetry = kit::telemetry::install("connito", &common).unwrap();
    kit::telemetry::install("again", &common).expect("the first stays, the second is fine");

    let far = serve("svc-far", |server| server.add(Fake(Far))).await;
    let near = serve("svc-near", |server| server.add(Fake(Near { far: far.clone() }))).await;

    // A round whose context was saved by someone else.
    let saved = trace::root();
    let id = trace::trace_id(&saved).unwrap();
    let round = info_span!("round", round = 7);
    trace::attach(&round, &saved);
    let seen = call(near.clone(), "/test.Fake/Say", "hello").instrument(round).await.unwrap();
    assert_eq!(trace::trace_id(&seen), Some(id), "the far server is in the saved trace");

    let failed = call(near.clone(), "/test.Fake/Say", "fail").await.unwrap_err();
    assert_eq!(failed.code(), Code::NotFound);
    for path in ["/test.Fake/Attack1", "/test.Attack2/Say", "/attack3"] {
        let unknown = call(near.clone(), path, "x").await.unwrap_err();
        assert_eq!(unknown.code(), Code::Unimplemented, "{path}");
    }

    let mut stream = listen(far, "on and on").await.unwrap();
    assert_eq!(stream.message().await.unwrap().unwrap(), "on and on");
    drop(stream);
    let cancelled = |text: &str| text.contains(r#"code="Cancelled""#);
    while !cancelled(&telemetry.metrics().render()) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    telemetry.flush().await;
    let complete = |spans: &[Span]| spans.iter().filter(|span| span.trace_id == id).count() >= 4;
    collector.wait_for(Duration::from_secs(20), complete).await.unwrap();
    let spans = collector.trace(id);
    let round = find(&spans, "round", "");
    let near = find(&spans, "test.Fake/Say", "svc-near");
    let work = find(&spans, "work", "");
    let far = find(&spans, "test.Fake/Say", "svc-far");
    assert_eq!(spans.len(), 4, "{spans:#?}");
    assert!(saved.contains(&round.parent_span_id), "the round continues what was saved");
    assert_eq!(near.parent_span_id, round.span_id);
    assert_eq!(work.parent_span_id, near.span_id);
    assert_eq!(far.parent_span_id, work.span_id);
    assert_eq!((round.service_name.as_str(), round.instance_id.as_str()), ("connito", "one"));
    assert_eq!((round.attribute("round"), work.attribute("hotkey")), ("7", "5F"));
    assert_eq!((far.attribute("rpc.service"), far.attribute("rpc.method")), ("test.Fake", "Say"));
    assert_eq!(far.attribute("rpc.grpc.status_code"), "0");
    let failed = collector.spans();
    let failed = failed.iter().find(|span| span.attribute("rpc.grpc.status_code") == "5");
    assert!(
        failed.is_some_and(|span| span.trace_id != id),
        "a call of its own is a trace of its own"
    );

    let text = telemetry.metrics().render();
    let count = |labels: &str| {
        let line = text.lines().find(|line| {
            line.starts_with("rpc_requests_total")
                && labels.split(' ').all(|label| line.contains(label))
        });
        line.and_then(|line| line.rsplit(' ').next()).unwrap_or("none").to_owned()
    };
    let say = r#"service="test.Fake" method="Say""#;
    assert_eq!(count(&format!(r#"{say} code="Ok""#)), "2", "{text}");
    assert_eq!(count(&format!(r#"{say} code="NotFound""#)), "2", "{text}");
    assert_eq!(count(r#"service="test.Fake" method="Tell" code="Cancelled""#), "1", "{text}");
    assert_eq!(count(r#"service="unknown" method="unknown" code="Unimplemented""#), "3", "{text}");
    let attacks = text.to_lowercase();
    assert!(!attacks.contains("attack"), "a stranger's names make no time series: {text}");
    assert!(text.contains("rpc_seconds_bucket{"), "{text}");
}

#[test]
fn a_traceparent_is_taken_apart_only_if_it_is_one() {
    let root = trace::root();
    assert_eq!(root.len(), 55);
    assert_ne!(trace::trace_id(&root), trace::trace_id(&trace::root()));
    assert_eq!(trace::trace_id("00-short-00"), None);
    assert_eq!(trace::trace_id(""), None);
    // What is malformed is ignored, not a panic.
    trace::attach(&info_span!("round"), "00-zz-zz-01");
}
