//! Submissions to a gateway, until it has the file or says why not.

use std::time::Duration;

use client::{ClientError, MinerClient, Patience, Transport};
use domain::ModelHash;
use svc_gateway::Config;
use tokio::io::AsyncWriteExt as _;

use crate::{
    common::{Miner, ROUND, World},
    scene::{client, own_copy, patient, quick, signer},
};

#[tokio::test]
async fn a_submission_is_stored_and_sent_again_it_is_done_already() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let world = World::with(&[&miner], patient()).await;
    let path = own_copy(&world, &miner);
    let client = client(&world.url, &miner);
    let done = client.submit(&path, miner.hash).await.unwrap();
    assert_eq!(done.bytes, path.metadata().unwrap().len());
    assert_eq!((done.resumed_from, done.tries), (0, 1));
    let key = format!("submissions/{ROUND}/{}/miner0_g0.pt", miner.hotkey);
    let kept = world.disk.path().join("artifacts").join(key);
    assert_eq!(std::fs::read(kept).unwrap(), std::fs::read(&path).unwrap());
    let again = client.submit(&path, miner.hash).await.unwrap();
    assert_eq!(again.transport, Transport::Earlier);
    assert_eq!(world.scheduler.submissions().len(), 1);
    // Nothing is left beside the checkpoint.
    assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
}

#[tokio::test]
async fn what_is_refused_for_good_is_told_at_once_with_reason_and_advice() {
    let nan = Miner::new(1, "hostile_nan.pt");
    let stranger = Miner::new(2, "miner1_g0.pt");
    let world = World::with(&[&nan], patient()).await;
    for (miner, hash, reason) in [
        (&nan, ModelHash([9; 24]), "hash_mismatch"),
        (&nan, nan.hash, "non_finite"),
        (&stranger, stranger.hash, "not_on_roster"),
    ] {
        let path = own_copy(&world, miner);
        let patience = Patience { first_pause: Duration::from_secs(3600), ..Patience::default() };
        let client = client(&world.url, miner).with_patience(patience);
        let error = client.submit(&path, hash).await.unwrap_err();
        assert!(matches!(error, ClientError::Refused(_)), "{error}");
        assert_eq!(error.reason(), reason);
        assert!(!error.advice().is_empty());
        let left = std::fs::read_dir(path.parent().unwrap()).unwrap();
        assert!(
            left.map(|entry| entry.unwrap().path()).all(|path| path.extension().unwrap() == "pt")
        );
    }
    assert!(world.scheduler.submissions().is_empty());
}

#[tokio::test]
async fn a_gateway_with_a_token_is_told_it_and_nobody_else_is() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let config = Config { auth_token: Some("secret".into()), ..patient() };
    let world = World::with(&[&miner], config).await;
    let path = own_copy(&world, &miner);
    let error = client(&world.url, &miner).submit(&path, miner.hash).await.unwrap_err();
    assert_eq!(error.reason(), "token_missing");
    let sign = signer(miner.keys.clone());
    let token = Some("secret".to_owned());
    let knowing = MinerClient::new(&world.url, miner.hotkey.clone(), sign, token).unwrap();
    knowing.submit(&path, miner.hash).await.unwrap();
    assert!(!format!("{knowing:?}").contains("secret"));
}

#[tokio::test]
async fn a_gateway_that_is_busy_is_waited_for() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let other = Miner::new(2, "miner1_g0.pt");
    let config = Config { max_uploads: 1, ..patient() };
    let world = World::with(&[&miner, &other], config).await;
    let content = std::fs::read(&other.file).unwrap();
    let (body, boundary) = world.raw_form(&world.fields(&other), &content);
    let mut stalled = world.begin_raw(&boundary, body.len()).await;
    stalled.write_all(&body[..body.len() / 2]).await.unwrap();
    world.until("the place is taken", || async { world.uploads().await == 1 }).await;
    let path = own_copy(&world, &miner);
    let client = client(&world.url, &miner);
    let (done, ()) = tokio::join!(client.submit(&path, miner.hash), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        drop(stalled);
    });
    assert!(done.unwrap().tries > 1);
}

#[tokio::test]
async fn outside_the_phase_nothing_is_tried_again() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let world = World::with(&[&miner], patient()).await;
    world.change(|view| view.block = 360).await;
    let path = own_copy(&world, &miner);
    let client = client(&world.url, &miner).with_patience(quick());
    let error = client.submit(&path, miner.hash).await.unwrap_err();
    assert_eq!(error.reason(), "not_submission_phase");
    assert!(error.advice().contains("connito miner status"));
}

#[tokio::test]
async fn a_file_that_is_not_there_is_told_by_its_name() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let world = World::with(&[&miner], patient()).await;
    let client = client(&world.url, &miner);
    for path in [world.disk.path().join("none.pt"), world.disk.path().to_owned()] {
        let error = client.submit(&path, miner.hash).await.unwrap_err();
        assert!(
            matches!(&error, ClientError::File { path: named, .. } if *named == path),
            "{error}"
        );
    }
}
