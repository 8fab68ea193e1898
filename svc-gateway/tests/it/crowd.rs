//! Many at once, strangers and slow ones: what they can take, and that honest miners get theirs.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use reqwest::Client;
use svc_gateway::Config;
use testkit::{Process, Running, unused_addr};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    time::{sleep, timeout},
};

use crate::{
    common::{Miner, World, assert_refused},
    connections::read_answer,
    process::{PROGRAM, start_as},
};

const LONG: Duration = Duration::from_secs(60);
const NEVER: Duration = Duration::from_secs(3600);

fn addr(world: &World) -> SocketAddr {
    world.url.strip_prefix("http://").unwrap().parse().unwrap()
}

/// Connects from an address of one's own: all of 127.0.0.0/8 is this machine.
async fn connect_from(number: u16, to: SocketAddr) -> io::Result<TcpStream> {
    let [high, low] = number.to_be_bytes();
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind((Ipv4Addr::new(127, 1, high, low.max(1)), 0).into())?;
    socket.connect(to).await
}

/// A submission's form, and where in it the file begins.
fn form_of(world: &World, miner: &Miner) -> (Vec<u8>, String, usize) {
    let content = std::fs::read(&miner.file).unwrap();
    let (body, boundary) = world.raw_form(&world.fields(miner), &content);
    let file = body.windows(8).position(|bytes| bytes == b"filename").unwrap();
    (body, boundary, file)
}

#[tokio::test]
async fn strangers_with_slow_forms_take_no_slot_and_no_disk() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let world = World::with(&[&miner], Config { max_uploads: 1, ..Config::default() }).await;
    let (body, boundary, file) = form_of(&world, &miner);
    let mut strangers = Vec::new();
    for _ in 0..40 {
        let mut stranger = world.begin_raw(&boundary, body.len()).await;
        stranger.write_all(&body[..file]).await.unwrap();
        strangers.push(stranger);
    }
    assert_eq!(world.uploads().await, 0);
    assert!(world.traces().is_empty());
    assert_eq!(world.submit_honestly(&miner).await.status(), 200);
}

#[tokio::test]
async fn fields_that_do_not_come_are_408_long_before_an_upload_would_be() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let config = Config {
        header_timeout: Duration::from_millis(700),
        idle_timeout: NEVER,
        upload_timeout: NEVER,
        ..Config::default()
    };
    let world = World::with(&[&miner], config).await;
    let (body, boundary, file) = form_of(&world, &miner);
    let mut stranger = world.begin_raw(&boundary, body.len()).await;
    stranger.write_all(&body[..file]).await.unwrap();
    let answer = timeout(LONG, read_answer(&mut stranger)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("too_slow"), "{answer}");
    assert!(world.scheduler.refusals().is_empty(), "nobody knows who it was");
}

#[tokio::test]
async fn fields_that_are_too_long_together_are_400() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let world = World::new(&[&miner]).await;
    let mut form = reqwest::multipart::Form::new();
    for number in 0..6 {
        form = form.text(format!("field{number}"), "x".repeat(3000));
    }
    let request = world.http.post(format!("{}/submit", world.url)).multipart(form);
    assert_refused(request.send().await.unwrap(), 400, "malformed_form").await;
}

#[tokio::test]
async fn a_miner_that_sends_a_byte_now_and_then_is_408_and_may_send_the_same_again() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let config = Config {
        idle_timeout: Duration::from_millis(500),
        min_upload_rate: 10_000,
        upload_timeout: NEVER,
        ..Config::default()
    };
    let world = World::with(&[&miner], config).await;
    let fields = world.fields(&miner);
    let content = std::fs::read(&miner.file).unwrap();
    let (body, boundary) = world.raw_form(&fields, &content);
    let mut stream = world.begin_raw(&boundary, body.len()).await;
    let (mut reader, mut writer) = stream.split();
    writer.write_all(&body[..2000]).await.unwrap();
    let drip = async {
        for byte in &body[2000..] {
            writer.write_all(&[*byte]).await.unwrap();
            sleep(Duration::from_millis(10)).await;
        }
        unreachable!("the answer comes first");
    };
    let mut answer = vec![0; 1024];
    let read = tokio::select! {
        read = reader.read(&mut answer) => read.unwrap(),
        () = drip => unreachable!(),
    };
    let answer = String::from_utf8_lossy(&answer[..read]);
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains("too_slow") && answer.contains("10000 bytes/s"), "{answer}");
    world.until_no_traces().await;
    drop(stream);
    assert_eq!(world.submit_to(&world.url, fields, content, "m.pt").await.status(), 200);
}

#[tokio::test]
async fn an_address_has_no_more_connections_than_its_share_and_is_told_so() {
    let config =
        Config { max_connections_per_address: 3, header_timeout: NEVER, ..Config::default() };
    let world = World::with(&[], config).await;
    let addr = addr(&world);
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(connect_from(1, addr).await.unwrap());
    }
    let ping = async |from: u8| {
        let client = Client::builder().local_address(Some([127, 1, 0, from].into()));
        client.build().unwrap().get(format!("{}/ping", world.url)).send().await.unwrap()
    };
    let refused = ping(1).await;
    assert!(refused.headers().contains_key("retry-after"));
    assert_refused(refused, 429, "too_many_connections").await;
    assert_eq!(ping(2).await.status(), 200);
    silent.pop();
    world.until("the place is free", || async { ping(1).await.status() == 200 }).await;
}

#[tokio::test]
async fn behind_a_proxy_requests_of_a_client_are_limited_and_connections_of_the_proxy_are_not() {
    let miners = [1, 2].map(|number| Miner::new(number, "miner0_g0.pt"));
    let config = Config {
        client_address_header: "x-real-ip".into(),
        max_connections_per_address: 2,
        ..Config::default()
    };
    let world = World::with(&[&miners[0], &miners[1]], config).await;
    let (body, boundary, file) = form_of(&world, &miners[0]);
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(addr(&world)).await.unwrap();
        let head = format!(
            "POST /submit HTTP/1.1\r\nHost: gateway\r\nX-Real-IP: 10.0.0.1\r\n\
             Content-Type: multipart/form-data; boundary={boundary}\r\n\
             Content-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&body[..file]).await.unwrap();
        open.push(stream);
    }
    let ping = async |client: &str| {
        let request = Client::new().get(format!("{}/ping", world.url));
        request.header("x-real-ip", client).send().await.unwrap()
    };
    world.until("both are under way", || async { ping("10.0.0.1").await.status() == 429 }).await;
    let refused = ping("10.0.0.1").await;
    assert!(refused.headers().contains_key("retry-after"));
    assert_refused(refused, 429, "too_many_connections").await;
    let mut others = Vec::new();
    for client in 2..20 {
        let response = ping(&format!("10.0.0.{client}")).await;
        assert_eq!(response.status(), 200);
        others.push(response);
    }
    drop(open);
    world.until("they are gone", || async { ping("10.0.0.1").await.status() == 200 }).await;
}

#[tokio::test]
async fn when_all_places_are_taken_strangers_make_room_and_an_upload_goes_on() {
    let miners = [Miner::new(1, "miner0_g0.pt"), Miner::new(2, "miner1_g0.pt")];
    let config = Config { max_connections: 8, header_timeout: NEVER, ..Config::default() };
    let world = World::with(&[&miners[0], &miners[1]], config).await;
    let (body, boundary, _) = form_of(&world, &miners[0]);
    let mut stream = world.begin_raw(&boundary, body.len()).await;
    stream.write_all(&body[..body.len() / 2]).await.unwrap();
    world.until("the upload is under way", || async { world.uploads().await == 1 }).await;
    let mut silent = Vec::new();
    for number in 0..50 {
        silent.push(connect_from(number, addr(&world)).await.unwrap());
    }
    // Those who came first were given up.
    let mut rest = Vec::new();
    let ended = timeout(LONG, silent[0].read_to_end(&mut rest)).await.unwrap();
    assert!(rest.is_empty() && ended.is_ok_and(|read| read == 0));
    let response = world.submit_honestly(&miners[1]).await;
    assert_eq!(response.status(), 200);
    stream.write_all(&body[body.len() / 2..]).await.unwrap();
    let answer = read_answer(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn what_the_spool_has_no_room_for_is_503_until_there_is() {
    let miners = [Miner::new(1, "miner0_g0.pt"), Miner::new(2, "miner0_g0.pt")];
    let [one, other] = &miners;
    let spool_bytes = std::fs::metadata(&one.file).unwrap().len() * 3 / 2;
    let world = World::with(&[one, other], Config { spool_bytes, ..Config::default() }).await;
    let (body, boundary, _) = form_of(&world, one);
    let mut stream = world.begin_raw(&boundary, body.len()).await;
    stream.write_all(&body[..body.len() / 2]).await.unwrap();
    world.until("the upload is under way", || async { world.uploads().await == 1 }).await;
    let fields = world.fields(other);
    let refused = world.submit(fields.clone(), &other.file, "m.pt").await;
    assert!(refused.headers().contains_key("retry-after"));
    assert_refused(refused, 503, "no_room").await;
    stream.write_all(&body[body.len() / 2..]).await.unwrap();
    assert!(read_answer(&mut stream).await.starts_with("HTTP/1.1 200"));
    // The same request: its signature was not used up, and the miner is not to blame.
    world
        .until("there is room", || async {
            world.submit(fields.clone(), &other.file, "m.pt").await.status() == 200
        })
        .await;
    assert!(world.scheduler.refusals().iter().all(|(_, reason)| reason == "no_room"));
}

#[tokio::test]
async fn on_a_disk_that_is_nearly_full_an_upload_is_503_and_a_form_without_length_needs_most() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let config = Config { min_free_bytes: u64::MAX / 2, ..Config::default() };
    let world = World::with(&[&miner], config).await;
    assert_refused(world.submit_honestly(&miner).await, 503, "no_room").await;
    world.until_no_traces().await;

    let spool_bytes = std::fs::metadata(&miner.file).unwrap().len() * 2;
    let world = World::with(&[&miner], Config { spool_bytes, ..Config::default() }).await;
    let (body, boundary, _) = form_of(&world, &miner);
    let chunked = world
        .http
        .post(format!("{}/submit", world.url))
        .header("content-type", format!("multipart/form-data; boundary={boundary}"))
        .body(reqwest::Body::wrap_stream(futures::stream::iter([Ok::<_, io::Error>(body)])));
    assert_refused(chunked.send().await.unwrap(), 503, "no_room").await;
    assert_eq!(world.submit_honestly(&miner).await.status(), 200);
}

fn status_of(process: &Running, line: &str) -> u64 {
    let path = PathBuf::from(format!("/proc/{}/status", process.id().unwrap()));
    let status = std::fs::read_to_string(path).unwrap();
    let value = status.lines().find_map(|found| found.strip_prefix(line)).unwrap();
    value.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test]
async fn a_thousand_slow_connections_take_bounded_places_and_memory_and_no_upload_from_anybody() {
    const PLACES: usize = 300;
    let miners = [Miner::new(1, "miner0_g0.pt"), Miner::new(2, "miner1_g0.pt")];
    let mut world = World::new(&[&miners[0], &miners[1]]).await;
    let http = unused_addr().unwrap();
    let program = Process::new(PROGRAM)
        .env("CONNITO_GATEWAY_MAX_CONNECTIONS", PLACES.to_string())
        .env("CONNITO_GATEWAY_HEADER_TIMEOUT", "1h");
    let process = start_as(&world, http, program).await;
    world.url = format!("http://{http}");
    let quiet = status_of(&process, "VmRSS");

    let (body, boundary, file) = form_of(&world, &miners[0]);
    let mut stream = world.begin_raw(&boundary, body.len()).await;
    stream.write_all(&body[..body.len() / 2]).await.unwrap();
    world.until("the file is being spooled", || async { !world.traces().is_empty() }).await;

    let head = format!(
        "POST /submit HTTP/1.1\r\nHost: gateway\r\nContent-Length: 1000000\r\n\
         Content-Type: multipart/form-data; boundary={boundary}\r\n\r\n"
    );
    let mut slow = Vec::new();
    for number in 0..1000_u16 {
        let mut connection = connect_from(number, http).await.unwrap();
        // Some say nothing, some begin a header, some the fields of a form.
        let beginning = match number % 3 {
            0 => Vec::new(),
            1 => head.as_bytes()[..40].to_vec(),
            _ => [head.as_bytes(), &body[..file / 2]].concat(),
        };
        let _ = connection.write_all(&beginning).await;
        slow.push(connection);
    }
    let drip = async {
        loop {
            for connection in &mut slow {
                // Those that were given up are gone.
                let _ = connection.write_all(b"x").await;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    let honest = async {
        assert_eq!(world.submit_honestly(&miners[1]).await.status(), 200);
        stream.write_all(&body[body.len() / 2..]).await.unwrap();
        let answer = read_answer(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let files = std::fs::read_dir(format!("/proc/{}/fd", process.id().unwrap())).unwrap();
        (files.count(), status_of(&process, "VmHWM"))
    };
    let (files, peak) = tokio::select! {
        found = honest => found,
        () = drip => unreachable!(),
        () = sleep(LONG) => panic!("the uploads did not end"),
    };
    // What the process has open without them, and with those that are being told that there is no place.
    assert!(files < PLACES + 150, "{files} files are open");
    let grown = peak.saturating_sub(quiet) / 1024;
    assert!(grown < 48, "{grown} MiB more than before");
    drop(process);
}
