//! What the validator tells about itself: `/`, `/status` and `/ping`.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use serde_json::{Map, Value, json};

use crate::{admit, app::App, error::Error};

/// `GET /ping`: alive.
pub(crate) async fn ping() -> Json<Value> {
    Json(json!({ "status": "ok" }))
}

/// `GET /`: who this is and where its other doors are. Other validators find svc-peer by it.
pub(crate) async fn index(State(app): State<App>) -> Response {
    let config = &app.config;
    let mut endpoints = Map::new();
    for (name, url) in
        [("http", &config.advertised_http_url), ("peer", &config.advertised_peer_url)]
    {
        if !url.is_empty() {
            endpoints.insert(name.to_owned(), Value::from(url.as_str()));
        }
    }
    let mut body = Map::new();
    body.insert("service".into(), "connito-gateway".into());
    body.insert("version".into(), env!("CARGO_PKG_VERSION").into());
    let hotkey = app.latest.any().ok().map(|seen| seen.view.hotkey.to_string());
    body.insert("hotkey".into(), hotkey.into());
    if let Some(netuid) = config.netuid {
        body.insert("netuid".into(), netuid.into());
    }
    body.insert("endpoints".into(), endpoints.into());
    Json(Value::Object(body)).into_response()
}

/// `GET /status`: where the validator stands. Fields that have no value yet are null.
pub(crate) async fn status(State(app): State<App>) -> Result<Response, Error> {
    let seen = app.latest.any()?;
    let view = &seen.view;
    let phase = view.schedule.phase_at(view.block);
    let base = view.base.as_ref();
    let body = json!({
        "block": view.block,
        "phase": phase.phase_name,
        "blocks_remaining_in_phase": phase.blocks_remaining_in_phase,
        "cycle": phase.cycle_index,
        "cycle_length": phase.cycle_length,
        "round": view.round.as_ref().map(|round| round.id),
        "uploads_open": admit::open_round(view).is_ok(),
        "expert_group": view.expert_group,
        "global_version": base.map(|base| base.version),
        "model_hash": base.map(|base| base.model_hash),
        "slices": seen.manifest.as_ref().map(|manifest| {
            manifest.slices.keys().map(ToString::to_string).collect::<Vec<_>>()
        }),
        "hotkey": view.hotkey,
        "view_age_seconds": seen.at.elapsed().as_secs(),
        "version": env!("CARGO_PKG_VERSION"),
    });
    Ok(Json(body).into_response())
}
