//! Clients that lie, stall, come twice, come late or send what must not be.

use std::time::Duration;

use futures::stream;
use proto::scheduler::v1::RoundStage;
use reqwest::Body;
use svc_gateway::Config;
use tokio::io::AsyncWriteExt as _;

use super::client::{content, header};
use crate::common::{Miner, World, assert_refused};

fn honest() -> Miner {
    Miner::new(1, "miner0_g0.pt")
}

#[tokio::test]
async fn an_offset_that_is_not_where_the_upload_stands_is_409_and_changes_nothing() {
    let miner = honest();
    let world = World::new(&[&miner]).await;
    let content = content(&miner);
    let path = world.create(&miner).await;
    assert_eq!(world.append(&path, 0, &content[..5000]).send().await.unwrap().status(), 204);
    for lie in [0, 4999, 5001, content.len()] {
        let patch = world.append(&path, lie, &content[lie.min(content.len() - 1)..][..1]);
        let response = patch.send().await.unwrap();
        assert_eq!(header(&response, "upload-offset").unwrap(), "5000");
        assert_refused(response, 409, "offset_mismatch").await;
        assert_eq!(world.offset(&path).await, 5000);
    }
    for (garbage, reason) in [("-1", "invalid_header"), ("5e3", "invalid_header")] {
        let patch = world.tus("PATCH", &path).header("Upload-Offset", garbage);
        let patch = patch.header("Content-Type", "application/offset+octet-stream");
        assert_refused(patch.send().await.unwrap(), 400, reason).await;
    }
    let patch = world.tus("PATCH", &path).header("Upload-Offset", 5000).body(vec![0; 10]);
    assert_refused(patch.send().await.unwrap(), 415, "media_type").await;
    assert_eq!(world.append(&path, 5000, &content[5000..]).send().await.unwrap().status(), 204);
    assert_eq!(world.scheduler.submissions().len(), 1);
}

#[tokio::test]
async fn more_than_was_announced_is_413_whether_it_is_told_before_or_not() {
    let miner = honest();
    let world = World::new(&[&miner]).await;
    let mut content = content(&miner);
    let length = content.len();
    content.extend(b"and more");
    let path = world.create(&miner).await;
    let told = world.append(&path, 0, &content).send().await.unwrap();
    assert_refused(told, 413, "too_large").await;
    assert_eq!(world.offset(&path).await, 0);
    // What comes in pieces is only found out behind the end: then nothing is left to go on with.
    let pieces: Vec<_> =
        content.chunks(10_000).map(|piece| Ok::<_, std::io::Error>(piece.to_vec())).collect();
    let untold = world.append(&path, 0, b"").body(Body::wrap_stream(stream::iter(pieces)));
    assert_refused(untold.send().await.unwrap(), 413, "too_large").await;
    let after = world.tus("HEAD", &path).send().await.unwrap();
    assert_eq!(
        (after.status().as_u16(), header(&after, "x-reason").as_deref()),
        (413, Some("too_large"))
    );
    world.until("nothing is left", || async { world.parts().is_empty() }).await;
    assert!(world.traces().is_empty());
    assert!(length < content.len() && world.scheduler.submissions().is_empty());
}

#[tokio::test]
async fn nobody_finds_an_upload_whose_name_was_not_told() {
    let miner = honest();
    let world = World::new(&[&miner]).await;
    let path = world.create(&miner).await;
    let upper = path.to_uppercase().replace("/FILES/", "/files/");
    let other = format!("/files/{}", "f".repeat(32));
    for guess in
        [&*other, "/files/1", "/files/..%2F..%2Flock", "/files/%00", &format!("{path}0"), &upper]
    {
        for method in ["HEAD", "DELETE", "GET"] {
            let response = world.tus(method, guess).send().await.unwrap();
            assert_eq!(response.status(), 404, "{method} {guess}");
        }
        assert_refused(world.append(guess, 0, b"x").send().await.unwrap(), 404, "no_upload").await;
    }
    assert_eq!(world.offset(&path).await, 0);
}

#[tokio::test]
async fn of_two_that_append_at_once_one_is_423_and_a_form_beside_them_is_409() {
    let miner = honest();
    let world = World::new(&[&miner]).await;
    let content = content(&miner);
    let path = world.create(&miner).await;
    let (half, rest) = content.split_at(content.len() / 2);
    let mut first = world.stalled_append(&path, content.len(), half).await;
    for at in [0, half.len()] {
        let second = world.append(&path, at, &content[at..]).send().await.unwrap();
        assert!(header(&second, "retry-after").is_some());
        assert_refused(second, 423, "upload_locked").await;
    }
    assert_refused(world.submit_honestly(&miner).await, 409, "upload_in_progress").await;
    first.write_all(rest).await.unwrap();
    world.until("the first is stored", || async { world.scheduler.submissions().len() == 1 }).await;
    assert_eq!(world.traces().len(), 2);
}

#[tokio::test]
async fn whoever_asks_where_to_go_on_ends_the_request_that_is_lost_on_the_way() {
    let miner = honest();
    let world = World::new(&[&miner]).await;
    let content = content(&miner);
    let path = world.create(&miner).await;
    let (half, _) = content.split_at(content.len() / 2);
    // The client's network is gone, and the gateway has not noticed.
    let _dead = world.stalled_append(&path, content.len(), half).await;
    let offset = world.offset(&path).await;
    assert!(offset > 0 && offset <= half.len());
    let response = world.append(&path, offset, &content[offset..]).send().await.unwrap();
    assert_eq!(response.status(), 204);
    // The same for a body that is held until its checksum is known to fit.
    let miner = Miner::new(3, "miner2_g0.pt");
    let world = World::new(&[&miner]).await;
    let content = std::fs::read(&miner.file).unwrap();
    let path = world.create(&miner).await;
    let checksum = "\r\nUpload-Checksum: sha1 Kq5sNclPz7QV2+lfQIuc6R7oRu0=";
    let mut dead = world.begin_append(&format!("{path} HTTP/1.1{checksum}\r\nX:"), 0, 9000).await;
    dead.write_all(&content[..5000]).await.unwrap();
    world.until("it is under way", || async { world.uploads().await == 1 }).await;
    assert_eq!(world.offset(&path).await, 0);
    assert_eq!(world.append(&path, 0, &content).send().await.unwrap().status(), 204);
    // And for a sender that begins anew.
    let miner = Miner::new(2, "miner1_g0.pt");
    let world = World::new(&[&miner]).await;
    let content = std::fs::read(&miner.file).unwrap();
    let path = world.create(&miner).await;
    let _dead = world.stalled_append(&path, content.len(), &content[..5000]).await;
    let newer = world.create(&miner).await;
    assert_eq!(world.append(&newer, 0, &content).send().await.unwrap().status(), 204);
    assert!(world.scheduler.refusals().is_empty());
}

#[tokio::test]
async fn a_request_that_falls_silent_or_is_too_slow_is_408_and_what_came_stays() {
    let miner = honest();
    let content = content(&miner);
    for config in [
        Config { idle_timeout: Duration::from_millis(200), ..Config::default() },
        Config { upload_timeout: Duration::from_millis(400), ..Config::default() },
    ] {
        let world = World::with(&[&miner], config).await;
        let path = world.create(&miner).await;
        let mut stream = world.stalled_append(&path, content.len(), &content[..9000]).await;
        let answer = crate::connections::read_answer(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
        assert!(answer.contains("too_slow"), "{answer}");
        assert_eq!(world.offset(&path).await, 9000);
        let rest = world.append(&path, 9000, &content[9000..]).send().await.unwrap();
        assert_eq!(rest.status(), 204);
        assert!(world.scheduler.refusals().is_empty());
    }
}

#[tokio::test]
async fn a_file_that_can_be_no_submission_ends_its_upload_at_once_and_says_why_for_good() {
    for (file, reason) in [
        ("hostile_nan.pt", "non_finite"),
        ("hostile_exec.pt", "forbidden_pickle"),
        ("hostile_foreign_expert.pt", "foreign_tensor"),
        ("hostile_truncated.pt", "malformed"),
        ("hostile_garbage.pt", "malformed"),
    ] {
        let miner = Miner::new(1, file);
        let world = World::new(&[&miner]).await;
        let content = content(&miner);
        let path = world.create(&miner).await;
        let (first, rest) = content.split_at(content.len() / 2);
        let mut response = world.append(&path, 0, first).send().await.unwrap();
        if response.status() == 204 {
            response = world.append(&path, first.len(), rest).send().await.unwrap();
        }
        assert_eq!(header(&response, "x-reason").as_deref(), Some(reason), "{file}");
        assert_refused(response, 400, reason).await;
        assert_refused(world.tus("GET", &path).send().await.unwrap(), 400, reason).await;
        let again = world.append(&path, 0, &content).send().await.unwrap();
        assert_refused(again, 400, reason).await;
        world.until("nothing is left", || async { world.parts().is_empty() }).await;
        assert!(world.traces().is_empty());
        let refusals = vec![(miner.hotkey.to_string(), reason.to_owned())];
        world
            .until("the refusal is told once", || async { world.scheduler.refusals() == refusals })
            .await;
    }
}

#[tokio::test]
async fn bytes_that_come_after_the_phase_are_410_and_those_of_a_request_that_began_in_it_are_taken()
{
    let miners = [honest(), Miner::new(2, "miner1_g0.pt")];
    let world = World::new(&[&miners[0], &miners[1]]).await;
    let (late, in_time) = (world.create(&miners[0]).await, world.create(&miners[1]).await);
    let content = content(&miners[1]);
    let (half, rest) = content.split_at(content.len() / 2);
    let mut stream = world.stalled_append(&in_time, content.len(), half).await;
    world
        .change(|view| {
            view.block = 357;
            view.round.as_mut().unwrap().uploads_open = false;
        })
        .await;
    let response = world.append(&late, 0, b"PK").send().await.unwrap();
    assert_refused(response, 410, "upload_expired").await;
    stream.write_all(rest).await.unwrap();
    world.until("the other is stored", || async { world.scheduler.submissions().len() == 1 }).await;
    world.until("nothing is left", || async { world.parts().is_empty() }).await;
    assert_eq!(world.tus("HEAD", &late).send().await.unwrap().status(), 410);
}

#[tokio::test]
async fn while_uploads_are_held_back_an_upload_waits_and_is_not_lost() {
    let miner = honest();
    let world = World::new(&[&miner]).await;
    let path = world.create(&miner).await;
    world.change(|view| view.round.as_mut().unwrap().uploads_open = false).await;
    let held = world.append(&path, 0, &content(&miner)).send().await.unwrap();
    assert_refused(held, 409, "uploads_closed").await;
    world.change(|view| view.round.as_mut().unwrap().uploads_open = true).await;
    assert_eq!(world.append(&path, 0, &content(&miner)).send().await.unwrap().status(), 204);
}

#[tokio::test]
async fn an_upload_that_ends_after_the_scores_are_final_is_refused_and_gone() {
    let miner = honest();
    let world = World::new(&[&miner]).await;
    let content = content(&miner);
    let path = world.create(&miner).await;
    let (first, last) = content.split_at(content.len() - 100);
    let mut stream = world.stalled_append(&path, content.len(), first).await;
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
    assert!(answer.starts_with("HTTP/1.1 409") && answer.contains("round_closed"), "{answer}");
    world.until("nothing is left", || async { world.parts().is_empty() }).await;
    assert!(world.traces().is_empty() && world.scheduler.submissions().is_empty());
}

#[tokio::test]
async fn an_upload_that_nobody_goes_on_with_expires() {
    let miner = honest();
    let config = Config { tus_idle: Duration::from_millis(300), ..Config::default() };
    let world = World::with(&[&miner], config).await;
    let path = world.create(&miner).await;
    assert_eq!(world.append(&path, 0, &content(&miner)[..500]).send().await.unwrap().status(), 204);
    world.until("it has expired", || async { world.parts().is_empty() }).await;
    world
        .until("that is known", || async {
            let response = world.tus("HEAD", &path).send().await.unwrap();
            header(&response, "x-reason").as_deref() == Some("upload_expired")
        })
        .await;
    let late = world.append(&path, 500, b"x").send().await.unwrap();
    assert_refused(late, 410, "upload_expired").await;
    let again = world.create(&miner).await;
    assert_eq!(world.append(&again, 0, &content(&miner)).send().await.unwrap().status(), 204);
}

#[tokio::test]
async fn an_upload_whose_miner_has_submitted_by_form_meanwhile_ends() {
    let miner = honest();
    let world = World::new(&[&miner]).await;
    let content = content(&miner);
    let path = world.create(&miner).await;
    assert_eq!(world.append(&path, 0, &content[..5000]).send().await.unwrap().status(), 204);
    assert_eq!(world.submit_honestly(&miner).await.status(), 200);
    let rest = world.append(&path, 5000, &content[5000..]).send().await.unwrap();
    assert_refused(rest, 409, "already_submitted").await;
    world.until("the part is gone", || async { world.parts().is_empty() }).await;
    assert_eq!(world.tus("HEAD", &path).send().await.unwrap().status(), 409);
    assert_eq!(world.traces().len(), 2);
}

#[tokio::test]
async fn uploads_that_rest_hold_no_room_for_what_they_have_not_sent() {
    let miners = [honest(), Miner::new(2, "miner0_g0.pt"), Miner::new(3, "miner0_g0.pt")];
    let [idle, half, other] = &miners;
    let content = content(idle);
    let spool_bytes = content.len() as u64 * 3 / 2;
    let config = Config { spool_bytes, ..Config::default() };
    let world = World::with(&[idle, half, other], config).await;
    // One is begun and nothing is sent; one is broken off, and asked for again and again.
    world.create(idle).await;
    let path = world.create(half).await;
    let mut at = 0;
    for _ in 0..10 {
        let next = at + content.len() / 40;
        let mut cut = world.begin_append(&path, at, content.len() - at).await;
        cut.write_all(&content[at..next]).await.unwrap();
        drop(cut);
        world.until("it has come", || async { world.offset(&path).await == next }).await;
        at = next;
    }
    assert_eq!(world.submit_honestly(other).await.status(), 200);
    let response = world.append(&path, at, &content[at..]).send().await.unwrap();
    assert_eq!(response.status(), 204, "{}", response.text().await.unwrap());
    assert_eq!(world.scheduler.submissions().len(), 2);
}
