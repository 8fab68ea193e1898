//! Downloads through connections that break.

use checkpoint::{Format, SliceId};
use client::{ClientError, Patience};
use domain::{BlockNumber, ExpertGroup, GlobalVersion, Phase, RoundId};

use crate::{
    common::{Miner, NOW, ROUND, World, published, republish},
    proxy::{Cut, Numbers, Proxy},
    scene::{Alone, client, patient, quick},
};

const SHARED: (SliceId, Format) = (SliceId::Shared, Format::Safetensors);

async fn world(miner: &Miner) -> World {
    World::with(&[miner], patient()).await
}

fn content(seed: u64, bytes: usize) -> Vec<u8> {
    let mut numbers = Numbers(seed);
    (0..bytes / 8).flat_map(|_| numbers.below(u64::MAX).to_le_bytes()).collect()
}

/// Publishes a large file as this version, and waits until it is the model that is served.
async fn publish(world: &World, version: u64, content: &[u8]) {
    let file = world.disk.path().join("new");
    std::fs::write(&file, content).unwrap();
    let (base, _) = republish(world, version, SHARED, &file);
    world
        .change(|view| {
            view.base = Some(base);
            view.block += 1;
        })
        .await;
}

#[tokio::test]
async fn status_and_phase_are_read() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let world = world(&miner).await;
    let client = client(&world.url, &miner);
    let status = client.status().await.unwrap();
    assert_eq!(status.block, BlockNumber(NOW));
    assert_eq!(status.phase, Phase::Submission);
    assert_eq!(status.round, Some(RoundId(ROUND)));
    assert_eq!(status.hotkey, world.validator);
    assert_eq!(status.global_version, Some(GlobalVersion(100)));
    assert!(status.uploads_open);
    assert_eq!(client.phase().await.unwrap().phase_name, Phase::Submission);
}

#[tokio::test]
async fn what_an_earlier_process_downloaded_is_gone_on_with_to_the_byte() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let world = world(&miner).await;
    let client = client(&world.url, &miner);
    let whole = published(&world, SHARED.0, SHARED.1);
    let path = world.disk.path().join("shared.safetensors");
    let hash = world.manifest.slice(SliceId::Shared).unwrap().model_hash;
    let (part, tag) =
        (path.with_extension("safetensors.part"), path.with_extension("safetensors.etag"));
    let own = format!("\"{hash}-shared-safetensors\"");

    for (left, of, resumed_from) in [
        (&whole[..1000], own.as_str(), 1000),
        // All of it was here, and the process ended before it could say so.
        (&whole[..], &own, whole.len() as u64),
        // What is left of another model, or of nobody knows what, is not gone on with.
        (&whole[..1000], "\"old\"", 1000),
        (&whole[..1000], "no tag\u{7}", 1000),
        // More than there is.
        (&[&whole[..], b"more"].concat(), &own, whole.len() as u64 + 4),
    ] {
        std::fs::write(&part, left).unwrap();
        std::fs::write(&tag, of).unwrap();
        let done = client.download(SHARED.0, SHARED.1, &path).await.unwrap();
        assert_eq!((done.bytes, done.resumed_from), (whole.len() as u64, resumed_from));
        assert_eq!(done.model_hash, world.manifest.model_hash);
        assert_eq!(std::fs::read(&path).unwrap(), whole);
        assert!(!part.exists() && !tag.exists());
    }
}

#[tokio::test]
async fn what_is_not_what_was_announced_is_not_kept() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let world = world(&miner).await;
    let client = client(&world.url, &miner);
    let path = world.disk.path().join("slice.pt");
    let hash = world.manifest.slice(SliceId::Group(ExpertGroup(0))).unwrap().model_hash;
    std::fs::write(path.with_extension("pt.part"), [7; 100]).unwrap();
    std::fs::write(path.with_extension("pt.etag"), format!("\"{hash}-0-pt\"")).unwrap();
    let slice = SliceId::Group(ExpertGroup(0));
    let error = client.download(slice, Format::Pt, &path).await.unwrap_err();
    assert!(matches!(error, ClientError::Corrupt(_)), "{error}");
    assert!(!path.exists() && !path.with_extension("pt.part").exists());
    client.download(slice, Format::Pt, &path).await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), published(&world, slice, Format::Pt));
}

#[tokio::test]
async fn a_download_that_breaks_at_random_bytes_ends_whole_and_sends_nothing_twice() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let world = world(&miner).await;
    let whole = content(1, 4 << 20);
    publish(&world, 101, &whole).await;
    let (mut cuts, mut tries) = (0, 0);
    for seed in 0..20 {
        let proxy = Proxy::start(&world.url).await;
        let mut numbers = Numbers(seed);
        proxy.cut(move || {
            Some(match numbers.below(3) {
                0 => Cut::Up(numbers.below(1000)),
                _ => Cut::Down(numbers.below(1 << 20)),
            })
        });
        let path = world.disk.path().join(format!("{seed}.safetensors"));
        let client = client(&proxy.url, &miner);
        let done = client.download(SHARED.0, SHARED.1, &path).await;
        let done = done.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_eq!(std::fs::read(&path).unwrap(), whole, "seed {seed}");
        cuts += proxy.cuts();
        tries += u64::from(done.tries);
    }
    assert!(cuts >= 60 && tries >= 60, "{cuts} cuts, {tries} tries");
}

#[tokio::test]
async fn a_download_through_a_road_that_lets_nothing_through_ends_after_so_many_tries() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let world = world(&miner).await;
    let proxy = Proxy::start(&world.url).await;
    proxy.cut(|| Some(Cut::Down(0)));
    let path = world.disk.path().join("shared.safetensors");
    let client = client(&proxy.url, &miner).with_patience(Patience { tries: 5, ..quick() });
    let error = client.download(SHARED.0, SHARED.1, &path).await.unwrap_err();
    assert!(matches!(error, ClientError::GaveUp { tries: 5, .. }), "{error}");
    assert_eq!(error.reason(), "unreachable");
    // It leaves nothing where nothing came.
    assert!(!path.with_extension("safetensors.part").exists());
}

#[tokio::test]
async fn a_download_goes_on_at_a_gateway_that_was_restarted() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let world = world(&miner).await;
    let whole = content(2, 8 << 20);
    publish(&world, 101, &whole).await;
    let first = Alone::start(&world, patient()).await;
    let proxy = Proxy::start(&first.url).await;
    let mut connections = 0;
    proxy.cut(move || {
        connections += 1;
        Some(Cut::Down(if connections == 1 { 3 << 20 } else { 0 }))
    });
    let path = world.disk.path().join("shared.safetensors");
    let client = client(&proxy.url, &miner).with_patience(Patience { tries: 10_000, ..quick() });
    let downloading = client.download(SHARED.0, SHARED.1, &path);
    let restarting = async {
        world.until("the connection was cut", || async { proxy.cuts() > 0 }).await;
        first.stop().await;
        let second = Alone::start(&world, patient()).await;
        proxy.lead_to(&second.url);
        proxy.cut(|| None);
        second
    };
    let (done, _second) = tokio::join!(downloading, restarting);
    assert_eq!(std::fs::read(&path).unwrap(), whole);
    assert!(done.unwrap().tries > 1);
}

#[tokio::test]
async fn a_model_that_changes_between_two_tries_is_downloaded_from_its_beginning() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let world = world(&miner).await;
    publish(&world, 101, &content(3, 2 << 20)).await;
    let proxy = Proxy::start(&world.url).await;
    proxy.cut(|| Some(Cut::Down(1 << 20)));
    let path = world.disk.path().join("shared.safetensors");
    let client = client(&proxy.url, &miner);
    let hasty = client.clone().with_patience(Patience { tries: 1, ..quick() });
    hasty.download(SHARED.0, SHARED.1, &path).await.unwrap_err();
    let part = path.with_extension("safetensors.part");
    assert!(part.metadata().unwrap().len() > 0);

    let new = content(4, 1 << 20);
    publish(&world, 102, &new).await;
    proxy.cut(|| None);
    let done = client.download(SHARED.0, SHARED.1, &path).await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), new);
    assert_eq!(done.global_version, GlobalVersion(102));
}

#[tokio::test]
async fn two_processes_do_not_download_to_the_same_place() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let world = world(&miner).await;
    let path = world.disk.path().join("shared.safetensors");
    let part = std::fs::File::create(path.with_extension("safetensors.part")).unwrap();
    part.lock().unwrap();
    let client = client(&world.url, &miner);
    let error = client.download(SHARED.0, SHARED.1, &path).await.unwrap_err();
    assert!(matches!(error, ClientError::Locked(_)), "{error}");
    drop(part);
    client.download(SHARED.0, SHARED.1, &path).await.unwrap();
}

#[tokio::test]
async fn a_slice_that_is_not_served_is_told_at_once() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let world = world(&miner).await;
    let client = client(&world.url, &miner);
    let path = world.disk.path().join("slice.pt");
    let slice = SliceId::Group(ExpertGroup(77));
    let error = client.download(slice, Format::Pt, &path).await.unwrap_err();
    assert_eq!(error.reason(), "no_slice");
    assert!(!error.advice().is_empty());
    let left: Vec<_> = std::fs::read_dir(world.disk.path()).unwrap().collect();
    assert!(left.iter().all(|entry| entry.as_ref().unwrap().file_type().unwrap().is_dir()));
}
