//! Uploads that are refused before their file is read: every line of the protocol's table.

use std::time::Duration;

use domain::ModelHash;
use reqwest::multipart::{Form, Part};
use svc_gateway::Config;

use crate::common::{Miner, NOW, ROUND, World, assert_refused, hotkey_of, keypair, sign};

fn honest() -> Miner {
    Miner::new(1, "miner0_g0.pt")
}

fn set(fields: &mut [(&'static str, String)], name: &str, value: impl Into<String>) {
    let field = fields.iter_mut().find(|(field, _)| *field == name).unwrap();
    field.1 = value.into();
}

/// Sends a small file with these fields.
async fn refused(
    world: &World,
    fields: Vec<(&'static str, String)>,
    name: &str,
    status: u16,
    reason: &str,
) {
    let response = world.submit_to(&world.url, fields, b"a file".to_vec(), name).await;
    assert_refused(response, status, reason).await;
    world.until_no_traces().await;
    assert!(world.scheduler.submissions().is_empty());
}

#[tokio::test]
async fn a_missing_or_malformed_field_is_400() {
    let miner = honest();
    let world = World::new(&[&miner]).await;
    for at in 0..6 {
        let mut fields = world.fields(&miner);
        let (name, _) = fields.remove(at);
        refused(&world, fields.clone(), "m.pt", 400, "missing_field").await;
        if name != "block_hex" {
            fields.push((name, "?".into()));
            refused(&world, fields, "m.pt", 400, "invalid_field").await;
        }
    }
    let mut fields = world.fields(&miner);
    fields.push(("origin_block", NOW.to_string()));
    refused(&world, fields, "m.pt", 400, "repeated_field").await;
}

#[tokio::test]
async fn a_form_without_file_or_with_the_file_first_is_400() {
    let miner = honest();
    let world = World::new(&[&miner]).await;
    let post = || world.http.post(format!("{}/submit", world.url));
    let mut form = Form::new();
    for (name, value) in world.fields(&miner) {
        form = form.text(name, value);
    }
    let response = post().multipart(form).send().await.unwrap();
    assert_refused(response, 400, "missing_file").await;

    let mut form = Form::new().part("file", Part::bytes(b"a file".to_vec()).file_name("m.pt"));
    for (name, value) in world.fields(&miner) {
        form = form.text(name, value);
    }
    let response = post().multipart(form).send().await.unwrap();
    assert_refused(response, 400, "missing_field").await;

    let response = post().body("no form").send().await.unwrap();
    assert_refused(response, 400, "malformed_form").await;
    let kind = "multipart/form-data; boundary=abc";
    let response = post().header("content-type", kind).body("--xyz\r\n").send().await.unwrap();
    assert_refused(response, 400, "broken_off").await;
}

#[tokio::test]
async fn an_upload_for_another_validator_is_403() {
    let miner = honest();
    let world = World::new(&[&miner]).await;
    let mut fields = world.fields(&miner);
    set(&mut fields, "target_hotkey_ss58", hotkey_of(&keypair(9)).as_str());
    refused(&world, fields, "m.pt", 403, "wrong_target").await;
}

#[tokio::test]
async fn an_upload_that_its_miner_did_not_sign_is_403_and_not_reported() {
    let miner = honest();
    let world = World::new(&[&miner]).await;
    let mut fields = world.fields(&miner);
    set(&mut fields, "signature", sign(&keypair(2), b"whatever"));
    refused(&world, fields, "m.pt", 403, "request_signature").await;
    // A signature is bound to its block and to its hash.
    let mut fields = world.fields(&miner);
    set(&mut fields, "origin_block", (NOW + 1).to_string());
    refused(&world, fields, "m.pt", 403, "request_signature").await;
    let mut fields = world.fields(&miner);
    set(&mut fields, "model_hex", "00".repeat(24));
    refused(&world, fields, "m.pt", 403, "request_signature").await;
    assert!(world.scheduler.refusals().is_empty());
}

#[tokio::test]
async fn a_block_hex_that_is_not_the_block_message_is_400() {
    let miner = honest();
    let world = World::new(&[&miner]).await;
    let mut fields = world.fields(&miner);
    set(&mut fields, "block_hex", "00".repeat(40));
    refused(&world, fields, "m.pt", 400, "block_hex").await;
}

#[tokio::test]
async fn an_origin_block_outside_of_this_submission_phase_is_400() {
    let miner = honest();
    let world = World::new(&[&miner]).await;
    for block in [ROUND - 1, 356, ROUND + 472] {
        refused(&world, world.fields_at(&miner, block), "m.pt", 400, "origin_block").await;
    }
}

#[tokio::test]
async fn a_miner_that_is_not_on_the_roster_is_403() {
    let (miner, other) = (honest(), Miner::new(2, "miner1_g0.pt"));
    let world = World::new(&[&other]).await;
    refused(&world, world.fields(&miner), "m.pt", 403, "not_on_roster").await;
    assert!(world.scheduler.refusals().is_empty());
}

#[tokio::test]
async fn a_miner_that_committed_nothing_is_400() {
    let miner = honest();
    let world = World::new(&[&miner]).await;
    world
        .change(|view| {
            view.block += 1;
            let line = &mut view.round.as_mut().unwrap().miners[0];
            line.model_hash.clear();
            line.signature.clear();
            line.may_upload = false;
            line.reason = "nothing_committed".into();
        })
        .await;
    refused(&world, world.fields(&miner), "m.pt", 400, "nothing_committed").await;
}

#[tokio::test]
async fn a_miner_whose_commitment_is_unusable_is_400_with_its_reason() {
    let miner = honest();
    let world = World::new(&[&miner]).await;
    for reason in ["wrong_group", "version_out_of_range", "commitment_incomplete"] {
        world
            .change(|view| {
                view.block += 1;
                let line = &mut view.round.as_mut().unwrap().miners[0];
                line.may_upload = false;
                line.reason = reason.into();
            })
            .await;
        refused(&world, world.fields(&miner), "m.pt", 400, reason).await;
    }
}

#[tokio::test]
async fn a_miner_that_is_not_assigned_here_is_403() {
    let miner = honest();
    let world = World::new(&[&miner]).await;
    world
        .change(|view| {
            view.block += 1;
            view.round.as_mut().unwrap().miners[0].may_upload = false;
        })
        .await;
    refused(&world, world.fields(&miner), "m.pt", 403, "not_assigned").await;
}

#[tokio::test]
async fn another_hash_than_the_committed_one_is_400_and_reported() {
    let mut miner = honest();
    let world = World::new(&[&miner]).await;
    miner.hash = ModelHash([7; 24]);
    refused(&world, world.fields(&miner), "m.pt", 400, "hash_mismatch").await;
    let expected = vec![(miner.hotkey.to_string(), "hash_mismatch".to_owned())];
    world
        .until("the refusal is reported", || async { world.scheduler.refusals() == expected })
        .await;
}

#[tokio::test]
async fn a_committed_signature_that_is_not_of_the_committed_hash_is_400() {
    let miner = honest();
    let world = World::new(&[&miner]).await;
    world
        .change(|view| {
            view.block += 1;
            let line = &mut view.round.as_mut().unwrap().miners[0];
            line.signature = sign(&keypair(2), miner.hash.to_hex().as_bytes());
        })
        .await;
    refused(&world, world.fields(&miner), "m.pt", 400, "bad_signature").await;
}

#[tokio::test]
async fn an_unsafe_file_name_or_another_extension_is_400() {
    let miner = honest();
    let world = World::new(&[&miner]).await;
    for name in ["../m.pt", "a/b.pt", "a\\b.pt", ".m.pt", ""] {
        refused(&world, world.fields(&miner), name, 400, "unsafe_file_name").await;
    }
    for name in ["m.exe", "m", "meta.json", "m.pt.sh"] {
        refused(&world, world.fields(&miner), name, 400, "unknown_extension").await;
    }
}

#[tokio::test]
async fn a_file_larger_than_the_group_can_be_is_413_and_unannounced_garbage_is_not_even_received() {
    let miner = honest();
    let world = World::new(&[&miner]).await;
    let large = vec![0; 3 << 20];
    let fields = world.fields(&miner);
    let announced = world.submit_to(&world.url, fields.clone(), large.clone(), "m.pt").await;
    assert_refused(announced, 413, "too_large").await;

    let (body, boundary) = world.raw_form(&fields, &large);
    let pieces = body.chunks(64 << 10).map(|piece| Ok::<_, std::io::Error>(piece.to_vec()));
    let stream = futures::stream::iter(pieces.collect::<Vec<_>>());
    let request = world
        .http
        .post(format!("{}/submit", world.url))
        .header("content-type", format!("multipart/form-data; boundary={boundary}"))
        .body(reqwest::Body::wrap_stream(stream));
    // Its first bytes are of no format.
    assert_refused(request.send().await.unwrap(), 400, "malformed").await;
    world.until_no_traces().await;
}

#[tokio::test]
async fn a_file_larger_than_the_configured_limit_is_413() {
    let miner = honest();
    let config = Config { max_upload_bytes: 1000, ..Config::default() };
    let world = World::with(&[&miner], config).await;
    assert_refused(world.submit_honestly(&miner).await, 413, "too_large").await;
}

#[tokio::test]
async fn outside_of_the_submission_phase_an_upload_is_409() {
    let miner = honest();
    let world = World::new(&[&miner]).await;
    for block in [335, 356] {
        world.change(|view| view.block = block).await;
        refused(&world, world.fields(&miner), "m.pt", 409, "not_submission_phase").await;
    }
}

#[tokio::test]
async fn while_uploads_are_closed_an_upload_is_409() {
    let miner = honest();
    let world = World::new(&[&miner]).await;
    world
        .change(|view| {
            view.block += 1;
            view.round.as_mut().unwrap().uploads_open = false;
        })
        .await;
    refused(&world, world.fields(&miner), "m.pt", 409, "uploads_closed").await;
    world
        .change(|view| {
            view.block += 1;
            view.round = None;
        })
        .await;
    refused(&world, world.fields(&miner), "m.pt", 409, "uploads_closed").await;
}

#[tokio::test]
async fn a_hotkey_that_uploads_too_often_is_429() {
    let miner = honest();
    let config = Config { burst_per_hotkey: 1, requests_per_hotkey: 1, ..Config::default() };
    let world = World::with(&[&miner], config).await;
    refused(&world, world.fields(&miner), "m.exe", 400, "unknown_extension").await;
    let response = world.submit_honestly(&miner).await;
    assert!(response.headers().contains_key("retry-after"));
    assert_refused(response, 429, "rate_limited").await;
}

#[tokio::test]
async fn with_an_old_view_an_upload_is_503_and_a_download_is_not() {
    let miner = honest();
    let config = Config { max_view_age: Duration::from_millis(1), ..Config::default() };
    let world = World::with(&[&miner], config).await;
    world.scheduler.die();
    tokio::time::sleep(Duration::from_millis(20)).await;
    let response = world.submit_honestly(&miner).await;
    assert!(response.headers().contains_key("retry-after"));
    assert_refused(response, 503, "stale_view").await;
    assert_eq!(world.download("0").send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn without_a_base_model_an_upload_is_503() {
    let miner = honest();
    let world = World::new(&[&miner]).await;
    world
        .change(|view| {
            view.block += 1;
            view.base = None;
        })
        .await;
    assert_refused(world.submit_honestly(&miner).await, 503, "no_checkpoint").await;
}
