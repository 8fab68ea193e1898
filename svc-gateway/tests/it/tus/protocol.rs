//! The protocol, as clients use it.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use svc_gateway::Config;
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use super::client::{content, header, metadata};
use crate::common::{Miner, ROUND, World, assert_refused, name_of};

#[tokio::test]
async fn a_file_that_comes_in_three_pieces_is_one_submission() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let world = World::new(&[&miner]).await;
    let content = content(&miner);
    let path = world.create(&miner).await;
    assert_eq!(world.offset(&path).await, 0);
    let (third, two) = (content.len() / 3, content.len() / 3 * 2);
    for (from, to) in [(0, third), (third, two)] {
        let response = world.append(&path, from, &content[from..to]).send().await.unwrap();
        assert_eq!(response.status(), 204);
        assert_eq!(header(&response, "upload-offset").unwrap(), to.to_string());
        assert!(header(&response, "upload-expires").is_some());
        assert_eq!(header(&response, "x-stored-path"), None);
        assert_eq!(world.offset(&path).await, to);
    }
    let response = world.append(&path, two, &content[two..]).send().await.unwrap();
    assert_eq!(response.status(), 204);
    let key = format!("submissions/{ROUND}/{}/{}", miner.hotkey, name_of(&miner.file));
    let sha256 = hex::encode(Sha256::digest(&content));
    assert_eq!(header(&response, "upload-offset").unwrap(), content.len().to_string());
    assert_eq!(header(&response, "x-stored-path").unwrap(), key);
    assert_eq!(header(&response, "x-content-sha256").unwrap(), sha256);

    let stored = world.disk.path().join("artifacts").join(&key);
    assert_eq!(std::fs::read(stored).unwrap(), content);
    let reported = world.scheduler.submissions();
    assert_eq!(reported.len(), 1);
    assert_eq!((reported[0].key.as_str(), reported[0].sha256.as_str()), (&*key, &*sha256));
    assert_eq!(world.traces().len(), 2);
    world.until("the part is gone", || async { world.parts().is_empty() }).await;

    // Whoever has not heard the answer hears it again.
    let again = world.tus("HEAD", &path).send().await.unwrap();
    assert_eq!(again.status(), 200);
    assert_eq!(header(&again, "upload-offset").unwrap(), content.len().to_string());
    assert_eq!(header(&again, "x-stored-path").unwrap(), key);
    let again = world.append(&path, content.len(), b"").send().await.unwrap();
    assert_eq!(again.status(), 204);
    assert_eq!(header(&again, "x-content-sha256").unwrap(), sha256);
    let body: Value = world.get(&path).await;
    let bytes = content.len();
    assert_eq!(
        body,
        json!({ "status": "ok", "stored_path": key, "bytes": bytes, "sha256": sha256 })
    );
    assert_refused(world.creation(&miner, bytes).send().await.unwrap(), 409, "already_submitted")
        .await;
}

#[tokio::test]
async fn every_answer_speaks_tus_and_says_what_is_offered() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let config = Config { auth_token: Some("secret".into()), ..Config::default() };
    let world = World::with(&[&miner], config).await;
    let token = |request: reqwest::RequestBuilder| request.bearer_auth("secret");
    let status = format!("{}/status", world.url);
    world
        .until("the gateway is ready", || async {
            token(world.http.get(&status)).send().await.unwrap().status() == 200
        })
        .await;
    let url = format!("{}/files", world.url);
    let options = token(world.http.request(reqwest::Method::OPTIONS, &url)).send().await.unwrap();
    let created = token(world.creation(&miner, content(&miner).len())).send().await.unwrap();
    let unknown = token(world.tus("HEAD", &format!("/files/{}", "0".repeat(32)))).send().await;
    let no_token = world.tus("POST", "/files").send().await.unwrap();
    let no_method = token(world.tus("PUT", "/files")).send().await.unwrap();
    for (response, status) in
        [(options, 204), (created, 201), (unknown.unwrap(), 404), (no_token, 401), (no_method, 405)]
    {
        assert_eq!(response.status(), status);
        for (name, value) in [
            ("tus-resumable", "1.0.0"),
            ("tus-version", "1.0.0"),
            ("tus-extension", "creation,creation-with-upload,expiration,checksum,termination"),
            ("tus-checksum-algorithm", "sha1,sha256"),
            ("tus-max-size", "8589934592"),
            ("cache-control", "no-store"),
        ] {
            assert_eq!(header(&response, name).as_deref(), Some(value), "{status} {name}");
        }
    }
    let elsewhere = token(world.http.get(&status)).send().await.unwrap();
    assert_eq!(header(&elsewhere, "tus-resumable"), None);
}

#[tokio::test]
async fn another_version_is_412_and_does_nothing() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let world = World::new(&[&miner]).await;
    let path = world.create(&miner).await;
    for method in ["POST", "HEAD", "PATCH", "DELETE"] {
        for version in [None, Some("0.2.2"), Some("1.0.1"), Some("")] {
            let target = if method == "POST" { "/files" } else { &path };
            let url = format!("{}{target}", world.url);
            let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
            let mut request = world.http.request(method, url).header("Upload-Offset", 0);
            if let Some(version) = version {
                request = request.header("Tus-Resumable", version);
            }
            let response = request.send().await.unwrap();
            assert_eq!(response.status(), 412);
            assert_eq!(header(&response, "x-reason").unwrap(), "tus_version");
            assert_eq!(header(&response, "tus-version").unwrap(), "1.0.0");
        }
    }
    assert_eq!(world.offset(&path).await, 0);
}

#[tokio::test]
async fn head_tells_length_metadata_and_how_long_there_is() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let world = World::new(&[&miner]).await;
    let length = content(&miner).len();
    let said = format!("{},answer NDI=", metadata(&world.fields(&miner), "m.pt"));
    let creation = world.tus("POST", "/files").header("Upload-Length", length);
    let created = creation.header("Upload-Metadata", &said).send().await.unwrap();
    let path = header(&created, "location").unwrap();
    assert_eq!(path.strip_prefix("/files/").unwrap().len(), 32);
    let response = world.tus("HEAD", &path).send().await.unwrap();
    assert_eq!(header(&response, "upload-metadata").unwrap(), said);
    assert_eq!(header(&response, "upload-length").unwrap(), length.to_string());
    let date = httpdate::parse_http_date(&header(&response, "upload-expires").unwrap()).unwrap();
    assert!(date > std::time::UNIX_EPOCH);
    let body: Value = world.get(&path).await;
    assert_eq!(body, json!({ "status": "unfinished", "offset": 0, "length": length }));
}

#[tokio::test]
async fn an_upload_that_its_sender_ends_is_gone() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let world = World::new(&[&miner]).await;
    let content = content(&miner);
    let path = world.create(&miner).await;
    assert_eq!(world.append(&path, 0, &content[..1000]).send().await.unwrap().status(), 204);
    assert_eq!(world.tus("DELETE", &path).send().await.unwrap().status(), 204);
    world.until("the part is gone", || async { world.parts().is_empty() }).await;
    let again = world.append(&path, 1000, &content[1000..]).send().await.unwrap();
    assert_refused(again, 410, "upload_terminated").await;
    assert_eq!(world.tus("HEAD", &path).send().await.unwrap().status(), 410);
    assert_refused(world.tus("DELETE", &path).send().await.unwrap(), 410, "upload_terminated")
        .await;
    // It may begin anew, and what is stored is not ended.
    let path = world.create(&miner).await;
    assert_eq!(world.append(&path, 0, &content).send().await.unwrap().status(), 204);
    assert_refused(world.tus("DELETE", &path).send().await.unwrap(), 409, "already_submitted")
        .await;
    assert_eq!(world.traces().len(), 2);
}

#[tokio::test]
async fn a_client_that_knows_post_only_may_say_what_it_means() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let world = World::new(&[&miner]).await;
    let content = content(&miner);
    let path = world.create(&miner).await;
    let post = |method: &str| world.tus("POST", &path).header("X-HTTP-Method-Override", method);
    let response = post("PATCH")
        .header("Upload-Offset", 0)
        .header("Content-Type", "application/offset+octet-stream")
        .body(content[..5000].to_vec());
    assert_eq!(response.send().await.unwrap().status(), 204);
    let head = post("HEAD").send().await.unwrap();
    assert_eq!(header(&head, "upload-offset").unwrap(), "5000");
    assert_eq!(post("DELETE").send().await.unwrap().status(), 204);
    assert_refused(post("GET").send().await.unwrap(), 405, "no_method").await;
    assert_refused(world.tus("POST", &path).send().await.unwrap(), 405, "no_method").await;
}

#[tokio::test]
async fn a_body_that_does_not_fit_its_checksum_is_460_and_nothing_of_it_is_taken() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let world = World::new(&[&miner]).await;
    let content = content(&miner);
    let path = world.create(&miner).await;
    let (half, rest) = content.split_at(content.len() / 2);
    let sum = |algorithm: &str, bytes: &[u8]| {
        let digest = match algorithm {
            "sha1" => Sha1::digest(bytes).to_vec(),
            _ => Sha256::digest(bytes).to_vec(),
        };
        format!("{algorithm} {}", BASE64_STANDARD.encode(digest))
    };
    for (algorithm, at, bytes) in [("sha1", 0, half), ("sha256", half.len(), rest)] {
        // Not even bytes that could be no checkpoint do harm.
        for lie in [&content[..100], &b"PK\x03\x04 and then garbage, again and again"[..]] {
            let patch =
                world.append(&path, at, lie).header("Upload-Checksum", sum(algorithm, bytes));
            let response = patch.send().await.unwrap();
            assert_eq!(response.status().as_u16(), 460);
            assert_eq!(header(&response, "x-reason").unwrap(), "checksum_mismatch");
            assert_eq!(world.offset(&path).await, at);
        }
        let patch = world.append(&path, at, bytes).header("Upload-Checksum", sum(algorithm, bytes));
        assert_eq!(patch.send().await.unwrap().status(), 204);
    }
    assert_eq!(world.scheduler.submissions().len(), 1);
    world.until("only the submission is left", || async { world.traces().len() == 2 }).await;
}

#[tokio::test]
async fn a_checksum_that_is_not_understood_is_400_and_one_cut_short_takes_nothing() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let world = World::new(&[&miner]).await;
    let content = content(&miner);
    let path = world.create(&miner).await;
    for (checksum, reason) in [
        ("md5 1B2M2Y8AsgTpgAmY7PhCfg==", "checksum_algorithm"),
        ("sha1 1B2M2Y8AsgTpgAmY7PhCfg==", "invalid_header"),
        ("sha1", "invalid_header"),
    ] {
        let patch = world.append(&path, 0, &content).header("Upload-Checksum", checksum);
        assert_refused(patch.send().await.unwrap(), 400, reason).await;
    }
    let digest = BASE64_STANDARD.encode(Sha1::digest(&content));
    let head = format!(
        "PATCH {path} HTTP/1.1\r\nHost: g\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\n\
         Content-Type: application/offset+octet-stream\r\nUpload-Checksum: sha1 {digest}\r\n\
         Content-Length: {}\r\n\r\n",
        content.len()
    );
    let mut stream = TcpStream::connect(world.url.strip_prefix("http://").unwrap()).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&content[..content.len() - 1]).await.unwrap();
    drop(stream);
    world.until("the request has ended", || async { world.uploads().await == 0 }).await;
    assert_eq!(world.offset(&path).await, 0);
    assert_eq!(world.append(&path, 0, &content).send().await.unwrap().status(), 204);
}
