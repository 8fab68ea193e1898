//! Strangers: any certificate will do, and is remembered.

use std::{fs, net::SocketAddr, time::Duration};

use futures::{StreamExt as _, stream};
use kit::{Certificate, GrpcServer, Line, Shutdown};
use testkit::tempdir;
use tokio::sync::watch;
use tonic::Status;

use crate::fake::{Fake, Handler, Words, call, listen};

const WORD: usize = 64 * 1024;

/// Repeats a word, and counts how often it was taken.
#[derive(Debug, Clone)]
struct Repeats(watch::Sender<usize>);

#[tonic::async_trait]
impl Handler for Repeats {
    async fn say(&self, word: String) -> Result<String, Status> {
        Ok(word)
    }

    async fn tell(&self, _: String) -> Result<Words, Status> {
        let taken = self.0.clone();
        let word = move |_| {
            taken.send_modify(|count| *count += 1);
            Ok("x".repeat(WORD))
        };
        Ok(stream::iter(0..1000).map(word).boxed())
    }
}

struct Server {
    addr: SocketAddr,
    taken: watch::Receiver<usize>,
    shutdown: Shutdown,
}

impl Server {
    async fn start(addr: SocketAddr, certificate: Option<&Certificate>) -> Self {
        let (count, taken) = watch::channel(0);
        let server = GrpcServer::bind_public(addr, certificate).await.unwrap();
        let server = server.grace(Duration::ZERO).add(Fake(Repeats(count)));
        let (addr, shutdown) = (server.local_addr(), Shutdown::default());
        let stop = shutdown.clone();
        shutdown.spawn(async move { kit::serve(server, stop).await.unwrap() });
        Self { addr, taken, shutdown }
    }

    async fn stop(self) -> SocketAddr {
        assert!(self.shutdown.drain(Duration::from_secs(30)).await);
        self.addr
    }
}

fn anywhere() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn line(scheme: &str, addr: SocketAddr) -> Line {
    Line::open(&format!("{scheme}://{addr}")).unwrap()
}

async fn says(line: &Line) -> Result<String, Status> {
    call(line.channel(), "/test.Fake/Say", "hello").await
}

#[tokio::test]
async fn any_certificate_is_taken_and_remembered() {
    let certificate = Certificate::self_signed().unwrap();
    let server = Server::start(anywhere(), Some(&certificate)).await;
    let line = line("https", server.addr);
    assert_eq!(line.shown(), None, "nothing was called yet");
    assert_eq!(says(&line).await.unwrap(), "hello");
    assert_eq!(line.shown(), Some(certificate.fingerprint()));
    let other = Certificate::self_signed().unwrap();
    assert_ne!(line.shown(), Some(other.fingerprint()), "each is made anew");
    server.stop().await;
}

#[tokio::test]
async fn a_pinned_line_takes_no_other_certificate_and_a_new_one_sees_it() {
    let certificate = Certificate::self_signed().unwrap();
    let server = Server::start(anywhere(), Some(&certificate)).await;
    let (pinned, loose) = (line("https", server.addr), line("https", server.addr));
    for line in [&pinned, &loose] {
        assert_eq!(says(line).await.unwrap(), "hello");
    }
    pinned.pin(certificate.fingerprint());
    let addr = server.stop().await;

    let other = Certificate::self_signed().unwrap();
    let server = Server::start(addr, Some(&other)).await;
    while says(&loose).await.is_err() {}
    assert_eq!(loose.shown(), Some(other.fingerprint()));
    assert!(says(&pinned).await.is_err());
    assert!(says(&pinned).await.is_err(), "nor later");
    assert_eq!(pinned.shown(), Some(certificate.fingerprint()));
    let addr = server.stop().await;

    let server = Server::start(addr, Some(&certificate)).await;
    while says(&pinned).await.is_err() {}
    server.stop().await;
}

#[tokio::test]
async fn without_tls_no_certificate_is_shown_and_schemes_do_not_mix() {
    let server = Server::start(anywhere(), None).await;
    let plain = line("http", server.addr);
    assert_eq!(says(&plain).await.unwrap(), "hello");
    assert_eq!(plain.shown(), None);
    let secret = line("https", server.addr);
    assert!(says(&secret).await.is_err());
    assert_eq!(secret.shown(), None);
    server.stop().await;
    assert!(Line::open("not a url").is_err());
}

#[tokio::test]
async fn a_stream_runs_megabytes_ahead_of_its_reader() {
    let certificate = Certificate::self_signed().unwrap();
    let mut server = Server::start(anywhere(), Some(&certificate)).await;
    let line = line("https", server.addr);
    let _unread = listen(line.channel(), "words").await.unwrap();
    // Less would stand still at 50 ms of latency.
    let ahead = server.taken.wait_for(|taken| taken * WORD >= 4 << 20);
    tokio::time::timeout(Duration::from_secs(60), ahead).await.unwrap().unwrap();
    server.stop().await;
}

#[test]
fn a_certificate_is_read_from_its_files_and_its_key_is_never_shown() {
    let folder = tempdir().unwrap();
    let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    let made = rcgen::generate_simple_self_signed(["connito".to_owned()]).unwrap();
    fs::write(&cert, made.cert.pem()).unwrap();
    fs::write(&key, made.signing_key.serialize_pem()).unwrap();

    let read = Certificate::read(&cert, &key).unwrap();
    assert_eq!(read.fingerprint(), Certificate::fingerprint_of(&cert).unwrap());
    assert!(!format!("{read:?}").contains("PRIVATE"), "{read:?}");

    for (cert, key, named) in
        [(&folder.path().join("none.pem"), &key, "none.pem"), (&key, &key, "key.pem")]
    {
        let error = format!("{:#}", Certificate::read(cert, key).unwrap_err());
        assert!(error.contains(named), "{error}");
    }
}
