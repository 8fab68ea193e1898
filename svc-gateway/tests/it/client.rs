//! The miner's client of the `connito` command, against the gateway.

use checkpoint::{Format, SliceId};
use domain::{BlockNumber, ExpertGroup, GlobalVersion, ModelHash, Phase, RoundId};
use svc_gateway::Config;

use crate::{
    common::{Miner, NOW, ROUND, World, published, signer},
    miner_client::{ClientError, MinerClient},
};

fn client(world: &World, miner: &Miner, token: Option<&str>) -> MinerClient {
    let sign = signer(miner.keys.clone());
    let token = token.map(str::to_owned);
    MinerClient::new(&world.url, miner.hotkey.clone(), sign, token).unwrap()
}

#[tokio::test]
async fn the_client_reads_status_and_phase() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let world = World::new(&[&miner]).await;
    let client = client(&world, &miner, None);
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
async fn the_client_goes_on_with_a_download_that_broke_off() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let world = World::new(&[&miner]).await;
    let client = client(&world, &miner, None);
    let whole = published(&world, SliceId::Shared, Format::Safetensors);
    let path = world.disk.path().join("shared.safetensors");
    let hash = world.manifest.slice(SliceId::Shared).unwrap().model_hash;
    let (part, tag) =
        (path.with_extension("safetensors.part"), path.with_extension("safetensors.etag"));

    std::fs::write(&part, &whole[..1000]).unwrap();
    std::fs::write(&tag, format!("\"{hash}-shared-safetensors\"")).unwrap();
    let done = client.download(SliceId::Shared, Format::Safetensors, &path).await.unwrap();
    assert_eq!((done.bytes, done.resumed_from), (whole.len() as u64, 1000));
    assert_eq!(done.model_hash, world.manifest.model_hash);
    assert_eq!(std::fs::read(&path).unwrap(), whole);
    assert!(!part.exists() && !tag.exists());

    // What is left of another model is not gone on with, and more than the whole begins afresh.
    for (left, of) in [(&whole[..1000], "\"old\"".to_owned()), (&whole[..], String::new())] {
        let of = if of.is_empty() { format!("\"{hash}-shared-safetensors\"") } else { of };
        std::fs::write(&part, left).unwrap();
        std::fs::write(&tag, of).unwrap();
        client.download(SliceId::Shared, Format::Safetensors, &path).await.unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), whole);
    }
}

#[tokio::test]
async fn the_client_does_not_keep_a_download_that_is_not_what_was_announced() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let world = World::new(&[&miner]).await;
    let client = client(&world, &miner, None);
    let path = world.disk.path().join("slice.pt");
    let hash = world.manifest.slice(SliceId::Group(ExpertGroup(0))).unwrap().model_hash;
    std::fs::write(path.with_extension("pt.part"), [7; 100]).unwrap();
    std::fs::write(path.with_extension("pt.etag"), format!("\"{hash}-0-pt\"")).unwrap();
    let slice = SliceId::Group(ExpertGroup(0));
    let error = client.download(slice, Format::Pt, &path).await.unwrap_err();
    assert!(matches!(error, ClientError::Corrupt(_)), "{error}");
    assert!(!path.exists());
    client.download(slice, Format::Pt, &path).await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), published(&world, slice, Format::Pt));
}

#[tokio::test]
async fn the_client_submits_and_is_told_why_it_was_refused() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let config = Config { auth_token: Some("secret".into()), ..Config::default() };
    let world = World::with(&[&miner], config).await;
    let stranger = client(&world, &miner, None);
    let error = stranger.status().await.unwrap_err();
    assert!(matches!(error, ClientError::Refused(outcome) if outcome.reason == "token_missing"));

    let client = client(&world, &miner, Some("secret"));
    let other = client.submit(&miner.file, ModelHash([1; 24])).await.unwrap();
    assert_eq!((other.status, other.reason.as_str()), (400, "hash_mismatch"));
    let stored = client.submit(&miner.file, miner.hash).await.unwrap();
    assert!(stored.is_stored(), "{stored}");
    assert_eq!(stored.detail, format!("submissions/{ROUND}/{}/miner0_g0.pt", miner.hotkey));
    let again = client.submit(&miner.file, miner.hash).await.unwrap();
    assert_eq!((again.status, again.reason.as_str()), (409, "already_submitted"));
}

#[tokio::test]
async fn the_client_waits_while_the_gateway_is_busy() {
    use tokio::io::AsyncWriteExt as _;
    let miner = Miner::new(1, "miner0_g0.pt");
    let config = Config {
        max_uploads: 1,
        idle_timeout: std::time::Duration::from_millis(500),
        ..Config::default()
    };
    let other = Miner::new(2, "miner1_g0.pt");
    let world = World::with(&[&miner, &other], config).await;
    let content = std::fs::read(&other.file).unwrap();
    let (body, boundary) = world.raw_form(&world.fields(&other), &content);
    let mut stalled = world.begin_raw(&boundary, body.len()).await;
    stalled.write_all(&body[..body.len() / 2]).await.unwrap();
    world.until("the place is taken", || async { world.uploads().await == 1 }).await;
    let client = client(&world, &miner, None);
    let (outcome, ()) = tokio::join!(client.submit(&miner.file, miner.hash), async {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        drop(stalled);
    });
    assert!(outcome.unwrap().is_stored());
}
