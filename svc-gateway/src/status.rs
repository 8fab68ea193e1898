//! What the validator tells about itself: `/`, `/status` and `/ping`.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use domain::Phase;
use serde_json::{Map, Value, json};

use crate::{
    admit,
    app::App,
    error::Error,
    signed, submission,
    view::{Seen, View},
};

/// Where the document of all routes is.
const OPENAPI: &str = "/openapi.json";

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
    body.insert("links".into(), json!({ "status": "/status", "openapi": OPENAPI }));
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
        "uploads": uploads(&app, &seen),
        "limits": limits(&app, view),
        "expert_group": view.expert_group,
        "global_version": base.map(|base| base.version),
        "model_hash": base.map(|base| base.model_hash),
        "slices": seen.manifest.as_ref().map(|manifest| {
            manifest.slices.keys().map(ToString::to_string).collect::<Vec<_>>()
        }),
        "hotkey": view.hotkey,
        "view_age_seconds": seen.at.elapsed().as_secs(),
        "version": env!("CARGO_PKG_VERSION"),
        "openapi": OPENAPI,
    });
    Ok(Json(body).into_response())
}

/// What is taken, and when: in the present Submission phase, or in the next one.
fn uploads(app: &App, seen: &Seen) -> Value {
    let (view, config) = (&seen.view, &app.config);
    let (first, last) = if view.schedule.phase_of(view.block) == Phase::Submission {
        let cycle = view.schedule.cycle_of(view.block);
        view.schedule.phase_range(cycle, Phase::Submission)
    } else {
        let next = view.schedule.next(view.block, Phase::Submission);
        (next.start, next.end)
    };
    let largest = seen
        .manifest
        .as_ref()
        .and_then(|manifest| submission::largest_file(manifest, view.expert_group))
        .map(|largest| largest.min(config.max_upload_bytes));
    json!({
        "first_block": first,
        "last_block": last,
        "largest_file_bytes": largest,
        "body_within_seconds": config.upload_timeout.as_secs_f64(),
        "silent_for_at_most_seconds": config.idle_timeout.as_secs_f64(),
        "file_extensions": admit::EXTENSIONS,
        "in_progress": app.uploads.taken(),
        "at_most_in_progress": config.max_uploads,
        "submit": "/submit-checkpoint",
        "resumable": "/files",
    })
}

/// How often one client may ask, and how old a signed block may be.
fn limits(app: &App, view: &View) -> Value {
    let config = &app.config;
    json!({
        "requests_per_second_and_address": config.requests_per_address.max(1),
        "requests_at_once_per_address": config.burst_per_address.max(1),
        "signed_requests_per_minute_and_hotkey": config.requests_per_hotkey.max(1),
        "signed_requests_at_once_per_hotkey": config.burst_per_hotkey.max(1),
        "oldest_origin_block": signed::origins(view, app).0,
    })
}
