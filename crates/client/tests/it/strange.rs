//! Gateways that are none, or mean harm: answers without end, redirects, lies about lengths.

use std::time::Duration;

use axum::{
    Json, Router,
    body::Body,
    extract::Request,
    http::{StatusCode, header},
    response::{IntoResponse as _, Redirect, Response},
    routing::get,
};
use checkpoint::{Format, SliceId};
use client::{ClientError, Patience};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;
use tokio_stream::StreamExt as _;

use crate::{
    common::Miner,
    scene::{client, quick},
};

async fn serve(router: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async { axum::serve(listener, router).await.unwrap() });
    url
}

fn status(miner: &Miner) -> Value {
    json!({
        "block": 340, "phase": "Submission", "round": 336, "uploads_open": true, "expert_group": 0,
        "global_version": 1, "model_hash": null, "hotkey": miner.hotkey,
    })
}

/// Bytes until whoever reads them has enough.
fn endless() -> Body {
    let piece = vec![b'x'; 64 << 10];
    Body::from_stream(tokio_stream::iter(std::iter::repeat_with(move || {
        Ok::<_, std::convert::Infallible>(piece.clone())
    })))
}

fn file(headers: &[(&str, &str)], status: StatusCode, body: Body) -> Response {
    let mut response = Response::builder()
        .status(status)
        .header(header::ETAG, "\"tag\"")
        .header("x-content-sha256", "00")
        .header("x-global-version", "1")
        .header("x-model-hash", "07".repeat(24));
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(body).unwrap()
}

#[tokio::test]
async fn an_answer_without_end_is_not_read_to_its_end() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let url = serve(Router::new().fallback(async || endless().into_response())).await;
    let client = client(&url, &miner);
    let error = client.status().await.unwrap_err();
    assert!(matches!(error, ClientError::Strange(_)), "{error}");
    // A refusal without end neither.
    let refuse = async || (StatusCode::BAD_REQUEST, endless()).into_response();
    let url = serve(Router::new().fallback(refuse)).await;
    let error = crate::scene::client(&url, &miner).status().await.unwrap_err();
    assert!(matches!(error, ClientError::Strange(_)), "{error}");
}

#[tokio::test]
async fn a_page_of_something_else_is_no_gateway_and_its_words_do_not_steer_a_terminal() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let page = async || (StatusCode::FORBIDDEN, "\u{1b}[31m<html>go away</html>").into_response();
    let url = serve(Router::new().fallback(page)).await;
    let error = client(&url, &miner).status().await.unwrap_err();
    assert!(error.to_string().contains("go away") && !error.to_string().contains('\u{1b}'));
}

#[tokio::test]
async fn lengths_and_ranges_that_do_not_hold_are_not_written() {
    let miner = Miner::new(1, "miner0_g0.pt");
    for (headers, status_code) in [
        (vec![("content-range", "bytes 5-9/10")], StatusCode::PARTIAL_CONTENT),
        (vec![("content-range", "bytes 0-9/20")], StatusCode::PARTIAL_CONTENT),
        (
            vec![("content-range", "bytes 0-99999999999999/100000000000000")],
            StatusCode::PARTIAL_CONTENT,
        ),
        (vec![("content-range", "nonsense")], StatusCode::PARTIAL_CONTENT),
        (vec![], StatusCode::PARTIAL_CONTENT),
        // As long as it likes.
        (vec![], StatusCode::OK),
    ] {
        let (said, told) = (headers.clone(), status(&miner));
        let router = Router::new()
            .route("/status", get(async move || Json(told)))
            .route("/get-checkpoint", get(async move || file(&headers, status_code, endless())));
        let url = serve(router).await;
        let folder = testkit::tempdir().unwrap();
        let path = folder.path().join("slice.pt");
        let client = client(&url, &miner);
        let error = client.download(SliceId::Shared, Format::Pt, &path).await.unwrap_err();
        assert!(matches!(error, ClientError::Strange(_)), "{said:?}: {error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "{said:?}");
    }
}

#[tokio::test]
async fn a_redirect_is_followed_to_the_store_without_token_or_signature_and_gone_on_with_here() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let content = b"0123456789".repeat(1000);
    let store = {
        let content = content.clone();
        serve(Router::new().fallback(async move |request: Request| {
            assert!(!request.headers().contains_key(header::AUTHORIZATION));
            assert_eq!(request.uri().query(), Some("key=1"));
            // Half of what is announced: the connection breaks.
            let pieces = [Ok(content[..5000].to_vec()), Err(std::io::Error::other("cut"))];
            let slowly = tokio_stream::iter(pieces).then(async |piece| {
                tokio::time::sleep(Duration::from_millis(20)).await;
                piece
            });
            Response::builder()
                .header(header::CONTENT_LENGTH, content.len())
                .body(Body::from_stream(slowly))
                .unwrap()
        }))
        .await
    };
    let sha256 = hex::encode(Sha256::digest(&content));
    let told = status(&miner);
    let gateway = Router::new().route("/status", get(async move || Json(told))).route(
        "/get-checkpoint",
        get(async move |request: Request| {
            let query = request.uri().query().unwrap_or_default().to_owned();
            let mut response = if query.contains("redirect=no") {
                let range = request.headers()[header::RANGE].to_str().unwrap().to_owned();
                let start: usize =
                    range.strip_prefix("bytes=").unwrap().trim_end_matches('-').parse().unwrap();
                assert_eq!(request.headers()[header::IF_RANGE], "\"tag\"");
                let span = format!("bytes {start}-{}/{}", content.len() - 1, content.len());
                let body = Body::from(content[start..].to_vec());
                file(&[("content-range", &span)], StatusCode::PARTIAL_CONTENT, body)
            } else {
                let mut response = file(&[], StatusCode::TEMPORARY_REDIRECT, Body::empty());
                let to = Redirect::temporary(&format!("{store}/object?key=1")).into_response();
                let to = to.headers()[header::LOCATION].clone();
                response.headers_mut().insert(header::LOCATION, to);
                response
            };
            response.headers_mut().insert("x-content-sha256", sha256.parse().unwrap());
            response
        }),
    );
    let url = serve(gateway).await;
    let folder = testkit::tempdir().unwrap();
    let path = folder.path().join("slice.pt");
    let sign = crate::scene::signer(miner.keys.clone());
    let client = client::MinerClient::new(&url, miner.hotkey.clone(), sign, Some("secret".into()))
        .unwrap()
        .with_patience(quick());
    let done = client.download(SliceId::Shared, Format::Pt, &path).await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"0123456789".repeat(1000));
    assert_eq!(done.tries, 2);
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_says_nothing_is_left_after_a_while() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = client(&format!("http://{}", listener.local_addr().unwrap()), &miner)
        .with_patience(Patience { tries: 2, ..Patience::default() });
    let error = client.status().await.unwrap_err();
    assert!(matches!(error, ClientError::Silent(limit) if limit == Duration::from_secs(60)));
    drop(listener);
}
