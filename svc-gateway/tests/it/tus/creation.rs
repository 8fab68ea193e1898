//! Creations: signed requests, checked like forms.

use svc_gateway::Config;
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use super::client::{content, header, metadata};
use crate::common::{Miner, World, assert_refused, hotkey_of, keypair, name_of, sign};

fn honest() -> Miner {
    Miner::new(1, "miner0_g0.pt")
}

#[tokio::test]
async fn a_creation_may_bring_the_first_bytes_or_all_of_them() {
    let miners = [honest(), Miner::new(2, "miner1_g0.safetensors")];
    let world = World::new(&[&miners[0], &miners[1]]).await;
    let with = |miner: &Miner, bytes: &[u8]| {
        world
            .creation(miner, content(miner).len())
            .header("Content-Type", "application/offset+octet-stream")
            .body(bytes.to_vec())
    };
    let first = content(&miners[0]);
    let response = with(&miners[0], &first[..7000]).send().await.unwrap();
    assert_eq!(response.status(), 201);
    assert_eq!(header(&response, "upload-offset").unwrap(), "7000");
    let path = header(&response, "location").unwrap();
    assert_eq!(world.append(&path, 7000, &first[7000..]).send().await.unwrap().status(), 204);

    let response = with(&miners[1], &content(&miners[1])).send().await.unwrap();
    assert_eq!(response.status(), 201);
    assert!(header(&response, "x-stored-path").unwrap().ends_with(&name_of(&miners[1].file)));
    assert_eq!(world.scheduler.submissions().len(), 2);
}

#[tokio::test]
async fn a_creation_that_breaks_off_in_its_bytes_leaves_nothing_and_may_be_repeated() {
    let miner = honest();
    let world = World::new(&[&miner]).await;
    let content = content(&miner);
    let said = metadata(&world.fields(&miner), "m.pt");
    let head = format!(
        "POST /files HTTP/1.1\r\nHost: g\r\nTus-Resumable: 1.0.0\r\nUpload-Length: {0}\r\n\
         Upload-Metadata: {said}\r\nContent-Type: application/offset+octet-stream\r\n\
         Content-Length: {0}\r\n\r\n",
        content.len()
    );
    let mut stream = TcpStream::connect(world.url.strip_prefix("http://").unwrap()).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&content[..1000]).await.unwrap();
    world.until("bytes have come", || async { !world.parts().is_empty() }).await;
    drop(stream);
    world.until("nothing is left", || async { world.parts().is_empty() }).await;
    world.until("the request has ended", || async { world.uploads().await == 0 }).await;
    let creation = world.tus("POST", "/files").header("Upload-Length", content.len());
    let created = creation.header("Upload-Metadata", said).send().await.unwrap();
    assert_eq!(created.status(), 201);
}

#[tokio::test]
async fn what_a_form_is_refused_for_a_creation_is_refused_for() {
    let miner = honest();
    let world = World::new(&[&miner]).await;
    let stranger = Miner::new(9, "miner0_g0.pt");
    let fields = world.fields(&miner);
    let with = |name: &str, value: String| {
        let mut fields = fields.clone();
        fields.iter_mut().find(|(field, _)| *field == name).unwrap().1 = value;
        fields
    };
    for (fields, name, status, reason) in [
        (fields[1..].to_vec(), "m.pt", 400, "missing_field"),
        (with("origin_block", "x".into()), "m.pt", 400, "invalid_field"),
        (
            with("target_hotkey_ss58", hotkey_of(&keypair(9)).to_string()),
            "m.pt",
            403,
            "wrong_target",
        ),
        (with("signature", sign(&keypair(2), b"x")), "m.pt", 403, "request_signature"),
        (with("block_hex", "00".repeat(40)), "m.pt", 400, "block_hex"),
        (world.fields_at(&miner, 356), "m.pt", 400, "origin_block"),
        (world.fields(&stranger), "m.pt", 403, "not_on_roster"),
        (fields.clone(), "../m.pt", 400, "unsafe_file_name"),
        (fields.clone(), "", 400, "unsafe_file_name"),
        (fields.clone(), "m.exe", 400, "unknown_extension"),
    ] {
        let creation = world.tus("POST", "/files").header("Upload-Length", 1000);
        let creation = creation.header("Upload-Metadata", metadata(&fields, name));
        assert_refused(creation.send().await.unwrap(), status, reason).await;
    }
    assert!(world.parts().is_empty());
    let told = [(miner.hotkey.to_string(), "origin_block".to_owned())];
    world
        .until("refusals of the known miner are told", || async {
            world.scheduler.refusals().contains(&told[0])
        })
        .await;
    world.change(|view| view.block = ROUND_BEFORE).await;
    let early = world.creation(&miner, 1000).send().await.unwrap();
    assert_refused(early, 409, "not_submission_phase").await;
}

/// A block of the Train phase.
const ROUND_BEFORE: u64 = 100;

#[tokio::test]
async fn a_length_that_is_missing_late_nothing_or_too_much_is_refused() {
    let miner = honest();
    let world = World::new(&[&miner]).await;
    let said = metadata(&world.fields(&miner), "m.pt");
    let post = || world.tus("POST", "/files").header("Upload-Metadata", &said);
    let length = |length: &str| post().header("Upload-Length", length).send();
    assert_refused(post().send().await.unwrap(), 400, "invalid_header").await;
    let late = post().header("Upload-Defer-Length", 1).send().await.unwrap();
    assert_refused(late, 400, "length_deferred").await;
    for lie in ["-1", "1e3", "", "18446744073709551616"] {
        assert_refused(length(lie).await.unwrap(), 400, "invalid_header").await;
    }
    for much in ["18446744073709551615", "8589934592"] {
        assert_refused(length(much).await.unwrap(), 413, "too_large").await;
    }
    assert_refused(length("0").await.unwrap(), 400, "malformed").await;
    assert!(world.parts().is_empty());
    // None of them has used the signature up.
    assert_eq!(length("1000").await.unwrap().status(), 201);
}

#[tokio::test]
async fn metadata_that_is_garbage_is_400() {
    let miner = honest();
    let world = World::new(&[&miner]).await;
    let good = metadata(&world.fields(&miner), "m.pt");
    let many = (0..100).map(|n| format!("k{n}")).collect::<Vec<_>>().join(",");
    for (said, reason) in [
        ("", "missing_field"),
        (",", "invalid_header"),
        ("filename ?", "invalid_header"),
        (&format!("{good},filename bS5wdA=="), "invalid_header"),
        (&format!("{good},"), "invalid_header"),
        (&many, "invalid_header"),
        ("origin_hotkey_ss58 /////w==", "invalid_field"),
    ] {
        let creation = world.tus("POST", "/files").header("Upload-Length", 1000);
        let response = creation.header("Upload-Metadata", said).send().await.unwrap();
        assert_refused(response, 400, reason).await;
    }
    let raw = world.tus("POST", "/files").header("Upload-Length", 1000);
    let raw = raw.header("Upload-Metadata", b"filename \xff\xfe".as_slice());
    assert_refused(raw.send().await.unwrap(), 400, "invalid_header").await;
}

#[tokio::test]
async fn a_creation_that_is_replayed_is_403_and_disturbs_nobody() {
    let miner = honest();
    let world = World::new(&[&miner]).await;
    let content = content(&miner);
    let said = metadata(&world.fields(&miner), "m.pt");
    let create = || {
        let creation = world.tus("POST", "/files").header("Upload-Length", content.len());
        creation.header("Upload-Metadata", &said).send()
    };
    let path = header(&create().await.unwrap(), "location").unwrap();
    let (half, rest) = content.split_at(content.len() / 2);
    let mut stream = world.stalled_append(&path, content.len(), half).await;
    assert_refused(create().await.unwrap(), 403, "signature_reused").await;
    stream.write_all(rest).await.unwrap();
    world
        .until("the upload is stored", || async { world.scheduler.submissions().len() == 1 })
        .await;
}

#[tokio::test]
async fn of_a_thousand_creations_of_one_miner_one_is_left() {
    let miner = honest();
    let config = Config { burst_per_hotkey: 5000, burst_per_address: 5000, ..Config::default() };
    let world = World::with(&[&miner], config).await;
    let mut paths = Vec::new();
    for _ in 0..1000 {
        paths.push(world.create(&miner).await);
    }
    world.until("one part is left", || async { world.parts().len() == 2 }).await;
    let first = world.append(&paths[0], 0, &content(&miner)).send().await.unwrap();
    assert_refused(first, 410, "upload_replaced").await;
    let last = world.append(&paths[999], 0, &content(&miner)).send().await.unwrap();
    assert_eq!(last.status(), 204);
    assert_eq!(world.scheduler.submissions().len(), 1);
}

#[tokio::test]
async fn a_hotkey_that_creates_too_often_is_429_and_a_full_gateway_is_503() {
    let miners = [honest(), Miner::new(2, "miner1_g0.pt"), Miner::new(3, "miner2_g0.pt")];
    let config = Config { burst_per_hotkey: 2, tus_max_unfinished: 2, ..Config::default() };
    let world = World::with(&[&miners[0], &miners[1], &miners[2]], config).await;
    world.create(&miners[0]).await;
    world.create(&miners[0]).await;
    let often = world.creation(&miners[0], 1000).send().await.unwrap();
    assert_refused(often, 429, "rate_limited").await;
    let other = world.create(&miners[1]).await;
    let said = metadata(&world.fields(&miners[2]), "m.pt");
    let third = || {
        let creation = world.tus("POST", "/files").header("Upload-Length", 1000);
        creation.header("Upload-Metadata", &said).send()
    };
    assert_refused(third().await.unwrap(), 503, "busy").await;
    world.until("the parts of two are left", || async { world.parts().len() == 4 }).await;
    // It has cost nobody a signature.
    assert_eq!(world.tus("DELETE", &other).send().await.unwrap().status(), 204);
    assert_eq!(third().await.unwrap().status(), 201);
}
