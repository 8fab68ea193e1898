//! The phase API of the subnet, from the block number alone (protocol, section 2).

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};

use crate::{app::App, error::Error};

/// `GET /get_phase`: where the newest block stands.
pub(crate) async fn get_phase(State(app): State<App>) -> Result<Response, Error> {
    let seen = app.latest.any()?;
    Ok(Json(seen.view.schedule.phase_at(seen.view.block)).into_response())
}

/// `GET /blocks_until_next_phase`: per phase `[start, end, blocks until]` of its next occurrence.
pub(crate) async fn until_next(State(app): State<App>) -> Result<Response, Error> {
    let seen = app.latest.any()?;
    Ok(Json(seen.view.schedule.until_next(seen.view.block)).into_response())
}

/// `GET /previous_phase_blocks`: per phase `[start, end]` of its latest occurrence.
pub(crate) async fn previous(State(app): State<App>) -> Result<Response, Error> {
    let seen = app.latest.any()?;
    Ok(Json(seen.view.schedule.previous_all(seen.view.block)).into_response())
}

/// `GET /get_validator_whitelist`: the hotkeys that count as validators.
pub(crate) async fn whitelist(State(app): State<App>) -> Result<Response, Error> {
    let seen = app.latest.any()?;
    Ok(Json(&seen.view.validators).into_response())
}

/// `GET /get_init_peer_id`: where to find this validator's peers.
pub(crate) async fn init_peers(State(app): State<App>) -> Json<Vec<String>> {
    let config = &app.config;
    let advertised = &config.advertised_peer_url;
    Json(if !config.init_peer_ids.is_empty() {
        config.init_peer_ids.clone()
    } else if advertised.is_empty() {
        Vec::new()
    } else {
        vec![advertised.clone()]
    })
}
