//! What a miner is told of its file, and what nobody else is.

use std::time::Duration;

use domain::{BlockNumber, block_message};
use proto::scheduler::v1::RoundStage;
use serde_json::{Value, json};
use svc_gateway::Config;
use tokio::io::AsyncWriteExt as _;

use crate::common::{Miner, NOW, ROUND, World, assert_refused, hotkey_of, keypair, vectors};

fn honest() -> Miner {
    Miner::new(1, "miner0_g0.pt")
}

/// Tells the gateway what the scheduler says of the first miner.
async fn says(world: &World, outcome: &str, reason: &str) {
    world
        .change(|view| {
            view.block += 1;
            let line = &mut view.round.as_mut().unwrap().miners[0];
            (line.outcome, line.reason) = (outcome.into(), reason.into());
        })
        .await;
}

#[tokio::test]
async fn a_miner_is_told_what_becomes_of_its_file_from_the_first_byte_to_the_score() {
    let miner = honest();
    let world = World::new(&[&miner]).await;
    let told = world.told(&miner).await;
    assert_eq!((&told["state"], &told["uid"]), (&json!("pending"), &json!(1)));
    assert_eq!(told["hotkey"], miner.hotkey.as_str());
    assert_eq!(told["validator"], world.validator.as_str());

    // On its way.
    let content = std::fs::read(&miner.file).unwrap();
    let (body, boundary) = world.raw_form(&world.fields(&miner), &content);
    let mut stream = world.begin_raw(&boundary, body.len()).await;
    let (first, last) = body.split_at(body.len() - 1000);
    stream.write_all(first).await.unwrap();
    world
        .until("bytes have come", || async {
            world.told(&miner).await["receiving"]["bytes"].as_u64().is_some_and(|bytes| bytes > 0)
        })
        .await;
    let told = world.told(&miner).await;
    assert_eq!(
        (&told["state"], &told["receiving"]["of"]),
        (&json!("receiving"), &json!(body.len()))
    );
    stream.write_all(last).await.unwrap();
    let answer = crate::connections::read_answer(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    // Stored here, and the scheduler says nothing yet.
    let told = world.told(&miner).await;
    assert_eq!(told["state"], "stored");
    assert_eq!(told["receiving"], Value::Null);
    let file = &told["file"];
    let key = format!("submissions/{ROUND}/{}/model.pt", miner.hotkey);
    assert_eq!((&file["key"], &file["bytes"]), (&json!(key), &json!(content.len())));
    assert_eq!((&file["model_hash"], &file["block"]), (&json!(miner.hash.to_hex()), &json!(NOW)));

    for outcome in ["queued", "evaluating"] {
        says(&world, outcome, "").await;
        let told = world.told(&miner).await;
        assert_eq!((&told["state"], &told["file"]["key"]), (&json!(outcome), &json!(key)));
    }
    world
        .change(|view| {
            view.block += 1;
            let round = view.round.as_mut().unwrap();
            round.baseline = Some(6.0);
            let line = &mut round.miners[0];
            line.outcome = "scored".into();
            (line.loss, line.raw_score, line.score) = (Some(5.5), Some(0.43), Some(2.25));
        })
        .await;
    let told = world.told(&miner).await;
    assert_eq!((&told["state"], &told["loss"]), (&json!("scored"), &json!(5.5)));
    assert_eq!((&told["baseline"], &told["score"]), (&json!(6.0), &json!(2.25)));
}

#[tokio::test]
async fn any_gateway_tells_why_the_last_upload_was_refused() {
    let miner = honest();
    let world = World::new(&[&miner]).await;
    let (other, _) = world.gateway("data2", Config::default()).await;
    world
        .until("the second gateway is ready", || async {
            reqwest::get(format!("{other}/status")).await.unwrap().status() == 200
        })
        .await;
    let garbage = vectors().join("model/hostile_garbage.pt");
    let refused = world.submit(world.fields(&miner), &garbage, "m.pt").await;
    assert_refused(refused, 400, "malformed").await;
    for url in [&world.url, &other] {
        world
            .until("the refusal is kept", || async {
                world.told_by(url, &miner).await["state"] == "refused"
            })
            .await;
        let told = world.told_by(url, &miner).await;
        assert_eq!(told["reason"], "malformed");
        let last = &told["last_refusal"];
        assert_eq!((&last["reason"], &last["status"]), (&json!("malformed"), &json!(400)));
        assert_eq!(
            (&last["block"], &last["bytes"]),
            (&json!(NOW), &json!(std::fs::read(&garbage).unwrap().len()))
        );
    }
    // What is stored afterwards is what counts, and what was refused is still told.
    assert_eq!(world.submit_honestly(&miner).await.status(), 200);
    assert_refused(world.submit_honestly(&miner).await, 409, "already_submitted").await;
    let told = world.told_by(&other, &miner).await;
    assert_eq!((&told["state"], &told["reason"]), (&json!("stored"), &Value::Null));
    assert_eq!(told["last_refusal"]["reason"], "malformed");
}

#[tokio::test]
async fn every_refusal_of_a_known_miner_is_told_to_the_scheduler_and_kept() {
    let miner = honest();
    let world = World::new(&[&miner]).await;
    let mut told = Vec::new();
    let send = async |fields, name: &str| {
        world.submit_to(&world.url, fields, b"a file".to_vec(), name).await
    };
    let set = |name: &str, value: &str| {
        let mut fields = world.fields(&miner);
        fields.iter_mut().find(|(field, _)| *field == name).unwrap().1 = value.to_owned();
        fields
    };
    let cases = [
        (set("block_hex", &"00".repeat(40)), "m.pt", "block_hex"),
        (world.fields_at(&miner, ROUND - 1), "m.pt", "origin_block"),
        (world.fields(&miner), "../m.pt", "unsafe_file_name"),
        (world.fields(&miner), "m.exe", "unknown_extension"),
        (world.fields(&miner), "m.pt", "malformed"),
    ];
    for (fields, name, reason) in cases {
        assert_refused(send(fields, name).await, 400, reason).await;
        told.push((miner.hotkey.to_string(), reason.to_owned()));
        world.until("it is told", || async { world.scheduler.refusals() == told }).await;
        world
            .until("it is kept", || async {
                world.told(&miner).await["last_refusal"]["reason"] == reason
            })
            .await;
    }
    // A stranger's are neither, and neither is what somebody else signed.
    let stranger = Miner::new(2, "miner1_g0.pt");
    assert_refused(send(world.fields(&stranger), "m.pt").await, 403, "not_on_roster").await;
    assert_refused(send(set("signature", &"A".repeat(86)), "m.pt").await, 403, "request_signature")
        .await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(world.scheduler.refusals(), told);
    let receipt = world.told(&stranger).await;
    assert_eq!(
        (&receipt["state"], &receipt["reason"]),
        (&json!("absent"), &json!("not_on_roster"))
    );
    assert_eq!(receipt["last_refusal"], Value::Null);
}

#[tokio::test]
async fn nobody_is_told_of_another_miners_file() {
    let (miner, other) = (honest(), Miner::new(2, "miner1_g0.pt"));
    let world = World::new(&[&miner, &other]).await;
    assert_eq!(world.submit_honestly(&miner).await.status(), 200);
    let (round, hotkey) = (ROUND.to_string(), miner.hotkey.as_str());
    for signer in [&other.keys, &keypair(200), &keypair(9)] {
        let response = world.receipt(&world.url, signer, &round, hotkey).await;
        assert_refused(response, 403, "not_yours").await;
    }
    // Signed by another one in its name, for another validator, or not lately.
    let url = format!("{}/submissions/{round}/{hotkey}", world.url);
    let ask = |form| world.http.get(&url).query(&form).send();
    let mut forged = world.download_form(&other.keys, NOW);
    forged.insert("origin_hotkey_ss58".into(), hotkey.to_owned());
    assert_refused(ask(forged).await.unwrap(), 403, "request_signature").await;
    let mut elsewhere = world.download_form(&miner.keys, NOW);
    let validator = hotkey_of(&keypair(77));
    elsewhere.insert("target_hotkey_ss58".into(), validator.to_string());
    let message = block_message(&validator, BlockNumber(NOW));
    elsewhere.insert("signature".into(), crate::common::sign(&miner.keys, &message));
    assert_refused(ask(elsewhere).await.unwrap(), 403, "wrong_target").await;
    let ahead = world.download_form(&miner.keys, NOW + 100);
    assert_refused(ask(ahead).await.unwrap(), 400, "origin_block").await;
    let unsigned = world.http.get(&url).send().await.unwrap();
    assert_refused(unsigned, 400, "missing_field").await;
    // By query as well as by form.
    let own = ask(world.download_form(&miner.keys, NOW)).await.unwrap();
    assert_eq!(own.json::<Value>().await.unwrap()["state"], "stored");
}

#[tokio::test]
async fn what_is_no_round_or_no_hotkey_is_refused_by_name() {
    let miner = honest();
    let world = World::new(&[&miner]).await;
    let hotkey = miner.hotkey.as_str();
    for (round, hotkey, status, reason) in [
        ("337", hotkey, 404, "unknown_round"),
        ("808", hotkey, 404, "unknown_round"),
        ("18446744073709551615", hotkey, 404, "unknown_round"),
        ("-1", hotkey, 400, "invalid_field"),
        ("latest", hotkey, 400, "invalid_field"),
        ("336", "5Grw", 400, "invalid_field"),
        ("336", "..%2f..", 400, "invalid_field"),
        ("336", "%ff", 404, "no_route"),
    ] {
        let response = world.receipt(&world.url, &miner.keys, round, hotkey).await;
        assert_refused(response, status, reason).await;
    }
}

#[tokio::test]
async fn receipts_count_as_signed_requests() {
    let miner = honest();
    let config = Config { burst_per_hotkey: 2, requests_per_hotkey: 1, ..Config::default() };
    let world = World::with(&[&miner], config).await;
    let round = ROUND.to_string();
    for _ in 0..2 {
        world.told(&miner).await;
    }
    let response = world.receipt(&world.url, &miner.keys, &round, miner.hotkey.as_str()).await;
    assert_refused(response, 429, "rate_limited").await;
}

/// A record as it is stored, of a round in which the miner came first.
fn record(miner: &Miner, other: &Miner) -> Value {
    let line = |miner: &Miner, uid: u16, score: f64| {
        json!({
            "hotkey": miner.hotkey, "uid": uid, "assigned": true, "fault": null, "refused": null,
            "committed": { "model_hash": miner.hash, "signature": "s", "version": 100 },
            "submission": {
                "hotkey": miner.hotkey, "key": format!("submissions/{ROUND}/{}/m.pt", miner.hotkey),
                "model_hash": miner.hash, "sha256": "ab".repeat(32), "bytes": 100, "block": NOW,
            },
            "verdict": {
                "kind": "measured", "baseline": [6.0, 6.5], "losses": [5.0, 5.5], "raw": 1.0,
                "batches_digest": "d",
                "improvement": { "mean": 1.0, "standard_error": 0.1, "low": 0.8, "high": 1.2, "batches": 2 },
            },
            "score": score, "reason": null,
        })
    };
    json!({
        "record": {
            "format": 1, "round": ROUND, "cycle": 0, "closed_at": 471, "weights_origin": "earned",
            "miners": [line(miner, 1, 2.25), line(other, 2, 1.5)], "weights": [[1, 0.6], [2, 0.4]],
        },
        "digest": "cd".repeat(32), "signature": "ef".repeat(64),
    })
}

#[tokio::test]
async fn of_a_finished_round_a_miner_is_told_what_the_signed_record_says() {
    let (miner, other) = (honest(), Miner::new(2, "miner1_g0.pt"));
    let world = World::new(&[&miner, &other]).await;
    assert_eq!(world.submit_honestly(&miner).await.status(), 200);
    let end = |block: u64, closed: bool| {
        world.change(move |view| {
            view.block = block;
            match closed {
                true => view.round.as_mut().unwrap().set_stage(RoundStage::Closed),
                false => view.round = None,
            }
        })
    };
    // Over, and its record is not there yet: what is known is told.
    end(471, true).await;
    let told = world.told(&miner).await;
    assert_eq!((&told["state"], &told["record"]), (&json!("stored"), &Value::Null));
    end(472, false).await;
    assert_eq!(world.told(&miner).await["state"], "stored");
    let never = world.receipt(&world.url, &other.keys, "336", other.hotkey.as_str()).await;
    assert_refused(never, 404, "unknown_round").await;

    let folder = world.disk.path().join(format!("artifacts/rounds/{ROUND}"));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("record.json"), record(&miner, &other).to_string()).unwrap();
    for (miner, score, weight) in [(&miner, 2.25, 0.6), (&other, 1.5, 0.4)] {
        let told = world.told(miner).await;
        assert_eq!((&told["state"], &told["score"]), (&json!("scored"), &json!(score)));
        assert_eq!((&told["loss"], &told["baseline"]), (&json!(5.25), &json!(6.25)));
        assert_eq!(told["record"]["weight"], weight);
        assert_eq!(told["record"]["digest"], "cd".repeat(32));
        assert_eq!(told["improvement"]["batches"], 2);
    }
    let told = world.told(&Miner::new(3, "miner2_g0.pt")).await;
    assert_eq!((&told["state"], &told["reason"]), (&json!("absent"), &json!("not_on_roster")));
    assert_eq!(told["file"], Value::Null);
}

#[tokio::test]
async fn a_damaged_record_is_503_and_not_a_wrong_answer() {
    let miner = honest();
    let world = World::new(&[&miner]).await;
    world
        .change(|view| {
            view.block = 472;
            view.round = None;
        })
        .await;
    let folder = world.disk.path().join(format!("artifacts/rounds/{ROUND}"));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("record.json"), "{\"record\":{}}").unwrap();
    let response = world.receipt(&world.url, &miner.keys, "336", miner.hotkey.as_str()).await;
    assert_refused(response, 503, "unavailable").await;
}
