//! Downloads that break, stall, or see the model change under them.

use std::{collections::BTreeMap, time::Duration};

use checkpoint::{Format, SliceId};
use reqwest::header::HeaderMap;
use sha2::{Digest as _, Sha256};
use svc_gateway::Config;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::common::{NOW, World, assert_refused, keypair, republish};

/// Larger than what sockets hold, so that a download is under way while its client does not read.
const LEN: usize = 24 << 20;
const FILE: (SliceId, Format) = (SliceId::Shared, Format::Safetensors);

/// Numbers that look random: xorshift.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

fn content(seed: u64) -> Vec<u8> {
    let mut numbers = Numbers(seed);
    (0..LEN / 8).flat_map(|_| (numbers.below(usize::MAX) as u64).to_le_bytes()).collect()
}

/// Publishes a large file as this version, and waits until it is the model that is served.
async fn swap(world: &World, version: u64, content: &[u8]) {
    let file = world.disk.path().join("new");
    std::fs::write(&file, content).unwrap();
    let (base, _) = republish(world, version, FILE, &file);
    world
        .change(|view| {
            view.base = Some(base);
            view.block += 1;
        })
        .await;
}

fn patient() -> Config {
    Config { burst_per_hotkey: 1000, ..Config::default() }
}

/// A connection of which the head of an answer was read, and what came behind it.
struct Answer {
    status: u16,
    headers: BTreeMap<String, String>,
    rest: Vec<u8>,
    stream: TcpStream,
}

impl Answer {
    /// Reads `bytes` of the body.
    async fn read(&mut self, bytes: usize) -> Vec<u8> {
        while self.rest.len() < bytes {
            let mut piece = vec![0; 64 << 10];
            let read = self.stream.read(&mut piece).await.unwrap();
            assert!(read > 0, "the connection ended early");
            self.rest.extend(&piece[..read]);
        }
        self.rest.drain(..bytes).collect()
    }

    /// Reads to the end of the connection.
    async fn read_to_end(mut self) -> std::io::Result<Vec<u8>> {
        self.stream.read_to_end(&mut self.rest).await?;
        Ok(self.rest)
    }

    fn length(&self) -> usize {
        self.headers["content-length"].parse().unwrap()
    }
}

/// Reads the head of an answer.
async fn head_of(mut stream: TcpStream, mut rest: Vec<u8>) -> Answer {
    let end = loop {
        if let Some(end) = rest.windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
        let mut piece = vec![0; 4096];
        let read = stream.read(&mut piece).await.unwrap();
        assert!(read > 0, "the connection ended early");
        rest.extend(&piece[..read]);
    };
    let head = String::from_utf8(rest.drain(..end + 4).collect()).unwrap();
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    Answer { status, headers, rest, stream }
}

/// The text of a request for the large file.
fn request(world: &World, method: &str, headers: &str) -> String {
    let mut form = world.download_form(&keypair(1), NOW);
    form.insert("expert_group_id".into(), "shared".into());
    form.insert("format".into(), "safetensors".into());
    let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
    format!("{method} /get-checkpoint?{query} HTTP/1.1\r\nHost: gateway\r\n{headers}\r\n")
}

async fn ask(world: &World, headers: &str) -> Answer {
    let addr = world.url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(request(world, "GET", headers).as_bytes()).await.unwrap();
    head_of(stream, Vec::new()).await
}

#[tokio::test]
async fn a_download_cut_off_200_times_is_resumed_to_the_same_file() {
    let world = World::with(&[], patient()).await;
    let whole = content(11);
    swap(&world, 101, &whole).await;
    let seed = 20_261_127;
    let mut numbers = Numbers(seed);
    let mut have = Vec::new();
    let mut etag = String::new();
    for cut in 0..200 {
        let mut answer = if have.is_empty() {
            ask(&world, "").await
        } else {
            ask(&world, &format!("Range: bytes={}-\r\nIf-Range: {etag}\r\n", have.len())).await
        };
        let status = if have.is_empty() { 200 } else { 206 };
        assert_eq!(
            (answer.status, answer.length()),
            (status, LEN - have.len()),
            "cut {cut}, seed {seed}"
        );
        etag = answer.headers["etag"].clone();
        // Now and then before the first byte.
        let some = numbers.below(2 * LEN / 200).saturating_sub(1000).min(LEN - have.len() - 1);
        have.extend(answer.read(some).await);
    }
    assert!(have.len() > LEN / 2);
    let rest = format!("Range: bytes={}-\r\nIf-Range: {etag}\r\nConnection: close\r\n", have.len());
    let answer = ask(&world, &rest).await;
    assert_eq!(answer.headers["x-content-sha256"], hex::encode(Sha256::digest(&whole)));
    have.extend(answer.read_to_end().await.unwrap());
    assert_eq!(hex::encode(Sha256::digest(&have)), hex::encode(Sha256::digest(&whole)));
}

#[tokio::test]
async fn a_download_stays_with_its_model_when_the_next_one_comes() {
    let world = World::with(&[], patient()).await;
    let (old, new) = (content(1), content(2));
    swap(&world, 101, &old).await;
    let mut early = ask(&world, "Connection: close\r\n").await;
    let begun = early.read(1000).await;
    let etag = early.headers["etag"].clone();

    swap(&world, 102, &new).await;
    // Gone on with: the new model from its first byte, and not its second half.
    let condition = format!("Range: bytes=1000-\r\nIf-Range: {etag}\r\nConnection: close\r\n");
    let late = ask(&world, &condition).await;
    assert_eq!((late.status, late.length()), (200, LEN));
    assert_ne!(late.headers["etag"], etag);
    assert!(late.read_to_end().await.unwrap() == new);
    // Neither is a part of it given to whoever insists on the old one.
    let insisting = ask(&world, &format!("Range: bytes=1000-\r\nIf-Match: {etag}\r\n")).await;
    assert_eq!(insisting.status, 412);

    // What had begun ends as it began, even when the old model is cleared away.
    std::fs::remove_dir_all(world.disk.path().join("artifacts/models/101")).unwrap();
    assert_eq!(early.headers["x-global-version"], "101");
    let all = [begun, early.read_to_end().await.unwrap()].concat();
    assert!(all == old);
}

#[tokio::test]
async fn while_the_models_change_no_client_gets_halves_of_two() {
    let world = World::with(&[], patient()).await;
    let models: Vec<_> = (1..=4).map(content).collect();
    swap(&world, 101, &models[0]).await;
    let sums: Vec<_> = models.iter().map(|model| hex::encode(Sha256::digest(model))).collect();
    // Each goes on with what it has, in parts, until it has all of one model.
    let client = async |mut numbers: Numbers| {
        let (mut have, mut etag, mut sum) = (Vec::new(), String::new(), String::new());
        while have.len() < LEN {
            let range = format!("Range: bytes={}-\r\nIf-Range: \"{etag}\"\r\n", have.len());
            let mut answer = ask(&world, &range).await;
            if answer.status == 200 {
                have.clear();
            }
            etag = answer.headers["etag"].trim_matches('"').to_owned();
            sum = answer.headers["x-content-sha256"].clone();
            let some = (1 + numbers.below(LEN / 8)).min(LEN - have.len());
            have.extend(answer.read(some).await);
        }
        assert_eq!(hex::encode(Sha256::digest(&have)), sum);
        assert!(sums.contains(&sum));
    };
    let swapping = async {
        for (version, model) in (102..).zip(&models[1..]) {
            swap(&world, version, model).await;
        }
    };
    tokio::join!(client(Numbers(7)), client(Numbers(8)), client(Numbers(9)), swapping);
}

#[tokio::test]
async fn a_model_whose_manifest_has_another_hash_than_the_chain_is_not_served() {
    let world = World::new(&[]).await;
    let file = world.disk.path().join("new");
    std::fs::write(&file, content(5)).unwrap();
    let (base, _) = republish(&world, 101, FILE, &file);
    world
        .change(|view| {
            let revealed = view.base.take().unwrap().model_hash;
            view.base = Some(proto::common::v1::ModelRef { model_hash: revealed, ..base });
            view.block += 1;
        })
        .await;
    assert_refused(world.download("shared").send().await.unwrap(), 503, "no_checkpoint").await;
}

#[tokio::test]
async fn requests_behind_each_other_on_one_connection_get_their_own_bytes() {
    let world = World::with(&[], patient()).await;
    let whole = content(3);
    swap(&world, 101, &whole).await;
    let addr = world.url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let parts = [(0, 0), (5, 1_048_580), (LEN - 3, LEN - 1), (1_000_000, 9_000_000)];
    let mut all = request(&world, "HEAD", "");
    for (first, last) in parts {
        all += &request(&world, "GET", &format!("Range: bytes={first}-{last}\r\n"));
    }
    all += "GET /ping HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n";
    stream.write_all(all.as_bytes()).await.unwrap();

    let mut answer = head_of(stream, Vec::new()).await;
    assert_eq!((answer.status, answer.length()), (200, LEN));
    for (first, last) in parts {
        answer = head_of(answer.stream, answer.rest).await;
        assert_eq!(answer.headers["content-range"], format!("bytes {first}-{last}/{LEN}"));
        assert!(answer.read(answer.length()).await == whole[first..=last]);
    }
    answer = head_of(answer.stream, answer.rest).await;
    assert_eq!(answer.read_to_end().await.unwrap(), br#"{"status":"ok"}"#);
}

#[tokio::test]
async fn clients_that_take_nothing_hold_up_nobody_else() {
    // More than may send at a time.
    let many = 2 * std::thread::available_parallelism().unwrap().get() + 2;
    let config = Config {
        max_downloads: many + 1,
        max_downloads_per_address: many + 1,
        max_connections_per_address: 2 * many,
        max_connections: 10 * many,
        idle_timeout: Duration::from_secs(600),
        ..patient()
    };
    let world = World::with(&[], config).await;
    let whole = content(4);
    swap(&world, 101, &whole).await;
    let mut stalled = Vec::new();
    for _ in 0..many {
        stalled.push(ask(&world, "").await);
    }
    for _ in 0..2 {
        let taking = ask(&world, "Connection: close\r\n").await;
        assert!(taking.read_to_end().await.unwrap() == whole);
    }
    // And they go on where they stood.
    for mut answer in stalled {
        assert!(answer.read(LEN).await == whole);
    }
}

#[tokio::test]
async fn a_client_that_takes_nothing_loses_its_place() {
    let limit = Duration::from_millis(500);
    let config = Config { idle_timeout: limit, max_downloads: 1, ..patient() };
    let world = World::with(&[], config).await;
    swap(&world, 101, &content(4)).await;
    let stalled = ask(&world, "").await;
    assert_eq!(stalled.status, 200);
    assert_refused(world.download("shared").send().await.unwrap(), 503, "busy").await;
    world
        .until("the place is free", || async {
            world.download("shared").send().await.unwrap().status() == 200
        })
        .await;
    assert!(stalled.read_to_end().await.map_or(0, |all| all.len()) < LEN);
}

#[tokio::test]
async fn a_client_that_takes_a_download_too_slowly_loses_its_place() {
    let config = Config {
        idle_timeout: Duration::from_millis(300),
        min_download_rate: 1 << 40,
        max_downloads: 1,
        ..patient()
    };
    let world = World::with(&[], config).await;
    swap(&world, 101, &content(5)).await;
    let mut slow = ask(&world, "").await;
    // It takes something all the time, and far less than it must.
    let mut taken = 0;
    let mut piece = vec![0; 16 << 10];
    while let Ok(read @ 1..) = slow.stream.read(&mut piece).await {
        taken += read;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(taken < LEN, "the whole file came");
    world
        .until("the place is free", || async {
            world.download("shared").send().await.unwrap().status() == 200
        })
        .await;
}

#[tokio::test]
async fn a_file_that_is_cut_short_under_a_download_breaks_it() {
    let world = World::with(&[], patient()).await;
    swap(&world, 101, &content(6)).await;
    let mut answer = ask(&world, "").await;
    answer.read(1000).await;
    let path = world.disk.path().join("artifacts/models/101/model_shared.safetensors");
    std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(1 << 20).unwrap();
    assert!(answer.read_to_end().await.map_or(0, |all| all.len()) < LEN - 1000);
    assert_eq!(world.get("/ping").await["status"], "ok");
}

/// The headers that tell a client what it would get.
fn told(headers: &HeaderMap) -> BTreeMap<&str, &str> {
    let mut told: BTreeMap<_, _> =
        headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    told.remove("date");
    told
}

#[tokio::test]
async fn head_tells_what_get_would_and_304_less() {
    let world = World::new(&[]).await;
    let mut form = world.download_form(&keypair(1), NOW);
    form.insert("expert_group_id".into(), "0".into());
    let url = format!("{}/get-checkpoint", world.url);
    let get = world.http.get(&url).query(&form).send().await.unwrap();
    let head = world.http.head(&url).query(&form).header("range", "bytes=1-2").send();
    let head = head.await.unwrap();
    assert_eq!((get.status(), head.status()), (200.try_into().unwrap(), 200.try_into().unwrap()));
    assert_eq!(told(get.headers()), told(head.headers()));
    assert_eq!(get.headers()["vary"], "accept");

    let modified = get.headers()["last-modified"].to_str().unwrap();
    let tag = get.headers()["etag"].to_str().unwrap();
    for (name, value) in [("if-none-match", tag), ("if-modified-since", modified)] {
        let same = world.http.get(&url).query(&form).header(name, value).send().await.unwrap();
        assert_eq!(same.status(), 304, "{name}");
        assert_eq!(same.headers()["etag"], tag);
        for header in ["content-length", "content-type", "content-disposition", "content-range"] {
            assert!(!same.headers().contains_key(header), "{header}");
        }
    }
    let since = "Thu, 01 Jan 1970 00:00:00 GMT";
    for (name, value) in [("if-match", "\"other\""), ("if-unmodified-since", since)] {
        let other = world.http.get(&url).query(&form).header(name, value).send().await.unwrap();
        assert_refused(other, 412, "precondition_failed").await;
    }
}
