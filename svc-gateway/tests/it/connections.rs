//! Clients that stall, lie, vanish or talk too much.

use std::time::Duration;

use svc_gateway::Config;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::common::{Miner, World, assert_refused};

/// Reads an answer whole: the server closes, or its length was reached.
pub(crate) async fn read_answer(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    while let Ok(read) = stream.read(&mut piece).await {
        answer.extend(&piece[..read]);
        let text = String::from_utf8_lossy(&answer);
        let whole = text.split_once("\r\n\r\n").is_some_and(|(_, body)| body.ends_with('}'));
        if read == 0 || whole {
            break;
        }
    }
    String::from_utf8(answer).unwrap()
}

fn miner_and_content() -> (Miner, Vec<u8>) {
    let miner = Miner::new(1, "miner0_g0.pt");
    let content = std::fs::read(&miner.file).unwrap();
    (miner, content)
}

#[tokio::test]
async fn a_client_that_vanishes_in_mid_upload_leaves_nothing_and_may_come_back() {
    let (miner, content) = miner_and_content();
    let world = World::new(&[&miner]).await;
    let fields = world.fields(&miner);
    let (body, boundary) = world.raw_form(&fields, &content);
    // The last one is within the closing boundary: behind it the upload is whole.
    let points = (0..20).map(|n| 1 + n * (body.len() - 4) / 19);
    for cut in points {
        let mut stream = world.begin_raw(&boundary, body.len()).await;
        stream.write_all(&body[..cut]).await.unwrap();
        drop(stream);
    }
    world.until("no upload is left", || async { world.uploads().await == 0 }).await;
    world.until_no_traces().await;
    assert!(world.scheduler.submissions().is_empty());
    // The very same request, as today's miners repeat it.
    let response = world.submit_to(&world.url, fields, content, "m.pt").await;
    assert_eq!(response.status(), 200, "{}", response.text().await.unwrap());
}

#[tokio::test]
async fn a_client_that_hangs_up_behind_the_last_byte_has_submitted() {
    let (miner, content) = miner_and_content();
    let world = World::new(&[&miner]).await;
    let (body, boundary) = world.raw_form(&world.fields(&miner), &content);
    let mut stream = world.begin_raw(&boundary, body.len()).await;
    stream.write_all(&body).await.unwrap();
    stream.shutdown().await.unwrap();
    world
        .until("the submission is reported", || async { world.scheduler.submissions().len() == 1 })
        .await;
}

#[tokio::test]
async fn a_body_that_is_shorter_than_announced_leaves_nothing() {
    let (miner, content) = miner_and_content();
    let world = World::new(&[&miner]).await;
    let (body, boundary) = world.raw_form(&world.fields(&miner), &content);
    // The form is whole, the announced body is not: taken or not, but never half.
    let mut stream = world.begin_raw(&boundary, body.len() + 1000).await;
    stream.write_all(&body[..body.len() - 10]).await.unwrap();
    stream.shutdown().await.unwrap();
    let answer = read_answer(&mut stream).await;
    assert!(answer.is_empty() || answer.contains("broken_off"), "{answer}");
    world.until("no upload is left", || async { world.uploads().await == 0 }).await;
    world.until_no_traces().await;
    assert!(world.scheduler.submissions().is_empty());
}

#[tokio::test]
async fn what_comes_behind_the_form_or_behind_the_announced_length_does_no_harm() {
    let miners = [1, 2].map(|number| Miner::new(number, "miner0_g0.pt"));
    let world = World::new(&[&miners[0], &miners[1]]).await;
    let content = std::fs::read(&miners[0].file).unwrap();
    // Announced, and of no use: an epilogue.
    let (mut body, boundary) = world.raw_form(&world.fields(&miners[0]), &content);
    body.extend([b'x'; 100_000]);
    let mut stream = world.begin_raw(&boundary, body.len()).await;
    stream.write_all(&body).await.unwrap();
    let answer = read_answer(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // Not announced: no part of the upload, but a request, which is none.
    let (mut body, boundary) = world.raw_form(&world.fields(&miners[1]), &content);
    let length = body.len();
    body.extend([b'x'; 100_000]);
    let mut stream = world.begin_raw(&boundary, length).await;
    stream.write_all(&body).await.unwrap();
    let answer = read_answer(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(world.traces().len(), 4);
    for submission in world.scheduler.submissions() {
        assert_eq!(submission.bytes, content.len() as u64);
    }
    // Announced shorter than it is: the form has no end.
    let miner = Miner::new(3, "miner0_g0.pt");
    let world = World::new(&[&miner]).await;
    let (body, boundary) = world.raw_form(&world.fields(&miner), &content);
    let mut stream = world.begin_raw(&boundary, body.len() - 1000).await;
    stream.write_all(&body).await.unwrap();
    let answer = read_answer(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("broken_off"), "{answer}");
    world.until_no_traces().await;
}

#[tokio::test]
async fn an_upload_slower_than_the_limit_is_408_and_leaves_nothing() {
    let (miner, content) = miner_and_content();
    let config = Config { upload_timeout: Duration::from_millis(300), ..Config::default() };
    let world = World::with(&[&miner], config).await;
    let (body, boundary) = world.raw_form(&world.fields(&miner), &content);
    let mut stream = world.begin_raw(&boundary, body.len()).await;
    // A byte now and then: never idle, never done.
    let (mut reader, mut writer) = stream.split();
    let answer = async {
        let mut answer = vec![0; 1024];
        let read = reader.read(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer[..read]).into_owned()
    };
    let drip = async {
        for byte in &body {
            writer.write_all(&[*byte]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        unreachable!("the answer comes first");
    };
    let answer = tokio::select! { answer = answer => answer, () = drip => unreachable!() };
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    world.until_no_traces().await;
}

#[tokio::test]
async fn an_upload_that_falls_silent_is_408_and_frees_its_place() {
    let (miner, content) = miner_and_content();
    let config =
        Config { idle_timeout: Duration::from_millis(1500), max_uploads: 1, ..Config::default() };
    let world = World::with(&[&miner], config).await;
    let (body, boundary) = world.raw_form(&world.fields(&miner), &content);
    let mut stream = world.begin_raw(&boundary, body.len()).await;
    stream.write_all(&body[..body.len() / 2]).await.unwrap();
    world.until("the upload is under way", || async { world.uploads().await == 1 }).await;
    let busy = world.submit_honestly(&miner).await;
    assert!(busy.headers().contains_key("retry-after"));
    assert_refused(busy, 503, "busy").await;
    let answer = read_answer(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains("too_slow"), "{answer}");
    world.until_no_traces().await;
    assert_eq!(world.submit_honestly(&miner).await.status(), 200);
}

#[tokio::test]
async fn a_second_upload_beside_one_that_is_under_way_is_409() {
    let (miner, content) = miner_and_content();
    let world = World::new(&[&miner]).await;
    let (body, boundary) = world.raw_form(&world.fields(&miner), &content);
    let mut stream = world.begin_raw(&boundary, body.len()).await;
    stream.write_all(&body[..body.len() / 2]).await.unwrap();
    world.until("the file is being spooled", || async { !world.traces().is_empty() }).await;
    let second = world.submit_honestly(&miner).await;
    assert!(second.headers().contains_key("retry-after"));
    assert_refused(second, 409, "upload_in_progress").await;
    stream.write_all(&body[body.len() / 2..]).await.unwrap();
    let answer = read_answer(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn a_client_that_is_refused_early_still_reads_why() {
    let (miner, _) = miner_and_content();
    let world = World::new(&[&miner]).await;
    let fields = world.fields(&miner);
    world.change(|view| view.block = 356).await;
    let response = world.submit_to(&world.url, fields, vec![0; 32 << 20], "m.pt").await;
    assert_refused(response, 409, "not_submission_phase").await;
}

#[tokio::test]
async fn a_header_that_does_not_end_is_not_waited_for() {
    let config = Config { header_timeout: Duration::from_secs(1), ..Config::default() };
    let world = World::with(&[], config).await;
    let addr = world.url.strip_prefix("http://").unwrap();
    let mut silent = TcpStream::connect(addr).await.unwrap();
    silent.write_all(b"GET / HTTP/1.1\r\nHost: ").await.unwrap();
    let mut rest = Vec::new();
    timeout(Duration::from_secs(20), silent.read_to_end(&mut rest)).await.unwrap().unwrap();

    // Others are served all the while.
    assert_eq!(world.get("/ping").await["status"], "ok");
}

#[tokio::test]
async fn a_header_has_its_limit_whatever_is_read_at_a_time() {
    let world = World::with(&[], Config { max_header_bytes: 16 << 10, ..Config::default() }).await;
    let addr = world.url.strip_prefix("http://").unwrap();
    let request = |long: usize, end: &str| {
        let long = "a".repeat(long);
        format!("GET /ping HTTP/1.1\r\nHost: x\r\nX-Long: {long}{end}")
    };
    // Whole, and shorter than what is read of a body at a time; the last one is read with what is before it.
    for before in ["".to_owned(), request(12 << 10, "\r\n\r\n")] {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let requests = format!("{before}{}", request(19_900, "\r\n\r\n"));
        stream.write_all(requests.as_bytes()).await.unwrap();
        let mut answers = String::new();
        stream.read_to_string(&mut answers).await.unwrap();
        assert_eq!(answers.starts_with("HTTP/1.1 200"), !before.is_empty(), "{answers}");
        assert!(answers.contains("HTTP/1.1 431"), "{answers}");
    }
    // Told as soon as it is too long, not at its end.
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(request(16 << 10, "").as_bytes()).await.unwrap();
    let answer = read_answer(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
}

#[tokio::test]
async fn connections_that_say_nothing_keep_nobody_out() {
    let config = Config {
        header_timeout: Duration::from_secs(3600),
        max_connections: 20,
        ..Config::default()
    };
    let world = World::with(&[], config).await;
    let addr = world.url.strip_prefix("http://").unwrap();
    let mut silent = Vec::new();
    for _ in 0..60 {
        silent.push(TcpStream::connect(addr).await.unwrap());
    }
    // A new connection: that of the client may be one of those that made room.
    let ping = reqwest::get(format!("{}/ping", world.url));
    let response = timeout(Duration::from_secs(20), ping).await.unwrap().unwrap();
    assert_eq!(response.status(), 200);
}
