//! Receipts: how they are asked for, and what a client makes of them.

use axum::{
    Json, Router,
    extract::{Path, Request},
    http::StatusCode,
    response::IntoResponse as _,
    routing::{get, post},
};
use client::Transport;
use domain::{ModelHash, RoundId};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::{
    common::{Miner, ROUND},
    scene::client,
};

/// A gateway that has a submission of this miner, and tells of it what it is told to.
async fn gateway(miner: &Miner, receipt: Value) -> String {
    let status = json!({
        "block": 340, "phase": "Submission", "round": ROUND, "uploads_open": true, "expert_group": 0,
        "global_version": 1, "model_hash": null, "hotkey": miner.hotkey,
    });
    let own = miner.hotkey.to_string();
    let tell = async move |Path((round, hotkey)): Path<(u64, String)>, request: Request| {
        assert_eq!((round, &hotkey), (ROUND, &own));
        let query = request.uri().query().unwrap_or_default().to_owned();
        for field in ["target_hotkey_ss58", "origin_hotkey_ss58", "origin_block=340", "signature"] {
            assert!(query.contains(field), "{query}");
        }
        Json(receipt)
    };
    let refuse = async || {
        let body = json!({ "detail": "it has", "reason": "already_submitted" });
        (StatusCode::CONFLICT, Json(body)).into_response()
    };
    let router = Router::new()
        .route("/status", get(async move || Json(status)))
        .route("/submissions/{round}/{hotkey}", get(tell))
        .route("/submit-checkpoint", post(refuse));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async { axum::serve(listener, router).await.unwrap() });
    url
}

#[tokio::test]
async fn a_receipt_is_signed_for_and_told_as_it_is() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let whole = json!({
        "state": "refused", "reason": "non_finite", "detail": "a\u{1b}b", "more": [1],
        "file": null, "loss": null,
    });
    let url = gateway(&miner, whole.clone()).await;
    let receipt = client(&url, &miner).receipt(RoundId(ROUND)).await.unwrap();
    assert_eq!((receipt.state.as_str(), receipt.reason.as_str()), ("refused", "non_finite"));
    assert!(!receipt.detail.contains('\u{1b}'));
    assert_eq!((receipt.find("loss"), receipt.find("key")), (None, None));
    assert_eq!(receipt.whole, whole);
}

#[tokio::test]
async fn submitted_already_is_done_unless_the_receipt_names_another_model() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let stored = |hash: &ModelHash| json!({ "state": "stored", "file": { "model_hash": hash } });
    for (receipt, done) in [
        (stored(&miner.hash), true),
        (json!({ "state": "stored" }), true),
        (json!([]), true),
        (stored(&ModelHash([9; 24])), false),
    ] {
        let url = gateway(&miner, receipt.clone()).await;
        let result = client(&url, &miner).submit(&miner.file, miner.hash).await;
        match result {
            Ok(submitted) => assert!(done && submitted.transport == Transport::Earlier),
            Err(error) => assert!(!done && error.reason() == "already_submitted", "{receipt}"),
        }
    }
}
