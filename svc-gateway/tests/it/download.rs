//! Downloads: who gets which bytes.

use checkpoint::{Format, SliceId};
use domain::ExpertGroup;
use reqwest::StatusCode;
use svc_gateway::Config;
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use crate::{
    common::{NOW, World, assert_refused, hotkey_of, keypair, published, sign},
    connections::read_answer,
};

#[tokio::test]
async fn every_slice_is_served_in_both_formats_by_form_and_by_query() {
    let world = World::new(&[]).await;
    let slices = [
        ("shared", SliceId::Shared),
        ("0", SliceId::Group(ExpertGroup(0))),
        ("1", SliceId::Group(ExpertGroup(1))),
    ];
    for (text, slice) in slices {
        for format in [Format::Pt, Format::Safetensors] {
            let extension = format.extension();
            let response =
                world.download(text).query(&[("format", extension)]).send().await.unwrap();
            assert_eq!(response.status(), 200);
            let headers = response.headers();
            let name = slice.file_name(format);
            let disposition = headers["content-disposition"].to_str().unwrap();
            assert_eq!(disposition, format!("attachment; filename=\"{name}\""));
            let hash = world.manifest.slice(slice).unwrap().model_hash;
            assert_eq!(headers["etag"].to_str().unwrap(), format!("\"{hash}-{text}-{extension}\""));
            assert_eq!(headers["accept-ranges"], "bytes");
            assert!(headers.contains_key("last-modified"));
            assert_eq!(response.bytes().await.unwrap(), published(&world, slice, format));
        }
    }
    // All of it in the query, and no slice named: the whole model, as today's miners load it.
    for route in ["/get-checkpoint", "/model/get-checkpoint", "/model/partial"] {
        let query = world.download_form(&keypair(1), NOW);
        let response =
            world.http.get(format!("{}{route}", world.url)).query(&query).send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.bytes().await.unwrap(), published(&world, SliceId::Full, Format::Pt));
    }
}

#[tokio::test]
async fn safetensors_can_be_asked_for_by_accept() {
    let world = World::new(&[]).await;
    let request = world.download("0").header("accept", "application/x-safetensors");
    let bytes = request.send().await.unwrap().bytes().await.unwrap();
    let slice = SliceId::Group(ExpertGroup(0));
    assert_eq!(bytes, published(&world, slice, Format::Safetensors));
}

#[tokio::test]
async fn a_download_resumed_at_any_byte_gives_the_same_file() {
    let world = World::new(&[]).await;
    let whole = published(&world, SliceId::Shared, Format::Pt);
    let first = world.download("shared").send().await.unwrap();
    let etag = first.headers()["etag"].clone();
    for at in [0, 1, whole.len() / 2, whole.len() - 1] {
        let request = world.download("shared").header("range", format!("bytes={at}-"));
        let response = request.header("if-range", etag.clone()).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::PARTIAL_CONTENT);
        let range = format!("bytes {at}-{}/{}", whole.len() - 1, whole.len());
        assert_eq!(response.headers()["content-range"].to_str().unwrap(), range);
        assert_eq!(response.content_length(), Some((whole.len() - at) as u64));
        assert_eq!(response.bytes().await.unwrap(), whole[at..]);
    }
    let some = world.download("shared").header("range", "bytes=7-11").send().await.unwrap();
    assert_eq!(some.bytes().await.unwrap(), whole[7..12]);
}

#[tokio::test]
async fn a_range_for_another_file_gives_the_whole_file() {
    let world = World::new(&[]).await;
    let whole = published(&world, SliceId::Shared, Format::Pt);
    let other = world.download("shared").header("range", "bytes=5-").header("if-range", "\"old\"");
    let response = other.send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.bytes().await.unwrap(), whole);
}

#[tokio::test]
async fn several_ranges_are_416_and_the_client_is_told_to_ask_for_one() {
    let world = World::new(&[]).await;
    let len = published(&world, SliceId::Shared, Format::Pt).len();
    let several = world.download("shared").header("range", "bytes=0-1,4-5");
    let response = several.send().await.unwrap();
    assert_eq!(response.headers()["content-range"].to_str().unwrap(), format!("bytes */{len}"));
    assert_refused(response, 416, "several_ranges").await;
}

#[tokio::test]
async fn a_file_can_be_asked_for_by_its_name() {
    let world = World::new(&[]).await;
    let form = world.download_form(&keypair(1), NOW);
    for route in ["get-checkpoint", "model/get-checkpoint", "model/partial"] {
        for (slice, of) in &world.manifest.slices {
            for (format, info) in &of.files {
                let url = format!("{}/{route}/{}", world.url, info.name);
                // What is liked counts for nothing against a name.
                let request = world.http.get(url).form(&form).header("accept", "x/safetensors");
                let response = request.send().await.unwrap();
                assert_eq!(response.status(), 200, "{}", info.name);
                assert!(!response.headers().contains_key("vary"));
                let bytes = response.bytes().await.unwrap();
                assert_eq!(bytes, published(&world, *slice, *format));
            }
        }
    }
    let url = format!("{}/get-checkpoint", world.url);
    for name in
        ["model_shared.bin", "manifest.json", "..%2Fmanifest.json", "%FF", "model_expgroup_00.pt"]
    {
        let response = world.http.get(format!("{url}/{name}")).form(&form).send().await.unwrap();
        assert_eq!(response.status(), 404, "{name}");
    }
    for (field, value) in [("format", "safetensors"), ("expert_group_id", "0")] {
        let mut form = form.clone();
        form.insert(field.into(), value.into());
        let response = world.http.get(format!("{url}/model_shared.pt")).form(&form).send().await;
        assert_refused(response.unwrap(), 400, "invalid_field").await;
    }
}

#[tokio::test]
async fn a_range_behind_the_end_is_416_and_says_how_long_the_file_is() {
    let world = World::new(&[]).await;
    let len = published(&world, SliceId::Shared, Format::Pt).len();
    let request = world.download("shared").header("range", format!("bytes={len}-"));
    let response = request.send().await.unwrap();
    assert_eq!(response.headers()["content-range"].to_str().unwrap(), format!("bytes */{len}"));
    assert_refused(response, 416, "range_unsatisfiable").await;
}

#[tokio::test]
async fn what_a_client_has_is_304_and_head_sends_no_body() {
    let world = World::new(&[]).await;
    let whole = published(&world, SliceId::Shared, Format::Pt);
    let mut form = world.download_form(&keypair(1), NOW);
    form.insert("expert_group_id".into(), "shared".into());
    let head = world.http.head(format!("{}/get-checkpoint", world.url)).query(&form);
    let head = head.send().await.unwrap();
    assert_eq!(head.status(), 200);
    assert_eq!(head.headers()["content-length"].to_str().unwrap(), whole.len().to_string());
    let etag = head.headers()["etag"].clone();
    assert!(head.bytes().await.unwrap().is_empty());
    let again = world.download("shared").header("if-none-match", etag.clone());
    let again = again.send().await.unwrap();
    assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
    assert_eq!(again.headers()["etag"], etag);
    assert!(again.bytes().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_slice_that_does_not_exist_is_404() {
    let world = World::new(&[]).await;
    for slice in ["7", "-1", "experts", "../shared"] {
        let response = world.download(slice).send().await.unwrap();
        assert_refused(response, 404, "no_slice").await;
    }
    let response = world.download("0").query(&[("format", "gguf")]).send().await.unwrap();
    assert_refused(response, 400, "invalid_field").await;
}

#[tokio::test]
async fn without_a_checkpoint_a_download_is_503() {
    let world = World::new(&[]).await;
    world
        .change(|view| {
            view.base = None;
            view.block += 1;
        })
        .await;
    let response = world.download("0").send().await.unwrap();
    assert!(response.headers().contains_key("retry-after"));
    assert_refused(response, 503, "no_checkpoint").await;
    // A model whose manifest is not there is no checkpoint either.
    world
        .change(|view| {
            let manifest = &world.manifest;
            view.base = Some(proto::common::v1::ModelRef {
                global_version: 572,
                model_hash: manifest.model_hash.to_hex(),
                prefix: "models/572".into(),
            });
            view.block += 1;
        })
        .await;
    let response = world.download("0").send().await.unwrap();
    assert_refused(response, 503, "no_checkpoint").await;
}

#[tokio::test]
async fn a_download_with_a_missing_field_is_400() {
    let world = World::new(&[]).await;
    let url = format!("{}/get-checkpoint", world.url);
    for missing in ["target_hotkey_ss58", "origin_hotkey_ss58", "origin_block", "signature"] {
        let mut form = world.download_form(&keypair(1), NOW);
        form.remove(missing);
        let response = world.http.get(&url).form(&form).send().await.unwrap();
        assert_refused(response, 400, "missing_field").await;
        form.insert(missing.into(), "?".into());
        let response = world.http.get(&url).form(&form).send().await.unwrap();
        assert_refused(response, 400, "invalid_field").await;
    }
}

#[tokio::test]
async fn a_download_for_another_validator_or_with_another_signature_is_403() {
    let world = World::new(&[]).await;
    let url = format!("{}/get-checkpoint", world.url);
    let mut form = world.download_form(&keypair(1), NOW);
    form.insert("target_hotkey_ss58".into(), hotkey_of(&keypair(9)).to_string());
    let response = world.http.get(&url).form(&form).send().await.unwrap();
    assert_refused(response, 403, "wrong_target").await;
    let mut form = world.download_form(&keypair(1), NOW);
    form.insert("signature".into(), sign(&keypair(1), b"something else"));
    let response = world.http.get(&url).form(&form).send().await.unwrap();
    assert_refused(response, 403, "request_signature").await;
    let mut form = world.download_form(&keypair(1), NOW);
    form.insert("origin_hotkey_ss58".into(), hotkey_of(&keypair(2)).to_string());
    let response = world.http.get(&url).form(&form).send().await.unwrap();
    assert_refused(response, 403, "request_signature").await;
}

#[tokio::test]
async fn a_download_signed_too_long_ago_or_in_the_future_is_400() {
    let config = Config { max_origin_age_blocks: Some(10), ..Config::default() };
    let world = World::with(&[], config).await;
    let url = format!("{}/get-checkpoint", world.url);
    for (block, status) in [(NOW - 11, 400), (NOW - 10, 200), (NOW + 5, 200), (NOW + 6, 400)] {
        let form = world.download_form(&keypair(1), block);
        let response = world.http.get(&url).form(&form).send().await.unwrap();
        assert_eq!(response.status(), status, "{block}");
        if status == 400 {
            assert_refused(response, 400, "origin_block").await;
        }
    }
}

#[tokio::test]
async fn a_form_that_is_too_long_is_413_and_one_that_does_not_end_is_408() {
    let config = Config { header_timeout: std::time::Duration::from_secs(1), ..Config::default() };
    let world = World::with(&[], config).await;
    let url = format!("{}/get-checkpoint", world.url);
    let response = world.http.get(&url).body("x".repeat(20_000)).send().await.unwrap();
    assert_refused(response, 413, "too_large").await;
    let mut stream = TcpStream::connect(world.url.strip_prefix("http://").unwrap()).await.unwrap();
    let head = b"GET /get-checkpoint HTTP/1.1\r\nHost: gateway\r\nContent-Length: 9\r\n\r\nsig";
    stream.write_all(head).await.unwrap();
    let answer = read_answer(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("too_slow"), "{answer}");
}

#[tokio::test]
async fn more_downloads_than_may_be_are_503() {
    let config = Config { max_downloads: 0, ..Config::default() };
    let world = World::with(&[], config).await;
    let response = world.download("0").send().await.unwrap();
    assert!(response.headers().contains_key("retry-after"));
    assert_refused(response, 503, "busy").await;
}

#[tokio::test]
async fn a_hotkey_that_asks_too_often_is_429() {
    let config = Config { burst_per_hotkey: 2, requests_per_hotkey: 1, ..Config::default() };
    let world = World::with(&[], config).await;
    for _ in 0..2 {
        assert_eq!(world.download("0").send().await.unwrap().status(), 200);
    }
    let response = world.download("0").send().await.unwrap();
    let wait: u64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait), "{wait}");
    assert_refused(response, 429, "rate_limited").await;
}

#[tokio::test]
async fn a_slice_whose_file_is_damaged_is_503_and_not_half_a_file() {
    let world = World::new(&[]).await;
    let file = world.disk.path().join("artifacts/models/100/model_shared.pt");
    std::fs::write(file, b"short").unwrap();
    let response = world.download("shared").send().await.unwrap();
    assert_refused(response, 503, "unavailable").await;
    // Of the right length, and one byte is another.
    let mut flipped = published(&world, SliceId::Shared, Format::Safetensors);
    *flipped.last_mut().unwrap() ^= 1;
    let file = world.disk.path().join("artifacts/models/100/model_shared.safetensors");
    std::fs::write(file, flipped).unwrap();
    let request = world.download("shared").query(&[("format", "safetensors")]);
    assert_refused(request.send().await.unwrap(), 503, "unavailable").await;
    // Only the sound ones.
    assert_eq!(world.download("0").send().await.unwrap().status(), 200);
}
