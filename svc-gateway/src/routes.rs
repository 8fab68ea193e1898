//! Every route, and what lies around all of them: the request's span and metrics, the limit on rate, the
//! token.

use std::net::{IpAddr, Ipv4Addr};

use axum::{
    Router,
    extract::{DefaultBodyLimit, MatchedPath, Request, State},
    http::HeaderMap,
    middleware::{Next, from_fn_with_state},
    response::Response,
    routing::{get, post},
};
use tokio::time::Instant;
use tracing::{Instrument as _, info, info_span};

use crate::{
    app::App,
    auth, download,
    error::{Error, Reason},
    http::Peer,
    metrics, phase, status, tus, upload,
};

/// The routes of the protocol, section 8, and of the phase API, section 2.
pub(crate) fn router(app: App) -> Router {
    Router::new()
        .route("/", get(status::index))
        .route("/ping", get(status::ping))
        .route("/status", get(status::status))
        .route("/get_phase", get(phase::get_phase))
        .route("/blocks_until_next_phase", get(phase::until_next))
        .route("/previous_phase_blocks", get(phase::previous))
        .route("/get_validator_whitelist", get(phase::whitelist))
        .route("/get_init_peer_id", get(phase::init_peers))
        .route("/get-checkpoint", get(download::by_form))
        .route("/get-checkpoint/{name}", get(download::by_name))
        .route("/model/get-checkpoint", get(download::by_form))
        .route("/model/get-checkpoint/{name}", get(download::by_name))
        .route("/model/partial", get(download::by_form))
        .route("/model/partial/{name}", get(download::by_name))
        .route("/submit-checkpoint", post(upload::submit))
        .route("/submit", post(upload::submit))
        .route("/files", post(tus::create).options(tus::options))
        .route("/files/{id}", get(tus::look).patch(tus::patch).delete(tus::delete))
        .route("/files/{id}", post(tus::overridden).options(tus::options))
        .fallback(async || Error::NoRoute)
        .method_not_allowed_fallback(async || Error::NoMethod)
        // Bodies have limits of their own, where they are read.
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn_with_state(app.clone(), admit))
        .layer(from_fn_with_state(app.clone(), tus::speak))
        .layer(from_fn_with_state(app.clone(), observe))
        .with_state(app)
}

/// Lets a request in that is not one too many, and that carries the token.
async fn admit(State(app): State<App>, request: Request, next: Next) -> Result<Response, Error> {
    app.limits.address(client_address(&app, &request))?;
    auth::check_token(app.config.auth_token.as_ref(), request.headers())?;
    Ok(next.run(request).await)
}

/// A span and metrics for every request; a log line for those that did not go well.
async fn observe(State(app): State<App>, request: Request, next: Next) -> Response {
    let begin = Instant::now();
    let route =
        request.extensions().get::<MatchedPath>().map_or("unknown", MatchedPath::as_str).to_owned();
    let span = info_span!(
        "http",
        http.request.method = %request.method(),
        http.route = %route,
        http.response.status_code = tracing::field::Empty,
        client.address = %client_address(&app, &request),
    );
    let response = next.run(request).instrument(span.clone()).await;
    let status = response.status();
    span.record("http.response.status_code", status.as_u16());
    if let Some(Reason(reason)) = response.extensions().get() {
        info!(parent: &span, %status, reason, "refused");
    }
    metrics::request(route, status, begin.elapsed());
    response
}

/// Who asks: the connection's address, or what a trusted proxy says of it.
fn client_address(app: &App, request: &Request) -> IpAddr {
    let Peer(peer) =
        request.extensions().get().copied().unwrap_or(Peer(IpAddr::V4(Ipv4Addr::UNSPECIFIED)));
    let header = app.config.client_address_header.as_str();
    if header.is_empty() { peer } else { forwarded(request.headers(), header).unwrap_or(peer) }
}

/// The last address of a list that proxies append to: the only one that our own proxy wrote.
fn forwarded(headers: &HeaderMap, name: &str) -> Option<IpAddr> {
    let value = headers.get_all(name).iter().next_back()?.to_str().ok()?;
    value.rsplit(',').next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_addresses_that_proxies_name_only_the_last_is_believed() {
        let mut headers = HeaderMap::new();
        headers.append("x-forwarded-for", "1.1.1.1, 2.2.2.2".parse().unwrap());
        headers.append("x-forwarded-for", "3.3.3.3, 4.4.4.4".parse().unwrap());
        assert_eq!(forwarded(&headers, "x-forwarded-for"), Some([4, 4, 4, 4].into()));
        assert_eq!(forwarded(&headers, "x-real-ip"), None);
    }
}
