//! Submissions by tus through connections that break, gateways that restart and clients that are killed.

use std::path::Path;

use client::{Patience, Transport};
use svc_gateway::Config;

use crate::{
    common::{Miner, ROUND, World},
    proxy::{Cut, Numbers, Proxy},
    scene::{Alone, client, own_copy, patient, quick},
};

/// Where the client notes its upload.
fn note(path: &Path, world: &World) -> std::path::PathBuf {
    let name = path.file_name().unwrap().to_str().unwrap();
    path.with_file_name(format!("{name}.{}.upload", world.validator))
}

/// Asserts that exactly this was stored of this miner, and told once.
fn assert_stored(world: &World, miner: &Miner) {
    let name = miner.file.file_name().unwrap().to_str().unwrap();
    let key = format!("submissions/{ROUND}/{}/{name}", miner.hotkey);
    let kept = std::fs::read(world.disk.path().join("artifacts").join(&key)).unwrap();
    assert!(kept == std::fs::read(&miner.file).unwrap(), "{key}");
    let told = world.scheduler.submissions();
    let told = told.iter().filter(|told| told.hotkey == miner.hotkey.as_str()).count();
    assert_eq!(told, 1, "{key}");
}

fn miners(count: u8) -> Vec<Miner> {
    (1..=count).map(|number| Miner::new(number, "miner0_g0.pt")).collect()
}

async fn world(miners: &[Miner]) -> World {
    World::with(&miners.iter().collect::<Vec<_>>(), patient()).await
}

#[tokio::test]
async fn where_the_gateway_offers_it_a_submission_goes_by_tus() {
    let miners = miners(1);
    let world = world(&miners).await;
    let path = own_copy(&world, &miners[0]);
    let done = client(&world.url, &miners[0]).submit(&path, miners[0].hash).await.unwrap();
    assert_eq!(done.transport, Transport::Tus);
    let key = format!("submissions/{ROUND}/{}/miner0_g0.pt", miners[0].hotkey);
    assert_eq!(done.key.as_deref(), Some(key.as_str()));
    assert_eq!(done.sha256.unwrap().len(), 64);
    assert_stored(&world, &miners[0]);
    assert!(!note(&path, &world).exists());
}

#[tokio::test]
async fn submissions_that_break_at_random_bytes_end_in_one_submission_each() {
    let miners = miners(60);
    let world = world(&miners).await;
    let (mut cuts, mut resumed) = (0, 0);
    for (seed, miner) in miners.iter().enumerate() {
        let proxy = Proxy::start(&world.url).await;
        let mut numbers = Numbers(seed as u64);
        // Some lose requests, some lose answers, the last among them.
        proxy.cut(move || {
            Some(match numbers.below(2) {
                0 => Cut::Up(numbers.below(200_000)),
                _ => Cut::Down(numbers.below(2500)),
            })
        });
        let path = own_copy(&world, miner);
        let client = client(&proxy.url, miner).with_patience(Patience { tries: 50, ..quick() });
        let done = client.submit(&path, miner.hash).await;
        let done = done.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_stored(&world, miner);
        assert!(!note(&path, &world).exists(), "seed {seed}");
        cuts += proxy.cuts();
        resumed += u64::from(done.tries > 1);
    }
    assert!(cuts >= 60 && resumed >= 30, "{cuts} cuts, {resumed} of them gone on with");
}

#[tokio::test]
async fn an_answer_that_is_lost_at_any_byte_is_found_out() {
    let miners = miners(64);
    let world = world(&miners).await;
    let mut lost = 0;
    for (n, miner) in miners.iter().enumerate() {
        let proxy = Proxy::start(&world.url).await;
        // The first connection loses its answers behind this byte; all else goes well.
        let mut cut = Some(Cut::Down(50 * n as u64));
        proxy.cut(move || cut.take());
        let path = own_copy(&world, miner);
        let done = client(&proxy.url, miner).submit(&path, miner.hash).await;
        let done = done.unwrap_or_else(|error| panic!("cut at {}: {error}", 50 * n));
        assert_stored(&world, miner);
        lost += u64::from(done.transport == Transport::Earlier);
    }
    assert!(lost > 0, "no answer of the last bytes was lost");
}

#[tokio::test]
async fn a_client_that_is_killed_and_started_again_goes_on_where_it_was() {
    let miners = miners(1);
    let (miner, world) = (&miners[0], world(&miners).await);
    let path = own_copy(&world, miner);
    let proxy = Proxy::start(&world.url).await;
    proxy.cut(|| Some(Cut::Up(200_000)));
    let killed = client(&proxy.url, miner).with_patience(Patience { tries: 1, ..quick() });
    killed.submit(&path, miner.hash).await.unwrap_err();
    assert!(note(&path, &world).exists());

    let done = client(&world.url, miner).submit(&path, miner.hash).await.unwrap();
    assert!(done.resumed_from > 100_000, "{done:?}");
    assert_eq!((done.transport, done.tries), (Transport::Tus, 1));
    assert_stored(&world, miner);
    assert!(!note(&path, &world).exists());
}

#[tokio::test]
async fn an_upload_goes_on_at_a_gateway_that_was_restarted() {
    let miners = miners(1);
    let (miner, world) = (&miners[0], world(&miners).await);
    let path = own_copy(&world, miner);
    let first = Alone::start(&world, patient()).await;
    let proxy = Proxy::start(&first.url).await;
    let mut connections = 0;
    proxy.cut(move || {
        connections += 1;
        Some(if connections == 1 { Cut::Up(200_000) } else { Cut::Down(0) })
    });
    let client = client(&proxy.url, miner).with_patience(Patience { tries: 10_000, ..quick() });
    let restarting = async {
        world.until("the connection was cut", || async { proxy.cuts() > 0 }).await;
        first.stop().await;
        let second = Alone::start(&world, patient()).await;
        proxy.lead_to(&second.url);
        let mut seen = Some(Cut::Down(0));
        proxy.cut(move || seen.take());
        second
    };
    let (done, second) = tokio::join!(client.submit(&path, miner.hash), restarting);
    let done = done.unwrap();
    assert!(done.tries > 1);
    assert_stored(&world, miner);
    second.stop().await;
    // Nothing of the upload lies there any more.
    assert!(
        world.traces().iter().all(|path| path.starts_with(world.disk.path().join("artifacts")))
    );
}

#[tokio::test]
async fn a_note_of_an_upload_that_is_no_more_is_not_gone_on_with() {
    let miners = miners(3);
    let world = world(&miners).await;
    let own = |miner: &Miner, round: u64, url: &str| {
        serde_json::json!({
            "validator": world.validator, "hotkey": miner.hotkey, "round": round,
            "model_hash": miner.hash, "bytes": miner.file.metadata().unwrap().len(), "url": url,
        })
    };
    let unknown = format!("{}/files/{}", world.url, "0".repeat(32));
    for (miner, content) in [
        // Of the gateway's own, and forgotten there.
        (&miners[0], own(&miners[0], ROUND, &unknown).to_string()),
        // Of another round, at an address that nobody must be led to.
        (&miners[1], own(&miners[1], ROUND - 1, "http://127.0.0.1:1/files/x").to_string()),
        (&miners[2], "garbage".to_owned()),
    ] {
        let path = own_copy(&world, miner);
        std::fs::write(note(&path, &world), content).unwrap();
        let done = client(&world.url, miner).submit(&path, miner.hash).await.unwrap();
        assert_eq!((done.transport, done.tries), (Transport::Tus, 1));
        assert_stored(&world, miner);
        assert!(!note(&path, &world).exists());
    }
}

#[tokio::test]
async fn a_refusal_whose_answer_was_lost_is_told_by_the_next_try() {
    let nan = Miner::new(1, "hostile_nan.pt");
    let world = World::with(&[&nan], patient()).await;
    let mut refused = 0;
    for n in 20..60 {
        let proxy = Proxy::start(&world.url).await;
        let mut cut = Some(Cut::Down(50 * n));
        proxy.cut(move || cut.take());
        let path = own_copy(&world, &nan);
        let error = client(&proxy.url, &nan).submit(&path, nan.hash).await.unwrap_err();
        assert_eq!(error.reason(), "non_finite", "{error}");
        assert!(!error.refusal().unwrap().detail.is_empty());
        assert!(!note(&path, &world).exists());
        refused += 1;
    }
    assert_eq!((refused, world.scheduler.submissions().len()), (40, 0));
}

#[tokio::test]
async fn an_upload_that_lies_at_a_gateway_which_does_not_come_back_is_begun_again() {
    let miners = miners(1);
    let (miner, world) = (&miners[0], world(&miners).await);
    let path = own_copy(&world, miner);
    let other = Alone::start(&world, patient()).await;
    let proxy = Proxy::start(&other.url).await;
    proxy.cut(|| Some(Cut::Up(200_000)));
    let killed = client(&proxy.url, miner).with_patience(Patience { tries: 1, ..quick() });
    killed.submit(&path, miner.hash).await.unwrap_err();
    other.stop().await;

    // The note leads to the road, and the road to a gateway that does not have it.
    proxy.lead_to(&world.url);
    proxy.cut(|| None);
    let done = client(&proxy.url, miner).submit(&path, miner.hash).await.unwrap();
    assert_eq!((done.resumed_from, done.transport), (0, Transport::Tus));
    assert!(done.tries > 1);
    assert_stored(&world, miner);
}

#[tokio::test]
async fn an_upload_at_another_gateway_is_gone_on_with_there() {
    let miners = miners(1);
    let (miner, world) = (&miners[0], world(&miners).await);
    let path = own_copy(&world, miner);
    let road = Proxy::start("http://127.0.0.1:1").await;
    let config = Config { advertised_http_url: road.url.clone(), ..patient() };
    let other = Alone::start(&world, config).await;
    road.lead_to(&other.url);
    let proxy = Proxy::start(&other.url).await;
    road.cut(|| Some(Cut::Up(200_000)));
    let killed = client(&proxy.url, miner).with_patience(Patience { tries: 1, ..quick() });
    killed.submit(&path, miner.hash).await.unwrap_err();
    road.cut(|| None);

    // Even where the note names the gateway that does not have it.
    let here = std::fs::read_to_string(note(&path, &world)).unwrap();
    std::fs::write(note(&path, &world), here.replace(&road.url, &world.url)).unwrap();
    let done = client(&world.url, miner).submit(&path, miner.hash).await.unwrap();
    assert!(done.resumed_from > 100_000, "{done:?}");
    assert_eq!(done.tries, 1);
    assert_stored(&world, miner);
}
