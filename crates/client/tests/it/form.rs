//! Submissions to a gateway that is older than tus: as one form.

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use client::Transport;
use tokio::net::TcpListener;

use crate::{
    common::{Miner, World},
    proxy::{Cut, Numbers, Proxy},
    scene::{client, own_copy, patient},
};

/// The gateway of this world without the routes that an older one does not have.
async fn older(world: &World) -> String {
    let (to, http) = (world.url.clone(), world.http.clone());
    let forward = async move |request: Request| -> Response {
        let path = request.uri().path_and_query().unwrap().as_str().to_owned();
        if path.starts_with("/files") || path.starts_with("/submissions") {
            return StatusCode::NOT_FOUND.into_response();
        }
        let (parts, body) = request.into_parts();
        let sent = http
            .request(parts.method, format!("{to}{path}"))
            .headers(parts.headers)
            .body(reqwest::Body::wrap_stream(body.into_data_stream()))
            .send()
            .await;
        let Ok(answer) = sent else { return StatusCode::BAD_GATEWAY.into_response() };
        let mut response = Response::new(Body::empty());
        *response.status_mut() = answer.status();
        *response.headers_mut() = answer.headers().clone();
        *response.body_mut() = Body::from(answer.bytes().await.unwrap_or_default());
        response
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().fallback(forward);
    tokio::spawn(async { axum::serve(listener, router).await.unwrap() });
    url
}

#[tokio::test]
async fn a_gateway_without_tus_is_sent_a_form() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let world = World::with(&[&miner], patient()).await;
    let path = own_copy(&world, &miner);
    let client = client(&older(&world).await, &miner);
    let done = client.submit(&path, miner.hash).await.unwrap();
    assert_eq!((done.transport, done.tries), (Transport::Multipart, 1));
    assert!(done.key.unwrap().ends_with("/miner0_g0.pt"));
    assert_eq!(world.scheduler.submissions().len(), 1);
}

#[tokio::test]
async fn forms_that_break_at_random_bytes_end_in_one_submission_each() {
    let miners: Vec<_> = (1..=30).map(|number| Miner::new(number, "miner1_g0.pt")).collect();
    let world = World::with(&miners.iter().collect::<Vec<_>>(), patient()).await;
    let older = older(&world).await;
    let (mut cuts, mut earlier) = (0, 0);
    for (seed, miner) in miners.iter().enumerate() {
        let proxy = Proxy::start(&older).await;
        let mut numbers = Numbers(1000 + seed as u64);
        // Three connections break, then they live: a form has to come through in one piece.
        let mut left = 3;
        proxy.cut(move || {
            left = std::cmp::max(left, 1) - 1;
            let cut = match numbers.below(2) {
                0 => Cut::Up(numbers.below(160_000)),
                _ => Cut::Down(numbers.below(3500)),
            };
            (left > 0).then_some(cut)
        });
        let path = own_copy(&world, miner);
        let done = client(&proxy.url, miner).submit(&path, miner.hash).await;
        let done = done.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        cuts += proxy.cuts();
        earlier += u64::from(done.transport == Transport::Earlier);
    }
    assert_eq!(world.scheduler.submissions().len(), miners.len());
    assert!(cuts >= 30 && earlier > 0, "{cuts} cuts, {earlier} answers lost");
}
