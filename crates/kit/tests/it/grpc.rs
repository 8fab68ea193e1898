//! Servers and clients, as services use them.

use std::{net::SocketAddr, pin::Pin, time::Duration};

use futures::{Stream, StreamExt as _, stream};
use kit::{Channel, GrpcServer, Health, Shutdown, Tls};
use tokio::{task::JoinHandle, time::timeout};
use tonic::{Code, Status};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::fake::{Fake, Handler, call, listen};

const SOON: Duration = Duration::from_secs(20);

/// Echoes, fails, or takes forever, as it is told.
#[derive(Debug, Clone)]
struct Parrot;

#[tonic::async_trait]
impl Handler for Parrot {
    async fn say(&self, word: String) -> Result<String, Status> {
        match word.as_str() {
            "fail" => Err(Status::failed_precondition("as you wish")),
            "forever" => std::future::pending().await,
            _ => Ok(word),
        }
    }

    async fn tell(
        &self,
        word: String,
    ) -> Result<Pin<Box<dyn Stream<Item = Result<String, Status>> + Send>>, Status> {
        Ok(match word.as_str() {
            "once" => stream::once(async move { Ok(word) }).chain(stream::pending()).boxed(),
            "slowly" => stream::unfold(0, |i| async move {
                tokio::time::sleep(Duration::from_millis(100)).await;
                (i < 10).then(|| (Ok(i.to_string()), i + 1))
            })
            .boxed(),
            _ => stream::repeat_with(move || Ok(word.clone())).boxed(),
        })
    }
}

struct Running {
    addr: SocketAddr,
    health: Health,
    shutdown: Shutdown,
    serving: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    fn start(server: GrpcServer) -> Self {
        let (addr, health, shutdown) = (server.local_addr(), server.health(), Shutdown::default());
        let serving = tokio::spawn(kit::serve(server, shutdown.clone()));
        Self { addr, health, shutdown, serving }
    }

    fn channel(&self) -> Channel {
        kit::channel(&format!("http://{}", self.addr), &Tls::default()).unwrap()
    }

    async fn ended(self) {
        timeout(SOON, self.serving).await.expect("the server ends").unwrap().unwrap();
    }
}

async fn bound() -> GrpcServer {
    let addr = "127.0.0.1:0".parse().unwrap();
    GrpcServer::bind(addr, &Tls::default()).await.unwrap().named("svc-test").add(Fake(Parrot))
}

#[tokio::test]
async fn a_call_is_answered_and_a_failure_keeps_its_code_and_message() {
    let server = Running::start(bound().await);
    assert_eq!(call(server.channel(), "/test.Fake/Say", "hello").await.unwrap(), "hello");
    let error = call(server.channel(), "/test.Fake/Say", "fail").await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::FailedPrecondition, "as you wish"));
    for path in ["/test.Fake/None", "/test.None/Say"] {
        let error = call(server.channel(), path, "x").await.unwrap_err();
        assert_eq!(error.code(), Code::Unimplemented, "{path}");
    }
    server.shutdown.cancel();
    server.ended().await;
}

#[tokio::test]
async fn health_is_told_per_service_and_changes_are_watched() {
    let server = Running::start(bound().await);
    let mut client = HealthClient::new(server.channel());
    let mut check = async |service: &str| {
        let request = HealthCheckRequest { service: service.to_owned() };
        client.check(request).await.map(|answer| answer.into_inner().status())
    };
    assert_eq!(check("test.Fake").await.unwrap(), ServingStatus::Serving);
    assert_eq!(check("").await.unwrap(), ServingStatus::Serving);
    assert_eq!(check("test.None").await.unwrap_err().code(), Code::NotFound);

    let mut watcher = HealthClient::new(server.channel());
    let request = HealthCheckRequest { service: "test.Fake".to_owned() };
    let mut changes = watcher.watch(request).await.unwrap().into_inner();
    let mut next = async || changes.message().await.map(|answer| answer.unwrap().status());
    assert_eq!(next().await.unwrap(), ServingStatus::Serving);
    server.health.set("test.Fake", false);
    assert_eq!(next().await.unwrap(), ServingStatus::NotServing);
    assert_eq!(check("").await.unwrap(), ServingStatus::NotServing);
    server.health.set("test.Other", false);
    server.health.set("test.Fake", true);
    assert_eq!(next().await.unwrap(), ServingStatus::Serving, "others are no news");
    assert_eq!(check("").await.unwrap(), ServingStatus::NotServing, "all of them, or not at all");

    server.shutdown.cancel();
    assert_eq!(next().await.unwrap(), ServingStatus::NotServing, "a stop is told");
    assert_eq!(next().await.unwrap_err().code(), Code::Unavailable, "and then the stream ends");
    server.ended().await;
}

#[tokio::test]
async fn the_process_is_ready_when_all_its_servers_are_and_until_it_stops() {
    let (one, other) = (bound().await, bound().await);
    let process = Shutdown::default();
    let health = other.health();
    health.set("test.Fake", false);
    assert!(!process.is_ready(), "nothing serves yet");
    let mut servers = Vec::new();
    for server in [one, other] {
        let part = process.child();
        let channel =
            kit::channel(&format!("http://{}", server.local_addr()), &Tls::default()).unwrap();
        servers.push(tokio::spawn(kit::serve(server, part)));
        call(channel, "/test.Fake/Say", "up").await.unwrap();
    }
    assert!(!process.is_ready(), "one is not ready");
    health.set("test.Fake", true);
    assert!(process.is_ready());
    process.cancel();
    assert!(!process.is_ready());
    for server in servers {
        timeout(SOON, server).await.unwrap().unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_stop_ends_streams_that_are_silent_and_cuts_those_that_never_are() {
    let server = Running::start(bound().await.grace(Duration::from_secs(3)));
    let mut silent = listen(server.channel(), "once").await.unwrap();
    assert_eq!(silent.message().await.unwrap().unwrap(), "once");
    let mut noisy = listen(server.channel(), "on and on").await.unwrap();
    assert_eq!(noisy.message().await.unwrap().unwrap(), "on and on");

    server.shutdown.cancel();
    assert_eq!(silent.message().await.unwrap_err().code(), Code::Unavailable);
    let reader = tokio::spawn(async move { while let Ok(Some(_)) = noisy.message().await {} });
    server.ended().await;
    timeout(SOON, reader).await.expect("the noisy stream was cut").unwrap();
}

#[tokio::test]
async fn a_stop_lets_a_stream_that_still_speaks_finish() {
    let server = Running::start(bound().await);
    let mut slow = listen(server.channel(), "slowly").await.unwrap();
    assert_eq!(slow.message().await.unwrap().unwrap(), "0");
    server.shutdown.cancel();
    let mut words = 1;
    while slow.message().await.unwrap().is_some() {
        words += 1;
    }
    assert_eq!(words, 10);
    server.ended().await;
}

#[tokio::test]
async fn a_call_that_never_ends_does_not_hold_up_a_stop() {
    let server = Running::start(bound().await.grace(Duration::from_millis(100)));
    let stuck = tokio::spawn(call(server.channel(), "/test.Fake/Say", "forever"));
    assert_eq!(call(server.channel(), "/test.Fake/Say", "up").await.unwrap(), "up");
    server.shutdown.cancel();
    server.ended().await;
    assert!(timeout(SOON, stuck).await.unwrap().unwrap().is_err());
}

#[tokio::test]
async fn a_timeout_ends_answers_but_not_streams() {
    let server = Running::start(bound().await.timeout(Duration::from_millis(300)));
    let error = call(server.channel(), "/test.Fake/Say", "forever").await.unwrap_err();
    assert!(matches!(error.code(), Code::Cancelled | Code::DeadlineExceeded), "{error:?}");

    let url = format!("http://{}", server.addr);
    let short = kit::channel_with(&url, &Tls::default(), Duration::from_millis(300)).unwrap();
    let words: Vec<_> = listen(short, "slowly").await.unwrap().collect().await;
    assert_eq!(words.len(), 10, "a second of words over a timeout of 0.3 s");
    assert!(words.iter().all(Result::is_ok));
}

#[tokio::test]
async fn a_client_outlives_its_server() {
    let addr = testkit::unused_addr().unwrap();
    let channel = kit::channel(&format!("http://{addr}"), &Tls::default()).unwrap();
    let down = call(channel.clone(), "/test.Fake/Say", "x").await.unwrap_err();
    assert_eq!(down.code(), Code::Unavailable);
    for _ in 0..2 {
        let server = GrpcServer::bind(addr, &Tls::default()).await.unwrap().add(Fake(Parrot));
        let server = Running::start(server);
        let mut answer = call(channel.clone(), "/test.Fake/Say", "up").await;
        // The first call after a loss may still meet the old connection.
        for _ in 0..50 {
            if answer.is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            answer = call(channel.clone(), "/test.Fake/Say", "up").await;
        }
        assert_eq!(answer.unwrap(), "up");
        server.shutdown.cancel();
        server.ended().await;
    }
}

#[tokio::test]
async fn reflection_speaks_both_versions_and_knows_health() {
    use tonic_reflection::pb::{v1, v1alpha};

    let server = Running::start(bound().await);
    let request = v1::ServerReflectionRequest {
        message_request: Some(v1::server_reflection_request::MessageRequest::ListServices(
            String::new(),
        )),
        ..Default::default()
    };
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(server.channel());
    let mut answers =
        client.server_reflection_info(stream::iter([request])).await.unwrap().into_inner();
    let new = format!("{:?}", answers.message().await.unwrap().unwrap());
    assert!(new.contains("grpc.health.v1.Health"), "{new}");

    let request = v1alpha::ServerReflectionRequest {
        message_request: Some(v1alpha::server_reflection_request::MessageRequest::ListServices(
            String::new(),
        )),
        ..Default::default()
    };
    let mut client =
        v1alpha::server_reflection_client::ServerReflectionClient::new(server.channel());
    let mut answers =
        client.server_reflection_info(stream::iter([request])).await.unwrap().into_inner();
    let old = format!("{:?}", answers.message().await.unwrap().unwrap());
    assert!(old.contains("grpc.health.v1.Health"), "{old}");
}

#[tokio::test]
async fn an_address_that_is_taken_is_named() {
    let server = bound().await;
    let again = GrpcServer::bind(server.local_addr(), &Tls::default()).await.unwrap_err();
    assert!(format!("{again:#}").contains(&server.local_addr().to_string()), "{again:#}");
}
