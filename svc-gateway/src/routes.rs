//! Every route, and what lies around all of them: the request's span and metrics, the limit on rate, the
//! token.

use std::net::{IpAddr, Ipv4Addr};

use axum::{
    Router,
    extract::{DefaultBodyLimit, MatchedPath, Request, State},
    http::{Extensions, HeaderMap},
    middleware::{Next, from_fn_with_state},
    response::Response,
    routing::{MethodRouter, get, post},
};
use tokio::time::Instant;
use tracing::{Instrument as _, info, info_span};

use crate::{
    app::App,
    auth, download,
    error::{Error, Reason},
    http::Peer,
    metrics, openapi, phase, receipt, status, tus, upload,
};

/// A path, and what answers there.
type Route = (&'static str, MethodRouter<App>);

/// The routes of the protocol, section 8, of the phase API, section 2, and what we add to them. The document
/// at `/openapi.json` has the same ones.
pub(crate) fn table() -> Vec<Route> {
    vec![
        ("/", get(status::index)),
        ("/ping", get(status::ping)),
        ("/status", get(status::status)),
        ("/openapi.json", get(openapi::serve)),
        ("/get_phase", get(phase::get_phase)),
        ("/blocks_until_next_phase", get(phase::until_next)),
        ("/previous_phase_blocks", get(phase::previous)),
        ("/get_validator_whitelist", get(phase::whitelist)),
        ("/get_init_peer_id", get(phase::init_peers)),
        ("/get-checkpoint", get(download::by_form)),
        ("/get-checkpoint/{name}", get(download::by_name)),
        ("/model/get-checkpoint", get(download::by_form)),
        ("/model/get-checkpoint/{name}", get(download::by_name)),
        ("/model/partial", get(download::by_form)),
        ("/model/partial/{name}", get(download::by_name)),
        ("/submit-checkpoint", post(upload::submit)),
        ("/submit", post(upload::submit)),
        ("/files", post(tus::create).options(tus::options)),
        (
            "/files/{id}",
            get(tus::look)
                .patch(tus::patch)
                .delete(tus::delete)
                .post(tus::overridden)
                .options(tus::options),
        ),
        ("/submissions/{round}/{hotkey}", get(receipt::get)),
    ]
}

/// All of it.
pub(crate) fn router(app: App) -> Router {
    let routes = table();
    let routes = routes
        .into_iter()
        .fold(Router::new(), |router, (path, methods)| router.route(path, methods));
    routes
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
    let client = client_address(&app, request.extensions(), request.headers());
    app.limits.address(client)?;
    let _counted = app.limits.under_way(client)?;
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
        client.address = %client_address(&app, request.extensions(), request.headers()),
    );
    let response = next.run(request).instrument(span.clone()).await;
    let status = response.status();
    span.record("http.response.status_code", status.as_u16());
    if let Some(Reason(reason)) = response.extensions().get() {
        info!(parent: &span, %status, reason, "refused");
        metrics::refusal(route.clone(), reason);
    }
    metrics::request(route, status, begin.elapsed());
    response
}

/// Who asks: the connection's address, or what a trusted proxy says of it.
pub(crate) fn client_address(app: &App, extensions: &Extensions, headers: &HeaderMap) -> IpAddr {
    let Peer(peer) = extensions.get().copied().unwrap_or(Peer(IpAddr::V4(Ipv4Addr::UNSPECIFIED)));
    let header = app.config.client_address_header.as_str();
    if header.is_empty() { peer } else { forwarded(headers, header).unwrap_or(peer) }
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
