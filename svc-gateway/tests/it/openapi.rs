//! The document of all routes, against the gateway that serves it. Every refusal that other tests provoke is
//! held against it as well, where they look at it.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use reqwest::{Method, header::CONTENT_TYPE};
use serde_json::Value;
use svc_gateway::Config;

use crate::common::{Miner, NOW, World, assert_refused, document, keypair};

#[tokio::test]
async fn the_document_that_is_served_is_the_one_that_is_tested() {
    let world = World::new(&[]).await;
    let url = format!("{}/openapi.json", world.url);
    let response = world.http.get(url).send().await.unwrap();
    assert_eq!(response.headers()[CONTENT_TYPE], "application/json");
    assert_eq!(&response.json::<Value>().await.unwrap(), svc_gateway::openapi());
    assert_eq!(world.get("/status").await["openapi"], "/openapi.json");
    assert_eq!(world.get("/").await["links"]["openapi"], "/openapi.json");
}

#[tokio::test]
async fn a_method_is_in_the_document_exactly_when_the_route_takes_it() {
    let config = Config { burst_per_address: 10_000, ..Config::default() };
    let world = World::with(&[], config).await;
    let mut asked = 0;
    for (path, item) in svc_gateway::openapi()["paths"].as_object().unwrap() {
        let url = format!("{}{}", world.url, path.replace(['{', '}'], ""));
        for name in document::METHODS {
            let method: Method = name.to_uppercase().parse().unwrap();
            // Of tus its version is asked for before anything else, and POST is for another method.
            let request = world.http.request(method, &url).header("tus-resumable", "1.0.0");
            let request = request.header("x-http-method-override", "DELETE");
            let response = request.send().await.unwrap();
            let taken = response.status() != 405;
            // HEAD goes wherever GET does (RFC 9110, 9.3.2); the document names it where it is of use.
            let written = item[name].is_object() || (name == "head" && item["get"].is_object());
            assert_eq!(taken, written, "{name} {path}");
            asked += 1;
        }
    }
    assert!(asked > 100, "only {asked} requests");
    let unknown = world.http.get(format!("{}/docs", world.url)).send().await.unwrap();
    assert_refused(unknown, 404, "no_route").await;
}

#[tokio::test]
async fn pages_answer_what_the_document_says() {
    let config = Config {
        netuid: Some(102),
        advertised_http_url: "http://validator:8091".into(),
        ..Config::default()
    };
    let world = World::with(&[], config).await;
    // `get` holds each against the document.
    for (path, item) in svc_gateway::openapi()["paths"].as_object().unwrap() {
        let signed = path.contains("checkpoint") || path.contains("partial") || path.contains('{');
        if item["get"].is_object() && !signed {
            world.get(path).await;
        }
    }
    // Before a model, and between rounds.
    world
        .change(|view| {
            view.block = 1;
            (view.base, view.round) = (None, None);
        })
        .await;
    let status = world.get("/status").await;
    assert_eq!(status["uploads"]["largest_file_bytes"], Value::Null);
    assert_eq!(
        (&status["uploads"]["first_block"], &status["uploads"]["last_block"]),
        (&336.into(), &355.into())
    );
}

#[tokio::test]
async fn a_submission_and_downloads_answer_what_the_document_says() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let world = World::new(&[&miner]).await;
    let response = world.submit_honestly(&miner).await;
    let path = response.url().path().to_owned();
    document::has_json("post", &path, 200, &response.json().await.unwrap());

    let form = world.download_form(&keypair(1), NOW);
    let named = "/model/get-checkpoint/model_shared.pt";
    for path in ["/get-checkpoint", "/model/get-checkpoint", "/model/partial", named] {
        let request =
            |method| world.http.request(method, format!("{}{path}", world.url)).query(&form);
        const FILE: [&str; 6] = [
            "etag",
            "accept-ranges",
            "last-modified",
            "x-model-hash",
            "x-global-version",
            "x-content-sha256",
        ];
        let whole = request(Method::GET).send().await.unwrap();
        document::has_headers("get", path, 200, whole.headers(), &FILE);
        assert_eq!(whole.headers()[CONTENT_TYPE], "application/octet-stream");
        let tag = whole.headers()["etag"].clone();
        let head = request(Method::HEAD).send().await.unwrap();
        document::has_headers("head", path, 200, head.headers(), &FILE);
        let part = request(Method::GET).header("range", "bytes=5-").send().await.unwrap();
        document::has_headers("get", path, 206, part.headers(), &["content-range", "etag"]);
        let same = request(Method::GET).header("if-none-match", tag).send().await.unwrap();
        document::has_headers("get", path, 304, same.headers(), &["etag"]);
        let behind = request(Method::GET).header("range", "bytes=99999999-").send().await.unwrap();
        assert!(behind.headers().contains_key("content-range"));
        assert_refused(behind, 416, "range_unsatisfiable").await;
    }
}

#[tokio::test]
async fn an_upload_that_is_gone_on_with_answers_what_the_document_says() {
    let miner = Miner::new(1, "miner0_g0.pt");
    // It asks with signed requests until it is told.
    let config = Config { burst_per_hotkey: 10_000, ..Config::default() };
    let world = World::with(&[&miner], config).await;
    let content = std::fs::read(&miner.file).unwrap();
    let request = |method: &str, url: &str| {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        world.http.request(method, url).header("tus-resumable", "1.0.0")
    };
    const ALWAYS: [&str; 6] = [
        "tus-resumable",
        "tus-version",
        "tus-extension",
        "tus-checksum-algorithm",
        "tus-max-size",
        "cache-control",
    ];
    let files = format!("{}/files", world.url);
    let options = request("OPTIONS", &files).send().await.unwrap();
    document::has_headers("options", "/files", 204, options.headers(), &ALWAYS);

    let create = || {
        let mut pairs: Vec<String> = world.fields(&miner).iter().map(pair).collect();
        pairs.push(pair(&("filename", "m.pt".to_owned())));
        let length = content.len();
        request("POST", &files)
            .header("upload-length", length)
            .header("upload-metadata", pairs.join(","))
    };
    let created = create().send().await.unwrap();
    let begun = [&ALWAYS[..], &["location", "upload-offset", "upload-length", "upload-expires"]];
    document::has_headers("post", "/files", 201, created.headers(), &begun.concat());
    let location = created.headers()["location"].to_str().unwrap().to_owned();
    let (path, url) = (location.clone(), format!("{}{location}", world.url));

    let ended = request("DELETE", &url).send().await.unwrap();
    document::has_headers("delete", &path, 204, ended.headers(), &ALWAYS);
    assert_refused(request("GET", &url).send().await.unwrap(), 410, "upload_terminated").await;
    let gone = request("HEAD", &url).send().await.unwrap();
    document::has_headers("head", &path, 410, gone.headers(), &["x-reason"]);

    let created = create().send().await.unwrap();
    let path = created.headers()["location"].to_str().unwrap().to_owned();
    let url = format!("{}{path}", world.url);
    let (first, last) = content.split_at(1000);
    let append = |offset: usize, bytes: &[u8]| {
        request("PATCH", &url)
            .header("upload-offset", offset)
            .header(CONTENT_TYPE, "application/offset+octet-stream")
            .body(bytes.to_vec())
    };
    let part = append(0, first).send().await.unwrap();
    document::has_headers("patch", &path, 204, part.headers(), &["upload-offset"]);
    assert_refused(append(7, last).send().await.unwrap(), 409, "offset_mismatch").await;
    let bare = request("PATCH", &url).send().await.unwrap();
    assert_refused(bare, 415, "media_type").await;
    assert_eq!(world.get(&path).await["offset"], 1000);
    // Its miner is told, though nobody sends.
    world
        .until("the receipt says how far it is", || async {
            world.told(&miner).await["receiving"]["bytes"] == 1000
        })
        .await;
    assert_eq!(world.told(&miner).await["state"], "receiving");
    let whole = append(1000, last).send().await.unwrap();
    let stored = ["upload-offset", "x-stored-path", "x-content-sha256"];
    document::has_headers("patch", &path, 204, whole.headers(), &stored);
    let head = request("HEAD", &url).send().await.unwrap();
    document::has_headers("head", &path, 200, head.headers(), &stored);
    assert_eq!(world.get(&path).await["status"], "ok");
    assert_eq!(world.told(&miner).await["state"], "stored");
    assert_refused(request("PATCH", &files).send().await.unwrap(), 405, "no_method").await;
    let plain = world.http.post(&files).send().await.unwrap();
    assert_refused(plain, 412, "tus_version").await;
}

/// A pair of `Upload-Metadata`.
fn pair((key, value): &(&str, String)) -> String {
    format!("{key} {}", BASE64_STANDARD.encode(value))
}
