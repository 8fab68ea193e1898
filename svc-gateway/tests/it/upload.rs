//! Uploads that are taken: whole, once, and told to the scheduler.

use std::time::Duration;

use proto::scheduler::v1::RoundStage;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use svc_gateway::Config;
use tokio::io::AsyncWriteExt as _;

use crate::common::{Miner, NOW, ROUND, World, assert_refused, name_of};

#[tokio::test]
async fn an_honest_submission_is_stored_whole_and_reported() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let world = World::new(&[&miner]).await;
    let response = world.submit_honestly(&miner).await;
    assert_eq!(response.status(), 200);
    let body: Value = response.json().await.unwrap();
    let content = std::fs::read(&miner.file).unwrap();
    let key = format!("submissions/{ROUND}/{}/miner0_g0.pt", miner.hotkey);
    let sha256 = hex::encode(Sha256::digest(&content));
    assert_eq!(
        body,
        json!({ "status": "ok", "stored_path": key, "bytes": content.len(), "sha256": sha256 })
    );

    let folder = world.disk.path().join("artifacts").join(&key);
    assert_eq!(std::fs::read(&folder).unwrap(), content);
    let meta = std::fs::read(folder.with_file_name("meta.json")).unwrap();
    let meta: Value = serde_json::from_slice(&meta).unwrap();
    assert_eq!(meta["hotkey"], miner.hotkey.as_str());
    assert_eq!(meta["model_hash"], miner.hash.to_hex());
    assert_eq!(meta["uid"], 1);
    assert_eq!(world.traces().len(), 2, "only the submission and its meta.json");

    let reported = world.scheduler.submissions();
    assert_eq!(reported.len(), 1);
    assert_eq!(reported[0].key, key);
    assert_eq!(reported[0].hotkey, miner.hotkey.as_str());
    assert_eq!(reported[0].model_hash, miner.hash.to_hex());
    assert_eq!(reported[0].sha256, sha256);
    assert_eq!(reported[0].bytes, content.len() as u64);
    assert_eq!(reported[0].block, NOW);
    assert!(world.scheduler.refusals().is_empty());
}

#[tokio::test]
async fn every_dtype_and_format_of_the_vectors_is_taken_by_both_routes() {
    let miners = [
        Miner::new(1, "miner0_g0.safetensors"),
        Miner::new(2, "miner1_g0.pt"),
        Miner::new(3, "miner2_g0.safetensors"),
    ];
    let world = World::new(&[&miners[0], &miners[1], &miners[2]]).await;
    for miner in &miners {
        assert_eq!(world.submit_honestly(miner).await.status(), 200);
    }
    assert_eq!(world.scheduler.submissions().len(), 3);

    let miner = Miner::new(4, "miner1_g0.safetensors");
    let world = World::new(&[&miner]).await;
    let mut form = reqwest::multipart::Form::new();
    for (name, value) in world.fields(&miner) {
        form = form.text(name, value);
    }
    // A field that nobody knows is passed over, and one may come behind the file.
    let content = std::fs::read(&miner.file).unwrap();
    let form = form
        .text("client_version", "7")
        .part("file", reqwest::multipart::Part::bytes(content).file_name("m.bin"))
        .text("trailer", "x");
    let response = world.http.post(format!("{}/submit", world.url)).multipart(form);
    assert_eq!(response.send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_second_submission_in_the_same_phase_is_409() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let world = World::new(&[&miner]).await;
    assert_eq!(world.submit_honestly(&miner).await.status(), 200);
    assert_refused(world.submit_honestly(&miner).await, 409, "already_submitted").await;
    assert_eq!(world.scheduler.submissions().len(), 1);
    assert_eq!(world.traces().len(), 2);
}

#[tokio::test]
async fn of_two_gateways_that_take_one_miners_uploads_at_once_one_stores_it() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let world = World::new(&[&miner]).await;
    let (second, _) = world.gateway("data2", Config::default()).await;
    world
        .until("the second gateway is ready", || async {
            reqwest::get(format!("{second}/status")).await.unwrap().status() == 200
        })
        .await;
    let content = std::fs::read(&miner.file).unwrap();
    let tries = (0..8).map(|n| {
        let url = if n % 2 == 0 { &world.url } else { &second };
        let name = format!("try{n}.pt");
        let (world, miner, content) = (&world, &miner, content.clone());
        async move { world.submit_to(url, world.fields(miner), content, &name).await }
    });
    let mut stored = 0;
    for response in futures::future::join_all(tries).await {
        let status = response.status().as_u16();
        let body: Value = response.json().await.unwrap();
        match status {
            200 => stored += 1,
            409 => {
                let reason = body["reason"].as_str().unwrap();
                assert!(["upload_in_progress", "already_submitted"].contains(&reason), "{body}");
            }
            other => panic!("{other}: {body}"),
        }
    }
    assert_eq!(stored, 1);
    assert_eq!(world.scheduler.submissions().len(), 1);
    assert_eq!(world.traces().len(), 2);
}

#[tokio::test]
async fn a_submission_is_reported_when_the_scheduler_is_back() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let config = Config { report_interval: Duration::from_millis(50), ..Config::default() };
    let world = World::with(&[&miner], config).await;
    // More than the upload itself tries.
    world.scheduler.fail_reports(5);
    assert_eq!(world.submit_honestly(&miner).await.status(), 200);
    world
        .until("the submission is reported", || async { world.scheduler.submissions().len() == 1 })
        .await;
}

#[tokio::test]
async fn an_upload_that_ends_after_the_scores_are_final_leaves_nothing() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let world = World::new(&[&miner]).await;
    let content = std::fs::read(&miner.file).unwrap();
    let (body, boundary) = world.raw_form(&world.fields(&miner), &content);
    let mut stream = world.begin_raw(&boundary, body.len()).await;
    let (first, last) = body.split_at(body.len() - 100);
    stream.write_all(first).await.unwrap();
    world.until("the upload is under way", || async { world.uploads().await == 1 }).await;
    world
        .change(|view| {
            view.block = 410;
            let round = view.round.as_mut().unwrap();
            round.set_stage(RoundStage::Merging);
            round.uploads_open = false;
        })
        .await;
    stream.write_all(last).await.unwrap();
    let answer = crate::connections::read_answer(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 409"), "{answer}");
    assert!(answer.contains("round_closed"), "{answer}");
    world.until_no_traces().await;
    assert!(world.scheduler.submissions().is_empty());
}

#[tokio::test]
async fn an_upload_that_began_in_the_phase_may_end_behind_it() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let world = World::new(&[&miner]).await;
    let content = std::fs::read(&miner.file).unwrap();
    let (body, boundary) = world.raw_form(&world.fields(&miner), &content);
    let mut stream = world.begin_raw(&boundary, body.len()).await;
    let (first, last) = body.split_at(body.len() - 100);
    stream.write_all(first).await.unwrap();
    world.until("the upload is under way", || async { world.uploads().await == 1 }).await;
    world
        .change(|view| {
            view.block = 357;
            view.round.as_mut().unwrap().uploads_open = false;
        })
        .await;
    stream.write_all(last).await.unwrap();
    let answer = crate::connections::read_answer(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(world.scheduler.submissions().len(), 1);
}

#[tokio::test]
async fn what_a_dead_gateway_left_half_stored_gives_way_to_the_next_upload() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let world = World::new(&[&miner]).await;
    let folder = format!("artifacts/submissions/{ROUND}/{}", miner.hotkey);
    let folder = world.disk.path().join(folder);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join(name_of(&miner.file)), "other bytes").unwrap();
    std::fs::write(folder.join("older.pt"), "of another name").unwrap();
    assert_eq!(world.submit_honestly(&miner).await.status(), 200);
    let content = std::fs::read(&miner.file).unwrap();
    assert_eq!(std::fs::read(folder.join(name_of(&miner.file))).unwrap(), content);
    assert_eq!(world.traces().len(), 2);
}
